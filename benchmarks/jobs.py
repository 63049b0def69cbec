"""The jobs of the speed benchmark: contenders, checks before timing, and claims about the times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ours
import rivals
from checks import Check, blurred, of_curves, of_maps, of_masks
from measure import Contender
from subjects import Subject
from torch import Tensor

ATTENTION = ("rollout", "grad-rollout", "generic-attention", "legrad")
OWN_BATCH = {"torch-cam": 32, "pytorch-grad-cam": 16}  # default number of images per forward


@dataclass(frozen=True)
class Claim:
    """A claim: `field` of `over` divided by that of `under` is at least or at most a given number."""

    text: str
    over: str
    under: str
    target: float
    at_least: bool = True
    field: str = "seconds"


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        title: title of its section.
        about: the task and its inputs.
        contenders: the contenders; the others are compared with the first.
        checks: checks before timing, on a few images and their targets.
        claims: claims about the times.
        alone: levels of xattn for which the network's bare forwards are also timed.
    """

    title: str
    about: str
    contenders: tuple[Contender, ...]
    checks: Callable[[Tensor, Tensor], list[Check]]
    claims: tuple[Claim, ...]
    alone: tuple[str, ...] = ()


def bare(level: str) -> str:
    """Returns the contender name of a level's passes at the best measured throughput."""
    return f"passes alone, {level}"


def xattn_at(level: str) -> str:
    return f"xattn, {level}"


def untuned(library: str) -> str:
    """Returns the contender name of a library at its default forward size."""
    return f"{library}, {OWN_BATCH[library]} images per forward"


def _at_both(library: str, run: Callable[[Tensor, Tensor, int], Any], subject: Subject, batch: int, note: str) -> tuple[Contender, ...]:
    """Returns a library at the forward size that is best for the network here, and at its default."""
    return (
        Contender(library, lambda images, targets: run(images, targets, batch), subject.network, note),
        Contender(
            untuned(library), lambda images, targets: run(images, targets, OWN_BATCH[library]), subject.network, "the same as it comes"
        ),
    )


def _times_faster(libraries: tuple[str, ...], exact: float, fast: float) -> tuple[Claim, ...]:
    """Returns the claims for both levels against libraries, at the best forward size and at their default."""
    return tuple(
        Claim(f"{name} over xattn, {level}", name, xattn_at(level), target)
        for level, target in (("exact", exact), ("fast", fast))
        for library in libraries
        for name in (library, untuned(library))
    )


def _own(
    subject: Subject, run: Callable[[Tensor, Tensor, str], Any], note: str, levels: tuple[str, ...] = ours.LEVELS
) -> tuple[Contender, ...]:
    """Returns xattn at each of its levels."""
    return tuple(
        Contender(
            xattn_at(level),
            lambda images, targets, level=level: run(images, targets, level),
            subject.classifier.network,
            note,
        )
        for level in levels
    )


def table(subject: Subject, batch: int) -> Job:
    """Three methods with five metrics."""
    contenders = (
        *_own(
            subject,
            lambda images, targets, level: ours.table(subject.classifier, images, targets, level),
            "AD, AG, AI, I from a blur, D to the mean colour; the unmasked image and the curves' ends are looked at once for all",
        ),
        *_at_both(
            "torch-cam",
            lambda images, targets, size: rivals.torch_cam_table(subject, images, targets, size),
            subject,
            batch,
            "ClassificationMetric and DeletionInsertionMetric as documented: the map is computed anew for each; no AG; I from the mean "
            "colour, since one baseline serves both curves",
        ),
        Contender(
            "torch-cam, maps kept",
            lambda images, targets: rivals.torch_cam_table_of_kept(subject, images, targets, batch),
            subject.network,
            "the same metrics given each map once by a stand-in for the extractor, which its pages tell nothing of",
        ),
        Contender(
            "pytorch-grad-cam + Quantus",
            lambda images, targets: rivals.grad_cam_and_quantus_table(
                subject, images, targets, lambda given: blurred(subject, given), batch
            ),
            subject.network,
            "AD, AG and AI from CamMultImageConfidenceChange; PixelFlipping for D and, with a perturbation of one's own, I, in fewer steps "
            f"({3 * subject.side**2 // rivals.quantus_step(subject.side**2, subject.steps)}, as its step must divide the pixels), without "
            "the unperturbed point; the steps of one image one after another",
        ),
    )

    def checks(images: Tensor, targets: Tensor) -> list[Check]:
        found = [check for method in ours.CAMS[:2] for check in of_maps(subject, images, targets, method, batch)]
        found += of_maps(subject, images[:1], targets[:1], "score-cam", batch)
        return found + of_masks(subject, images, targets, batch) + of_curves(subject, images, targets, batch)

    return Job(
        "The table job",
        "Grad-CAM, Grad-CAM++ and Score-CAM, each scored by average drop, gain and increase, insertion and deletion in "
        f"{subject.steps} steps.",
        contenders,
        checks,
        (
            *_times_faster(("torch-cam",), 8, 20),
            Claim("xattn, exact, over its passes alone", xattn_at("exact"), bare("exact"), 1.15, at_least=False),
            Claim("xattn, fast, over its passes alone", xattn_at("fast"), bare("fast"), 1.15, at_least=False),
        ),
        ours.LEVELS,
    )


