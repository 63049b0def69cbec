"""Comparison of metrics with Quantus: the largest difference where the definitions agree, and what differs where they do not.

    pip install -e '.[bench]'
    python benchmarks/quantus_agreement.py                         # writes results/quantus.md

On drawn birds and the shipped network, on small networks whose answer is known, and on random maps. If Quantus follows the metric's paper
except for a factor, an end of a curve or an aggregate, its value is converted to xattn's here, and the page says how.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import pandas as pd
import quantus
import torch
from torch import Tensor, nn

import xattn
from xattn import metrics as m
from xattn.birds import SketchBirds, pixels
from xattn.metrics.inpainting import interpolated
from xattn.metrics.segments import superpixels
from xattn.metrics.similarity import spearman

RESULT = Path(__file__).parent / "results" / "quantus.md"
SIZE, COUNT, DRAWS = 48, 8, 200
QUIET: dict[str, Any] = {"disable_warnings": True, "display_progressbar": False}
MAPS: dict[str, Any] = {"normalise": False, "abs": False}
Row = dict[str, Any]


class Additive(nn.Module):
    """p = Σ w_i · x_i for the first of two classes, x of one channel."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, images: Tensor) -> Tensor:
        p = (images[:, 0] * self.weights.to(images)).sum(dim=(1, 2))
        return torch.stack([p, 1 - p], dim=1)


class Given:
    """Inputs of both sides.

    Attributes:
        classifier: `birds:gap`, at 48 × 48 pixels, which a step of whole pixels divides.
        images: `(8, 3, 48, 48)` in pixel space.
        targets: `(8,)` predicted classes.
        maps: `(8, 48, 48)` in [0, 1], random; all values of a picture differ.
        cells: `(8, 6, 6)`, with the same properties.
        regions: `(8, 48, 48)` bool, the bird.
    """

    def __init__(self) -> None:
        self.classifier = xattn.load("birds:gap", input_size=SIZE, resize=SIZE)
        data = SketchBirds("test", COUNT)
        drawn = torch.stack([pixels(data.scene(number)) for number in range(COUNT)]).float() / 255
        self.images = (torch.nn.functional.interpolate(drawn, size=(SIZE, SIZE), mode="area") * 255).round() / 255
        self.targets = self.classifier.predict(self.images).argmax(1)
        generator = torch.Generator().manual_seed(0)
        self.maps, self.cells = (
            torch.stack([torch.randperm(side * side, generator=generator).view(side, side) / (side * side - 1) for _ in range(COUNT)])
            for side in (SIZE, 6)
        )
        self.regions = torch.zeros(COUNT, SIZE, SIZE, dtype=torch.bool)
        for number, region in enumerate(self.regions):
            region[10 + number : 30 + number, 5 : 25 + 2 * number] = True


def quantus_of(metric: Any, network: nn.Module, images: Tensor, targets: Tensor, maps: Tensor, **more: Any) -> Any:
    """Returns Quantus' values of a metric, for the softmax of a network's output unless `softmax` is false."""
    trapz = mock.patch("numpy.trapz", np.trapezoid, create=True)  # which NumPy had until 2.4, and Quantus calls
    with warnings.catch_warnings(), trapz, torch.no_grad():
        warnings.simplefilter("ignore")
        found = metric(
            model=network.eval(),
            x_batch=images.numpy(),
            y_batch=targets.numpy(),
            a_batch=maps[:, None].numpy(),
            device="cpu",
            channel_first=True,
            **{"batch_size": len(images), "softmax": True} | more,
        )
    return found if isinstance(found, dict) else np.asarray(found)


def agrees(metric: str, theirs: str, ours: Any, found: Any, unit: str, how: str) -> Row:
    difference = np.abs(np.asarray(ours, dtype=float) - np.asarray(found, dtype=float)).max()
    return {"metric": metric, "Quantus": theirs, "largest difference": f"{difference:.1e}{unit}", "brought together by": how}


def curve_area(p: np.ndarray) -> np.ndarray:
    """Returns 100 · area under curves `(B, T + 1)` of equal steps."""
    return 100 * np.trapezoid(p, dx=1 / (p.shape[1] - 1), axis=1)


def probabilities(given: Given) -> np.ndarray:
    return given.classifier.predict(given.images).softmax(dim=1).gather(1, given.targets[:, None]).numpy()


