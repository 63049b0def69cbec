"""ProtoPNet: classes are recognised by the similarity of parts of the picture to parts of training pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from xattn.errors import SettingError
from xattn.heads.base import Attended, Batches, ClassifierHead, HeadMaps, HeadMetadata, HeadSettings, NetworkInfo, heads
from xattn.registry import AtMost

EPSILON = 1e-4
REFIT_STEPS, REFIT_LR = 200, 0.01


@heads.register("protopnet", HeadMetadata(source="Chen et al. 2019, Secs. 2.1 and 2.2", replaces="classifier"))
@dataclass(frozen=True)
class ProtoPNet(HeadSettings):
    """Similarity of the best position to each of some prototypes per class, which are vectors of training pictures; → linear.

    Attributes:
        per_class: prototypes of each class, and attention maps.
        width: D, channels of the prototypes and of the map that they are compared with.
        cluster: weight in the loss of the distance to the nearest prototype of the picture's class.
        separation: weight in the loss, with a minus, of the distance to the nearest prototype of another class.
        push: number of epochs between pushes, which set each prototype to the nearest vector of a training picture of its class. The last
            epoch also has a push, and only epochs with a push are kept.
        l1: weight of the absolute weights between prototypes and other classes when the last layer is refitted after a push.
    """

    per_class: Annotated[int, AtMost(1_024)] = 10
    width: Annotated[int, AtMost(65_536)] = 128
    cluster: float = 0.8
    separation: float = 0.08
    push: int = 10
    l1: float = 1e-4

    def __post_init__(self) -> None:
        if min(self.per_class, self.width, self.push) < 1 or min(self.cluster, self.separation, self.l1) < 0:
            raise SettingError(
                f"protopnet takes per_class, width and push of at least 1, and cluster, separation and l1 of at least 0; got {self}."
            )

    def build(self, channels: Sequence[int], classes: int, info: NetworkInfo) -> ProtoPNetHead:
        """The module, with new weights."""
        return ProtoPNetHead(channels[-1], classes, self)


class ProtoPNetHead(ClassifierHead):
    """ProtoPNet as a module: features `(B, C, h, w)` → logits `(B, K)`.

    z = σ(W₂ ReLU(W₁ x)) per position, `(B, D, h, w)`; the similarity to a prototype p is log((d² + 1) / (d² + 10⁻⁴)), d² = ‖z − p‖²; the
    largest over the positions enters the last layer, which starts as +1 to the prototype's class and −0.5 to the others.

    Args:
        channels: C.
        classes: K.
        settings: of the head.

    Attributes:
        prototypes: `(K·per_class, D)`, those of class 0 first.

    Differs: head and network are trained from the start with the recipe's one learning rate, while Chen et al. first train only the head
    and then the network with a lower rate; the last layer is refitted by 200 steps of Adam on the similarities of all training pictures,
    which are kept in memory, instead of 20 epochs of batches. On several devices each process pushes over all pictures.
    """

    def __init__(self, channels: int, classes: int, settings: ProtoPNet | None = None) -> None:
        super().__init__()
        self.settings = s = settings or ProtoPNet()
        self.add_on = nn.Sequential(nn.Conv2d(channels, s.width, 1), nn.ReLU(), nn.Conv2d(s.width, s.width, 1), nn.Sigmoid())
        self.prototypes = nn.Parameter(torch.rand(classes * s.per_class, s.width))
        self.last = nn.Linear(classes * s.per_class, classes, bias=False)
        for layer in self.add_on:
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.last.weight.copy_(self._own().to(self.last.weight) * 1.5 - 0.5)

    @property
    def classes(self) -> int:
        """K."""
        return self.last.out_features

    @property
    def push_every(self) -> int:
        return self.settings.push

    def _own(self) -> Tensor:
        """Whether a prototype belongs to a class: `(K, K·per_class)` bool."""
        device = self.prototypes.device
        numbers = torch.arange(len(self.prototypes), device=device) // self.settings.per_class
        return torch.arange(self.classes, device=device)[:, None] == numbers

    def vectors(self, features: Tensor) -> Tensor:
        """z `(B, D, h, w)`, in (0, 1), for features `(B, C, h, w)`."""
        found: Tensor = self.add_on(features)
        return found

    def distances(self, vectors: Tensor) -> Tensor:
        """Squared distances `(B, K·per_class, h, w)` of vectors `(B, D, h, w)` to the prototypes, ≥ 0, in float32 at least."""
        with torch.autocast(vectors.device.type, enabled=False):
            z = vectors if vectors.dtype == torch.float64 else vectors.float()
            p = self.prototypes.to(z.dtype)
            products = torch.einsum("pd,bdhw->bphw", p, z)
            squares: Tensor = z.square().sum(dim=1, keepdim=True) - 2 * products + p.square().sum(dim=1)[:, None, None]
            return squares.clamp(min=0)

    def similarities(self, features: Tensor) -> Tensor:
        """Similarities `(B, K·per_class, h, w)` of each position of features `(B, C, h, w)` to the prototypes, > 0, at most log(10⁴)."""
        return similarity(self.distances(self.vectors(features)))

    def start(self, batch: int, classes: Tensor | None = None) -> Attended:
        """The labels `(B,)` as the output, in training, for the loss; else nothing."""
        return Attended(torch.empty(0) if classes is None else classes)

    def read(self, attended: Attended, stage: str, features: Tensor, seeds: Sequence[int] | None = None) -> None:
        """Logits and maps; if labels are known, also the head's part of the loss."""
        labels = attended.output
        distances = self.distances(self.vectors(features))
        found = self._attended(distances, stage)
        attended.output, attended.attention = found.output, found.attention
        if labels.numel():
            attended.penalty = self.penalty(distances, labels)

    def attend(self, features: Tensor, stage: str = "", seeds: Sequence[int] | None = None) -> Attended:
        """Logits, and the similarities to the prototypes of the predicted class as maps `(B, per_class, h, w)`.

        Args:
            features: `(B, C, h, w)`.
            stage: name under which the maps are returned.
            seeds: not used; nothing is random.
        """
        return self._attended(self.distances(self.vectors(features)), stage)

    def _attended(self, distances: Tensor, stage: str) -> Attended:
        similar = similarity(distances)
        # The last layer is not trained by gradients: it is refitted after each push.
        logits = functional.linear(similar.amax(dim=(2, 3)).to(self.last.weight.dtype), self.last.weight.detach())
        predicted = logits.argmax(dim=1)
        return Attended(logits, {stage: self.of_class(similar, predicted)})

    def of_class(self, values: Tensor, classes: Tensor) -> Tensor:
        """Selects, from values `(B, K·per_class, …)`, those of the prototypes of each image's class `(B,)`: `(B, per_class, …)`."""
        split = values.unflatten(1, (self.classes, self.settings.per_class))
        chosen: Tensor = split[torch.arange(len(values), device=values.device), classes]
        return chosen

    def penalty(self, distances: Tensor, labels: Tensor) -> Tensor:
        """The term added to the cross-entropy: the mean distance to the nearest prototype of the own class, minus that to the nearest of
        another class, each with its weight.

        Args:
            distances: `(B, K·per_class, h, w)`.
            labels: `(B,)`.
        """
        nearest = distances.amin(dim=(2, 3))
        own = self._own()[labels]
        total = self.settings.cluster * nearest.masked_fill(~own, torch.inf).amin(dim=1).mean()
        if self.classes > 1:
            total = total - self.settings.separation * nearest.masked_fill(own, torch.inf).amin(dim=1).mean()
        return total

    @torch.no_grad()
    def push(self, batches: Batches) -> None:
        """Pushes the prototypes, then refits the last layer.

        Each prototype becomes the nearest vector of all training pictures of its class; for a class without pictures it does not change.
        """
        own = self._own()
        best = torch.full_like(self.prototypes[:, 0], torch.inf)
        pushed = self.prototypes.detach().clone()
        for features, labels in batches():
            vectors = self.vectors(features)
            distances = self.distances(vectors).flatten(2)
            cells = distances.argmin(dim=2)
            nearest = distances.amin(dim=2).masked_fill(~own[labels], torch.inf)
            closest, image = nearest.min(dim=0)
            flat = vectors.flatten(2)
            found = flat[image, :, cells[image, torch.arange(len(image), device=image.device)]]
            is_closer = closest < best
            best = torch.where(is_closer, closest, best)
            pushed[is_closer] = found[is_closer].to(pushed.dtype)
        self.prototypes.copy_(pushed)
        similar, known = [], []
        for features, labels in batches():
            similar.append(self.similarities(features).amax(dim=(2, 3)))
            known.append(labels)
        self.last.weight.copy_(refitted(self.last.weight, torch.cat(similar), torch.cat(known), own, self.settings.l1))

    def saliency(self, features: Tensor, maps: Tensor) -> Tensor:
        """The mean of its maps `(B, per_class, h, w)`: `(B, h, w)`; the features are not used."""
        return maps.mean(dim=1)

    def head_maps(self, features: Tensor, maps: Tensor) -> HeadMaps | None:
        """The unchanged maps and, for display, min-maxed per image; the features are not used."""
        low, high = maps.amin(dim=(1, 2, 3), keepdim=True), maps.amax(dim=(1, 2, 3), keepdim=True)
        return HeadMaps(maps, (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny))


def similarity(distances: Tensor) -> Tensor:
    """log((d² + 1) / (d² + 10⁻⁴)) of squared distances: decreases with the distance, from log(10⁴) to 0."""
    return ((distances + 1) / (distances + EPSILON)).log()


def refitted(weight: Tensor, similar: Tensor, labels: Tensor, own: Tensor, l1: float) -> Tensor:
    """The last layer with the lowest cross-entropy plus `l1` times the absolute weights to prototypes of other classes.

    Args:
        weight: `(K, P)` to start from.
        similar: similarities `(N, P)` of the training pictures.
        labels: `(N,)`.
        own: `(K, P)` bool, whether a prototype belongs to a class.
        l1: weight of the penalty.
    """
    with torch.inference_mode(False), torch.enable_grad():
        found = weight.detach().clone().requires_grad_()
        similar = similar.detach().to(found)
        optimiser = torch.optim.Adam([found], lr=REFIT_LR)
        for _ in range(REFIT_STEPS):
            optimiser.zero_grad()
            others: Tensor = found.masked_fill(own, 0).abs().sum()
            loss = functional.cross_entropy(similar @ found.T, labels) + l1 * others
            loss.backward()
            optimiser.step()
    return found.detach()
