"""Several heads on one frozen backbone: one pass of the network computes the outputs of all heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xattn.models.attachment import attend_all
from xattn.models.classifier import Classifier
from xattn.models.state_dicts import digest_of


class SharedBackbone(nn.Module):
    """Combines classifiers that share a network and differ only in their heads; outputs the logits `(B, K₁ + K₂ + …)` side by side.

    Args:
        classifiers: two or more, one group of `backbone_groups`.
    """

    def __init__(self, classifiers: Sequence[Classifier]) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(classifiers)
        self.name = " + ".join(f"{classifier.name} · {classifier.head_name}" for classifier in classifiers)

    @property
    def _members(self) -> list[Classifier]:
        return list(self.classifiers)  # type: ignore[arg-type]  # what it was made of

    @property
    def network(self) -> nn.Module:
        """The shared network."""
        return self._members[0].network

    @property
    def device(self) -> torch.device:
        """The device of the computation."""
        return self._members[0].device

    @property
    def channels_last(self) -> bool:
        """Whether the network receives images in that memory format."""
        return all(member.channels_last for member in self._members)

    def probe(self) -> Tensor:
        """Returns one image of noise, always the same."""
        return self._members[0].probe()

    def normalise(self, images: Tensor) -> Tensor:
        """Returns the network's input for images in pixel space."""
        return self._members[0].normalise(images)

    def logits(self, normalised: Tensor) -> Tensor:
        """Computes the logits of all heads `(B, K₁ + K₂ + …)` for normalised images."""
        members = self._members
        heads, attachments = [member.head for member in members], [member.attachment for member in members]
        with members[0].supplied():
            return torch.cat(attend_all(self.network, normalised, heads, attachments, members[0].read_output), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits of all heads for images in pixel space."""
        return self.logits(self.normalise(images))

    def split(self, logits: Tensor) -> list[Tensor]:
        """Splits logits into those of each head."""
        return list(logits.split([member.class_count for member in self._members], dim=1))


def backbone_groups(classifiers: Sequence[Classifier]) -> list[list[Classifier]]:
    """Groups classifiers that one pass of a network can serve, in their order; most groups have one member."""
    if len(classifiers) == 1:
        return [list(classifiers)]  # the digest of its weights is not needed
    found: dict[object, list[Classifier]] = {}
    for number, classifier in enumerate(classifiers):
        found.setdefault(_backbone(classifier) or number, []).append(classifier)
    return list(found.values())


def _backbone(classifier: Classifier) -> object:
    """Returns a key shared by classifiers that one pass can serve; None for a head that needs its own forward."""
    if classifier.head.asks_class or classifier.head.is_random:
        return None
    network = classifier.network
    # The network's repr shows what the weights do not, such as strides.
    kind = (type(network).__module__, type(network).__qualname__, repr(network), getattr(network, "transform_input", None))
    return (
        *kind,
        digest_of(dict(network.state_dict())),
        classifier.preprocessing,
        classifier.reader,
        classifier.multi_label,
        id(classifier.inputs),
        classifier.device,
        classifier.mean.dtype,
    )
