"""Training of heads with Lightning: the head alone on a frozen network, or head and network, with or without a teacher."""

from xattn.errors import DivergedError, MissingPackageError

try:
    import lightning
except ImportError as error:
    raise MissingPackageError("lightning", "train", "training") from error

from xattn.training.data import Labelled, open_data
from xattn.training.episodes import fit_episodes, with_ways
from xattn.training.fit import Fitted, fit
from xattn.training.loss import distillation
from xattn.training.module import gradient_norms
from xattn.training.recipe import PRESETS, Recipe
from xattn.training.seeds import fit_seeds

del lightning

__all__ = [
    "PRESETS",
    "DivergedError",
    "Fitted",
    "Labelled",
    "Recipe",
    "distillation",
    "fit",
    "fit_episodes",
    "fit_seeds",
    "gradient_norms",
    "open_data",
    "with_ways",
]
