"""The figure of pairs: each query beside its nearest picture, with the map of either for the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.text import Text

import xattn
from xattn.birds import export_individuals
from xattn.data.images import ImageSource
from xattn.errors import InputError
from xattn.figures import figure
from xattn.figures.run_data import read_runs

METHODS = ["grad-cam", "random"]


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_individuals(tmp_path_factory.mktemp("birds") / "market", train=1, test=2, cameras=2, each=2, distractors=1, junk=1)


@pytest.fixture(scope="module")
def run(market: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    classifiers = [xattn.load(f"birds:{name}", device="cpu", input_size=(64, 32), resize=(64, 32)) for name in ("br-npa", "gap")]
    query, gallery = f"market:{market}:query", f"market:{market}:gallery"
    xattn.Study(classifiers, METHODS, ["sparsity"], query, out, gallery=gallery, workers=0, progress=False).run()
    return out


def test_both_pictures_of_each_pair_are_shown_with_their_maps_and_cosine(run: Path, market: Path) -> None:
    shown = read_runs([run], None, None)
    queries = {image.name for image in ImageSource(f"market:{market}:query").images}
    assert {key[0] for key in shown.nearest} == queries
    drawn = "".join("".join(text.get_text() for text in figure([run], kind="pairs").findobj(Text)).split())  # lines are wrapped
    for (query, model, head), (nearest, cosine) in shown.nearest.items():
        assert query in drawn
        assert f"{nearest},cosine{cosine:.2f}" in drawn
        for image, other in ((query, nearest), (nearest, query)):
            assert (image, other, model, head, "grad-cam") in shown.pair_maps
            assert (image, model, head) in shown.crops
            assert ((image, model, head) in shown.ranked) == (head == "br-npa")
    assert "maps123" in drawn
    assert "random" not in drawn


def test_the_gallery_picture_s_map_is_that_for_the_query(run: Path) -> None:
    shown = read_runs([run], None, None)
    (query, model, head), (nearest, cosine) = next(iter(shown.nearest.items()))
    classifier = xattn.load(model, device="cpu", input_size=(64, 32), resize=(64, 32))
    images = [torch.tensor(shown.crops[name, model, head])[None] / 255 for name in (query, nearest)]
    maps = xattn.explain(classifier, images[1], ["grad-cam"], target=xattn.Similarity(classifier.predict(images[0])))
    assert float(maps.target.score(maps.output)) == pytest.approx(cosine, abs=1e-5)
    found = torch.from_numpy(shown.pair_maps[nearest, query, model, head, "grad-cam"].raw)
    torch.testing.assert_close(found, maps.raw["grad-cam"][0], rtol=2e-3, atol=2e-3 * float(maps.raw["grad-cam"].abs().max()))


def test_runs_without_pairs_are_refused(market: Path, tmp_path: Path) -> None:
    classifier = xattn.load("birds:gap", device="cpu", input_size=(64, 32), resize=(64, 32))
    xattn.Study([classifier], ["random"], ["sparsity"], f"market:{market}:query", tmp_path / "run", workers=0, progress=False).run()
    with pytest.raises(InputError, match="give a run of explain --gallery"):
        figure([tmp_path / "run"], kind="pairs")
