"""A map from a share of its passes: the network's other answers are predicted by regression over the masks.

A method that masks an image n times makes its map Σ r·v of the responses r to its masks and of what each response adds to the map, v. A
response is a smooth function of the mask, so that a Gaussian process, fitted to the responses to some masks, predicts the others, and by
how much the map may differ from the one of all passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softmax

from xattn.errors import SettingError
from xattn.metrics.targets import Target

Response = Callable[[Tensor], Tensor]
"""A latent value, any real number, → the response."""

FEWEST = 8
"""Passes of an image at least, if it has as many masks: fewer tell nothing of how smooth the responses are."""
MOST = 4_000
"""Passes of an image at most: beyond, the regression costs more than the passes that it spares."""
ROUNDS = 6
FIRST = 0.25
LENGTHS = (0.5, 0.7, 1.0, 1.4, 2.0, 4.0, 16.0)
NUGGETS = (1e-8, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
SMOOTHNESS = ("gaussian", "matern")
AVERAGED = 4
NODES = 24
BLOCK = 512
TINY = 1e-12
SMALLEST = 1e-30


def log_odds(target: Target, output: Tensor) -> Tensor:
    """Of the target's probability, `(b,)` float64; finite where the probability is 0 or 1."""
    found = target.probability(output)
    return found.p.clamp(min=SMALLEST).log() - found.rest.clamp(min=SMALLEST).log()


@dataclass(frozen=True)
class Budget:
    """When the passes end.

    Attributes:
        share: of the passes, at most.
        tolerance: the predicted error of a map at which its passes end: root mean square over the cells, in units of the map's range.
    """

    share: float
    tolerance: float = 0.0

    @classmethod
    def of(cls, method: str, budget: float | None, tolerance: float | None) -> Budget | None:
        """That of a method's settings; None if it runs all passes.

        Raises:
            SettingError: a setting that cannot be.
        """
        if budget is not None and not 0 < budget <= 1:
            raise SettingError(f"{method}'s budget is the share of its passes that are run, above 0 and at most 1; got budget={budget}.")
        if tolerance is not None and not 0 < tolerance < 1:
            raise SettingError(
                f"{method}'s tolerance is an error as a share of the map's range, between 0 and 1; got tolerance={tolerance}. "
                "Leave it out for the exact map."
            )
        if budget in (None, 1) and tolerance is None:
            return None
        return cls(1.0 if budget is None else budget, 0.0 if tolerance is None else tolerance)

    def passes(self, count: int) -> int:
        """The most passes of an image with so many masks."""
        return min(count, max(FEWEST, round(self.share * count)))


class Masks(NamedTuple):
    """The masks of one image.

    Attributes:
        inputs: `(n, d)` float64, each mask at a few cells.
        effects: `(n, c)` float64, what a response of 1 to it adds to each cell of the map.
    """

    inputs: Tensor
    effects: Tensor


class Estimate(NamedTuple):
    """What comes of one image.

    Attributes:
        responses: `(n,)` float64, those of the network to the masks that were run, and predictions of the others.
        error: `(c,)` float64, standard error of the map at each cell; 0 if every mask was run.
        passes: masks that were run.
    """

    responses: Tensor
    error: Tensor
    passes: int


Ask = Callable[[Sequence[list[int]]], Sequence[Tensor]]
"""For each image the numbers of some masks → the latent values of its responses to them."""


def estimates(images: Sequence[Masks], ask: Ask, response: Response, budget: Budget) -> list[Estimate]:
    """The responses of some images to all of their masks, from as many passes as a budget allows.

    The first masks are those that are most telling of the map, were the responses as smooth as the masks' distances suggest. Each further
    round fits the regression and takes the masks whose responses would reduce the map's predicted variance most, one after the other. The
    images of a batch share the rounds' forwards and nothing else.

    Args:
        images: their masks.
        ask: runs the network.
        response: latent value → response.
        budget: when the passes end.

    Raises:
        SettingError: the budget comes to more passes than a regression takes.
    """
    states = [_Image(masks, budget, response) for masks in images]
    while any(wanted := [state.wanted() for state in states]):
        for state, numbers, found in zip(states, wanted, ask(wanted), strict=True):
            state.add(numbers, found)
    return [state.estimate() for state in states]


