"""`Trace`: one forward of a batch, and the backwards that methods need."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor

from xattn.data.preprocessing import Frame
from xattn.errors import UnsupportedError
from xattn.explainers.base import Need
from xattn.explainers.forward import Forward, run_forward
from xattn.heads.base import Attended
from xattn.inference.context import BatchContext
from xattn.inference.memory import is_out_of_memory
from xattn.inference.predictor import Predictor
from xattn.metrics.seeds import content_seeds
from xattn.metrics.stream import PerturbedImages
from xattn.metrics.target_base import Target
from xattn.models.asked_targets import Asked, target_rule
from xattn.models.attention import by_head
from xattn.models.classifier import Classifier
from xattn.models.concurrency import evaluating
from xattn.models.layout import Stage, to_nchw
from xattn.models.streams import Looks
from xattn.models.target_rules import TargetRule

T = TypeVar("T")


class _Lazy(Generic[T]):
    """A property that is computed on first use and then stored.

    `functools.cached_property` of Python 3.11 holds one lock for all instances of a class: a thread that waits for the network would block
    every other thread's trace.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, trace: None, owner: type) -> _Lazy[T]: ...
    @overload
    def __get__(self, trace: object, owner: type) -> T: ...
    def __get__(self, trace: object | None, owner: type) -> _Lazy[T] | T:
        if trace is None:
            return self
        kept: dict[str, Any] = vars(trace)
        if self.name not in kept:
            kept[self.name] = self.compute(trace)
        value: T = kept[self.name]
        return value


