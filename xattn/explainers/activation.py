"""The features themselves."""

from torch import Tensor

from xattn.explainers.base import Need, register
from xattn.explainers.trace import Trace


@register("activation-map", needs={Need.FEATURES}, source="the features, without a target")
def activation_map(trace: Trace) -> Tensor:
    """Mean over the channels of the feature maps; the same for every target.

    Returns:
        Raw map `(B, h, w)` at the stage's resolution; ≥ 0 after a rectifier.
    """
    return trace.features.mean(dim=1)
