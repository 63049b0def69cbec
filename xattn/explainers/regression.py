"""Estimates a map from a share of its passes: the network's other responses are predicted by regression over the masks.

A method that masks an image n times computes its map as Σ r·v, where r are the responses to its masks and v is what each response adds to
the map. A response is a smooth function of the mask. A Gaussian process that is fitted to the responses to some masks therefore predicts
the others, and how much the map may differ from the map of all passes.
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
"""Fewest passes per image, if it has as many masks: fewer do not show how smooth the responses are."""
MOST = 4_000
"""Most passes per image: with more, the regression costs more than the passes that it saves."""
ROUNDS = 6
FIRST = 0.25
STEP = 0.05
"""Share of the passes that are run in each round, if the passes end at a tolerance."""
AVERAGED = 4
DRAWN = 0.5
EVENLY = 0.1
CAUTION = 1.3
"""Factor on the regression's own standard errors: the smallest one with which they cover 95 % of the cells at a tenth and at a quarter of
the passes on each of four networks, on pictures of imagenette/val."""
BLOCK = 512
SMALLEST = 1e-30


def log_odds(target: Target, output: Tensor) -> Tensor:
    """Log-odds of the target's probability, `(b,)` float64; finite where the probability is 0 or 1."""
    found = target.probability(output)
    return found.p.clamp(min=SMALLEST).log() - found.rest.clamp(min=SMALLEST).log()


@dataclass(frozen=True)
class Budget:
    """When the passes end.

    Attributes:
        share: largest share of the passes.
        tolerance: the predicted error of a map at which its passes end: root mean square over the cells, in units of the map's range.
        unbiased: the last half of the passes is drawn at random, and the errors of the predictions there estimate those of the masks that
            are not run.
    """

    share: float
    tolerance: float = 0.0
    unbiased: bool = False

    @classmethod
    def of(cls, method: str, budget: float | None, tolerance: float | None, unbiased: bool = False) -> Budget | None:
        """The budget of a method's settings; None if it runs all passes.

        Raises:
            SettingError: a setting is out of range.
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
        """The largest number of passes for an image with this many masks."""
        return min(count, max(FEWEST, round(self.share * count)))


class Masks(NamedTuple):
    """The masks of one image.

    Attributes:
        inputs: `(n, d)` float64, each mask at a few cells.
        effects: `(n, c)` float64, what a response of 1 to it adds to each cell of the map.
        rectified: negative cells of the map are set to 0, so it is enough to know that they are negative.
    """

    inputs: Tensor
    effects: Tensor
    rectified: bool = False


class Estimate(NamedTuple):
    """The estimate for one image.

    Attributes:
        responses: `(n,)` float64, those of the network to the masks that were run, and predictions for the others. In an unbiased estimate:
            the predictions, plus, for masks that were drawn, the prediction's error divided by the mask's probability of being drawn.
        error: `(c,)` float64, standard error of the map at each cell; 0 if every mask was run.
        passes: masks that were run.
    """

    responses: Tensor
    error: Tensor
    passes: int


Ask = Callable[[Sequence[list[int]]], Sequence[Tensor]]
"""For each image, the numbers of some masks → the latent values of the responses to them."""


def expected_similarity(maps: Tensor, errors: Tensor) -> Tensor:
    """The correlation of maps with the exact ones, as expected from their standard errors, `(B,)`; NaN where a map has NaN.

    >>> expected_similarity(torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 1.0]]]))
    tensor([0.7071], dtype=torch.float64)
    """
    cells, noise = maps.double().flatten(1), errors.double().flatten(1).pow(2).mean(dim=1)
    signal = cells.var(dim=1, correction=0)
    return torch.where(noise > 0, signal / (signal + noise).clamp(min=SMALLEST), torch.where(noise.isnan(), noise, 1.0)).sqrt()


def estimates(images: Sequence[Masks], ask: Ask, response: Response, budget: Budget, seeds: Sequence[int] = ()) -> list[Estimate]:
    """Estimates the responses to all masks of some images, from as many passes as a budget allows.

    The first masks are those that are most informative about the map if the responses are as smooth as the masks' distances suggest. Each
    further round fits the regression and takes the masks whose responses would reduce the map's predicted variance most, one after the
    other. The images of a batch share only the forwards of the rounds.

    An unbiased estimate is a difference estimator (Särndal, Swensson and Wretman 1992, Sec. 6.3): the regression uses half of the passes.
    The others are drawn from the remaining masks, with a higher probability where the prediction is less certain, and the error of each
    one's prediction is divided by its probability of being drawn. The mean over draws is then the sum of all responses, for any prediction
    of the regression.

    Args:
        images: the masks of each image.
        ask: runs the network.
        response: latent value → response.
        budget: when the passes end.
        seeds: of the images, for the masks that an unbiased estimate draws.

    Raises:
        SettingError: the budget allows more passes than a regression can use.
    """
    states = [_Image(masks, budget, response, seeds[number] if seeds else 0) for number, masks in enumerate(images)]
    while any(wanted := [state.wanted() for state in states]):
        for state, numbers, found in zip(states, wanted, ask(wanted), strict=True):
            state.add(numbers, found)
    return [state.estimate() for state in states]


class _Posterior(NamedTuple):
    """Posterior of all latent values, given the responses to the masks that were run.

    Attributes:
        mean: `(n,)`.
        variance: `(n,)`, with that of the nugget.
        known: `(m, n)`; its product with itself is the correlation that the responses explain.
        level: `(n,)`; its product with itself is what the unknown mean adds.
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
        self.missed = self.effects.new_empty(0)  # differences of the responses to the drawn masks from their predictions
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
        """Adds the responses to some masks."""
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
        """The responses, averaged over the covariances that are likely given the known responses."""
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
        """Draws the masks of the remaining passes from those not chosen yet, each with its probability."""
        generator = torch.Generator().manual_seed(self.seed)
        order, start = torch.randperm(len(self.inputs), generator=generator), torch.rand((), generator=generator, dtype=torch.float64)
        ends = self._probabilities().cpu()[order].cumsum(dim=0) - start
        passed = torch.cat([ends.new_tensor([-1.0]), ends.floor()]).diff() > 0  # systematic sampling: where the sum passes a whole number
        self.drawn = order[passed].tolist()
        return self.drawn

    def _probabilities(self) -> Tensor:
        """Probability of drawing each mask, by the possible effect of its prediction's error on the map, a tenth evenly; 0 for chosen
        masks."""
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

        The error has the shape of the predicted variances and the size of the predictions' errors.
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
        """Moments of the responses; for known responses, only the value."""
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
        """Prior covariance of cells and latent values, without the nugget: `(n, c)` → `(c, n)`."""
        blocks = self.inputs.split(BLOCK)
        return torch.cat([effects.mT @ kernel.correlation(self.inputs, block) for block in blocks], dim=1)

    def _most_telling(self, kernel: Kernel, posterior: _Posterior | None, effects: Tensor, count: int) -> list[int]:
        """The masks that reduce the summed variance of the map's cells most, each given those chosen before it."""
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