class Trace:
    """Output, features and attention of one forward of a batch, and gradients; each is computed once, on first use.

    Gradients are taken only with respect to the features or the image: no parameter's `.grad` changes.

    Args:
        classifier: the network.
        images: `(B, 3, H, W)` in pixel space.
        rule: how the targets are chosen.
        labels: class index of each image, or None; for rules that use labels.
        stage: where features are taken; None for a network without a default stage, for methods that use no features.
        needs: what will be read from the trace. Without image gradients, the graph starts at the stage, and earlier layers run without a
            graph.
        predictor: for methods that run the network again.
        seed: of the run, for everything random.
        names: of the images, for maps in files.
        frames: where each image lies in its picture, for maps in files.

    Attributes:
        images: the batch; a leaf of the graph if image gradients are needed.
        memo: results that several methods of the trace share, by name.
        errors: by the `repr` of the method, the standard error of each cell of a raw map whose responses are partly predicted.
        given_stage: where features are taken, or None.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        rule: TargetRule,
        labels: Sequence[int | None] = (),
        *,
        stage: Stage | None,
        needs: Collection[Need],
        predictor: Predictor,
        seed: int = 0,
        names: Sequence[str] = (),
        frames: Sequence[Frame] = (),
    ) -> None:
        self.classifier = classifier
        self.names, self.frames = names, frames
        self.given_stage = stage
        self.predictor = predictor
        self.seed = seed
        self.memo: dict[str, Tensor] = {}
        self.errors: dict[str, Tensor] = {}
        self._rule, self._labels = rule, labels
        self._layers = bool({Need.LAYERS, Need.LAYER_GRADIENTS} & set(needs)) and classifier.attention_layers > 0
        through_function = Need.GRADIENTS in needs and stage is not None and stage.offset is not None
        self._to_image = through_function or bool({Need.IMAGE_GRADIENTS, Need.LAYER_GRADIENTS} & set(needs))
        self._cut = Need.GRADIENTS in needs and not self._to_image
        self._context: BatchContext | None = None
        self._member = 0
        with torch.inference_mode(False):
            plain = images.clone() if images.is_inference() else images
            self.images = plain.detach().requires_grad_() if self._to_image else plain.detach()

    @_Lazy
    def _forward(self) -> Forward:
        return run_forward(
            self.classifier, self.images, self.given_stage, layers=self._layers, cut=self._cut, graph_from_image=self._to_image
        )

    @property
    def stage(self) -> Stage:
        """Where features are taken.

        Raises:
            UnsupportedError: no stage is given, and the network has no default.
        """
        return self.classifier.stage() if self.given_stage is None else self.given_stage

    @property
    def output(self) -> Tensor:
        """The network's output: logits `(B, K)`, vectors `(B, D)` or maps of logits `(B, K, h, w)`."""
        return self._forward.attended.output

    @property
    def attended(self) -> Attended:
        """The head's result: attention by stage, and what it was computed from."""
        return self._forward.attended

    @_Lazy
    def target(self) -> Target:
        """The explained target of each image; chosen once, from these images."""
        if self._rule.fixed is not None:
            return self._rule.fixed.expanded(len(self.images)).to(self.images.device)
        return self._rule.bind(self.classifier, self.output, self._labels).expanded(len(self.images))

    @property
    def captured(self) -> Tensor:
        """The features of the stage in the network's own layout and precision; gradients are taken with respect to them."""
        stage = self.stage
        return self._forward.features[stage.name]

    @property
    def looks(self) -> Looks | None:
        """How a two-stream network looked at the patches; None for other networks."""
        return self._forward.looks

    @property
    def gates(self) -> dict[str, Tensor]:
        """Gates of positions `(B, 1, h, w)` of a network with relation-aware attention, by stage; empty for other networks."""
        return self._forward.gates

    @property
    def regions(self) -> Tensor | None:
        """Weights of the positions in the region vector of each class of an OCR network, `(B, L, h, w)`; None for other networks."""
        return self._forward.regions

    @property
    def patches(self) -> Looks | None:
        """How the network looked at the patches, at a stage of patches; else None."""
        return self._forward.looks if self.given_stage is not None and self.given_stage.boxes else None

    def looks_of(self, method: str, step: int = 1) -> Looks:
        """How a two-stream network looked at the patches, for a method that shows a step.

        Raises:
            UnsupportedError: the network is not a two-stream network, or has fewer steps.
        """
        if self.looks is None:
            raise UnsupportedError(f"{method} shows a step of a two-stream network (focus:BACKBONE); {self.classifier.name} has no steps.")
        if step > (count := self.looks.steps.shape[1]):
            raise UnsupportedError(f"{self.classifier.name} has {count} steps, and step {step} was asked for.")
        return self.looks

    def on_image(self, maps: Tensor, images: Tensor | slice = slice(None)) -> Tensor:
        """Maps of the stage, placed on the image: maps of patches are put in place and added, see `Looks.joined`; others do not change.

        Args:
            maps: `(b, h, w)`, at the resolution of the features.
            images: which images of the batch the maps belong to.
        """
        size = (self.images.shape[2], self.images.shape[3])
        return maps if self.patches is None else self.patches.joined(maps, size, images)

    def answering(self, output: Tensor) -> Trace:
        """The same forward with another of its tensors as the output: scores and gradients then belong to that tensor.

        Args:
            output: `(B, K)`, in the graph of the forward. The targets stay those of the network's own output.
        """
        other = copy.copy(self)
        kept = {**vars(self), "target": self.target, "memo": {}}
        kept["_forward"] = self._forward._replace(attended=replace(self._forward.attended, output=output))
        vars(other).clear()
        vars(other).update({name: value for name, value in kept.items() if name not in ("gradients", "layer_gradients", "image_gradients")})
        return other

    @property
    def features(self) -> Tensor:
        """Feature maps of the stage, `(B, C, h, w)`, float32 or float64 for any precision of the network.

        At a stage of patches `(B, C, n·h, w)`, the n patches of an image one below the other.
        """
        return _full(to_nchw(self.captured.detach(), self.stage.layout))

    @property
    def score(self) -> Tensor:
        """Sum of the images' scores over the batch; in eval mode, its gradient at an image is that of this image's own score."""
        return self.target.score(self.output).sum()

    @_Lazy
    def gradients(self) -> Tensor:
        """Gradient of the score with respect to the features, `(B, C, h, w)`."""
        return self.gradients_of(self.target)

    def gradients_of(self, target: Target) -> Tensor:
        """Gradient of another target's score with respect to the features, `(B, C, h, w)`; one more backward of the same graph."""
        (gradient,) = self._gradients(target.score(self.output).sum(), [self.captured])
        return _full(to_nchw(gradient, self.stage.layout))

    @property
    def layers(self) -> list[Tensor]:
        """Attention between all tokens by layer, `(B, heads, N, N)`, with rows that sum to one, for every implementation of attention.

        Raises:
            UnsupportedError: the network has none, something else mixes its tokens as well, or the head replaces its pooling.
        """
        self._require_layers()
        return [_full(by_head(found.detach(), len(self.images))) for found in self._forward.layers]

    @property
    def pooled_tokens(self) -> Tensor:
        """The share of each token of the last map in the classified vector, `(B, N)`: 1 for a class token, equal shares for mean pooling,
        and the attention, averaged over heads, for pooling by attention.
        """
        self._require_layers()
        if self._forward.pooling is not None:
            return _full(by_head(self._forward.pooling.detach(), len(self.images)).mean(dim=1)[:, 0])
        layers, pooled = self.layers, self.classifier.pooled_tokens
        shares = layers[0].new_zeros(len(self.images), layers[0].shape[-1])
        shares[:, list(pooled)] = 1 / len(pooled)
        return shares

    @_Lazy
    def layer_gradients(self) -> list[Tensor]:
        """Gradient of the score with respect to `layers`, in the same form."""
        self._require_layers()
        found = self._gradients(self.score, self._forward.layers)
        return [_full(by_head(gradient, len(self.images))) for gradient in found]

    def _require_layers(self) -> None:
        name, count = self.classifier.name, self.classifier.attention_layers
        if self.classifier.attachment.replaces != "nothing":
            raise UnsupportedError(f"attention of layers is followed to what {name} itself pools; {self.classifier.head_name} replaces it.")
        if not count or len(self._forward.layers) != count:
            raise UnsupportedError(
                f"{name} has no layers of attention that alone mix its tokens (it has none, its number of tokens changes between them, or "
                "convolutions, windows or class-attention layers mix them, too): use a CAM."
            )

    @_Lazy
    def image_gradients(self) -> Tensor:
        """Gradient of the score with respect to the image in pixel space, `(B, 3, H, W)`."""
        (gradient,) = self._gradients(self.score, [self.images])
        return gradient

    def _gradients(self, score: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients of a score; the graph is kept."""
        try:
            return torch.autograd.grad(score, inputs, retain_graph=True)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0].removesuffix(".")
            advice = "let the network run in functions that torch can differentiate"
            if "torch.utils.checkpoint" in reason:
                advice = "switch its gradient checkpointing off, as by set_grad_checkpointing(False)"
            raise UnsupportedError(
                f"{self.classifier.name} passes no gradient from its output back ({reason}). Use a method without gradients (score-cam, "
                f"rise, occlusion), or {advice}."
            ) from error

    @_Lazy
    def seeds(self) -> list[int]:
        """One seed per image, from the run's seed and the image's content; independent of the batch and the place in it."""
        return content_seeds(self.images, self.seed)

    def share(self, context: BatchContext, member: int) -> None:
        """Shares responses to perturbed images with the other heads of a context.

        Args:
            context: of the batch.
            member: index of this trace's head in the context.
        """
        self._context, self._member = context, member

    def respond(self, key: str, run: PerturbedImages, read: Callable[[Target, Tensor], Tensor], chunk: int | None = None) -> Tensor:
        """Runs the network on perturbed images and reads one number from each output.

        Heads on one backbone that share a context are run together.

        Args:
            key: identifies these images within the batch.
            run: the perturbed images, each made from one image of the batch; they depend only on the images and their features.
            read: the targets and the output of some images → `(b,)`.
            chunk: images per forward; None: the run's.

        Returns:
            `(count,)` float64.
        """
        context = self._context or BatchContext(self.predictor.forwards, [self.target])
        return context.respond(key, self._member, run, self.images, read, chunk)

    def scores(self, images: Tensor) -> Tensor:
        """The scores of changed copies of the images, in eval mode and with a graph; runs one more forward.

        Args:
            images: `(copies · B, 3, H, W)` in pixel space: the batch in its order, repeated.

        Returns:
            `(copies · B,)`, differentiable with respect to `images`.
        """
        target = self.target if len(images) == len(self.images) else self.target[torch.arange(len(images)) % len(self.images)]
        with evaluating(self.classifier), torch.enable_grad():
            return target.score(self.classifier(images))


def _full(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def trace(
    classifier: Classifier,
    images: Tensor,
    target: Asked = "predicted",
    labels: Sequence[int | None] = (),
    *,
    stage: str | Stage | None = None,
    needs: Collection[Need] = frozenset(Need),
    predictor: Predictor | None = None,
    seed: int = 0,
) -> Trace:
    """Creates a trace of a batch and runs its forward; arguments that are left out get the defaults of `xattn.explain`.

    Args:
        classifier: the network.
        images: `(B, 3, H, W)` in pixel space.
        target: what to explain, as for `xattn.explain`.
        labels: class index of each image, or None.
        stage: where features are taken; None: at the input of the pooling.
        needs: what will be read from the trace.
        predictor: for methods that run the network again; the default one if None.
        seed: of the run.
    """
    found = stage if isinstance(stage, Stage) else classifier.stage_or_default(stage)
    runs = Predictor(classifier) if predictor is None else predictor
    traced = Trace(classifier, images, target_rule(classifier, target), labels, stage=found, needs=needs, predictor=runs, seed=seed)
    _ = traced.output
    return traced
