"""What stands between the features and the logits."""

from __future__ import annotations

from dataclasses import dataclass

from xattn.registry import Registry


@dataclass(frozen=True)
class HeadFacts:
    """What a head declares.

    Attributes:
        source: where it was published.
        trained: whether it means something only after training.
    """

    source: str
    trained: bool


heads: Registry[HeadFacts] = Registry("head")

from xattn.heads.gap import Gap  # noqa: E402  (registers itself)

__all__ = ["Gap", "HeadFacts", "heads"]
