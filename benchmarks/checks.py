"""Checks that the libraries compute the same before they are timed: on few images, with a stated tolerance."""

from __future__ import annotations

from dataclasses import dataclass

import ours
import rivals
import torch
from subjects import Subject
from torch import Tensor
from torch.nn import functional

from xattn.metrics import average_drop, average_increase, deletion, insertion, to_masks
from xattn.metrics.fills import Baseline, baseline_images

POINT = 0.01  # percent of a probability: float32 error of a mean of equal definitions
TORCH_CAM_EPSILON = 1e-7  # a probability of 0.0003 yields a drop that is 0.04 points lower because of it


@dataclass(frozen=True)
class Check:
    """Result of a comparison of two computations.

    Attributes:
        what: what is compared.
        of: the contenders that are compared.
        found: the difference, or with `at_least` the correlation.
        bound: limit of agreement; None: reported but not judged.
        at_least: whether the bound is a minimum.
    """

    what: str
    of: tuple[str, ...]
    found: float
    bound: float | None
    at_least: bool = False

    @property
    def agrees(self) -> bool | None:
        if self.bound is None:
            return None
        return self.found >= self.bound if self.at_least else self.found <= self.bound


def blurred(subject: Subject, images: Tensor) -> Tensor:
    return baseline_images(images, Baseline("gaussian", side=5), subject.classifier.mean)


def _masks(raw: Tensor, size: tuple[int, ...]) -> Tensor:
    return to_masks(raw.float(), (size[-2], size[-1])).masks


def _correlation(a: Tensor, b: Tensor) -> float:
    """Returns the lowest value over the images."""
    return min(float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]).double())[0, 1]) for x, y in zip(a, b, strict=True))


def of_maps(subject: Subject, images: Tensor, targets: Tensor, method: str, batch: int) -> list[Check]:
    """Compares maps of one method by all three, for the network without normalisation: they mask before it, xattn in pixel space."""
    plain, spec = subject.plain, method + (":weighting=logit-softmax" if method == "score-cam" else "")
    own = ours.maps(plain.classifier, images, targets, [spec], "exact")
    size, small = tuple(images.shape), tuple(own.raw[spec].shape)
    theirs = torch.as_tensor(rivals.grad_cam_map(plain, images, targets, method, batch)).to(own[spec])
    torch_cam = rivals.torch_cam_map(plain, images, targets, method, batch)
    by_grad_cam = (_masks(own[spec], size), _masks(theirs, size))  # it min-maxes once more at the images' size
    by_torch_cam = (_masks(own.raw[spec], small), _masks(torch_cam, small))
    at_grad_cam, at_torch_cam = ("pytorch-grad-cam", "pytorch-grad-cam + Quantus"), ("torch-cam", "torch-cam, maps kept")
    if method == "grad-cam":
        what, bound = f"{method}: largest difference of the masks", 1e-3
        pairs = ((at_grad_cam, by_grad_cam), (at_torch_cam, by_torch_cam))
        return [Check(f"{what}, {of[0]}", of, float((a - b).abs().max()), bound) for of, (a, b) in pairs]
    if method == "score-cam":
        as_theirs = f"{spec},align_corners=true"
        as_they_do = _masks(ours.maps(plain.classifier, images, targets, [as_theirs], "exact").raw[as_theirs], size)
        aligned, apart, order = _correlation(as_they_do, by_grad_cam[1]), _correlation(*by_grad_cam), _correlation(*by_torch_cam)
        return [
            Check(f"{method}: correlation, pytorch-grad-cam, both upsampling with aligned corners", at_grad_cam, aligned, 0.999, True),
            Check(f"{method}: correlation, pytorch-grad-cam, ours upsampling without", at_grad_cam, apart, None),
            Check(f"{method}: correlation, torch-cam, which min-maxes before it upsamples", at_torch_cam, order, 0.99, True),
        ]
    return [
        Check(
            f"{method}: correlation, pytorch-grad-cam, which adds 1e-6 to the denominator", at_grad_cam, _correlation(*by_grad_cam), None
        ),
        Check(f"{method}: correlation, torch-cam, which does not divide", at_torch_cam, _correlation(*by_torch_cam), None),
    ]


