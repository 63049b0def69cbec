"""New classes from a few labelled pictures: episodes, the linear layer fitted in them, and what meta-training learns."""

from xattn.fewshot.adaptation import adapt
from xattn.fewshot.embedding import Embedding, with_linear
from xattn.fewshot.episodes import Episodes, EpisodeShape
from xattn.fewshot.learner import episode_logits, fit_linear
from xattn.fewshot.scaling import scaled_and_shifted

__all__ = ["Embedding", "EpisodeShape", "Episodes", "adapt", "episode_logits", "fit_linear", "scaled_and_shifted", "with_linear"]
