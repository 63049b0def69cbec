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
from torch.special import ndtr

from xattn.errors import SettingError
from xattn.explainers.gaussian_process import (
    NUGGETS,
    TINY,
    Kernel,
    Moments,
    Response,
    covariances,
    moments_of,
    rectified_error,
    squared_distances,
)
from xattn.metrics.target_base import Target

FEWEST = 8
"""Passes of an image at least, if it has as many masks: fewer tell nothing of how smooth the responses are."""
MOST = 4_000
"""Passes of an image at most: beyond, the regression costs more than the passes that it spares."""
ROUNDS = 6
FIRST = 0.25
STEP = 0.05
"""Of the passes, in a round, where they end at a tolerance."""
AVERAGED = 4
DRAWN = 0.5
EVENLY = 0.1
CAUTION = 1.3
"""Standard errors are so much larger than the regression's own: the least at which they cover 95 % of the cells at a tenth and at a quarter
of the passes on each of four networks, on pictures of imagenette/val."""
BLOCK = 512
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
        unbiased: the last half of the passes is drawn at random, and what the predictions miss there stands for the masks that are not run.
    """

    share: float
    tolerance: float = 0.0
    unbiased: bool = False

    @classmethod
    def of(cls, method: str, budget: float | None, tolerance: float | None, unbiased: bool = False) -> Budget | None:
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
        if unbiased and (budget is None or tolerance is not None):
            raise SettingError(f"{method} with unbiased=true draws half of the passes of a budget: give budget, and leave tolerance out.")
        if budget in (None, 1) and tolerance is None:
            return None
        return cls(1.0 if budget is None else budget, 0.0 if tolerance is None else tolerance, unbiased)

    def passes(self, count: int) -> int:
        """The most passes of an image with so many masks."""
        return min(count, max(FEWEST, round(self.share * count)))


class Masks(NamedTuple):
    """The masks of one image.

    Attributes:
        inputs: `(n, d)` float64, each mask at a few cells.
        effects: `(n, c)` float64, what a response of 1 to it adds to each cell of the map.
        rectified: negative cells of the map are set to 0, so that nothing about them has to be known but that they are negative.
    """

    inputs: Tensor
    effects: Tensor
    rectified: bool = False


class Estimate(NamedTuple):
    """What comes of one image.

    Attributes:
        responses: `(n,)` float64, those of the network to the masks that were run, and predictions of the others. Of an unbiased estimate,
            predictions, and beyond them what they miss, over the mask's probability of being drawn, for those that were.
        error: `(c,)` float64, standard error of the map at each cell; 0 if every mask was run.
        passes: masks that were run.
    """

    responses: Tensor
    error: Tensor
    passes: int


Ask = Callable[[Sequence[list[int]]], Sequence[Tensor]]
"""For each image the numbers of some masks → the latent values of its responses to them."""


def expected_similarity(maps: Tensor, errors: Tensor) -> Tensor:
    """The correlation of maps with the exact ones that their standard errors suggest, `(B,)`; NaN where a map is no number.

    >>> expected_similarity(torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 1.0]]]))
    tensor([0.7071], dtype=torch.float64)
    """
    cells, noise = maps.double().flatten(1), errors.double().flatten(1).pow(2).mean(dim=1)
    signal = cells.var(dim=1, correction=0)
    return torch.where(noise > 0, signal / (signal + noise).clamp(min=SMALLEST), torch.where(noise.isnan(), noise, 1.0)).sqrt()


def estimates(images: Sequence[Masks], ask: Ask, response: Response, budget: Budget, seeds: Sequence[int] = ()) -> list[Estimate]:
    """The responses of some images to all of their masks, from as many passes as a budget allows.

    The first masks are those that are most telling of the map, were the responses as smooth as the masks' distances suggest. Each further
    round fits the regression and takes the masks whose responses would reduce the map's predicted variance most, one after the other. The
    images of a batch share the rounds' forwards and nothing else.

    An unbiased estimate is a difference estimator (Särndal, Swensson and Wretman 1992, Sec. 6.3): the regression takes half of the passes,
    the others are drawn from the masks that are left, more often where the prediction is less sure, and by what each differs from its
    prediction counts for as many masks as one over its probability. The mean over draws is the sum of all responses, whatever the
    regression predicts.

    Args:
        images: their masks.
        ask: runs the network.
        response: latent value → response.
        budget: when the passes end.
        seeds: of the images, for what an unbiased estimate draws.

    Raises:
        SettingError: the budget comes to more passes than a regression takes.
    """
    states = [_Image(masks, budget, response, seeds[number] if seeds else 0) for number, masks in enumerate(images)]
    while any(wanted := [state.wanted() for state in states]):
        for state, numbers, found in zip(states, wanted, ask(wanted), strict=True):
            state.add(numbers, found)
    return [state.estimate() for state in states]


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


class _Image:
    """The masks of one image, and what is known of them."""

    def __init__(self, masks: Masks, budget: Budget, response: Response, seed: int) -> None:
        self.inputs, self.effects, self.rectified = masks
        self.budget, self.response = budget, response
        count = len(self.inputs)
        self.most = budget.passes(count)
        if MOST < self.most < count:
            raise SettingError(
                f"a budget of {budget.share:g} is {self.most} passes of {count}; a regression takes at most {MOST}: give a smaller budget."
            )
        self.seed = seed
        self.drawn: list[int] = []
        self.missed = self.effects.new_empty(0)  # by how much the responses to the drawn masks differ from their predictions
        self.chosen: list[int] = []
        self.latents = self.effects.new_empty(0)
        self.ended = False
        self.surprise, self.expected = 0.0, 0.0
        self.predicted: tuple[Kernel, _Posterior, Moments] | None = None
        some = self.inputs[:: max(1, count // 256)]
        self.unit = float(squared_distances(some, some).median().sqrt()) or 1.0 if count > 1 else 1.0

    def wanted(self) -> list[int]:
        """The masks to run next; none once the passes end."""
        if self.ended:
            return []
        if self.most == len(self.inputs) and not self.budget.tolerance:
            return [] if self.chosen else list(range(self.most))
        most = self.most - int(DRAWN * self.most) if self.budget.unbiased else self.most
        left = most - len(self.chosen)
        if left == 0:
            return self._draw() if self.budget.unbiased and not self.drawn else []
        first = min(most, max(FEWEST, int((STEP if self.budget.tolerance else FIRST) * most)))
        later = first if self.budget.tolerance else max(FEWEST, -(-(most - first) // (ROUNDS - 1)))
        step = min(left, later if self.chosen else first)
        if not self.chosen:
            kernel = Kernel("gaussian", self.unit, NUGGETS[4])
            return self._most_telling(kernel, None, self.effects, step)
        kernel, posterior, moments = self._predict()
        if self.budget.tolerance and self._error_of(self.estimate()) < self.budget.tolerance:
            self.ended = True
            return []
        return self._most_telling(kernel, posterior, self.effects * moments.slope[:, None] * self._counted(kernel), step)

    def add(self, numbers: list[int], latents: Tensor) -> None:
        """Takes the answers to some masks."""
        if not numbers:
            return
        if self.drawn:
            self.missed = self.response(latents.to(self.latents)) - self.estimate().responses[self.drawn]
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
            likely = sorted(covariances(self.inputs[self.chosen], self.latents, self.unit), reverse=True)
            found = [(weight, *self._of(kernel)) for weight, kernel in likely[:AVERAGED]]
            total = sum(weight for weight, *_ in found)
            responses = sum((weight / total * mean for weight, mean, _, _ in found), torch.zeros_like(responses))
            centre = sum((weight / total * a for weight, _, a, _ in found), torch.zeros_like(error))
            error = sum((weight / total * (variance + (a - centre) ** 2) for weight, _, a, variance in found), error)
            error = CAUTION * (error * max(1.0, self.surprise / max(self.expected, TINY))).sqrt()
            if len(self.missed):
                responses, error = self._corrected(responses)
            error = rectified_error(responses @ self.effects, error) if self.rectified else error
        else:
            responses[self.chosen] = self.response(self.latents)
        return Estimate(responses, error, len(self.chosen) + len(self.drawn))

    def _draw(self) -> list[int]:
        """As many masks as are left to run, each of those not chosen with its probability."""
        generator = torch.Generator().manual_seed(self.seed)
        order, start = torch.randperm(len(self.inputs), generator=generator), torch.rand((), generator=generator, dtype=torch.float64)
        ends = self._probabilities().cpu()[order].cumsum(dim=0) - start
        passed = torch.cat([ends.new_tensor([-1.0]), ends.floor()]).diff() > 0  # systematic sampling: where the sum passes a whole number
        self.drawn = order[passed].tolist()
        return self.drawn

    def _probabilities(self) -> Tensor:
        """Of drawing each mask; 0 for those that were chosen. By what its prediction's error may do to the map, and a tenth evenly."""
        kernel, _, moments = self._predict()
        weights = moments.variance.sqrt() * (self.effects * self._counted(kernel)).norm(dim=1)
        free = torch.ones_like(weights)
        free[self.chosen] = 0.0
        weights = free * ((1 - EVENLY) * weights / (weights * free).sum().clamp(min=TINY) + EVENLY / free.sum())
        count = self.most - len(self.chosen)
        found = torch.zeros_like(weights)
        while bool((found < 1).any()):
            certain = found == 1
            rest = torch.where(certain, 0.0, weights)
            found = torch.where(certain, 1.0, rest * (count - certain.sum()) / rest.sum().clamp(min=TINY))
            if not bool((found > 1).any()):
                break
            found = torch.where(found > 1, 1.0, found)
        return found

    def _corrected(self, predictions: Tensor) -> tuple[Tensor, Tensor]:
        """Responses whose sum is unbiased, and the standard error over draws of each cell of their map.

        Its shape is that of the predicted variances, its size that of what the predictions missed.
        """
        _, _, moments = self._predict()
        probability = self._probabilities()
        responses = predictions.clone()
        responses[self.drawn] += self.missed / probability[self.drawn]
        expected = moments.variance[self.drawn].clamp(min=TINY)
        size = (self.missed**2 / expected).mean().clamp(min=1)
        odds = torch.where(probability > 0, (1 - probability) / probability.clamp(min=TINY), 0.0)
        variance = (odds * moments.variance) @ self.effects.pow(2)
        return responses, CAUTION * (size * variance).sqrt()

    def _counted(self, kernel: Kernel) -> Tensor:
        """How much each cell's error counts in the map: the probability that the cell is positive, where negative ones are set to 0."""
        if not self.rectified:
            return self.effects.new_ones(self.effects.shape[1])
        _, cells, variance = self._of(kernel)
        counted: Tensor = ndtr(cells / variance.clamp(min=TINY).sqrt())
        return counted

    def _error_of(self, estimate: Estimate) -> float:
        cells = estimate.responses @ self.effects
        cells = cells.relu() if self.rectified else cells
        return float(estimate.error.pow(2).mean().sqrt() / (cells.max() - cells.min()).clamp(min=TINY))

    def _predict(self) -> tuple[Kernel, _Posterior, Moments]:
        if self.predicted is None:
            _, kernel = max(covariances(self.inputs[self.chosen], self.latents, self.unit))
            posterior = self._posterior(kernel)
            self.predicted = kernel, posterior, self._moments(posterior)
        return self.predicted

    def _posterior(self, kernel: Kernel) -> _Posterior:
        across = kernel.correlation(self.inputs, self.inputs[self.chosen])
        lower = torch.linalg.cholesky(across[self.chosen] + kernel.nugget * torch.eye(len(self.chosen)).to(across))
        given = torch.stack([self.latents, torch.ones_like(self.latents)], dim=1)
        known = torch.linalg.solve_triangular(lower, across.mT, upper=False)
        values, ones = torch.linalg.solve_triangular(lower, given, upper=False).unbind(dim=1)
        level = (1 - known.mT @ ones) / ones.norm()
        mean = (ones @ values) / (ones @ ones)
        variance = kernel.scale * (1 + kernel.nugget - known.pow(2).sum(dim=0) + level**2)
        return _Posterior(mean + known.mT @ (values - mean * ones), variance.clamp(min=TINY), known, level)

    def _moments(self, posterior: _Posterior) -> Moments:
        """Of the responses; of those that are known, the value alone."""
        found = moments_of(self.response, posterior.mean, posterior.variance)
        found.mean[self.chosen] = self.response(self.latents)
        found.slope[self.chosen] = 0.0
        found.variance[self.chosen] = 0.0
        return found

    def _of(self, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor]:
        """Responses, map and the map's variance by one covariance."""
        posterior = self._posterior(kernel)
        moments = self._moments(posterior)
        through = self.effects * moments.slope[:, None]
        variance = (self._explained(kernel, through) * through.mT).sum(dim=1) - (posterior.known @ through).pow(2).sum(dim=0)
        variance = kernel.scale * (variance + (posterior.level @ through) ** 2)
        smooth = (posterior.variance - kernel.scale * kernel.nugget) * moments.slope**2
        variance = variance + self.effects.pow(2).mT @ (moments.variance - smooth).clamp(min=0)
        return moments.mean, moments.mean @ self.effects, variance.clamp(min=0)

    def _explained(self, kernel: Kernel, effects: Tensor) -> Tensor:
        """The covariance of cells and latent values before any answer, without the nugget: `(n, c)` → `(c, n)`."""
        blocks = self.inputs.split(BLOCK)
        return torch.cat([effects.mT @ kernel.correlation(self.inputs, block) for block in blocks], dim=1)

    def _most_telling(self, kernel: Kernel, posterior: _Posterior | None, effects: Tensor, count: int) -> list[int]:
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