def score_cam(subject: Subject, batch: int) -> Job:
    """Score-CAM alone."""
    spec = "score-cam:weighting=logit-softmax"
    contenders = (
        *_own(
            subject,
            lambda images, targets, level: ours.maps(subject.classifier, images, targets, [spec], level),
            "constant channels are not run",
        ),
        *_at_both(
            "pytorch-grad-cam",
            lambda images, targets, size: rivals.grad_cam_map(subject, images, targets, "score-cam", size),
            subject,
            batch,
            "ScoreCAM with batch_size; all masked images are built before the first is run",
        ),
        *_at_both(
            "torch-cam",
            lambda images, targets, size: rivals.torch_cam_map(subject, images, targets, "score-cam", size),
            subject,
            batch,
            "ScoreCAM(batch_size=…), without gradients; the map at its own resolution",
        ),
    )
    return Job(
        "Score-CAM",
        "All channels of the last stage, weighted by softmax of the logits, as both others do.",
        contenders,
        lambda images, targets: of_maps(subject, images[:1], targets[:1], "score-cam", batch),
        (
            *_times_faster(("pytorch-grad-cam", "torch-cam"), 4, 10),
            Claim("peak memory, xattn, exact, over pytorch-grad-cam", xattn_at("exact"), "pytorch-grad-cam", 0.25, False, "peak"),
        ),
        ours.LEVELS,
    )


def at_once(subject: Subject, batch: int) -> Job:
    """All gradient methods of one trace, compared with one of them; `subject` has a head with attention, or is a transformer."""
    several = ("activation-map", "grad-cam", "grad-cam++", *(ATTENTION if subject.has_tokens else ("raw-attention",)))

    def one_or_all(name: str, methods: tuple[str, ...]) -> Contender:
        run = lambda images, targets: ours.maps(subject.classifier, images, targets, methods, "exact")  # noqa: E731
        return Contender(name, run, subject.classifier.network, ", ".join(methods))

    def checks(images: Tensor, targets: Tensor) -> list[Check]:
        found = [ours.maps(subject.classifier, images, targets, methods, "exact") for methods in (several, several[1:2])]
        apart = float((found[0]["grad-cam"] - found[1]["grad-cam"]).abs().max())
        return [Check("Grad-CAM by itself and among the others: largest difference of the masks", ("all at once",), apart, 0.0)]

    return Job(
        "All gradient methods at once",
        "Of the transformer's attention too."
        if subject.has_tokens
        else f"On {subject.classifier.head_name}, never trained, which costs as much as trained.",
        (one_or_all("Grad-CAM alone", several[1:2]), one_or_all("all at once", several)),
        checks,
        (Claim("all at once over Grad-CAM alone", "all at once", "Grad-CAM alone", 1.2, at_least=False),),
    )


def grad_cam(subject: Subject, batch: int) -> Job:
    """Grad-CAM on batches."""
    contenders = (
        *_own(subject, lambda images, targets, level: ours.maps(subject.classifier, images, targets, ["grad-cam"], level), "", ("exact",)),
        *(
            Contender(name, lambda images, targets, run=run: run(subject, images, targets, "grad-cam", batch), subject.network, note)
            for name, run, note in (
                ("pytorch-grad-cam", rivals.grad_cam_map, "its backward goes to the first layer"),
                ("torch-cam", rivals.torch_cam_map, "the map at its own resolution"),
            )
        ),
    )
    return Job(
        "Grad-CAM on batches",
        "Masks at the images' size.",
        contenders,
        lambda images, targets: of_maps(subject, images, targets, "grad-cam", batch),
        (Claim("pytorch-grad-cam over xattn, exact", "pytorch-grad-cam", xattn_at("exact"), 1.5),),
    )


def guided(subject: Subject, batch: int) -> Job:
    """Guided backpropagation."""
    own = _own(subject, lambda images, targets, level: ours.maps(subject.classifier, images, targets, ["guided-backprop"], level), "")
    captum = Contender("captum", lambda images, targets: rivals.captum_guided(subject, images, targets), subject.network)

    def checks(images: Tensor, targets: Tensor) -> list[Check]:
        theirs = rivals.captum_guided(subject, images, targets)
        raw = ours.maps(subject.classifier, images, targets, ["guided-backprop"], "exact").raw["guided-backprop"]
        return [Check("largest difference over the largest value", ("captum",), float((raw - theirs).abs().max() / theirs.max()), 1e-3)]

    return Job(
        "Guided backpropagation",
        "At the image, the largest magnitude over the channels.",
        (*own, captum),
        checks,
        (Claim("xattn, exact, over captum", xattn_at("exact"), "captum", 1.0, at_least=False),),
    )


def curves(subject: Subject, batch: int) -> Job:
    """Insertion and deletion of Grad-CAM."""

    def with_quantus(images: Tensor, targets: Tensor) -> dict[str, float]:
        masks = rivals.grad_cam_map(subject, images, targets, "grad-cam", batch)
        return rivals.quantus_curves(subject, images, targets, masks, blurred(subject, images))

    return Job(
        "Insertion and deletion",
        f"Of Grad-CAM, whose map each makes itself; {subject.steps} steps.",
        (
            *_own(
                subject,
                lambda images, targets, level: ours.table(
                    subject.classifier, images, targets, level, ("grad-cam",), ("insertion", "deletion")
                ),
                "I from a blur, D to the mean colour",
            ),
            Contender(
                "torch-cam",
                lambda images, targets: rivals.torch_cam_curves(subject, images, targets, batch),
                subject.network,
                "DeletionInsertionMetric(batch_size=…); I and D with one baseline, the mean colour",
            ),
            Contender(
                "pytorch-grad-cam + Quantus",
                with_quantus,
                subject.network,
                "PixelFlipping, fewer steps, without the unperturbed point; a forward holds one step of every image",
            ),
        ),
        lambda images, targets: of_curves(subject, images, targets, batch),
        (),
        ours.LEVELS,
    )


JOBS: dict[str, Callable[[Subject, int], Job]] = {
    "table": table,
    "score-cam": score_cam,
    "at-once": at_once,
    "grad-cam": grad_cam,
    "guided": guided,
    "curves": curves,
}
