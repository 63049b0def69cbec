"""Re-identification: what is scored, against the rules one pair after the other."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.nn.functional import cosine_similarity

import xattn
from xattn.birds import export_individuals
from xattn.cli import main
from xattn.data.images import ImageSource
from xattn.data.market import sighting_of
from xattn.errors import InputError
from xattn.models.classifier import Classifier
from xattn.tasks import tasks
from xattn.tasks.scoring import score
from xattn.training import PRESETS
from xattn.training.fit import default_of
from xattn.training.module import optimiser_of
from xattn.training.streams import parameter_groups


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_individuals(tmp_path_factory.mktemp("birds") / "market", train=2, test=3, cameras=2, each=2, distractors=4, junk=2)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return xattn.load("birds:gap", device="cpu", input_size=(64, 32), resize=(64, 32))


def test_the_score_is_that_of_the_rules_pair_by_pair(market: Path, classifier: Classifier) -> None:
    found = score(classifier, f"market:{market}", task="re-identification", workers=0, progress=False)
    vectors = {}
    for split in ("query", "gallery"):
        source = ImageSource(f"market:{market}:{split}")
        crops = torch.stack([source.decode(image, classifier.preprocessing)[1] for image in source.images]) / 255
        vectors[split] = dict(zip([image.name for image in source.images], classifier.predict(crops), strict=True))
    firsts, precisions = [], []
    for name, vector in vectors["query"].items():
        person, camera = sighting_of(name)
        kept = [
            (float(cosine_similarity(vector, theirs, dim=0)), sighting_of(other)[0] == person)
            for other, theirs in vectors["gallery"].items()
            if sighting_of(other)[0] != -1 and tuple(sighting_of(other)) != (person, camera)
        ]
        hits = [is_match for _, is_match in sorted(kept, reverse=True)]
        firsts.append(hits.index(True) + 1)
        places = [place for place, hit in enumerate(hits, start=1) if hit]
        precisions.append(sum(number / place for number, place in enumerate(places, start=1)) / len(places))
    assert found.n == 6
    for rank in (1, 5, 10):
        assert found.scores[f"rank-{rank}"].mean == pytest.approx(100 * sum(first <= rank for first in firsts) / 6)
    assert found.scores["mAP"].mean == pytest.approx(100 * sum(precisions) / 6, abs=1e-3)
    assert found.scores["mAP"].low < found.scores["mAP"].mean < found.scores["mAP"].high
    assert list(found.scores) == ["rank-1", "rank-5", "rank-10", "mAP"]
    assert found.pictures == len(vectors["query"]) + len(vectors["gallery"])


def test_identities_of_training_are_its_classes_and_the_test_is_not_trained_on(market: Path) -> None:
    task = tasks.create("re-identification").instance
    assert task.open(f"market:{market}").names == ("0001", "0002")
    for split in ("query", "gallery"):
        with pytest.raises(InputError, match=f"{split} holds pictures for scores, to which nothing is fitted: give market:.*:train"):
            task.open(f"market:{market}:{split}")


def test_queries_without_a_match_are_counted_and_persons_of_training_refused(
    market: Path, classifier: Classifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"task": "re-identification", "workers": 0, "progress": False}
    assert score(classifier, f"market:{market}", **options).n == 6
    assert "without a match" not in caplog.text
    root = shutil.copytree(market, tmp_path / "market")
    for path in (root / "bounding_box_test").glob("0004_*"):
        path.unlink()
    assert score(classifier, f"market:{root}", **options).n == 4
    assert re.search(r"query: left out, without a match in the gallery: 2 of 6 queries \(0004_c1s1_\d{6}_\d\d.jpg\)", caplog.text)
    for folder in ("query", "bounding_box_test"):
        path = next((root / folder).glob("0003_*"))
        path.rename(root / folder / "0001_c1s1_000001_00.jpg")
        with pytest.raises(InputError, match=rf"{folder}/0001_c1s1_000001_00.jpg is of identity 0001, which is in bounding_box_train, too"):
            score(classifier, f"market:{root}", **options)
        (root / folder / "0001_c1s1_000001_00.jpg").unlink()


def test_other_places_are_refused(market: Path, classifier: Classifier, tmp_path: Path) -> None:
    for place in (str(market / "query"), f"market:{market}:gallery"):
        with pytest.raises(InputError, match="re-identification is scored on market:ROOT, whose file names give the identity"):
            score(classifier, place, task="re-identification", workers=0, progress=False)


def test_with_flip_a_vector_is_the_sum_of_those_of_the_picture_and_its_mirror_image(market: Path, classifier: Classifier) -> None:
    class Asymmetric(torch.nn.Module):
        """Means of columns: what a picture's mirror image has in the opposite order."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=2).flatten(1)

    clf = xattn.attach(Asymmetric(), input_size=(64, 32), resize=(64, 32), name="columns")
    found = score(clf, f"market:{market}", task="re-identification:flip=true", workers=0, progress=False)

    class Summed(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            columns = images.mean(dim=2)
            return (columns + columns.flip(2)).flatten(1)

    other = xattn.attach(Summed(), input_size=(64, 32), resize=(64, 32), name="columns")
    assert found.scores == score(other, f"market:{market}", task="re-identification", workers=0, progress=False).scores


@pytest.mark.parametrize("model", ["birds:gap", "rga:birds:gap:height=64,width=32"])
def test_on_the_command_line_it_is_trained_by_its_own_preset_and_head_and_scored(market: Path, tmp_path: Path, model: str) -> None:
    out = str(tmp_path / "person.safetensors")
    shape = ["--model", model, "--high-res", "layer4", "--input-size", "64,32", "--resize", "64,32"]
    task = ["--task", "re-identification", "--data", f"market:{market}", "--workers", "0"]
    done = CliRunner().invoke(main, ["train", *shape, *task, "--epochs", "1", "--accelerator", "cpu", "--out", out])
    assert done.exit_code == 0, done.output
    assert "dg-net · 2 classes · cpu: head and network" in done.stderr
    stored = json.loads((tmp_path / "person.training" / "training.json").read_text())["recipe"]
    assert stored == PRESETS["re-identification"].with_(epochs=1).to_json()
    wanted = {"optimiser": "sgd", "lr": 0.002, "head_lr": 0.02, "schedule": "step", "factor": 0.1, "erasing": 0.5, "smallest_crop": None}
    assert wanted.items() <= stored.items()
    scored = CliRunner().invoke(main, ["evaluate", out, "--output", "vectors", *task, "--device", "cpu"])
    assert scored.exit_code == 0, scored.output
    assert all(name in scored.stdout for name in ("rank-1 ", "rank-5 ", "rank-10 ", "mAP "))


def test_the_preset_is_the_default_in_python_too_and_the_blocks_learn_ten_times_as_fast(classifier: Classifier) -> None:
    assert default_of(classifier, tasks.create("re-identification").metadata) == "re-identification"
    assert default_of(classifier, tasks.create("classification").metadata) == "full"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the blocks are new
        person = xattn.load("birds:gap", head="dg-net:width=8", classes=2, input_size=(64, 32), resize=(64, 32), device="cpu")
    preset, parameters = PRESETS["re-identification"], list(person.parameters())
    optimiser = optimiser_of(preset, parameter_groups(person, preset, parameters))
    rates = {parameter: group["lr"] for group in optimiser.param_groups for parameter in group["params"]}
    assert {rates[parameter] for parameter in person.network.parameters()} == {0.002}
    assert {rates[parameter] for parameter in person.head.parameters()} == {0.02}
    assert len(rates) == len(parameters)