class _Kernel(NamedTuple):
    """A covariance: scale · (correlation + nugget of a mask with itself)."""

    smoothness: str
    length: float
    nugget: float
    scale: float = 1.0

    def correlation(self, one: Tensor, other: Tensor) -> Tensor:
        """`(n, d)` and `(m, d)` → `(n, m)`."""
        return _correlation(_squares(one, other) / self.length**2, self.smoothness)


class _Posterior(NamedTuple):
    """What the responses to the masks that were run say of all latent values.

    Attributes:
        mean: `(n,)`.
        variance: `(n,)`, with that of the nugget.
        known: `(m, n)`, whose product with itself is the correlation that the responses explain.
        level: `(n,)`, whose product with itself is what not knowing the mean adds.
    """

    mean: Tensor
    variance: Tensor
    known: Tensor
    level: Tensor


class _Moments(NamedTuple):
    """Of the responses, whose latent values are normal: mean, slope of the mean in that of the latent value, variance; each `(n,)`."""

    mean: Tensor
    slope: Tensor
    variance: Tensor


class _Image:
    """The masks of one image, and what is known of them."""

    def __init__(self, masks: Masks, budget: Budget, response: Response) -> None:
        self.inputs, self.effects, self.budget, self.response = *masks, budget, response
        count = len(self.inputs)
        self.most = budget.passes(count)
        if MOST < self.most < count:
            raise SettingError(
                f"a budget of {budget.share:g} is {self.most} passes of {count}; a regression takes at most {MOST}: give a smaller budget."
            )
        self.chosen: list[int] = []
        self.latents = self.effects.new_empty(0)
        self.ended = False
        self.surprise, self.expected = 0.0, 0.0
        self.predicted: tuple[_Kernel, _Posterior, _Moments] | None = None
        some = self.inputs[:: max(1, count // 256)]
        self.unit = float(_squares(some, some).median().sqrt()) or 1.0 if count > 1 else 1.0

    def wanted(self) -> list[int]:
        """The masks to run next; none once the passes end."""
        left = self.most - len(self.chosen)
        if self.ended or left == 0:
            return []
        if self.most == len(self.inputs) and not self.budget.tolerance:
            return list(range(self.most))
        first = min(self.most, max(FEWEST, int(FIRST * self.most)))
        step = min(left, first if not self.chosen else max(FEWEST, -(-(self.most - first) // (ROUNDS - 1))))
        if not self.chosen:
            kernel = _Kernel("gaussian", self.unit, NUGGETS[4])
            return self._most_telling(kernel, None, self.effects, step)
        kernel, posterior, moments = self._predict()
        if self.budget.tolerance and self._error_of(self.estimate()) < self.budget.tolerance:
            self.ended = True
            return []
        return self._most_telling(kernel, posterior, self.effects * moments.slope[:, None], step)

    def add(self, numbers: list[int], latents: Tensor) -> None:
        """Takes the answers to some masks."""
        if not numbers:
            return
        if self.predicted is not None:
            _, _, moments = self.predicted
            sizes = self.effects[numbers].pow(2).sum(dim=1)
            self.surprise += float(((self.response(latents) - moments.mean[numbers]) ** 2 * sizes).sum())
            self.expected += float((moments.variance[numbers] * sizes).sum())
        self.chosen += numbers
        self.latents = torch.cat([self.latents, latents.to(self.latents)])
        self.predicted = None
        self.ended = not bool(torch.isfinite(self.latents).all())

    def estimate(self) -> Estimate:
        """The responses, averaged over the covariances that the answers leave likely."""
        count = len(self.inputs)
        responses, error = self.effects.new_full((count,), torch.nan), self.effects.new_zeros(self.effects.shape[1])
        if not bool(torch.isfinite(self.latents).all()):
            return Estimate(responses, error + torch.nan, len(self.chosen))
        if len(self.chosen) < count:
            likely = sorted(_likely(self.inputs[self.chosen], self.latents, self.unit), reverse=True)
            found = [(weight, *self._of(kernel)) for weight, kernel in likely[:AVERAGED]]
            total = sum(weight for weight, *_ in found)
            responses = sum((weight / total * mean for weight, mean, _, _ in found), torch.zeros_like(responses))
            centre = sum((weight / total * a for weight, _, a, _ in found), torch.zeros_like(error))
            error = sum((weight / total * (variance + (a - centre) ** 2) for weight, _, a, variance in found), error)
            error = (error * max(1.0, self.surprise / max(self.expected, TINY))).sqrt()
        else:
            responses[self.chosen] = self.response(self.latents)
        return Estimate(responses, error, len(self.chosen))

    def _error_of(self, estimate: Estimate) -> float:
        cells = estimate.responses @ self.effects
        return float(estimate.error.pow(2).mean().sqrt() / (cells.max() - cells.min()).clamp(min=TINY))

    def _predict(self) -> tuple[_Kernel, _Posterior, _Moments]:
        if self.predicted is None:
            _, kernel = max(_likely(self.inputs[self.chosen], self.latents, self.unit))
            posterior = self._posterior(kernel)
            self.predicted = kernel, posterior, self._moments(posterior)
        return self.predicted

    def _posterior(self, kernel: _Kernel) -> _Posterior:
        across = kernel.correlation(self.inputs, self.inputs[self.chosen])
        lower = torch.linalg.cholesky(across[self.chosen] + kernel.nugget * torch.eye(len(self.chosen)).to(across))
        given = torch.stack([self.latents, torch.ones_like(self.latents)], dim=1)
        known = torch.linalg.solve_triangular(lower, across.mT, upper=False)
        values, ones = torch.linalg.solve_triangular(lower, given, upper=False).unbind(dim=1)
        level = (1 - known.mT @ ones) / ones.norm()
        mean = (ones @ values) / (ones @ ones)
        variance = kernel.scale * (1 + kernel.nugget - known.pow(2).sum(dim=0) + level**2)
        return _Posterior(mean + known.mT @ (values - mean * ones), variance.clamp(min=TINY), known, level)

    def _moments(self, posterior: _Posterior) -> _Moments:
        """Of the responses; of those that are known, the value alone."""
        found = _moments(self.response, posterior.mean, posterior.variance)
        found.mean[self.chosen] = self.response(self.latents)
        found.slope[self.chosen] = 0.0
        found.variance[self.chosen] = 0.0
        return found

    def _of(self, kernel: _Kernel) -> tuple[Tensor, Tensor, Tensor]:
        """Responses, map and the map's variance by one covariance."""
        posterior = self._posterior(kernel)
        moments = self._moments(posterior)
        through = self.effects * moments.slope[:, None]
        variance = (self._explained(kernel, through) * through.mT).sum(dim=1) - (posterior.known @ through).pow(2).sum(dim=0)
        variance = kernel.scale * (variance + (posterior.level @ through) ** 2)
        smooth = (posterior.variance - kernel.scale * kernel.nugget) * moments.slope**2
        variance = variance + self.effects.pow(2).mT @ (moments.variance - smooth).clamp(min=0)
        return moments.mean, moments.mean @ self.effects, variance.clamp(min=0)

    def _explained(self, kernel: _Kernel, effects: Tensor) -> Tensor:
        """The covariance of cells and latent values before any answer, without the nugget: `(n, c)` → `(c, n)`."""
        blocks = self.inputs.split(BLOCK)
        return torch.cat([effects.mT @ kernel.correlation(self.inputs, block) for block in blocks], dim=1)

    def _most_telling(self, kernel: _Kernel, posterior: _Posterior | None, effects: Tensor, count: int) -> list[int]:
        """The masks that reduce the summed variance of the map's cells most, each beside those before it."""
        if posterior is None:
            known, level = self.inputs.new_zeros(0, len(self.inputs)), self.inputs.new_ones(len(self.inputs))
        else:
            known, level = posterior.known, posterior.level
        across = self._explained(kernel, effects) + kernel.nugget * effects.mT
        across = across - (effects.mT @ known.mT) @ known + (effects.mT @ level)[:, None] * level
        variance = 1 + kernel.nugget - known.pow(2).sum(dim=0) + level**2
        free = torch.ones_like(variance, dtype=torch.bool)
        free[self.chosen] = False
        taken: list[int] = []
        steps = self.inputs.new_empty(count, len(self.inputs))
        for number in range(count):
            gain = torch.where(free, across.pow(2).sum(dim=0) / variance.clamp(min=TINY), -1.0)
            place = int(gain.argmax())
            column = kernel.correlation(self.inputs, self.inputs[place, None])[:, 0] - known.mT @ known[:, place] + level * level[place]
            column[place] += kernel.nugget
            column = column - steps[:number].mT @ steps[:number, place]
            steps[number] = column / variance[place].clamp(min=TINY).sqrt()
            across = across - (across[:, place] / variance[place].clamp(min=TINY).sqrt())[:, None] * steps[number]
            variance = variance - steps[number] ** 2
            free[place] = False
            taken.append(place)
        return taken


def _squares(one: Tensor, other: Tensor) -> Tensor:
    """Squared distances, `(n, m)`."""
    return (one.pow(2).sum(dim=1)[:, None] + other.pow(2).sum(dim=1) - 2 * one @ other.mT).clamp(min=0)


def _correlation(squares: Tensor, smoothness: str) -> Tensor:
    """Of latent values, from squared distances in units of the length; "matern" is that of order 5/2."""
    if smoothness == "gaussian":
        return torch.exp(-squares / 2)
    distance = (5 * squares).sqrt()
    return (1 + distance + distance**2 / 3) * torch.exp(-distance)


def _likely(inputs: Tensor, latents: Tensor, unit: float) -> list[tuple[float, _Kernel]]:
    """Covariances, each with its share of the marginal likelihood; the mean is unknown and the scale the likeliest."""
    squares, ones = _squares(inputs, inputs), torch.ones_like(latents)
    nuggets = latents.new_tensor(NUGGETS)
    kernels, found = [], []
    for smoothness in SMOOTHNESS:
        for length in LENGTHS:
            values, vectors = torch.linalg.eigh(_correlation(squares / (length * unit) ** 2, smoothness))
            inverse = 1 / (values.clamp(min=0) + nuggets[:, None])
            own, one = vectors.mT @ latents, vectors.mT @ ones
            weight = inverse @ one**2
            mean = inverse @ (one * own) / weight
            scale = ((inverse * (own - mean[:, None] * one) ** 2).sum(dim=1) / (len(latents) - 1)).clamp(min=TINY)
            found.append(-0.5 * ((len(latents) - 1) * scale.log() - inverse.log().sum(dim=1) + weight.log()))
            kernels += [_Kernel(smoothness, length * unit, *pair) for pair in zip(NUGGETS, scale.tolist(), strict=True)]
    return list(zip(softmax(torch.cat(found), dim=0).tolist(), kernels, strict=True))


def _moments(response: Response, mean: Tensor, variance: Tensor) -> _Moments:
    """By Gauss-Hermite quadrature, its points and weights from the eigenvectors of the Jacobi matrix (Golub and Welsch 1969)."""
    beside = torch.diag(torch.arange(1, NODES).to(mean).sqrt(), 1)
    points, vectors = torch.linalg.eigh(beside + beside.mT)
    weights = vectors[0] ** 2
    deviation = variance.sqrt()
    values = response(mean[:, None] + deviation[:, None] * points)
    first = values @ weights
    return _Moments(first, (values * points) @ weights / deviation, (values - first[:, None]).pow(2) @ weights)
