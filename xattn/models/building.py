"""The request and the result that all sources of networks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError
from xattn.models.state_dicts import channels_in, classes_in, fit_weights, mismatch
from xattn.models.weights_files import read_weights

Weights = str | Path | dict[str, Tensor] | None
"""A weights file, a name of weights, or the content of an xattn file; None: the source's own weights."""


@dataclass(frozen=True)
class Prompts:
    """Classes given by text, for networks that compare images with texts.

    Attributes:
        classes: one text per class.
        templates: the text replaces `{}` in each; a class is the mean of its templates' embeddings.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...] = ("{}",)

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) < len(self.classes) or not all(text.strip() for text in self.classes):
            raise InputError(f"classes given by text are distinct and not empty; got {list(self.classes)}.")
        if wrong := [template for template in self.templates if "{}" not in template]:
            raise InputError(f"a template has {{}} in place of the class, such as 'a photo of a {{}}.'; got '{wrong[0]}'.")

    def texts(self) -> list[str]:
        """Every class in every template, class by class.

        >>> Prompts(("cat", "dog"), ("a {}.", "one {}.")).texts()
        ['a cat.', 'one cat.', 'a dog.', 'one dog.']
        """
        return [template.replace("{}", text) for text in self.classes for template in self.templates]


@dataclass(frozen=True)
class Request:
    """The request by which a network is built.

    Attributes:
        model: its name, with the prefix of its source.
        weights: the weights to load.
        prompts: classes by text.
        trust_code: whether to run code that comes with a model on the Hugging Face hub.
        classes: number of classes of a network whose classifier is new, as a two-stream network's, or one of torchvision or timm that is to
            be trained for other classes; None: its own.
        high_res: stages whose stride is removed, for networks that need it while they are built (rga:, ocr:); for others it is done
            afterwards.
        dilate: whether dilation replaces the stride.
    """

    model: str
    weights: Weights = None
    prompts: Prompts | None = None
    trust_code: bool = False
    classes: int | None = None
    high_res: tuple[str, ...] = ()
    dilate: bool = False

    @property
    def name(self) -> str:
        """The name without the prefix."""
        return self.model.partition(":")[2]

    @property
    def state(self) -> dict[str, Tensor] | None:
        """The state dict of the weights; None for the source's own weights."""
        return self.weights if self.weights is None or isinstance(self.weights, dict) else read_weights(self.weights)

    @property
    def shown_weights(self) -> str:
        """The weights in messages."""
        return "of the file" if isinstance(self.weights, dict) else str(self.weights)


class Built(NamedTuple):
    """A network that a source has built.

    Attributes:
        network: the module.
        preprocessing: that of the network.
        labels: class names, if they are known.
        multi_label: whether probabilities are the sigmoid of each logit.
        trained: whether its logits are meaningful; those of a new classifier are not.
        regression: whether its outputs are values instead of logits.
    """

    network: nn.Module
    preprocessing: Preprocessing
    labels: Sequence[str] | None
    multi_label: bool = False
    trained: bool = True
    regression: bool = False


def fit_with_classes(network: nn.Module, request: Request) -> None:
    """Loads a request's weights; if those of an xattn file have another number of classes, the last linear layer is resized.

    Raises:
        WeightsError: the weights do not fit.
    """
    state = request.state or {}
    if isinstance(request.weights, dict) and classes_in(network, state) is not None:
        for place, module in list(network.named_modules()):
            weight = state.get(f"{place}.weight")
            if type(module) is nn.Linear and weight is not None and _only_longer(weight, module.weight):
                parent, _, name = place.rpartition(".")
                wide = nn.Linear(module.in_features, len(weight), f"{place}.bias" in state).to(module.weight)
                setattr(network.get_submodule(parent), name, wide.train(module.training))
    fit_weights(network, state, request.shown_weights)


def _only_longer(one: Tensor, other: Tensor) -> bool:
    return one.shape[1:] == other.shape[1:] and len(one) != len(other)


def with_local_weights(create: Callable[..., nn.Module], state: dict[str, Tensor], shown: str, channels: str | None = None) -> nn.Module:
    """Creates the network with a local file's weights; its last layer has the file's number of classes.

    Args:
        create: creates the network; it takes `num_classes`.
        state: the file's state dict.
        shown: the file in messages.
        channels: the argument of `create` for the number of image channels, which is then also the file's; None: it has none.
    """
    network, given = create(), {}
    if channels is not None and (taken := channels_in(network, state)) is not None:
        given = {channels: taken}
        network = create(**given)
    if mismatch(network, state) and (count := classes_in(network, state)) is not None:
        network = create(num_classes=count, **given)
    fit_weights(network, state, shown)
    return network


def with_new_classifier(create: Callable[..., nn.Module], network: nn.Module, classes: int) -> nn.Module:
    """Creates the network with another number of classes: its last layer is new, all others keep their weights.

    Args:
        create: creates the network with random weights; it takes `num_classes`.
        network: with its weights.
        classes: the new number.
    """
    made = create(num_classes=classes)
    own = made.state_dict()
    made.load_state_dict(own | {key: value for key, value in network.state_dict().items() if value.shape == own[key].shape})
    return made
