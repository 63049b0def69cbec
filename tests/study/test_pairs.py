"""Runs over pairs of a query and its nearest picture in a gallery."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import xattn
from xattn.birds import export_individuals
from xattn.cli import main
from xattn.data.images import ImageSource
from xattn.data.market import sighting_of
from xattn.errors import InputError, RunError, UnsupportedError
from xattn.models.classifier import Classifier
from xattn.study.store import Store

METHODS = ["grad-cam", "occlusion:window=16,response=score"]
METRICS = ["sparsity"]


class Embedding(nn.Module):
    """Vectors of 6 values."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = nn.Sequential(nn.Conv2d(3, 12, 5, 4), nn.ReLU())
            self.project = nn.Linear(12, 6)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.features(images).mean(dim=(2, 3)))


def embedding(seed: int = 0, name: str = "embedding") -> Classifier:
    return xattn.attach(Embedding(seed), name=name, input_size=(64, 32), resize=(64, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


def study(out: Path, queries: object, gallery: object, *classifiers: Classifier, **options: object) -> xattn.Study:
    given = {"methods": METHODS, "metrics": METRICS, "progress": False, "workers": 0, **options}
    return xattn.Study(list(classifiers) or [embedding()], images=queries, gallery=gallery, out=out, **given)


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_individuals(tmp_path_factory.mktemp("birds") / "market", train=1, test=3, cameras=2, each=2, distractors=3, junk=2)


@pytest.fixture(scope="module")
def run(market: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert study(out, f"market:{market}:query", f"market:{market}:gallery").run().failed == []
    return out


def vectors_of(source: ImageSource, classifier: Classifier) -> dict[str, Tensor]:
    return {image.name: classifier.predict(source.decode(image, classifier.preprocessing)[1][None] / 255)[0] for image in source.images}


def nearest_by_loops(market: Path) -> dict[str, str]:
    """The nearest picture by the rules of Market-1501, one pair after the other."""
    query, gallery = (vectors_of(ImageSource(f"market:{market}:{split}"), embedding()) for split in ("query", "gallery"))
    found = {}
    for name, vector in query.items():
        best = -2.0
        for other, theirs in gallery.items():
            identity, camera = sighting_of(other)
            if identity == -1 or (identity, camera) == tuple(sighting_of(name)):
                continue
            cosine = float(cosine_similarity(vector, theirs, dim=0))
            if cosine > best:
                best, found[name] = cosine, other
    return found


def test_each_query_is_explained_with_its_nearest_picture_and_that_with_the_query(market: Path, run: Path) -> None:
    nearest = nearest_by_loops(market)
    kept = json.loads((run / "run.json").read_text())["pairs"]["embedding · gap"]
    assert {query: other for query, (other, _) in kept.items()} == nearest
    rows = pd.read_csv(run / "scores.csv")
    expected = {(query, other) for query, other in nearest.items()} | {(other, query) for query, other in nearest.items()}
    for _, group in rows.groupby("method"):
        assert set(zip(group["image"], group["target"], strict=True)) == expected
        assert len(group) == len(expected)
    assert set(rows["target_rule"]) == {"pairs"}
    assert rows["probability"].isna().all()


def test_the_maps_are_those_of_explain_for_the_cosine_with_the_other_picture(market: Path, run: Path) -> None:
    classifier = embedding()
    source = ImageSource([f"market:{market}:query", f"market:{market}:gallery"])
    crops = {image.name: source.decode(image, classifier.preprocessing)[1][None] / 255 for image in source.images}
    (query, other) = next(iter(nearest_by_loops(market).items()))
    stored = Store(run).maps_by_target([query, other])
    for image, target in ((query, other), (other, query)):
        maps = xattn.explain(classifier, crops[image], METHODS, target=xattn.Similarity(classifier.predict(crops[target])))
        for method in METHODS:
            found = torch.from_numpy(stored[image, target, "embedding", "gap", method].raw)
            assert found.shape == maps.raw[method].shape[1:]
            torch.testing.assert_close(found, maps.raw[method][0], rtol=2e-3, atol=2e-3 * float(maps.raw[method].abs().max()))
    assert float(maps.target.score(maps.output)) == pytest.approx(
        float(cosine_similarity(*map(classifier.predict, (crops[query], crops[other]))))
    )


def test_a_run_of_pairs_goes_on_and_takes_more_methods(market: Path, run: Path) -> None:
    before = {path.name: path.read_bytes() for path in (run / "parts").iterdir()}
    min((run / "parts").iterdir()).unlink()
    again = study(run, f"market:{market}:query", f"market:{market}:gallery")
    again.run()
    assert {path.name: path.read_bytes() for path in (run / "parts").iterdir()} == before
    study(run, f"market:{market}:query", f"market:{market}:gallery", methods=["random"]).run()
    assert set(Store(run).rows()["method"]) == {*METHODS, "random"}
    with pytest.raises(RunError, match="target.gallery was"):
        study(run, f"market:{market}:query", [f"market:{market}:gallery", f"market:{market}:train"]).run()


def folder(root: Path, colours: dict[str, tuple[int, int, int]]) -> Path:
    root.mkdir(exist_ok=True)
    for name, colour in colours.items():
        Image.new("RGB", (32, 64), colour).save(root / name)
    return root


def test_folders_are_compared_without_rules_and_a_query_never_with_itself(tmp_path: Path) -> None:
    place = folder(tmp_path / "all", {"a.png": (200, 10, 10), "b.png": (190, 10, 10), "c.png": (10, 10, 200), "d.png": (10, 20, 190)})
    found = study(tmp_path / "run", place, str(place))
    nearest = found.plan.target.nearest["embedding · gap"]
    assert {query: other for query, (other, _) in nearest.items()} == {
        "a.png": "b.png",
        "b.png": "a.png",
        "c.png": "d.png",
        "d.png": "c.png",
    }
    found.run()
    assert len(found.scores()) == 4 * len(METHODS)
    other = folder(tmp_path / "gallery", {"a.png": (10, 10, 200), "z.png": (200, 200, 10)})
    named = study(tmp_path / "two", place, other)
    assert {image.name for image in named.images} >= {"all/a.png", "gallery/a.png"}
    assert named.plan.target.nearest["embedding · gap"]["all/c.png"][0] == "gallery/a.png"


def test_several_networks_have_pairs_of_their_own_and_the_run_is_complete(market: Path, tmp_path: Path) -> None:
    both = embedding(), embedding(1, "other")
    first = study(tmp_path, f"market:{market}:query", f"market:{market}:gallery", *both)
    assert first.run().failed == []
    nearest = first.plan.target.nearest
    assert nearest["embedding · gap"] != nearest["other · gap"]
    for name in ("embedding", "other"):
        rows = first.scores()
        own = rows[(rows["model"] == name) & (rows["method"] == "grad-cam")]
        pairs = {(query, other) for query, (other, _) in nearest[f"{name} · gap"].items()}
        assert set(zip(own["image"], own["target"], strict=True)) == pairs | {(other, query) for query, other in pairs}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    study(tmp_path, f"market:{market}:query", f"market:{market}:gallery", *both).run()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()} == times


def test_a_query_that_nothing_may_be_compared_with_has_a_row_that_says_so(tmp_path: Path) -> None:
    root = export_individuals(tmp_path / "market", train=1, test=2, cameras=2, each=2, distractors=0, junk=1)
    for path in (root / "bounding_box_test").glob("0003_*"):
        path.unlink()
    for path in (root / "bounding_box_test").glob("0002_c2*"):
        path.unlink()
    outcome = study(tmp_path / "run", f"market:{root}:query", f"market:{root}:gallery").run()
    assert outcome.failed == [("0002_c1s1_000000_01.jpg", "label: the gallery has no picture that it may be compared with")]
    torn = min((root / "bounding_box_test").glob("0002_*"))
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(InputError, match="none of 2 pictures of the gallery can be compared with a query: give another --gallery"):
        study(tmp_path / "none", f"market:{root}:query", f"market:{root}:gallery")


class _Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.convolution(images)


@pytest.mark.parametrize("metric", ["average-drop", "insertion", "average-increase"])
def test_a_metric_of_a_probability_is_refused_before_any_picture_is_embedded(
    metric: str, market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xattn.study.study.paired", lambda *_, **__: pytest.fail("pictures were embedded"))
    query, gallery = f"market:{market}:query", f"market:{market}:gallery"
    with pytest.raises(UnsupportedError, match=f"{metric} follows the target's probability, and a similarity has none"):
        study(tmp_path / "a", query, gallery, metrics=["sparsity", metric])
    for options, said in (({"target": "predicted"}, "leave target out"), ({"maps": str(tmp_path)}, "a gallery asks for maps of pairs")):
        with pytest.raises(InputError, match=said):
            study(tmp_path / "a", query, gallery, **options)


def test_what_cannot_be_paired_is_refused(market: Path, tmp_path: Path) -> None:
    query, gallery = f"market:{market}:query", f"market:{market}:gallery"
    with pytest.raises(InputError, match="leave target out"):
        study(tmp_path / "a", query, gallery, target="predicted")
    with pytest.raises(InputError, match="pairs need pictures in files"):
        study(tmp_path / "a", torch.utils.data.TensorDataset(torch.rand(2, 3, 64, 32)), gallery)
    with pytest.raises(UnsupportedError, match="insertion follows the target's probability, and a similarity has none"):
        study(tmp_path / "a", query, gallery, metrics=["insertion"])
    with pytest.raises(UnsupportedError, match=r"a gallery is compared by vectors.*gives \(\d+, 4, 62, 30\)"):
        study(tmp_path / "a", query, gallery, xattn.attach(_Maps(), input_size=(64, 32), resize=(64, 32)))


def test_the_command_line_takes_a_gallery(market: Path, tmp_path: Path) -> None:
    (tmp_path / "network.py").write_text("from tests.study.test_pairs import Embedding\n\n\ndef build():\n    return Embedding()\n")
    arguments = ["explain", f"market:{market}:query", "--gallery", f"market:{market}:gallery", "--model", f"{tmp_path}/network.py:build"]
    arguments += ["--input-size", "64,32", "--resize", "64,32", "--method", "grad-cam", "--out", f"{tmp_path}/run", "--workers", "0"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "target: pairs" in result.output
    assert list(pd.read_csv(tmp_path / "run" / "scores.csv")["metric"].unique()) == ["sparsity"]
