"""One classifier explained by several threads at a time, as a web page or a notebook's executor does."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests import networks
from tests.own_methods import OF_ANY_HEAD
from xattn.models import Classifier

THREADS = 4


def at_once(calls) -> list:
    """What calls give that begin at the same time, each in a thread of its own."""
    gate = threading.Barrier(THREADS)

    def begin(call):
        gate.wait(timeout=60)
        return call()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, calls))


@pytest.mark.parametrize("spec", OF_ANY_HEAD)
def test_four_threads_get_the_maps_of_one(tiny: Classifier, spec: str) -> None:
    """Each thread has images of its own, so that another's features would be seen."""
    batches = [networks.pictures(3, seed=number) for number in range(THREADS)]
    expected = [xattn.explain(tiny, batch, [spec]).raw[spec] for batch in batches]
    for _ in range(10):
        found = at_once([lambda batch=batch: xattn.explain(tiny, batch, [spec]).raw[spec] for batch in batches])
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("head", ["ca-stream", "br-npa", "b-cnn"])
def test_four_threads_get_a_head_s_attention(head: str) -> None:
    clf = xattn.attach(networks.small(), head=head, input_size=32, resize=36)
    clf.trained = True
    batches = [networks.pictures(3, seed=number) for number in range(THREADS)]
    expected = [xattn.explain(clf, batch, ["raw-attention"]).raw["raw-attention"] for batch in batches]
    for _ in range(10):
        found = at_once([lambda batch=batch: xattn.explain(clf, batch, ["raw-attention"]).raw["raw-attention"] for batch in batches])
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_other_libraries_take_turns_with_everything_else_and_give_the_process_back(tiny: Classifier) -> None:
    specs = ["grad-cam:AblationCAM", "captum:NoiseTunnel", "captum:LayerGradCam", "score-cam"]
    images = networks.pictures(2)
    expected = [xattn.explain(tiny, images, [spec]).raw[spec] for spec in specs]
    streams = sys.stdout, sys.stderr
    for _ in range(5):
        found = at_once([lambda spec=spec: xattn.explain(tiny, images, [spec]).raw[spec] for spec in specs])
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    assert (sys.stdout, sys.stderr) == streams
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in tiny.modules())


def test_what_a_thread_prints_is_printed_while_another_runs_a_library(tiny: Classifier, capsys: pytest.CaptureFixture[str]) -> None:
    inside, printed, stream = threading.Event(), threading.Event(), sys.stdout

    def wait(*_: object) -> None:
        if sys.stdout is not stream:  # the library's own forward, not that of the trace before it
            inside.set()
            printed.wait(timeout=60)

    handle = tiny.network[0].register_forward_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(xattn.explain, tiny, networks.pictures(1), ["captum:Saliency"])
        inside.wait(timeout=60)
        print("from elsewhere")
        printed.set()
        running.result()
    handle.remove()
    assert "from elsewhere" in capsys.readouterr().out


def test_a_network_in_training_mode_is_evaluated_by_all_and_given_back_by_the_last() -> None:
    network = networks.small()
    network[2].train()
    network[3].train()
    clf = xattn.attach(network, input_size=32, resize=36)
    statistics = [buffer.clone() for buffer in network.buffers()]
    images = networks.pictures(3)
    expected = clf.predict(images)
    for found in chain.from_iterable(at_once([lambda: [clf.predict(images) for _ in range(50)]] * THREADS) for _ in range(5)):
        assert all(torch.allclose(logits, expected, atol=1e-6) for logits in found)
    assert [m.training for m in network] == [False, False, True, True, False, False, False]
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), statistics, strict=True))


def test_a_forward_of_the_user_s_own_is_no_part_of_a_trace(tiny: Classifier) -> None:
    """The network is also run outside of xattn, as by a page that serves predictions."""
    images = networks.pictures(3)
    expected = xattn.explain(tiny, images, ["activation-map"]).raw["activation-map"]
    stop = threading.Event()

    def serve(network: nn.Module, other: Tensor) -> None:
        for _ in repeat(None):
            if stop.is_set():
                return
            network(other)

    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve, tiny.network, networks.pictures(5, seed=9))
        try:
            for _ in range(30):
                assert torch.allclose(xattn.explain(tiny, images, ["activation-map"]).raw["activation-map"], expected, atol=1e-6)
        finally:
            stop.set()
        serving.result()
