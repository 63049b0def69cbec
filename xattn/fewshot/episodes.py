"""Episodes: a few classes, a few labelled pictures of each, and queries to be classified among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from xattn.data.seeds import mixed
from xattn.errors import InputError, SettingError


@dataclass(frozen=True)
class EpisodeShape:
    """How many pictures an episode has.

    Attributes:
        ways: classes.
        shots: labelled pictures of each class.
        queries: pictures of each class to be classified.
    """

    ways: int = 5
    shots: int = 1
    queries: int = 15

    def __post_init__(self) -> None:
        if self.ways < 2 or self.shots < 1 or self.queries < 1:
            raise SettingError(
                f"an episode has at least two ways, one shot and one query; got {self.ways}, {self.shots} and {self.queries}."
            )

    @property
    def support(self) -> int:
        """Labelled pictures of an episode."""
        return self.ways * self.shots

    @property
    def pictures(self) -> int:
        """Pictures of an episode."""
        return self.ways * (self.shots + self.queries)

    def labels(self) -> torch.Tensor:
        """The class of each picture of an episode among its classes, `(pictures,)`: the support set, then the queries."""
        return torch.arange(self.pictures) % self.ways


class Episodes(Sampler[list[tuple[int, int]]]):
    """Episodes as batches of keys (epoch, number of a picture), each a pure function of seed, epoch and its number.

    The first `shape.support` keys of an episode are its labelled pictures, the others its queries; in both, the classes take turns.
    The epoch in the keys is another for every episode, so that a picture is augmented anew in each.

    Args:
        targets: class index of each picture.
        shape: of the episodes.
        count: episodes per epoch.
        seed: of the draw.
        epoch: returns the epoch that is about to start.
        name: of the data in messages.
        names: of the classes in messages; None: their indices.

    Raises:
        InputError: too few classes, or a class with too few pictures.

    >>> episodes = Episodes([0, 0, 1, 1, 2, 2], EpisodeShape(ways=2, shots=1, queries=1), 1, seed=0)
    >>> [len(keys) for keys in episodes]
    [4]
    """

    def __init__(
        self,
        targets: Sequence[int],
        shape: EpisodeShape,
        count: int,
        *,
        seed: int,
        epoch: Callable[[], int] = lambda: 0,
        name: str = "the data",
        names: Sequence[str] | None = None,
    ) -> None:
        by_class: dict[int, list[int]] = {}
        for number, target in enumerate(targets):
            by_class.setdefault(target, []).append(number)
        if len(by_class) < shape.ways:
            raise InputError(f"an episode of {shape.ways} ways needs as many classes, but {name} has {len(by_class)}: give fewer ways.")
        least = min(by_class, key=lambda target: len(by_class[target]))
        if len(by_class[least]) < shape.shots + shape.queries:
            called = least if names is None else f"'{names[least]}'"
            raise InputError(
                f"an episode takes {shape.shots} + {shape.queries} pictures per class (labelled ones and queries), but class {called} of "
                f"{name} has {len(by_class[least])}: give fewer shots or queries, or more pictures."
            )
        self.classes = [by_class[target] for target in sorted(by_class)]
        self.shape = shape
        self.count = count
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch()
        for number in range(self.count):
            yield [(epoch * self.count + number, picture) for picture in self.drawn(epoch, number)]

    def drawn(self, epoch: int, number: int) -> list[int]:
        """Numbers of the pictures of one episode."""
        generator = torch.Generator().manual_seed(mixed(self.seed, epoch, number))
        chosen = torch.randperm(len(self.classes), generator=generator)[: self.shape.ways].tolist()
        taken = self.shape.shots + self.shape.queries
        of_class = [
            [self.classes[each][place] for place in torch.randperm(len(self.classes[each]), generator=generator)[:taken].tolist()]
            for each in chosen
        ]
        return [pictures[rank] for rank in range(taken) for pictures in of_class]
