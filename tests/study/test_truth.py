"""Every metric end to end: files of several sizes through the public ways in, against a slow replica of each picture.

The replica shares nothing with the package but the weights: torchvision reads and crops, Grad-CAM is the closed form of a mean and a linear
layer, and masks, orders, blurs and areas are plain loops in float64. Tolerances: 1e-4 points for percentages, 1e-5 for others, 0.01
points where pixels are interpolated.
"""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor
from torchvision import transforms

import xattn
from tests import networks
from tests.metrics.test_responses import MEAN, plain_area, plain_blur, plain_ranks
from tests.study import faithfulness
from xattn.cli import main
from xattn.metrics import metrics
from xattn.metrics.curves import CurveMetric
from xattn.metrics.protocols import PROTOCOLS

SIZE, RESIZE = (24, 24), 30
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)
SIDES = ((40, 40), (52, 38), (37, 61), (36, 48), (90, 50))  # of the pictures, in turn
COUNT, EVERY = 33, 4  # pictures, one more than the largest batch; and of how many one is compared
CURVES = ("insertion", "deletion", "insertion-correlation", "deletion-correlation")


def named(curve: str, protocol: str) -> str:
    """As rows name it, without the default."""
    return curve if protocol == "ca-stream" else f"{curve}:protocol={protocol}"


SPECS = [
    *("average-drop", "average-gain", "average-increase", "average-drop-deletion", "average-drop-deletion:upsample=bicubic"),
    *("complexity", "coherency", "adcc", "sparsity", "sparsity:definition=minmax", "sparsity:definition=released"),
    *(named(curve, protocol) for curve in CURVES for protocol in PROTOCOLS),
    *("insertion:step=100,blur=7,fill=black", "deletion:step=100,fill=black", "deletion:protocol=gomez,step=3,fill=mean"),
    *faithfulness.SPECS,
]
INTERPOLATED = {"road-morf", "road-lerf", "arcc"}  # whose pixels are the solution of a system, to a residual


class Shown(NamedTuple):
    """What the replica knows of a picture: its crop, and its map, mask and target."""

    image: Tensor
    raw: Tensor
    scaled: Tensor
    mask: Tensor
    target: int


# --- the replica ------------------------------------------------------------------------------------------------------------------------


