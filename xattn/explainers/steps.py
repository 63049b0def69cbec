"""Class activation maps of single steps of a two-stream network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from xattn.errors import SettingError, UnsupportedError
from xattn.explainers.base import Need, methods, register
from xattn.explainers.trace import Trace

Cam = Literal["grad-cam", "grad-cam++", "layer-cam", "hires-cam", "xgrad-cam", "finer-cam"]


@register("step-cam", needs={Need.FEATURES, Need.GRADIENTS, Need.STEPS}, source="Shroff 2020, Ch. 5")
@dataclass(frozen=True)
class StepCAM:
    """Class activation map of one step of a two-stream network: that of the local stream's classifier on the output of only this step.

    The classes are the targets of the network's own output.

    Attributes:
        step: number of the step, from 1.
        cam: the method that computes the map.

    Differs: the released code multiplies the gradient by the logit, which does not change the min-maxed map.
    """

    step: int = 1
    cam: Cam = "grad-cam"

    def __post_init__(self) -> None:
        if self.step < 1:
            raise SettingError(f"steps are counted from 1; got step={self.step}.")

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)` of the method, at the stage's resolution.

        Raises:
            UnsupportedError: the network has no steps or fewer steps, or the stage is not one of its local stream.
        """
        steps = trace.looks_of("step-cam", self.step).steps
        if trace.patches is None:
            raise UnsupportedError(
                f"the steps of {trace.classifier.name} look at patches, but stage '{trace.stage.name}' shows the whole picture: "
                f"give stage local."
            )
        found: Tensor = methods.create(self.cam).instance(trace.answering(steps[:, self.step - 1]))
        return found