class Grey(nn.Module):
    """Wraps a network of colour pictures for pictures of one channel."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.expand(-1, 3, -1, -1))


def pixel_flipping(given: Given) -> Row:
    step = SIZE * SIZE // 18
    theirs = quantus.PixelFlipping(features_in_step=3 * step, perturb_baseline=0.0, **MAPS, **QUIET)
    curve = quantus_of(theirs, given.classifier, given.images, given.targets, given.maps)
    ours = m.deletion(given.classifier.predict, given.images, given.maps, given.targets, fill=None, step=step, replace_with="black")
    how = "the probability of the whole image put before its curve, which lacks it; area over shares, not over steps"
    return agrees("deletion", "PixelFlipping", ours, curve_area(np.hstack([probabilities(given), curve])), " points", how)


def region_perturbation(given: Given) -> Row:
    theirs = quantus.RegionPerturbation(patch_size=8, perturb_baseline=0.0, **MAPS, **QUIET)
    whole = given.cells.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    falls = quantus_of(theirs, given.classifier, given.images, given.targets, whole)
    p = probabilities(given)
    ours = m.deletion(given.classifier.predict, given.images, given.cells, given.targets, fill=None, protocol="gomez", step=1)
    how = "`deletion:protocol=gomez,step=1` of a map whose cells are its patches; its falls turned into probabilities"
    return agrees("deletion:protocol=gomez", "RegionPerturbation", ours, curve_area(np.hstack([p, p - falls])), " points", how)


def irof(given: Given) -> tuple[Row, Row]:
    network, levels = Grey(given.classifier), (given.images.mean(dim=1, keepdim=True) * 255).round()
    images = levels / 255
    targets = network(images).argmax(1)
    shares: list[np.ndarray] = []
    real = quantus.helpers.utils.calculate_auc

    def recorded(values: np.ndarray, *args: Any, **options: Any) -> Any:
        shares.extend(values)
        return real(values, *args, **options)

    metric = quantus.IROF(perturb_baseline=0.0, return_aggregate=False, **MAPS, **QUIET)
    with mock.patch("quantus.helpers.utils.calculate_auc", recorded):  # superpixels of the picture in double precision, as in xattn
        quantus_of(metric, network, levels.double() / 255, targets, given.maps, batch_size=1)
    ours = m.irof(network, images, given.maps, targets, fill=None, replace_with="black")
    found = np.array([100 - float(curve_area(np.hstack([[1.0], share])[None])[0]) for share in shares])
    one_order = [len(means.unique()) == len(means) for means in map(means_of, superpixels(images, 100), given.maps)]
    how = (
        f"the {sum(one_order)} pictures without two superpixels of one mean, which each side orders in its own way; one channel; p/o = 1 "
        "put before its curve, which lacks it; area over the share of superpixels, not their number"
    )
    fault = {"metric": "irof", "Quantus": "IROF", "known": THREE, "ours": "a value", "theirs": _came(metric, given)}
    fault["why"] = "fault: the mask of a superpixel has one channel and must have the picture's"
    return agrees("irof", "IROF", ours[one_order], found[one_order], " points", how), fault


def means_of(segments: Tensor, values: Tensor) -> Tensor:
    """Returns the mean of the values over each segment."""
    sums = torch.zeros(2, int(segments.max()) + 1, dtype=torch.float64)
    sums[0].index_add_(0, segments.flatten(), values.flatten().double())
    sums[1].index_add_(0, segments.flatten(), torch.ones(segments.numel(), dtype=torch.float64))
    return (sums[0] / sums[1]).float()


THREE = "a value for pictures of three channels"


def _came(metric: Any, given: Given) -> str:
    """Returns Quantus' result for pictures of three channels."""
    try:
        quantus_of(metric, given.classifier, given.images, given.targets, given.maps)
    except (AssertionError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    return "a value"


def road(given: Given) -> tuple[Row, Row]:
    network, images = Grey(given.classifier), given.images.mean(dim=1, keepdim=True)
    targets = network(images).argmax(1)
    theirs = quantus.ROAD(percentages=list(range(10, 100, 10)), noise=0.0, **MAPS, **QUIET)
    shares = quantus_of(theirs, network, images, targets, given.maps)
    with mock.patch("xattn.metrics.fills.NOISE", 0.0):
        ours = m.road_morf(network, images, given.maps, targets, measure="accuracy")
    how = f"pictures of one channel, no noise in either; the mean over nine shares and {COUNT} pictures"
    found = 100 * float(np.mean(list(shares.values())))
    row = agrees("road-morf:measure=accuracy", "ROAD", float(ours.mean()), found, " points", how)
    fault = {"metric": "road-morf", "Quantus": "ROAD", "known": THREE, "ours": "a value"}
    theirs = quantus.ROAD(percentages=[50], **MAPS, **QUIET)
    fault["theirs"] = _came(theirs, given)
    fault["why"] = "fault: the map is spread over the channels, and its indices are then taken for pixels"
    return row, fault


def imputation(given: Given) -> Row:
    """Solves ROAD's linear system, with half of the pixels, in colour."""
    missing = given.maps > 0.5
    ours = interpolated(given.images, missing)
    pairs = zip(given.images.numpy(), missing.flatten(1), strict=True)
    found = [quantus.perturb_func.noisy_linear_imputation(image, gone.nonzero()[:, 0].numpy(), noise=0.0) for image, gone in pairs]
    return agrees("fill=noisy-linear", "noisy_linear_imputation", ours, np.stack(found), " of 1", "no noise in either")


def sensitivity_n(given: Given) -> Row:
    weights = given.maps[0] / given.maps[0].sum()
    images, maps, targets = torch.ones(COUNT, 1, SIZE, SIZE), weights.expand(COUNT, -1, -1).clone(), torch.zeros(COUNT, dtype=torch.long)
    images *= torch.linspace(0.6, 1, COUNT)[:, None, None, None]  # equal pictures would leave its correlation over pictures undefined
    maps *= torch.linspace(0.6, 1, COUNT)[:, None, None]
    network = Additive(weights)
    theirs = quantus.SensitivityN(
        features_in_step=SIZE, n_max_percentage=0.5, similarity_func=quantus.similarity_func.correlation_pearson, perturb_baseline=0.0,
        return_aggregate=False, **MAPS, **QUIET,
    )  # fmt: skip
    wrong = given.maps * maps.amax(dim=(1, 2), keepdim=True)
    found = quantus_of(theirs, network, images, targets, wrong, softmax=False)
    ours = _sensitivity(network, images, maps, targets)
    return {
        "metric": "sensitivity-n",
        "Quantus": "SensitivityN",
        "known": "1 for an additive network and its terms, about 0 for a random map",
        "ours": f"{float(ours.mean()):.3f}; random maps {float(_sensitivity(network, images, wrong, targets).mean()):.3f}",
        "theirs": f"{len(found)} values, one per step; random maps {float(np.mean(found)):.3f}",
        "why": "another definition: pixels go in the map's order, not at random; r is over the pictures of a batch, of one step each, "
        "with falls since the whole image and sums of the step alone",
    }


def _sensitivity(network: nn.Module, images: Tensor, maps: Tensor, targets: Tensor) -> Tensor:
    return m.sensitivity_n(network, images, maps, targets, fill=None, patch=4, replace_with="black", outputs="probabilities")


def infidelity(given: Given) -> tuple[Row, Row]:
    weights = given.maps[0] / given.maps[0].sum()
    images, targets = torch.ones(COUNT, 1, SIZE, SIZE), torch.zeros(COUNT, dtype=torch.long)
    network, maps = Additive(weights), weights.expand(COUNT, -1, -1)
    settings: dict[str, Any] = {"fill": None, "patch": 4, "replace_with": "black", "scale": "raw", "outputs": "probabilities"}

    def theirs(samples: int) -> list[np.ndarray]:
        metric = quantus.Infidelity(perturb_patch_sizes=[4], n_perturb_samples=samples, perturb_baseline=0.0, **MAPS, **QUIET)
        return [quantus_of(metric, network, images, targets, factor * maps, softmax=False) for factor in (1, 2)]

    (right, wrong), (_, more) = theirs(1), theirs(3)
    ours = m.infidelity(network, images, maps, targets, **settings)
    row = agrees("infidelity:scale=raw", "Infidelity", ours, right, "", "an additive network and its terms, which have 0 in both")
    return row, {
        "metric": "infidelity",
        "Quantus": "Infidelity",
        "known": "the mean over random perturbations, here of twice the terms",
        "ours": f"{float(m.infidelity(network, images, 2 * maps, targets, **settings).mean()):.4f} (100 subsets of a fifth)",
        "theirs": f"{float(wrong.mean()):.4f}; with 3 samples {'the same' if np.allclose(wrong, more) else 'another value'}",
        "why": "fault: patches are blackened one after the other in reading order and none is put back, so that samples are all alike. "
        "Another definition: the map is weighted by the change of the pixels",
    }


def sensitivities(given: Given) -> list[Row]:
    images = 0.3 + 0.4 * given.images  # no noise is clipped
    maps = (images**2).mean(dim=1)

    def explained(model: Any, inputs: np.ndarray, targets: np.ndarray, **_: Any) -> np.ndarray:
        return (inputs.reshape(-1, 3, SIZE, SIZE) ** 2).mean(axis=1, keepdims=True)

    rows = []
    for name, theirs, ours in (
        ("average-sensitivity", quantus.AvgSensitivity, m.average_sensitivity),
        ("max-sensitivity", quantus.MaxSensitivity, m.max_sensitivity),
    ):
        np.random.seed(0)
        metric = theirs(nr_samples=DRAWS, lower_bound=0.02, **MAPS, **QUIET)
        found = quantus_of(metric, given.classifier, images, given.targets, maps, explain_func=explained)
        own = ours(images, maps, lambda some: (some**2).mean(dim=1), radius=0.02, samples=DRAWS)
        how = f"{DRAWS} draws each, by each for itself; its default noise is ten times as large (0.2)"
        rows.append(agrees(name, theirs.__name__, own / own, found / own.numpy(), " of the value", how))
    return rows


def localisation(given: Given) -> tuple[list[Row], list[Row]]:
    masks = given.regions[:, None].numpy()
    rows, faults = [], []
    for name, theirs, ours in (
        ("pointing-game:tolerance=0", quantus.PointingGame, lambda maps: m.pointing_game(maps, given.regions, tolerance=0) / 100),
        ("relevance-mass", quantus.RelevanceMassAccuracy, lambda maps: m.relevance_mass(maps, given.regions)),
        ("relevance-rank", quantus.RelevanceRankAccuracy, lambda maps: m.relevance_rank(maps, given.regions)),
    ):
        called = theirs.__name__
        found = quantus_of(theirs(**MAPS, **QUIET), given.classifier, given.images, given.targets, given.maps, s_batch=masks)
        unit = m.metrics.entry(name.partition(":")[0]).metadata.unit
        rows.append(agrees(name, called, ours(given.maps), found, "", "nothing" if unit == "1" else "a hit is 1, here 100"))
        strange, known = given.maps - 0.5, "in [0, 1]"
        if name.startswith("pointing-game"):
            strange, known = (given.maps > 0.5).float(), "half of the pixels are maxima: the share of these in the region"
        why = {
            "pointing-game:tolerance=0": "fault: any of several maxima counts as a hit, so that a map of two values hits everywhere",
            "relevance-mass": "another definition: negative relevance counts, in the region and in the whole",
        }.get(name)
        if why is not None:
            found = quantus_of(theirs(**MAPS, **QUIET), given.classifier, given.images, given.targets, strange, s_batch=masks)
            values = [f"{float(some.min()):.2f} to {float(some.max()):.2f}" for some in (ours(strange).numpy(), np.asarray(found, float))]
            faults.append({"metric": name, "Quantus": called, "known": known, "ours": values[0], "theirs": values[1], "why": why})
    return rows, faults


def randomisation(given: Given) -> Row:
    """Compares input gradients on networks that Quantus randomises; Quantus compares them by its Spearman's r, xattn by its own."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 5)).eval()

    def gradients(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        images = images.clone().requires_grad_()
        score = model(images).gather(1, targets[:, None]).sum()
        return torch.autograd.grad(score, images)[0].sum(dim=1)

    kept: list[Tensor] = []

    @torch.enable_grad()
    def explained(model: Any, inputs: np.ndarray, targets: np.ndarray, **_: Any) -> np.ndarray:
        found = gradients(model, torch.as_tensor(inputs), torch.as_tensor(targets))
        kept.append(found)
        return found[:, None].numpy()

    targets = network(given.images).argmax(1)
    maps = gradients(network, given.images, targets)
    options = {"similarity_func": quantus.similarity_func.correlation_spearman, "normalise": False, "abs": True}
    theirs = quantus.MPRT(**options, **QUIET)
    found = quantus_of(theirs, network, given.images, targets, maps, explain_func=explained)
    values = np.concatenate([np.asarray(found[layer], float) for layer in found if layer != "orig"])
    ours = torch.cat([spearman(maps, some) for some in kept[-len([layer for layer in found if layer != "orig"]) :]])
    return agrees(
        "randomise (spearman)", "MPRT", ours, values, "", "the networks are those that it randomises, the maps absolute gradients"
    )


def table(rows: list[Row]) -> str:
    return pd.DataFrame(rows).to_markdown(index=False)


@click.command()
@click.option("--threads", default=2, show_default=True)
def main(threads: int) -> None:
    """Compares, and writes the page."""
    torch.set_num_threads(threads)
    given = Given()
    irof_row, irof_fault = irof(given)
    road_row, road_fault = road(given)
    infidelity_row, infidelity_fault = infidelity(given)
    located, faults = localisation(given)
    agree = [
        pixel_flipping(given),
        region_perturbation(given),
        irof_row,
        imputation(given),
        road_row,
        infidelity_row,
        *sensitivities(given),
        *located,
    ]
    agree.append(randomisation(given))
    differ = [sensitivity_n(given), infidelity_fault, irof_fault, road_fault, *faults]
    text = f"""# Metrics beside Quantus'

Quantus {version("quantus")} and xattn on the same networks, pictures and maps: {COUNT} drawn birds at {SIZE} × {SIZE} pixels, `birds:gap`,
and random maps, but where a row says otherwise. In the first table the definitions agree, once what its last column says is
done to Quantus' values. In the second they do not: what is known of the answer, what came, and why.

{table(agree)}

{table(differ)}

Quantus calls `numpy.trapz`, which NumPy {np.__version__} does not have: IROF and every area need it put back.

Made by `benchmarks/quantus_agreement.py`.
"""
    RESULT.write_text(text, encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
