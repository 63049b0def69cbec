"""`raw-attention:rank=…`: one map of a head with ranks, against BR-NPA's greedy ranking written out."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import xattn
from tests import networks
from xattn.errors import SettingError, UnsupportedError
from xattn.metrics import sparsity
from xattn.models import Classifier
from xattn.study import Store, Study


def attached(head: str) -> Classifier:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fresh classifier
        clf = xattn.attach(networks.small().double(), head=head, input_size=32, resize=36, name="tiny").eval()
    clf.trained = True
    return clf


def ranked(features: Tensor, n: int) -> list[Tensor]:
    """The maps times the norm of one image's features `(C, h, w)`, strongest vector first, number by number."""
    channels, height, width = features.shape
    cells = [[float(features[c, y, x]) for c in range(channels)] for y in range(height) for x in range(width)]
    norms = [sum(value * value for value in cell) ** 0.5 for cell in cells]
    left, found = list(norms), []
    for _ in range(n):
        best = left.index(max(left))
        alike = []
        for cell, norm in zip(cells, norms, strict=True):
            product = sum(a * b for a, b in zip(cell, cells[best], strict=True))
            alike.append(max(0.0, product / (norm * norms[best])) if norm * norms[best] else 0.0)
        left = [activation * (1 - s) for activation, s in zip(left, alike, strict=True)]
        shown = [s / sum(alike) * norm for s, norm in zip(alike, norms, strict=True)]
        found.append(torch.tensor(shown, dtype=torch.float64).view(height, width))
    return found


def test_each_rank_is_that_of_the_greedy_ranking_written_out(images: Tensor) -> None:
    clf, some = attached("br-npa:n=3"), images[:3].double()
    maps = xattn.explain(clf, some, [f"raw-attention:rank={rank}" for rank in (1, 2, 3)])
    for i, features in enumerate(clf.features(some)["3"]):
        for rank, expected in enumerate(ranked(features.detach(), 3), start=1):
            torch.testing.assert_close(maps.raw[f"raw-attention:rank={rank}"][i], expected, rtol=1e-9, atol=1e-12)


def test_the_mean_is_the_default_and_the_mean_of_the_ranks_and_the_one_rank_of_one_map_is_it(images: Tensor) -> None:
    clf, some = attached("br-npa:n=4"), images[:2].double()
    maps = xattn.explain(clf, some, ["raw-attention", "raw-attention:rank=mean", *(f"raw-attention:rank={k}" for k in range(1, 5))])
    assert list(maps) == ["raw-attention", *(f"raw-attention:rank={k}" for k in range(1, 5))]  # the mean is one column, not two
    several = torch.stack([maps.raw[f"raw-attention:rank={k}"] for k in range(1, 5)])
    torch.testing.assert_close(maps.raw["raw-attention"], several.mean(dim=0))
    assert not torch.allclose(several[0], several[1])
    one = xattn.explain(attached("br-npa:n=1"), some, ["raw-attention", "raw-attention:rank=1"])
    assert torch.equal(one.raw["raw-attention"], one.raw["raw-attention:rank=1"])


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("br-npa:n=3", r"rank=4 on tiny · br-npa: it has 3 ranked maps: give rank=1 to rank=3"),
        ("br-npa:n=1", r"it has 1 ranked maps?: give rank=1, or leave it out"),
        ("br-npa:selection=random", "its maps have no ranks"),
        ("b-cnn", r"tiny · b-cnn: its maps have no ranks \(those of br-npa have\): leave rank out"),
        ("ca-stream", "its maps have no ranks"),
        ("gap", "gap has none"),
    ],
)
def test_a_rank_that_a_head_does_not_have_is_refused_with_what_it_has(head: str, said: str, images: Tensor) -> None:
    with pytest.raises(UnsupportedError, match=said):
        xattn.explain(attached(head), images[:1].double(), ["raw-attention:rank=4"])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("raw-attention:rank=0", "ranks are counted from 1"),
        ("raw-attention:rank=-2", "ranks are counted from 1"),
        ("raw-attention:rank=first", r"rank=int\|mean; got 'first'"),
        ("raw-attention:rank=1,step=2", "give only one of them"),
    ],
)
def test_what_is_no_rank_is_refused_by_name(spec: str, said: str, tiny: Classifier, images: Tensor) -> None:
    with pytest.raises(SettingError, match=said):
        xattn.explain(tiny, images, [spec])


def test_a_run_holds_ranks_of_the_heads_that_have_them_and_their_own_sparsity(folder: Path, tmp_path: Path) -> None:
    ranked_head, without = attached("br-npa"), attached("b-cnn")
    methods, metrics = ["raw-attention", "raw-attention:rank=1"], ["sparsity:definition=released"]
    quiet = {"progress": False, "workers": 0, "tune": "off"}
    Study([ranked_head, without], methods, metrics, folder, tmp_path / "run", **quiet).run()
    store = Store(tmp_path / "run")
    table = store.table()
    assert list(zip(table["head"], table["method"], strict=True)) == [("br-npa", method) for method in methods] + [("b-cnn", methods[0])]
    maps = xattn.explain(ranked_head, folder, methods)
    assert maps.head_maps is not None
    kept = store.maps(["3.png"], None)
    torch.testing.assert_close(
        torch.from_numpy(kept["3.png", "tiny", "br-npa", methods[1]].raw).double(),
        maps.raw[methods[1]][maps.names.index("3.png")],
        rtol=2e-3,
        atol=1e-6,
    )
    rows = store.rows().query("method == 'raw-attention:rank=1'").set_index("image")["value"]
    expected = sparsity(maps.head_maps.weighted[:, :1], definition="released")
    torch.testing.assert_close(torch.tensor(rows[list(maps.names)].to_list(), dtype=torch.float64), expected, rtol=1e-4, atol=0)
    with pytest.raises(UnsupportedError, match=r"raw-attention:rank=4 on tiny · br-npa: it has 3 ranked maps"):
        Study([ranked_head], ["raw-attention:rank=4"], metrics, folder, tmp_path / "more", **quiet)
