"""`Classifier`: a pretrained network with its stages, head, preprocessing and labels."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from xattn.data.labels import Label
from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError, UnsupportedError, XattnError
from xattn.heads.base import VECTORS, Attended, Head, HeadSettings, heads
from xattn.metrics.seeds import content_seeds
from xattn.models import checkpoints
from xattn.models.attachment import attachment_of, attend, grafted, own_prediction
from xattn.models.attention import attention_layers
from xattn.models.capture import captured
from xattn.models.checkpoints import InnerLoop, Source
from xattn.models.class_names import index_of, indices_of
from xattn.models.concurrency import evaluating
from xattn.models.inputs import Inputs, input_channels, supplied
from xattn.models.layout import Stage, to_nchw
from xattn.models.reading import output_reader
from xattn.models.refusals import named_errors, refuse_unusable, why_not_run
from xattn.models.repeatability import instability
from xattn.models.state_dicts import digest_of, fit_weights
from xattn.models.streams import stage_named, stages_of
from xattn.text import counted

logger = logging.getLogger("xattn")

VIEWED = "view size is not compatible"  # torch's error where a view needs the other memory format


class Classifier(nn.Module):
    """A network that takes images in pixel space, with its stages, preprocessing and labels.

    It wraps the network without changing it: training flags, hooks, gradients and weights stay as they are. A head is inserted by hooks
    that last for one forward.

    Args:
        network: normalised images `(B, C, H, W)` → logits `(B, K)`, vectors `(B, D)` or maps of logits `(B, K, h, w)`, or a tuple, mapping
            or object that holds them. Probabilities instead of logits and single logits are detected: see `reader`.
        name: its name in the rows.
        preprocessing: crop and normalisation.
        labels: class names in the order of the logits.
        head: the head that computes the logits.
        classes: number of outputs of a head with its own linear layer; None: the network's.
        fresh: whether the head's weights are new; False if they will be loaded from a file.
        source: how to rebuild the network; None for a module that the caller built.
        multi_label: whether probabilities are the sigmoid of each logit, not their softmax.
        regression: whether outputs are values, which have no probability.
        output: which of several outputs is explained, by name or position, or "vectors" for a head that has them; None: the final one,
            which is computed from the others.
        inputs: the network's images `(B, C, H, W)`, normalised → further arguments of its forward by name; None: it takes only images.
        reads: names of the stages that the head reads; empty: those of a file that does not name them; None: the head chooses.

    Attributes:
        reader: how the output is read from what the network returns.
        channels: number of channels C of the images.
        stages: places in the network where features can be taken, in forward order; the last is the default: the input of the pooling, or
            for a transformer the last tokens that reach the output. Empty for a network in which no map lies on every path.
        head: the head's module, with weights of its own (`gap` has none).
        head_name: its name with settings.
        grafted: whether the head was initialised as the network's own classifier.
        trained: whether the logits are meaningful; set it after training the head in your own loop.
        inner: how its last layer is fitted to new classes, if it was trained for that; else None.
        channels_last: whether the network gets images in that memory format; False if its code needs the other format, as `x.view(…)` may.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        preprocessing: Preprocessing,
        labels: Sequence[str] | None = None,
        head: str = "gap",
        classes: int | None = None,
        fresh: bool = True,
        source: Source | None = None,
        multi_label: bool = False,
        regression: bool = False,
        output: str | int | None = None,
        inputs: Inputs | None = None,
        reads: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if multi_label and regression:
            raise InputError("multi_label and regression exclude each other: labels have probabilities, values have none.")
        refuse_unusable(network, name)
        component = heads.create(head)
        settings: HeadSettings = component.instance
        self.network = network
        self.head_name = component.spec
        gives_vectors = output == VECTORS and component.metadata.vectors
        self.name = name
        self.source = source
        self.inputs = inputs
        self.regression = regression
        self.channels_last = True
        like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
        with evaluating(self), torch.inference_mode(False):
            self.channels = input_channels(network, self._run, preprocessing.input_size, like, name)
            self.preprocessing = preprocessing.for_channels(self.channels, name)
            self.register_buffer("mean", like.new_tensor(self.preprocessing.mean).view(-1, 1, 1), persistent=False)
            self.register_buffer("std", like.new_tensor(self.preprocessing.std).view(-1, 1, 1), persistent=False)
            probe = self.probe()
            self.reader, own = output_reader(
                self._probed,
                torch.cat([probe, probe / 4, 1 - probe / 4]),
                name,
                asked=None if gives_vectors else output,
                multi_label=multi_label,
                regression=regression,
            )
            self.multi_label = multi_label or (self.reader.separate and not self.reader.binary)
            if unstable := instability(network, self._bare, probe, name):
                logger.warning("%s", unstable)
            self._found = stages_of(self.network, self._bare, self.probe(), name)
            behind = () if component.metadata.replaces == "nothing" else self._found.behind
            self.stages: tuple[Stage, ...] = self._found.stages + behind
            self.attachment = attachment_of(
                network, name, self.head_name, settings, component.metadata, self._bare, self.probe(), self._found, reads
            )
        if classes not in (None, own) and component.metadata.replaces != "classifier":
            raise InputError(
                f"{self.head_name} keeps the classifier of {name}, which has {counted(own, 'class')}; {classes} were asked for. Use br-npa "
                "or b-cnn, whose classifier is their own, or labels among the network's classes."
            )
        self._classes = classes or own
        self.head: Head = self._built(settings)
        self.head.gives_vectors = gives_vectors
        self.class_count = self.head.vector_length if gives_vectors else self._classes
        self.head.train(network.training)
        self._attention_layers: int | None = None
        self.grafted = fresh and self._grafted(self.head)
        self.trained = component.metadata.replaces == "nothing" or self.grafted
        self.inner: InnerLoop | None = None
        self.labels = None if labels is None or gives_vectors else tuple(labels)
        if self.labels is not None and len(self.labels) != self.class_count:
            raise InputError(f"{name} needs {counted(self.class_count, 'label')}, one name per class in order; got {len(self.labels)}.")

    def _built(self, settings: HeadSettings) -> Head:
        channels = [stage.channels for stage in self.attachment.stages]
        with torch.inference_mode(False):
            return settings.built(channels, self._classes, self.attachment.info).to(device=self.mean.device, dtype=self.mean.dtype)

    def _grafted(self, head: Head) -> bool:
        return grafted(head, self.attachment.entry, self.class_count, f"{self.head_name} on {self.name}")

    def new_head(self, seed: int) -> Head:
        """A head like its own, with new weights that depend only on the seed, or those of the network's classifier if it starts as that."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = self._built(heads.create(self.head_name).instance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what it warns of was said of its own head
            self._grafted(head)
        return head

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.preprocessing.input_size

    @property
    def device(self) -> torch.device:
        """Device of the classifier."""
        return self.mean.device

    def probe(self) -> Tensor:
        """One image of noise, always the same, of the input size and in the network's precision."""
        noise = torch.rand((1, self.channels, *self.input_size), generator=torch.Generator().manual_seed(0))
        return noise.to(self.mean)

    def _probed(self, images: Tensor) -> Any:
        """The return value of the network for images.

        Raises:
            UnsupportedError: the network cannot run the images.
        """
        try:
            return self._run(self.normalise(images))
        except (XattnError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # a network's code may raise anything
            if self.channels_last and VIEWED in str(error):
                self.channels_last = False
                return self._probed(images)
            raise why_not_run(self.network, self.name, images, self.input_size, self.inputs, error) from error

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """Logits `(B, K)`, or another output of the network, for images `(B, C, H, W)` in pixel space, float in [0, 1]. Differentiable.

        Args:
            images: in pixel space.
            classes: `(B,)`, the labels, for a head that has one query per class in training.
        """
        return self.run(images, classes).output

    def run(self, images: Tensor, classes: Tensor | None = None) -> Attended:
        """The output and the head's attention for images in pixel space."""
        if images.dim() != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            raise InputError(
                f"{self.name} takes images (batch, {self.channels}, height, width), float in [0, 1]; got {tuple(images.shape)} "
                f"{images.dtype}. Divide 8-bit images by 255; do not normalise: the classifier does."
            )
        return self._attend(self.normalise(images), classes)

    def normalise(self, images: Tensor) -> Tensor:
        """The network's input for images in pixel space, in the network's precision."""
        form = torch.channels_last if self.channels_last else torch.contiguous_format
        normalised: Tensor = (images.to(self.mean.dtype).contiguous(memory_format=form) - self.mean) / self.std
        return normalised if self.channels > 1 else normalised.clone(memory_format=form)  # with one channel, tensors are in both formats

    def logits(self, normalised: Tensor) -> Tensor:
        """The output for normalised images."""
        return self._attend(normalised).output

    def _attend(self, normalised: Tensor, classes: Tensor | None = None) -> Attended:
        draws = self.head.is_random and not self.head.training
        seeds = content_seeds(normalised * self.std + self.mean) if draws else None
        errors = nullcontext() if torch.compiler.is_compiling() else named_errors(self.name, normalised)
        with self.supplied(), errors:
            return attend(self.network, normalised, self.head, self.attachment, self.read_output, classes, seeds)

    def supplied(self) -> AbstractContextManager[None]:
        """Passes the further inputs to the network's forwards in the block, in this thread."""
        return supplied(self.network, self.inputs)

    def _run(self, normalised: Tensor) -> Any:
        """The return value of the network, without the head, for normalised images."""
        with self.supplied():
            return self.network(normalised)

    def asked_classes(self, images: Tensor) -> Tensor | None:
        """The network's own prediction for images in pixel space, if the head needs the class; else None."""
        if not self.head.asks_class:
            return None
        with self.supplied():
            return own_prediction(self.network, self.normalise(images), self.read_output)

    def _bare(self, images: Tensor) -> Tensor:
        """The unchanged output of the network, without the head."""
        return self.reader.select(self._run(self.normalise(images)))

    def read_output(self, output: Any) -> Tensor:
        """Finds the output in what the network returns: logits `(B, K)`, vectors `(B, D)` or maps of logits `(B, K, h, w)`.

        Raises:
            UnsupportedError: there is no such output.
        """
        return self.reader(output)

    def predict(self, images: Tensor) -> Tensor:
        """Logits `(B, K)`, or another output of the network, in eval mode, without gradients; images are moved to the classifier's device.

        >>> import torch, xattn
        >>> xattn.load("birds:gap", device="cpu").predict(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 16])
        """
        with evaluating(self), torch.inference_mode():
            logits: Tensor = self(images.to(self.device))
        return logits

    @property
    def attention_layers(self) -> int:
        """Number of layers with attention between all tokens; 0 if there are none, or something else also mixes the tokens."""
        if self._attention_layers is None:
            tokens = self._found.tokens
            with evaluating(self), torch.inference_mode(False):
                self._attention_layers = (
                    attention_layers(self.network, self._bare, self.probe(), tokens[0], tokens[-1]) if len(tokens) > 1 else 0
                )
        return self._attention_layers

    @property
    def token_stages(self) -> tuple[Stage, ...]:
        """The maps of the tokens from which the network's output is computed, including the last; empty for a network without them."""
        return self._found.tokens

    @property
    def pooled_tokens(self) -> tuple[int, ...]:
        """The tokens of the last of `token_stages` from which the output is computed: the class token, or those of the mean."""
        return self._found.pooled

    def features(self, images: Tensor, stages: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Feature maps `{stage: (B, C, h, w)}` in eval mode, for every layout of the network; all stages if none are named."""
        chosen = self.stages if stages is None else [self.stage(name) for name in stages]
        with evaluating(self), captured(self.network, chosen) as found:
            self._bare(images)
        return {stage.name: to_nchw(found[stage.name], stage.layout) for stage in chosen}

    def stage_or_default(self, name: str | None) -> Stage | None:
        """A stage by name; without a name the default, or None if the network has no default, since some methods use no features."""
        return self.stage(name) if name is not None or self.stages else None

    def stage(self, name: str | None = None) -> Stage:
        """A stage by name, which may be any module whose output is a map; None: the default, the last of `stages`.

        Raises:
            NameUnknownError: there is no module of that name.
            UnsupportedError: the module's output is not a map; or no name is given and the network has no default.
        """
        if name is None:
            if not self.stages:
                raise UnsupportedError(f"{self._found.reason}: name a stage, any module that gives a map (--stage, in Python stage=).")
            return self.stages[-1]
        if not isinstance(name, str):
            raise InputError(f"a stage is named by a text, as in `classifier.stages[0].name`; got {type(name).__name__}.")
        with evaluating(self), torch.inference_mode(False):
            return stage_named(self.network, self._bare, self.probe(), name, self._found)

    def class_index(self, target: int | str) -> int:
        """The index of a class given by index, name or WordNet id.

        Raises:
            NameUnknownError: there is no class of that name.
            InputError: an index is outside the classes, a name belongs to two classes, or a name is given but no labels are known.
        """
        return index_of(target, self.labels, self.class_count, self.name)

    def class_indices(self, label: Label | Sequence[int | str]) -> tuple[int, ...]:
        """The class indices of an image's label: one class, several, several names separated by `|`, or a vector of zeros and ones.

        Raises:
            NameUnknownError: there is no class of that name.
            InputError: as for `class_index`, or a vector of another length.
        """
        return indices_of(label, self.labels, self.class_count, self.name)

    def label(self, index: int) -> str:
        """The name of a class, or its index if names are unknown."""
        return str(index) if self.labels is None else self.labels[index]

    def start_from(self, other: Classifier) -> None:
        """Copies the weights of another classifier with the same network and head, as for a student at higher resolution.

        dg-net starts from one whose pooling gives as many vectors, or a whole fraction of them: br-npa or b-cnn from max.

        Raises:
            WeightsError: its network or its head is different.
        """
        fit_weights(self.network, other.network.state_dict(), f"of {other.name}")
        found = self.head.fitted(other.head.state_dict())
        fit_weights(self.head, found, f"of {other.head_name} on {other.name}", self.head.fixed_size)
        self.trained = other.trained

    def digest(self) -> str:
        """SHA-256 of the weights and buffers of network and head, first 16 digits."""
        return digest_of({**self.network.state_dict(), **{f"head.{key}": value for key, value in self.head.state_dict().items()}})

    def save(self, path: str) -> None:
        """Writes weights and settings to one `.safetensors` file that `xattn.load` takes.

        If the network's weights are unchanged since loading, only the head's are written: several heads on one network are small files.

        Raises:
            UnsupportedError: the classifier was made by `attach`, so there is no name by which its network can be rebuilt.
        """
        if self.source is None:
            raise UnsupportedError(
                f"{self.name} was attached from a module in hand, and nothing says how to rebuild it: "
                "load it as 'package.module:factory', then save."
            )
        network, head = self.network.state_dict(), self.head.state_dict()
        header = checkpoints.Header(
            source=self.source,
            head_alone=bool(head) and digest_of(network) == self.source.digest,
            name=self.name,
            head=self.head_name,
            trained=self.trained,
            classes=self._classes,
            labels=self.labels,
            multi_label=self.multi_label,
            regression=self.regression,
            output=self.reader.path,
            stages=tuple(stage.name for stage in self.attachment.stages),
            inner=self.inner,
            preprocessing=asdict(self.preprocessing),
            build={name: getattr(self.network, name) for name in checkpoints.FLAGS if hasattr(self.network, name)},
        )
        checkpoints.save(path, header, network, head)

    def __repr__(self) -> str:
        stage = self.stages[-1].name if self.stages else "none"
        about = f"{counted(self.class_count, 'class')}, stage {stage}, {self.preprocessing}, on {self.device}"
        return f"Classifier({self.name} · {self.head_name}: {about})"
