"""One forward of a batch and the backwards that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from xattn.classifiers.capture import captured, to_nchw
from xattn.classifiers.classifier import Classifier
from xattn.classifiers.concurrency import evaluating
from xattn.classifiers.forwards import Predictor
from xattn.classifiers.preprocessing import content_seeds
from xattn.classifiers.stages import Stage
from xattn.errors import InputError
from xattn.explainers.facts import Need
from xattn.heads import Attended

Joint = Callable[[Tensor], list[Tensor]]
TargetRule = Literal["predicted", "label", "given"]


@dataclass(frozen=True)
class Trace:
    """What one forward of a batch gave, and its gradients, each computed on first use and once.

    Gradients are taken with respect to the features or the image alone: no parameter's `.grad` changes.

    Attributes:
        classifier: the network.
        images: `(B, 3, H, W)` in pixel space; a leaf of the graph where image gradients were asked for.
        logits: `(B, K)`.
        targets: `(B,)` class indices.
        stage: where the features were taken.
        captured: the features in the network's own layout; `features` is what methods use.
        attended: what the head gave: attention by stage, and what it was made of.
        predictor: logits of changed images, for methods that run the network again.
        seed: of the run.
        shared: what several methods of one batch, or the heads of a family, share, by name.
        family: traces of the same images by several heads on one backbone, whose features are the same; empty where it stands alone.
        joint: the logits of all of the family from one forward, in its order.
    """

    classifier: Classifier
    images: Tensor
    logits: Tensor
    targets: Tensor
    stage: Stage
    captured: Tensor
    attended: Attended
    predictor: Predictor
    seed: int = 0
    shared: dict[str, Tensor] = field(default_factory=dict)
    family: list[Trace] = field(default_factory=list)
    joint: Joint | None = None

    @property
    def features(self) -> Tensor:
        """Feature maps of the stage, `(B, C, h, w)`, float32 or float64 whatever the network computes in."""
        return _full(to_nchw(self.captured.detach(), self.stage.layout))

    @property
    def score(self) -> Tensor:
        """Sum over the batch of each image's target logit: in eval mode its gradient is each image's own."""
        return self.logits.gather(1, self.targets[:, None]).sum()

    @cached_property
    def gradients(self) -> Tensor:
        """Gradient of the target logit with respect to the features, `(B, C, h, w)`."""
        (gradient,) = torch.autograd.grad(self.score, self.captured, retain_graph=True)
        return _full(to_nchw(gradient, self.stage.layout))

    @cached_property
    def image_gradients(self) -> Tensor:
        """Gradient of the target logit with respect to the image in pixel space, `(B, 3, H, W)`."""
        (gradient,) = torch.autograd.grad(self.score, self.images, retain_graph=True)
        return gradient

    @cached_property
    def seeds(self) -> list[int]:
        """A seed an image, from the run's seed and the image's content: the same wherever it stands in whatever batch."""
        return content_seeds(self.images, self.seed)


def trace(
    classifier: Classifier,
    images: Tensor,
    targets: Tensor | None = None,
    *,
    stage: str | Stage | None = None,
    needs: Collection[Need] = frozenset(Need),
    predictor: Predictor | None = None,
    seed: int = 0,
) -> Trace:
    """Runs a batch once, in eval mode, and keeps what `needs` names.

    Args:
        classifier: the network.
        images: `(B, 3, H, W)` in pixel space.
        targets: `(B,)` class indices; each image's predicted class if None.
        stage: where to take features; what enters the pooling if None.
        needs: without image gradients the graph begins at the stage, and what lies before it runs without one.
        predictor: for methods that run the network again; the default one if None.
        seed: of the run, for what is random.
    """
    with torch.inference_mode(False):
        return _trace(classifier, images.clone() if images.is_inference() else images, targets, stage, needs, predictor, seed)


def _full(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _trace(
    classifier: Classifier,
    images: Tensor,
    targets: Tensor | None,
    stage: str | Stage | None,
    needs: Collection[Need],
    predictor: Predictor | None,
    seed: int,
) -> Trace:
    place = stage if isinstance(stage, Stage) else classifier.stage(stage)
    to_image = Need.IMAGE_GRADIENTS in needs or (Need.GRADIENTS in needs and place.offset is not None)
    leaf = images.detach().requires_grad_() if to_image else images.detach()
    with ExitStack() as stack:
        stack.enter_context(evaluating(classifier))
        classes = classifier.asked_classes(leaf)  # a forward of its own, before features are kept
        stack.enter_context(torch.set_grad_enabled(to_image))
        cut = Need.GRADIENTS in needs and not to_image
        found = stack.enter_context(captured(classifier.network, [place], cut=cut))
        attended = classifier.run(leaf, classes)
    logits = attended.output
    if targets is None:
        targets = logits.detach().argmax(dim=1)
    targets = targets.to(images.device)
    if targets.shape != (len(images),):
        raise InputError(f"targets must be one class index an image, ({len(images)},); got {tuple(targets.shape)}.")
    return Trace(classifier, leaf, logits, targets, place, found[place.name], attended, predictor or Predictor(classifier), seed)
