"""From what a user asks for to the target of each image."""

from __future__ import annotations

import pytest
import torch

import xattn
from tests import networks
from xattn.errors import InputError, NameUnknownError, UnsupportedError
from xattn.metrics import Similarity
from xattn.metrics.targets import Contrast
from xattn.models import Classifier
from xattn.models.asked_targets import described, target_rule

OUTPUT = torch.tensor([[0.0, 5.0, 1.0, 2.0, 3.0], [9.0, 1.0, 8.0, 0.0, 7.0]])
LABELS = ["cat", "dog", "black-and-tan", "A - B", "x"]


@pytest.fixture
def clf() -> Classifier:
    return xattn.attach(networks.small(), input_size=32, resize=36, name="five", labels=LABELS)


@pytest.mark.parametrize(
    ("asked", "rule", "names"),
    [
        ("predicted", "predicted", ["1", "0"]),
        ("second", "second", ["4", "2"]),
        ("label", "label", ["3", "4"]),
        (2, "given", ["2", "2"]),
        ("2", "given", ["2", "2"]),
        ("dog", "given", ["1", "1"]),
        ("black-and-tan", "given", ["2", "2"]),
        ("A - B", "given", ["3", "3"]),  # a class of that name is meant before a contrast
        ([1, 3], "given", ["1", "3"]),
        (torch.tensor([1, 3]), "given", ["1", "3"]),
        ("predicted - second", "predicted - second", ["1 - 4", "0 - 2"]),
        ("label - predicted", "label - predicted", ["3 - 1", "4 - 0"]),
        ("cat - 0.6*dog", "0 - 0.6*1", ["0 - 0.6*1"] * 2),
        ("cat - 0.5 * black-and-tan - 0.5*x", "0 - 0.5*2 - 0.5*4", ["0 - 0.5*2 - 0.5*4"] * 2),
        ("0 + 1", "0 + 1", ["0 + 1"] * 2),
        ("-1*cat", "- 0", ["- 0"] * 2),
    ],
)
def test_what_is_asked_for_is_one_target_per_image(clf: Classifier, asked: object, rule: str, names: list[str]) -> None:
    found = target_rule(clf, asked)
    assert found.text == rule
    target = found.bind(clf, OUTPUT, [3, 4]).expanded(2)
    assert target.names() == names
    assert target.rule == rule


def test_a_contrast_s_score_is_the_weighted_sum_of_its_logits(clf: Classifier) -> None:
    target = target_rule(clf, "cat - 0.6*dog").bind(clf, OUTPUT, [])
    assert target.score(OUTPUT).tolist() == pytest.approx([0 - 3.0, 9 - 0.6])


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ("cat - 0.6*dgo", NameUnknownError, r"Unknown class 'dgo'. Did you mean 'dog'.* It is a term of 'cat - 0.6\*dgo'."),
        ("cat - 7", InputError, r"class 7 is outside the 5 classes of five"),
        ("predikted", NameUnknownError, "Unknown class 'predikted'"),
        ("cat - 0", InputError, r"target 'cat - 0' is 0 for every output, since its classes cancel out"),
        ("predicted - 1.0*predicted", InputError, "cancel out"),
        ("0.5*cat - dog - 0.5*cat + dog", InputError, "cancel out"),
        ("0*cat", InputError, "cancel out"),
        (Contrast([3, 3], [1.0, -1.0]), InputError, "the contrast 3 - 3 is 0 for every output"),
        (" ", InputError, "the target is an empty text"),
        (b"cat", InputError, "a target is 'predicted', .* got bytes"),
        ("ca\nt", NameUnknownError, r"Unknown class 'ca\\nt'"),
        (3.5, InputError, "a target is 'predicted', 'label', .* got float"),
    ],
)
def test_what_cannot_be_a_target_is_answered_with_what_can(clf: Classifier, asked: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        target_rule(clf, asked)


def test_a_class_is_refused_where_the_network_gives_a_map_of_logits(clf: Classifier) -> None:
    with pytest.raises(UnsupportedError, match="For a map of logits, give 'predicted' or one class"):
        target_rule(clf, "predicted").bind(clf, torch.zeros(1, 5, 4, 4), [])


def test_labels_may_be_several_names(clf: Classifier) -> None:
    assert clf.class_indices("cat|x") == (0, 4)
    assert clf.class_indices("A - B") == (3,)
    assert clf.class_indices([1, "dog"]) == (1,)  # each once
    assert clf.class_indices(2) == (2,)
    with pytest.raises(NameUnknownError, match="Unknown class 'cow'"):
        clf.class_indices("cat|cow")


def test_what_run_json_keeps_tells_targets_apart() -> None:
    a, b = Similarity(torch.ones(3)), Similarity(torch.zeros(3))
    assert described("predicted") == "predicted"
    assert described(a) == described(Similarity(torch.ones(3)))
    assert described(a) != described(b)
    assert described(a)["kind"] == "Similarity"