class Replica:
    """Every metric of Grad-CAM on one network, picture by picture."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.curves: dict[tuple[object, ...], tuple[list[float], list[float], list[float]]] = {}
        self.body, self.linear = network[:4], network[6].requires_grad_(False)

    def features(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            return self.body(((image - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1))[None])[0]

    def probabilities(self, image: Tensor) -> list[float]:
        return self.several([image])[0]

    def several(self, images: list[Tensor]) -> list[list[float]]:
        """The probabilities of some images."""
        rows = self.rows(images)
        weights = [[math.exp(logit - max(row)) for logit in row] for row in rows]
        return [[weight / sum(row) for weight in row] for row in weights]

    def rows(self, images: list[Tensor]) -> list[list[float]]:
        with torch.no_grad():
            found = self.body((torch.stack(images) - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)).mean(dim=(2, 3))
        return (found @ self.linear.weight.T + self.linear.bias).tolist()

    def logits(self, image: Tensor) -> list[float]:
        return self.rows([image])[0]

    def grad_cam(self, image: Tensor, target: int) -> Tensor:
        features = self.features(image)
        cells = features[0].numel()
        raw = torch.zeros_like(features[0])
        for channel in range(len(features)):  # the gradient at each cell is the weight of the class over the number of cells
            raw += float(self.linear.weight[target, channel]) / cells * features[channel]
        return raw.clamp(min=0)

    def shown(self, image: Tensor) -> Shown:
        p = self.probabilities(image)
        target = p.index(max(p))
        raw = self.grad_cam(image, target)
        return Shown(image, raw, *masked(raw), target)

    def of(self, spec: str, shown: Shown) -> float:
        """The value of a metric."""
        image = shown.image
        name, _, rest = spec.partition(":")
        settings = dict(part.split("=") for part in rest.split(",") if part)
        if name in CURVES:
            return self.of_curve(name, settings, shown)
        if spec in faithfulness.SPECS:
            return faithfulness.value(self, name, settings, shown)
        if name == "sparsity":
            return sparsity(settings.get("definition", "max-over-mean"), shown.raw)
        o = self.probabilities(image)[shown.target]
        e = self.probabilities(image * shown.mask)[shown.target]
        drop = 100 * max(o - e, 0) / o
        if name == "average-drop":
            return drop
        if name == "average-gain":
            return 100 * max(e - o, 0) / (1 - o)
        if name == "average-increase":
            return 100.0 if e > o + 1e-6 else 0.0
        if name == "average-drop-deletion":
            mask = resized(shown.scaled, cubic) if settings.get("upsample") == "bicubic" else shown.mask
            return 100 * (o - self.probabilities(image * (1 - mask))[shown.target]) / o
        complexity = sum(shown.mask.flatten().tolist()) / shown.mask.numel()
        if name == "complexity":
            return complexity
        coherency = self.coherency(shown)
        if name == "coherency":
            return coherency
        assert name == "adcc", f"no replica of {name}: write one"
        terms = [coherency, 1 - complexity, 1 - drop / 100]
        return 0.0 if min(terms) <= 0 else 3 / sum(1 / term for term in terms)

    def coherency(self, shown: Shown) -> float:
        again = masked(self.grad_cam(shown.image * shown.mask, shown.target))[1]
        r = pearson(shown.mask.flatten().tolist(), again.flatten().tolist())
        return 0.0 if r is None else (r + 1) / 2

    def of_curve(self, name: str, settings: dict[str, str], shown: Shown) -> float:
        is_insertion = name.startswith("insertion")
        key = (id(shown.image), is_insertion, *sorted(settings.items()))
        if key not in self.curves:
            self.curves[key] = self.curve(settings, shown, is_insertion)
        shares, p, means = self.curves[key]
        if name in ("insertion", "deletion"):
            if settings.get("protocol") == "br-npa":
                shares, p = [(share - shares[1]) / (1 - shares[1]) for share in shares[1:]], p[1:]
            return plain_area(shares, p)
        sign = 1 if is_insertion else -1
        r = pearson([sign * (b - a) / (t - s) for (a, b), (s, t) in zip(pairwise(p), pairwise(shares), strict=True)], means)
        return math.nan if r is None or max(p) - min(p) <= 1e-9 else r

    def curve(self, settings: dict[str, str], shown: Shown, is_insertion: bool) -> tuple[list[float], list[float], list[float]]:
        """Share changed and probability at each cut, and the mean value of the mask's cells at each step."""
        protocol = settings.get("protocol", "ca-stream")
        gomez, br_npa = protocol == "gomez", protocol == "br-npa"
        colour = (
            torch.zeros(3, 1, 1, dtype=torch.float64)
            if settings.get("fill", "black" if gomez else "mean") == "black"
            else MEAN.view(3, 1, 1)
        )
        if not is_insertion:
            start, end = shown.image, colour.expand_as(shown.image)
        elif gomez:
            start, end = box_blurred(shown.image, max(SIZE[0] // 5, 9) // 2 * 2 + 1), shown.image
        elif br_npa:
            start, end = box_blurred(shown.image - colour, 121) + colour, shown.image
        else:
            side = int(settings.get("blur", {"ca-stream": 5, "rise": 11}[protocol]))
            start, end = plain_blur(shown.image - colour + MEAN.view(3, 1, 1), side) - MEAN.view(3, 1, 1) + colour, shown.image
        values = shown.scaled if gomez or br_npa else shown.mask
        count, width = values.numel(), values.shape[1]
        across = SIZE[0] // values.shape[0]  # pixels along a cell
        step = int(settings.get("step", -(-count // 196) if gomez or br_npa else 8 * SIZE[1]))
        stored = (values * 65536).round().mul(255 / 65536).add(1 / 256).floor() / 256 if br_npa else values
        order, cuts, picture, pictures = plain_ranks(stored), [*range(0, count, step), count], start.clone(), [start]
        for low, high in pairwise(cuts):
            if across == 1:
                picture.flatten(1)[:, order[low:high]] = end.flatten(1)[:, order[low:high]]
            for cell in order[low:high] if across > 1 else ():
                y, x = divmod(cell, width)
                area = (slice(None), slice(y * across, (y + 1) * across), slice(x * across, (x + 1) * across))
                picture[area] = end[area]
            pictures.append(picture.clone())
        flat = values.flatten().tolist()
        means = [sum(flat[cell] for cell in order[low:high]) / (high - low) for low, high in pairwise(cuts)]
        return [cut / count for cut in cuts], [row[shown.target] for row in self.several(pictures)], means


def pearson(a: list[float], b: list[float]) -> float | None:
    """Pearson's r; None if one is constant."""
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    spread_a, spread_b = (sum((x - mean) ** 2 for x in some) for some, mean in ((a, mean_a), (b, mean_b)))
    if any(max(some) - min(some) <= 1e-6 * max(map(abs, some)) for some in (a, b)):
        return None
    return sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / math.sqrt(spread_a * spread_b)


def sparsity(definition: str, raw: Tensor) -> float:
    cells = raw.flatten().tolist()
    if max(cells) <= 0:
        return math.nan
    if definition == "minmax":
        cells = [(cell - min(cells)) / (max(cells) - min(cells)) for cell in cells]
    return max(cells) / (sum(cells) / len(cells))  # "released" is the same where there is one map


def masked(raw: Tensor) -> tuple[Tensor, Tensor]:
    """The map min-maxed at its own resolution, and the mask at the image's; zeros for a map without contrast."""
    low, high = float(raw.min()), float(raw.max())
    scaled = (raw - low) / (high - low) if high - low > 1e-6 * high else torch.zeros_like(raw)
    return scaled, resized(scaled, linear).clamp(0, 1)


def linear(distance: float) -> float:
    return max(0.0, 1 - abs(distance))


def cubic(distance: float, a: float = -0.75) -> float:
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def resized(cells: Tensor, kernel) -> Tensor:
    """A map at the image's size: each pixel the weighted mean of the cells around its centre, those at the border repeated outside."""
    height, width = cells.shape

    def weights(count: int, size: int) -> Tensor:
        found = torch.zeros(size, count, dtype=cells.dtype)
        for pixel in range(size):
            centre = (pixel + 0.5) * count / size - 0.5
            if kernel is linear:
                centre = max(centre, 0.0)
            for cell in range(math.floor(centre) - 1, math.floor(centre) + 3):
                found[pixel, min(max(cell, 0), count - 1)] += kernel(centre - cell)
        return found

    return weights(height, SIZE[0]) @ cells @ weights(width, SIZE[1]).T


def box_blurred(image: Tensor, side: int) -> Tensor:
    """The mean over a square, black outside."""
    half, found = side // 2, torch.zeros_like(image)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            window = image[:, max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
            found[:, y, x] = window.sum(dim=(1, 2)) / side**2
    return found


def crop(path: Path) -> Tensor:
    """As torchvision reads and crops a picture."""
    read = transforms.Compose([transforms.Resize(RESIZE), transforms.CenterCrop(SIZE), transforms.PILToTensor()])
    return (read(Image.open(path)).float() / 255).double()


# --- the runs ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        height, width = SIDES[number % len(SIDES)]
        noise = networks.pictures(1, size=max(height, width), seed=number)[0][:, :height, :width]
        Image.fromarray((noise.permute(1, 2, 0) * 255).byte().numpy()).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def truth(pictures: Path) -> pd.Series:
    replica = Replica(networks.precise())
    crops = {path.name: crop(path) for path in sorted(pictures.iterdir())[::EVERY]}
    shown = {name: replica.shown(image) for name, image in crops.items()}
    found = pd.Series({(name, spec): replica.of(spec, shown[name]) for name in shown for spec in SPECS})
    return found.rename_axis(["image", "metric"]).sort_index()


def classifier() -> xattn.Classifier:
    return xattn.attach(networks.precise(), input_size=SIZE, resize=RESIZE, name="precise")


def by_cli(pictures: Path, out: Path) -> pd.DataFrame:
    options = ["--input-size", str(SIZE[0]), "--resize", str(RESIZE), "--device", "cpu", "--workers", "0", "--tune", "off"]
    some = out.with_name("some")  # in batches of 1 each picture costs as much as a large batch
    some.mkdir()
    for path in sorted(pictures.iterdir())[::EVERY]:
        shutil.copy(path, some)
    line = ["explain", str(some), "--model", f"{networks.__file__}:precise", "--out", str(out), "--method", "grad-cam", *options]
    result = CliRunner().invoke(main, [*line, "--batch-size", "1", *(part for spec in SPECS for part in ("--metric", spec))])
    assert result.exit_code == 0, result.output
    return pd.read_csv(out / "scores.csv")


def by_study(pictures: Path, out: Path) -> pd.DataFrame:
    made = xattn.Study([classifier()], ["grad-cam"], SPECS, pictures, out, batch_size=7, workers=0, tune="off", progress=False)
    assert not made.run().failed
    return made.scores()


def by_evaluate(pictures: Path, out: Path) -> pd.DataFrame:
    clf = classifier()
    maps = xattn.explain(clf, pictures, ["grad-cam"], batch_size=32)
    return xattn.evaluate(clf, pictures, maps, SPECS, batch_size=32)


def refuse_differences(found: pd.DataFrame, truth: pd.Series) -> None:
    values = found.set_index(["image", "metric"])["value"].sort_index()
    assert len(values) in (len(truth), COUNT * len(SPECS))
    values = values[truth.index]
    for spec in SPECS:
        percent = metrics.entry(spec.partition(":")[0]).metadata.unit == "%"
        one, other = (series.xs(spec, level=1) for series in (values, truth))
        assert (one.isna() == other.isna()).all(), spec
        assert (one - other).abs().max() <= (1e-2 if spec in INTERPOLATED else 1e-4 if percent else 1e-5), spec
        assert other.std() > 0, f"{spec} is the same for all pictures: nothing is tested"


def test_every_metric_and_every_protocol_has_a_replica() -> None:
    here = {
        name
        for name, entry in metrics.entries.items()
        if entry.metadata.kind not in ("region", "parts") and not name.endswith("-sensitivity")
    }  # the others': test_localisation, test_regions, test_parts, test_robustness
    assert {spec.partition(":")[0] for spec in SPECS} == here
    followed = {name for name in metrics.entries if isinstance(metrics.create(name).instance, CurveMetric)}
    assert followed == set(CURVES)


@pytest.mark.parametrize("way", [by_cli, by_study, by_evaluate], ids=["cli, 1", "study, 7", "evaluate, 32"])
def test_every_metric_has_the_value_of_the_replica_in_batches_of_1_7_and_32(way, pictures: Path, truth: pd.Series, tmp_path: Path) -> None:
    refuse_differences(way(pictures, tmp_path / "run"), truth)


@pytest.mark.parametrize("tolerance", [0.5, 5.0])
def test_areas_of_some_steps_lie_where_the_run_says(tolerance: float, pictures: Path, truth: pd.Series, tmp_path: Path) -> None:
    fast = [f"{name}:protocol=gomez,tolerance={tolerance}" for name in ("insertion", "deletion")]
    made = xattn.Study(
        [classifier()],
        ["grad-cam"],
        fast,
        sorted(pictures.iterdir())[::EVERY][:8],
        tmp_path,
        workers=0,
        tune="off",
        progress=False,
        level="fast",
    )
    assert not made.run().failed
    told = json.loads((tmp_path / "run.json").read_text())["forwards"]["precise · gap"]["deviation"]
    values = made.scores().set_index(["image", "metric"])["value"]
    for spec in fast:
        exact = truth.xs(f"{spec.partition(':')[0]}:protocol=gomez", level=1)
        apart = (values.xs(spec, level=1) - exact).dropna().abs()
        assert len(apart) == 8
        assert apart.max() <= 2 * tolerance  # the tolerance is one of the estimated error
        assert told[spec][0] == pytest.approx(apart.mean(), abs=1e-3)


def test_level_fast_in_bfloat16_lies_where_the_run_says(pictures: Path, tmp_path: Path) -> None:
    clf = xattn.attach(networks.precise().float(), input_size=SIZE, resize=RESIZE, name="rounded")
    names, specs = sorted(pictures.iterdir())[:8], ["average-drop", "average-gain", "insertion", "deletion"]
    options = {"workers": 0, "tune": "precision=bfloat16", "level": "fast", "progress": False}
    made = xattn.Study([clf], ["grad-cam"], specs, names, tmp_path, **options)
    assert not made.run().failed
    told = json.loads((tmp_path / "run.json").read_text())["forwards"]["rounded · gap"]["deviation"]
    values = made.scores().set_index(["image", "metric"])["value"]
    replica = Replica(networks.precise())
    shown = {path.name: replica.shown(crop(path)) for path in names}
    for spec in specs:
        apart = [abs(values[path.name, spec] - replica.of(spec, shown[path.name])) for path in names]
        assert told[spec][0] == pytest.approx(sum(apart) / len(apart), abs=0.02)
        assert 0 < max(apart) < 10, spec
