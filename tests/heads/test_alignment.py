"""Heads with other alignments and distributions than the papers': put on, saved, trained and explained like any other."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.attention import alignments
from xattn.errors import InputError, NameUnknownError, SettingError, WeightsError
from xattn.heads import CAStream, CAStreamHead, SimPool, SimPoolHead

SPECS = [f"{name}{',distribution=sum' if entry.metadata.kernel else ''}" for name, entry in alignments.entries.items()]
SPECS += ["generalised-kernel:random_features=8,distribution=sum", "additive:hidden=5", "dot,distribution=sparsemax"]


def made(head: str, size: int = 32) -> xattn.Classifier:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return xattn.attach(networks.small(), head=head, input_size=size, resize=size + 4)


@pytest.mark.parametrize("head", ["ca-stream", "simpool"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_head_takes_every_alignment(head: str, spec: str, images: Tensor) -> None:
    clf = made(f"{head}:align={spec}")
    assert clf.head_name == (f"{head}:align={spec}" if spec != "scaled-dot" else head)
    attended = clf.run(images)
    maps = attended.attention[clf.stages[-1].name]
    assert (maps >= 0).all()
    assert torch.allclose(maps.sum(dim=(2, 3)), torch.ones(len(images), 1))
    alone = torch.cat([clf.run(image[None]).output for image in images])
    assert torch.allclose(attended.output, alone, atol=1e-5)
    gradients = torch.autograd.grad(attended.output.sum(), list(clf.head.parameters()), allow_unused=True)
    assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)


def test_the_default_has_the_weights_and_keys_that_it_had() -> None:
    for head in (CAStreamHead([4, 6, 6]), CAStreamHead([4, 6, 6], settings=CAStream(align="dot", distribution="sparsemax"))):
        assert set(head.state_dict()) == {"query", *(f"project.{n}.{kind}" for n in range(3) for kind in ("weight", "bias"))}
    assert set(SimPoolHead(4).state_dict()) == {"norm.weight", "norm.bias", "query.weight", "key.weight"}
    torch.manual_seed(0)
    before = torch.randn(1, 4) + 1
    torch.manual_seed(0)
    assert torch.equal(CAStreamHead([4, 6], settings=CAStream(align="additive")).query, before)


@torch.no_grad()
def test_a_stream_with_an_alignment_of_networks_is_its_formula() -> None:
    torch.manual_seed(0)
    head = CAStreamHead([4, 6], settings=CAStream(align="additive:hidden=5", distribution="sparsemax")).double()
    given = [torch.randn((2, c, s, s), dtype=torch.float64) for c, s in ((4, 4), (6, 2))]
    found = head(given)
    for b in range(2):
        q = head.query[0]
        for number, features in enumerate(given):
            own, rows = head.align[number], features[b].flatten(1).T
            scores = torch.stack([own.score.weight[0] @ torch.tanh(own.query.weight @ q + own.key(k)) for k in rows])
            ordered = scores.sort(descending=True).values
            support = max(k for k in range(1, len(ordered) + 1) if 1 + k * ordered[k - 1] > ordered[:k].sum())
            alpha = (scores - (ordered[:support].sum() - 1) / support).clamp(min=0)
            q = head.project[number](sum(weight * value for weight, value in zip(alpha, rows, strict=True)))
        assert torch.allclose(found[b], q, atol=1e-12)


def test_simpool_s_query_and_keys_enter_the_alignment() -> None:
    torch.manual_seed(0)
    head, features = SimPoolHead(6, SimPool(gamma=None, align="general")), torch.randn(2, 6, 3, 4)
    with torch.no_grad():
        head.align.weight.copy_(torch.eye(6) / math.sqrt(6))
    plain = SimPoolHead(6, SimPool(gamma=None))
    plain.load_state_dict({key: value for key, value in head.state_dict().items() if not key.startswith("align")})
    assert torch.allclose(head(features), plain(features), atol=1e-6)


@pytest.mark.parametrize("head", ["ca-stream", "simpool", "abmilp", "ep:queries=4", "map:heads=4"])
def test_sparse_attention_has_zeros_which_raw_attention_and_sparsity_show(head: str, images: Tensor) -> None:
    plain, sparse = made(head), made(f"{head}{',' if ':' in head else ':'}distribution=sparsemax")
    for classifier in (plain, sparse):
        with torch.no_grad():
            for name, parameter in classifier.head.named_parameters():
                if name.startswith(("quer", "latent", "score", "project")):
                    parameter.mul_(20)
    stage = sparse.stages[-1].name
    maps, zeros = sparse.run(images).attention[stage], plain.run(images).attention[stage]
    assert (maps == 0).any()
    assert torch.allclose(maps.sum(dim=(2, 3)), torch.ones(maps.shape[:2]))
    assert not (zeros == 0).any()
    shown = xattn.explain(sparse, images, ["raw-attention"], untrained=True).raw["raw-attention"]
    assert torch.allclose(shown, maps.mean(dim=1))
    expected = shown.flatten(1).amax(dim=1) / shown.flatten(1).mean(dim=1)
    assert torch.allclose(xattn.metrics.sparsity(shown).float(), expected)


def test_a_head_is_saved_with_its_alignment_and_loads_with_the_same_numbers(images: Tensor, tmp_path: Path) -> None:
    for spec in ("additive:hidden=5,distribution=entmax15", "generalised-kernel:random_features=8,distribution=sum"):
        torch.manual_seed(0)
        clf = xattn.load("birds:gap", head=f"ca-stream:align={spec}")
        clf.trained = True
        clf.save(tmp_path / "head.safetensors")
        again = xattn.load(str(tmp_path / "head.safetensors"))
        assert again.head_name == f"ca-stream:align={spec}"
        assert torch.equal(again.predict(images), clf.predict(images))


def test_location_based_takes_the_size_that_it_was_built_for(tmp_path: Path) -> None:
    clf = xattn.load("birds:gap", head="ca-stream:align=location-based")
    sizes = [stage.size for stage in clf.attachment.stages]
    assert [linear.weight.shape[0] for linear in (each.linear for each in clf.head.align)] == [h * w for h, w in sizes]
    with pytest.raises(InputError, match=r"weights for each of \d+ positions; got a map of \d+. Give images of the size"):
        clf.predict(torch.rand(1, 3, 96, 96))
    clf.save(tmp_path / "head.safetensors")
    with pytest.raises(WeightsError, match="Its alignment location-based has weights for each position: load it at the input size"):
        xattn.load(str(tmp_path / "head.safetensors"), input_size=32, resize=32)
    with pytest.raises(WeightsError, match=r"shapes differ .*Its alignment location-based"):
        xattn.load("birds:gap", head="ca-stream:align=location-based", high_res=["layer4"]).start_from(clf)


def test_other_alignments_take_maps_of_any_size() -> None:
    clf = made("ca-stream:align=additive")
    assert clf.predict(torch.rand(1, 3, 64, 64)).shape == clf.predict(torch.rand(1, 3, 32, 32)).shape


def test_wrong_names_and_pairs_say_what_is_meant() -> None:
    for head, error, message in (
        ("ca-stream:align=aditive", NameUnknownError, "Unknown alignment 'aditive'. Did you mean 'additive'?"),
        ("simpool:distribution=sparsemx", NameUnknownError, "Unknown distribution 'sparsemx'. Did you mean 'sparsemax'?"),
        ("ca-stream:align=additive:hiden=4", NameUnknownError, "Unknown setting of alignment 'additive' 'hiden'. Did you mean 'hidden'?"),
        ("ca-stream:align=generalised-kernel", SettingError, "distribution=softmax does not fit the values of a kernel.*=sum"),
        ("ca-stream:distribution=sum", SettingError, "as align=scaled-dot gives them. Write distribution=entmax15 or"),
        ("abmilp:distribution=sum", SettingError, "as this head gives them"),
        ("map:align=dot", NameUnknownError, "Unknown setting of head 'map' 'align'"),
    ):
        with pytest.raises(error, match=message):
            made(head)


def test_an_alignment_without_weights_adds_none() -> None:
    plain = sum(p.numel() for p in CAStreamHead([4, 6]).parameters())
    assert sum(p.numel() for p in CAStreamHead([4, 6], settings=CAStream(align="dot")).parameters()) == plain
    head = CAStreamHead([4, 6], settings=CAStream(align="general"))
    assert sum(p.numel() for p in head.parameters()) == plain + 4 * 4 + 6 * 6
    assert isinstance(head.align, nn.ModuleList)
