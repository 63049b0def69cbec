"""Reasons why a map shows nothing, and what to try."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from xattn.explainers.base import MethodComponent, Need, can_be_signed, is_of_files
from xattn.explainers.cams import HiResCAM, cancelled
from xattn.explainers.regression import expected_similarity
from xattn.explainers.trace import Trace

DOUBTFUL = 0.92
"""An expected correlation below it is logged. Of 112 maps of imagenette/val, by four networks and 2 to 25 % of Score-CAM's passes, all 30
whose correlation with the exact one was below 0.95 were below it, and 10 others."""
DOUBT = "doubtful"

logger = logging.getLogger("xattn")

ADVICE = {
    "the map in the file is not finite": "Look in the tool that wrote it for NaN or infinite values",
    "the map in the file has one value everywhere": "Look in the tool that wrote it why",
    "the map is not finite": "Look for NaN or infinite values in the network's features and output",
    "the stage has a single cell": "Give larger images (input_size, --input-size), or an earlier stage",
    "the features are zero everywhere": "Give another stage; check the preprocessing (mean and std)",
    "the features are the same everywhere": "Give another stage, or look whether the image is of one colour",
    "the output does not depend on the stage": "Give an earlier stage: this one lies behind what the classifier reads, such as its tokens",
    "the gradient of the score is zero": "Explain another target, as 'predicted - second'",
    "the probability is saturated, and its gradient zero": "Let the network return logits instead of probabilities",
    "activation times gradient cancels over the channels": "A layer norm alone reads it: give the norm as the stage, or use grad-cam",
    "no channel weight is positive": "Every feature map speaks against the target: explain the class that is predicted, or a contrast",
    "the weighted sum of the features is nowhere positive": "The gradient points away from it: explain a contrast, or another stage",
    "the gradient at the image is zero": "Explain another target, as 'predicted - second'",
    "the map is nowhere positive": "All of it speaks against the target: explain the class that is predicted, or a contrast",
    "the map has one value everywhere": "Give another method, target or stage",
}
"""What to try, by reason."""

NEGATIVE = ("no channel weight is positive", "the weighted sum of the features is nowhere positive")
SIGNED = "; --signed (signed=True) shows what speaks against the target"
"""After a reason of `NEGATIVE`, for a method whose map can be signed."""


def reasons_of(trace: Trace, method: MethodComponent, raw: Tensor, flagged: Tensor) -> tuple[str | None, ...]:
    """The reason why each degenerate map of a batch shows nothing; None for other maps. Nothing is computed if no map is degenerate.

    Args:
        trace: of the batch.
        method: the method.
        raw: raw maps `(B, h, w)`.
        flagged: `(B,)` bool, which maps are degenerate.
    """
    with torch.inference_mode(False), torch.enable_grad():
        return tuple(_reason(trace, method, raw[i], i) if blank else None for i, blank in enumerate(flagged.tolist()))


def _reason(trace: Trace, method: MethodComponent, raw: Tensor, i: int) -> str:
    reason = _cause(trace, method, raw, i)
    return f"{reason}{SIGNED}" if reason in NEGATIVE and can_be_signed(method) else reason


def _cause(trace: Trace, method: MethodComponent, raw: Tensor, i: int) -> str:
    needs = method.metadata.needs
    if is_of_files(method) and not (bool((raw < 0).any()) and not bool((raw > 0).any())):
        finite = bool(torch.isfinite(raw).all())
        return f"the map in the file {'has one value everywhere' if finite else 'is not finite'}"
    if not bool(torch.isfinite(raw).all()):
        return "the map is not finite"
    if raw.numel() == 1:
        return "the stage has a single cell"
    if bool((raw < 0).any()) and not bool((raw > 0).any()):
        return "the map is nowhere positive"
    if Need.FEATURES in needs:
        features = trace.features[i]
        if not bool(features.any()):
            return "the features are zero everywhere"
        if bool((features == features[:, :1, :1]).all()):
            return "the features are the same everywhere"
    if Need.GRADIENTS in needs:
        gradients = trace.gradients[i]
        if not bool(gradients.any()):
            return _without_gradient(trace, i)
        if isinstance(method.instance, HiResCAM) and bool(cancelled((gradients * trace.features[i])[None])):
            return "activation times gradient cancels over the channels"
        if bool((gradients.mean(dim=(1, 2)) <= 0).all()):
            return "no channel weight is positive"
    if Need.IMAGE_GRADIENTS in needs and not bool(trace.image_gradients[i].any()):
        return "the gradient at the image is zero"
    if Need.FEATURES in needs and not bool(raw.any()):
        return "the weighted sum of the features is nowhere positive"
    return "the map has one value everywhere"


def _without_gradient(trace: Trace, i: int) -> str:
    """Whether no output depends on the stage, or only the score does not."""
    rows = trace.output[i].flatten()
    weights = torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows)  # softmax and its like leave a sum constant
    (gradient,) = torch.autograd.grad((rows * weights).sum(), trace.captured, retain_graph=True, allow_unused=True)
    if gradient is not None and bool(gradient[i].any()):
        return "the gradient of the score is zero"
    if trace.classifier.reader.probabilities:
        return "the probability is saturated, and its gradient zero"
    return "the output does not depend on the stage"


def log_reasons(reasons: Mapping[str, Sequence[str | None]], names: Sequence[str], logged: set[tuple[str, str]]) -> None:
    """Logs why maps show nothing and what to try, once for each method and reason.

    Args:
        reasons: by method, one per image.
        names: of the images.
        logged: methods and reasons that were logged before; new ones are added.
    """
    for method, found in reasons.items():
        for reason in dict.fromkeys(filter(None, found)):
            if (method, reason) in logged:
                continue
            logged.add((method, reason))
            name = names[list(found).index(reason)]
            logger.warning("the map of %s by %s shows nothing: %s. %s.", name, method, reason, ADVICE[reason.removesuffix(SIGNED)])


def log_doubts(
    raw: Mapping[str, Tensor], errors: Mapping[str, Tensor], names: Sequence[str], network: str, logged: set[tuple[str, str]]
) -> None:
    """Logs that maps from a share of their passes are likely to differ from the exact ones, once for each network and method.

    Args:
        raw: maps by method.
        errors: their standard errors, of methods that run a share of their passes.
        names: of the images.
        network: whose maps they are.
        logged: methods and reasons that were logged before; new ones are added.
    """
    for method, error in errors.items():
        similarity = expected_similarity(raw[method], error).nan_to_num(1.0)  # a map with NaN has its own reason
        number, about = int(similarity.argmin()), (method, f"{DOUBT} on {network}")
        if similarity[number] >= DOUBTFUL or about in logged:
            continue
        logged.add(about)
        logger.warning(
            "the map of %s by %s on %s may differ much from the exact map: its own standard errors give a correlation of about "
            "%.2f, and other maps may be as inexact. Allow more passes (budget), stop at an error (tolerance), or use neither.",
            names[number],
            method,
            network,
            float(similarity[number]),
        )