def _noise(images: Tensor) -> Tensor:
    """Returns masks in which no two pixels are equal, even when rounded to 2⁻¹⁶: each library breaks ties its own way."""
    generator, count = torch.Generator().manual_seed(0), images.shape[2] * images.shape[3]
    order = torch.rand(len(images), count, generator=generator).argsort(dim=1)
    return (order * (2**16 // count) / 2**16).view(len(images), *images.shape[2:]).to(images)


def of_masks(subject: Subject, images: Tensor, targets: Tensor, batch: int) -> list[Check]:
    """Compares average drop and increase of the same masks, for the network without normalisation."""
    plain, masks, of = subject.plain, _noise(images), ("torch-cam", "torch-cam, maps kept")
    with torch.no_grad():
        theirs = rivals.torch_cam_scores(plain, images, targets, rivals.KeptMaps(plain, masks), batch)
    drops, increases = (metric(plain.classifier.predict, images, masks, targets) for metric in (average_drop, average_increase))
    first = _target_probability(plain, images, targets)
    drop, increase = float((drops * first / (first + TORCH_CAM_EPSILON)).mean()), float(increases.mean())
    return [
        Check(
            "average drop of the same masks, points, torch-cam, its epsilon in the denominator put into ours",
            of,
            abs(drop - 100 * theirs["avg_drop"]),
            POINT,
        ),
        Check("average increase of the same masks, points, torch-cam", of, abs(increase - 100 * theirs["conf_increase"]), POINT),
    ]


def _target_probability(subject: Subject, images: Tensor, targets: Tensor) -> Tensor:
    """`(B,)`, of the unmasked images."""
    return functional.softmax(subject.classifier.predict(images).double(), dim=1).gather(1, targets[:, None])[:, 0]


def of_curves(subject: Subject, images: Tensor, targets: Tensor, batch: int) -> list[Check]:
    """Compares insertion and deletion of the same masks, for the unchanged network."""
    masks, of, classifier = _noise(images), ("torch-cam", "torch-cam, maps kept"), subject.classifier
    deleted, inserted = (
        float(metric(classifier.predict, images, masks, targets, fill=classifier.mean).mean()) for metric in (deletion, insertion)
    )
    kept, start = rivals.KeptMaps(subject, masks), subject.normalised(blurred(subject, images))
    with torch.no_grad():
        to_mean = rivals.torch_cam_scores(subject, images, targets, kept, batch, classification=False)
        from_blur = rivals.torch_cam_scores(subject, images, targets, kept, batch, baseline=lambda _: start, classification=False)
    features = rivals.quantus_step(masks[0].numel(), subject.steps)
    given = subject.normalised(images).cpu().numpy()
    flipped = torch.as_tensor(rivals.quantus_curve(subject, given, targets, masks.cpu().numpy(), None)).double()
    first = _target_probability(subject, images, targets).cpu()
    area = float(100 * torch.trapezoid(torch.cat([first[:, None], flipped], dim=1), dx=1 / flipped.shape[1]).mean())
    same_steps = deletion(classifier.predict, images, masks, targets, fill=classifier.mean, step=round(features / 3))
    return [
        Check("deletion of the same masks, points, torch-cam", of, abs(deleted - 100 * to_mean["deletion_auc"]), POINT),
        Check("insertion of the same masks, points, torch-cam given our blur", of, abs(inserted - 100 * from_blur["insertion_auc"]), POINT),
        Check(
            "deletion of the same masks, points, Quantus with the unperturbed point put before (its steps split pixels)",
            ("pytorch-grad-cam + Quantus",),
            abs(area - float(same_steps.mean())),
            0.5,
        ),
    ]
