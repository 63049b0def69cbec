"""ProtoPNet: distances, similarities, loss, push and last layer against slow replicas, and its training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import xattn
from tests.training.conftest import fresh, paint
from xattn.errors import InputError, SettingError
from xattn.heads import ProtoPNet, ProtoPNetHead, heads
from xattn.heads.protopnet import refitted
from xattn.training import Recipe, fit, open_data


def made(classes: int = 3, per_class: int = 2, **settings: float) -> ProtoPNetHead:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ProtoPNetHead(5, classes, ProtoPNet(per_class=per_class, width=4, **settings)).double().eval()  # type: ignore[arg-type]


def features(count: int = 4, seed: int = 0) -> Tensor:
    return 3 * torch.rand(count, 5, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def slow_distances(head: ProtoPNetHead, given: Tensor) -> Tensor:
    z = head.add_on(given)
    found = torch.zeros(len(given), len(head.prototypes), *given.shape[2:], dtype=given.dtype)
    for b in range(len(z)):
        for p, prototype in enumerate(head.prototypes):
            for y in range(z.shape[2]):
                for x in range(z.shape[3]):
                    found[b, p, y, x] = sum((z[b, d, y, x] - prototype[d]) ** 2 for d in range(4))
    return found


def test_logits_are_the_last_layer_on_the_similarity_of_the_nearest_position() -> None:
    head, given = made(), features()
    distances = slow_distances(head, given)
    assert torch.allclose(head.distances(head.vectors(given)), distances)
    logits, maps = torch.zeros(4, 3, dtype=torch.float64), []
    for b in range(4):
        for p in range(6):
            smallest = float(distances[b, p].min())
            similar = math.log((smallest + 1) / (smallest + 1e-4))
            for k in range(3):
                logits[b, k] += (1.0 if p // 2 == k else -0.5) * similar
        best = int(logits[b].argmax())
        maps.append(torch.log((distances[b, 2 * best : 2 * best + 2] + 1) / (distances[b, 2 * best : 2 * best + 2] + 1e-4)))
    found = head.attend(given, "at")
    assert torch.allclose(found.output, logits)
    assert torch.allclose(found.attention["at"], torch.stack(maps))
    assert torch.allclose(head.saliency(given, found.attention["at"]), torch.stack(maps).mean(dim=1))
    assert found.penalty is None


def test_the_loss_draws_towards_a_prototype_of_the_class_and_away_from_the_others() -> None:
    head, given, labels = made(cluster=0.7, separation=0.2), features(), torch.tensor([2, 0, 1, 2])
    nearest = slow_distances(head, given).amin(dim=(2, 3))
    own = [min(nearest[b, 2 * k + j] for j in range(2)) for b, k in enumerate(labels.tolist())]
    others = [min(nearest[b, p] for p in range(6) if p // 2 != k) for b, k in enumerate(labels.tolist())]
    attended = head.start(4, labels)
    head.read(attended, "at", given)
    assert attended.penalty is not None
    assert torch.allclose(attended.penalty, 0.7 * sum(own) / 4 - 0.2 * sum(others) / 4)
    attended.penalty.backward()
    assert head.prototypes.grad is not None
    assert head.last.weight.grad is None  # it is refitted, not trained


def test_a_push_takes_the_nearest_vector_of_the_class_over_all_batches() -> None:
    head, labels = made(), torch.tensor([0, 1, 1, 0, 0, 1])  # no picture of class 2
    given, before = features(6), made().prototypes.detach().clone()
    z = head.vectors(given).detach()
    expected = before.clone()
    for p in range(4):
        smallest = math.inf
        for b in range(6):
            for y in range(3):
                for x in range(4):
                    distance = float((z[b, :, y, x] - before[p]).square().sum())
                    if labels[b] == p // 2 and distance < smallest:
                        smallest, expected[p] = distance, z[b, :, y, x]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return zip(given.split(4), labels.split(4), strict=True)

    last = head.last.weight.detach().clone()
    head.push(batches)
    assert torch.allclose(head.prototypes, expected)
    assert torch.equal(head.prototypes[4:], before[4:])
    assert not torch.equal(head.last.weight, last)


@pytest.mark.parametrize("l1", [0.02, 5.0])
def test_the_refitted_layer_lowers_its_objective_and_a_large_penalty_unties_other_classes(l1: float) -> None:
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    own = torch.arange(3)[:, None] == torch.arange(6) // 2
    similar = 2 * torch.rand(60, 6, dtype=torch.float64) + own[labels].double()
    start = own.double() * 1.5 - 0.5

    def objective(weight: Tensor) -> float:
        return float(functional.cross_entropy(similar @ weight.T, labels) + l1 * weight[~own].abs().sum())

    found = refitted(start, similar, labels, own, l1)
    assert objective(found) < 0.5 * objective(start)
    assert float(found[~own].abs().max()) < (0.4 if l1 < 1 else 0.05)
    assert float(found[own].min()) > 1


def test_after_training_each_prototype_is_a_vector_of_a_training_picture_of_its_class(tmp_path: Path) -> None:
    painted = paint(tmp_path / "painted")
    clf = fresh("protopnet:per_class=2,width=8,push=2")
    recipe = Recipe(backbone=True, epochs=5, batch_size=8, lr=0.01, smallest_crop=None, validation=0.25)
    fitted = fit(clf, painted, tmp_path / "out.safetensors", recipe=recipe, workers=0, progress=False)
    assert fitted.best in (2, 4, 5)
    assert fitted.score == 100
    data = open_data(painted)
    images = torch.stack([clf.preprocessing.crop(data.pictures.picture(number)) for number in range(len(data))]).float() / 255
    stage = clf.stage().name
    head = clf.head
    assert isinstance(head, ProtoPNetHead)
    vectors = head.vectors(clf.features(images, [stage])[stage]).detach()
    for p, prototype in enumerate(head.prototypes.detach()):
        own = vectors[torch.tensor(data.targets) == p // 2]
        assert float((own - prototype[:, None, None]).square().sum(dim=1).min()) < 1e-8
    maps = xattn.explain(clf, images[:2], ["raw-attention", "grad-cam"])
    assert maps["raw-attention"].shape == (2, 32, 32)
    assert maps.head_maps is not None
    assert maps.head_maps.shown.shape[:2] == (2, 2)


def test_the_head_alone_is_trained_on_kept_features_and_resumes(tmp_path: Path) -> None:
    painted = paint(tmp_path / "painted", 6)
    recipe = Recipe(epochs=3, batch_size=8, lr=0.01, smallest_crop=None, validation=0.25)
    found = []
    for name, cached in (("a", None), ("b", tmp_path / "features")):
        clf = fresh("protopnet:per_class=2,width=8,push=2")
        fit(clf, painted, tmp_path / f"{name}.safetensors", recipe=recipe, workers=0, progress=False, cache_features=cached)
        found.append({key: value.clone() for key, value in clf.head.state_dict().items()})
    last = [state.pop("last.weight") for state in found]  # the similarity to a vector of the picture itself amplifies rounding
    assert torch.allclose(*last, atol=0.2)
    assert all(torch.allclose(found[0][key], found[1][key], atol=1e-3) for key in found[0])
    clf = fresh("protopnet:per_class=2,width=8,push=2")

    def stop(epoch: int, accuracy: float) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    out = tmp_path / "c.safetensors"
    with pytest.raises(BaseException):  # noqa: B017, PT011  # Lightning ends the process in its own way
        fit(clf, painted, out, recipe=recipe, workers=0, progress=False, on_epoch=stop)
    assert not (tmp_path / "c.training" / "best.ckpt").exists()  # no epoch without a push is kept
    clf = fresh("protopnet:per_class=2,width=8,push=2")
    fit(clf, painted, out, recipe=recipe, workers=0, progress=False)
    assert all(torch.equal({**found[0], "last.weight": last[0]}[key], value) for key, value in clf.head.state_dict().items())


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"protopnet takes per_class, width and push of at least 1"):
        heads.create("protopnet:push=0")
    clf, painted = fresh("protopnet"), paint(tmp_path / "painted", 4)
    with pytest.raises(InputError, match=r"keeps only epochs after which .* leave out patience"):
        fit(clf, painted, tmp_path / "out.safetensors", recipe=Recipe(patience=2), workers=0)
