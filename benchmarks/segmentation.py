"""Segmentation of birds' parts: Table 8 and Fig. 10 of BR-NPA, OCR with representatives, and how uniform their maps are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from claims import Line, claim, over_seeds, page, question, verdicts
from estimates import Estimate, apart
from printed import SEGMENTATION
from torch import Tensor
from torch.nn import functional
from trained import TaskPage

import xattn
from xattn.birds import PARTS, export_parts
from xattn.data.preprocessing import channels_first
from xattn.data.published import PublishedSplit, open_published
from xattn.metrics.targets import Region
from xattn.training import Recipe, fit

NONE, MEAN, REPRESENTATIVES = NETWORKS = ("none", "mean", "representatives")
CALLED = {NONE: "no object context", MEAN: "OCR, usual region vectors", REPRESENTATIVES: "OCR, representatives"}
FINE = "birds:br-npa-high-res"
RANKS = (1, 2, 3)
SHARE = 0.5  # of a cell's pixels that are of a region, from which on the cell is


class Uniformity(NamedTuple):
    """How uniform a map is over a region.

    Attributes:
        entropy: over the logarithm of the number of cells; 1 where it is uniform.
        variation: standard deviation over mean; 0 where it is uniform.
        inside: share of the map that is in the region, in percent.
    """

    entropy: float
    variation: float
    inside: float


class SegmentationPage(TaskPage):
    """Segmentation: Table 8 and Fig. 10 of BR-NPA."""

    def text(self) -> str:
        """The page."""
        b = self.budget
        scores = {network: [self.scores(network, seed) for seed in b.seeds] for network in NETWORKS}
        mean = {network: [found["mIoU"] for found in of] for network, of in scores.items()}
        table: list[Line] = []
        for network in NETWORKS:
            cells = {"mIoU": over_seeds(mean[network])}
            cells |= {name: over_seeds([found[name] for found in scores[network]], 1) for name in ("ground", *PARTS)}
            table.append({"network": CALLED[network]} | cells | {"printed": f"{SEGMENTATION[network]}" if network in SEGMENTATION else ""})
        shown = {network: [self.uniformity(network, seed) for seed in b.seeds] for network in (MEAN, REPRESENTATIVES)}
        fine = self.fine_grained()
        maps = [
            {"map": f"{CALLED[network]}, of the class", "over": region}
            | {"entropy": over_seeds([of[region].entropy for of in shown[network]], 3)}
            | {"coefficient of variation": over_seeds([of[region].variation for of in shown[network]], 3)}
            | {"inside, %": over_seeds([of[region].inside for of in shown[network]], 1)}
            for network in shown
            for region in ("a part", "the ground")
        ]
        maps += [
            {"map": f"fine-grained ({FINE}), map {rank}", "over": region}
            | {"entropy": f"{found.entropy:.3f}", "coefficient of variation": f"{found.variation:.3f}", "inside, %": f"{found.inside:.1f}"}
            for region in ("a part", "the bird")
            for rank, found in zip(RANKS, fine[region], strict=True)
        ]
        own = [of["a part"] for of in shown[REPRESENTATIVES]]
        lines = [
            claim(
                "with representatives mIoU is that of the usual region vectors", _over_seeds(mean[REPRESENTATIVES], mean[MEAN]), 0, margin=1
            ),
            claim("… and slightly lower", _over_seeds(mean[REPRESENTATIVES], mean[MEAN]), -1),
            question("Is mIoU with the usual region vectors above that without object context?", _over_seeds(mean[MEAN], mean[NONE])),
        ]
        for region in ("a part", "the bird"):
            entropy, variation = ([getattr(found, what) for found in fine[region]] for what in ("entropy", "variation"))
            of = f"than the fine-grained maps are over {'the same part' if region == 'a part' else region}"
            lines += [
                claim(
                    f"maps of representatives are more uniform over a part {of}: higher entropy",
                    _over_seeds([found.entropy for found in own], [sum(entropy) / len(entropy)] * len(own)),
                    1,
                    digits=3,
                ),
                claim(
                    "… lower coefficient of variation",
                    _over_seeds([found.variation for found in own], [sum(variation) / len(variation)] * len(own)),
                    -1,
                    digits=3,
                ),
            ]
        usual = [of["a part"].entropy for of in shown[MEAN]]
        lines.append(question("Is their entropy above that of the usual weights?", _over_seeds([f.entropy for f in own], usual), digits=3))
        about = [
            "The part of every pixel of SketchBirds, five parts and the ground; the body does not count. OCR networks on birds:gap, layer4 "
            f"with stride 1, from its weights, are trained for {b.segmented} epochs of {b.parts} pictures, a tenth of which is held out, "
            f"with the auxiliary loss (0.4), the poly schedule and random scales. {len(b.seeds)} seeds, no setting was searched; ± is "
            f"Student's 95 % interval over seeds; scores of {b.explained} pictures of the split val, in percent.",
            "Printed: BR-NPA, Table 8, HRNet on Cityscapes, whose representatives start from trained OCR weights. **Differs**: each "
            "network starts from a classifier's weights.",
        ]
        where = (
            "Fig. 10, in numbers. A map is cut to the cells of a region by the labels, and brought to sum to 1 there: its entropy is "
            "divided by the logarithm of the number of cells, and is 1 where it is uniform; the coefficient of variation is 0 there. A map "
            "that is the same everywhere is uniform over any region, too: the last column is the share of the map that is in the region. "
            "Fine-grained maps are those of a ready classifier of kinds of birds, brought to the same cells, on the same pictures; their "
            "rows have no interval. The paper shows pictures."
        )
        made = page("BR-NPA, Table 8 and Fig. 10: segmentation", about, pd.DataFrame(table), [])
        return f"{made}\n{where}\n\n{pd.DataFrame(maps).to_markdown(index=False, disable_numparse=True)}\n\n{verdicts(lines)}\n"

    def trained(self, network: str, seed: int) -> xattn.Classifier:
        """A segmentation network, trained when it is first asked for."""
        file = self.work / f"{network}-{seed}.safetensors"
        if not file.exists():
            torch.manual_seed(seed)
            name = f"ocr:birds:gap:regions={network},width=64,keys=32"
            classifier = xattn.load(name, classes=1 + len(PARTS), high_res=["layer4"])
            recipe = Recipe(backbone=True, epochs=self.budget.segmented, batch_size=16, lr=2e-3, schedule="poly", smallest_crop=0.5)
            options = {"recipe": recipe, "seed": seed, "workers": 0}
            fit(classifier, f"cityscapes:{self.pictures}", file, task="segmentation", **options)
        return xattn.load(str(file))

    def scores(self, network: str, seed: int) -> dict[str, float]:
        """mIoU, and the intersection over union of each class, in percent."""
        classifier, place = self.trained(network, seed), f"cityscapes:{self.pictures}"
        found = xattn.tasks.score(classifier, place, task="segmentation", workers=0, progress=False)
        return {name: interval.mean for name, interval in (found.scores | found.classes).items()}

    def uniformity(self, network: str, seed: int) -> dict[str, Uniformity]:
        """How uniform the maps of the classes are over their regions, mean over pictures and classes: over parts, and over the ground."""
        classifier = self.trained(network, seed)
        images, labels = self.shown
        found: dict[str, list[Uniformity]] = {"a part": [], "the ground": []}
        for index in range(1 + len(PARTS)):
            some = (labels == index).flatten(1).any(dim=1)
            if not bool(some.any()):
                continue
            regions = (labels[some] == index).float()
            target = Region(torch.full((len(regions),), index), regions)
            raw = xattn.explain(classifier, images[some], ["raw-attention"], target=target, progress=False).raw["raw-attention"]
            found["a part" if index else "the ground"] += uniformities(raw.cpu(), regions)
        return {region: mean_of(values) for region, values in found.items()}

    def fine_grained(self) -> dict[str, list[Uniformity]]:
        """How uniform the ranked maps of a fine-grained classifier are, by rank: over each part, and over the bird."""
        images, labels = self.shown
        methods = [f"raw-attention:rank={rank}" for rank in RANKS]
        raw = xattn.explain(xattn.load(FINE), images, methods, progress=False).raw
        cells = self.trained(REPRESENTATIVES, self.budget.seeds[0]).stages[-1].size
        maps = [functional.adaptive_avg_pool2d(raw[method].cpu()[:, None], cells)[:, 0] for method in methods]
        of_parts = [[u for k in range(1, 1 + len(PARTS)) for u in uniformities(each, (labels == k).float())] for each in maps]
        of_birds = [uniformities(each, (labels != 0).float()) for each in maps]
        return {"a part": [mean_of(values) for values in of_parts], "the bird": [mean_of(values) for values in of_birds]}

    @cached_property
    def shown(self) -> tuple[Tensor, Tensor]:
        """Pictures in pixel space and the class of every pixel of the split val."""
        split: PublishedSplit = open_published("cityscapes", self.pictures, "val")
        assert split.label_maps is not None
        images = [channels_first(xattn.data.images.read_picture(path)) for path in split.paths]
        labels = [channels_first(split.label_maps.read(number))[0] for number in range(len(images))]
        return torch.stack(images).float() / 255, torch.stack(labels)

    @cached_property
    def pictures(self) -> Path:
        """The pictures, in the layout of Cityscapes."""
        folder = self.work / f"parts-{self.budget.parts}-{self.budget.explained}"
        if not (folder / "done").exists():
            export_parts(folder, train=self.budget.parts, validation=self.budget.explained)
            (folder / "done").touch()
        return folder


def uniformities(maps: Tensor, regions: Tensor) -> list[Uniformity]:
    """How uniform maps are over regions, where these have two cells or more and the map something in them.

    Args:
        maps: `(n, h, w)`, ≥ 0.
        regions: `(n, H, W)`, 1 inside and 0 outside; cells of which `SHARE` is inside count.
    """
    found = []
    for each, inside in zip(maps.double(), functional.adaptive_avg_pool2d(regions[:, None], maps.shape[1:])[:, 0] >= SHARE, strict=True):
        values = each[inside]
        if len(values) > 1 and float(values.sum()) > 0:
            entropy = torch.special.entr(values / values.sum()).sum() / torch.tensor(len(values)).double().log()
            inside_share = 100 * float(values.sum() / each.sum())
            found.append(Uniformity(float(entropy), float(values.std(correction=0) / values.mean()), inside_share))
    return found


def mean_of(values: Sequence[Uniformity]) -> Uniformity:
    """The mean over regions; NaN without any."""
    return Uniformity(*torch.tensor(values, dtype=torch.float64).view(-1, 3).mean(dim=0).tolist())


def _over_seeds(after: Sequence[float], before: Sequence[float]) -> Estimate:
    """The mean of the seeds' differences."""
    return apart(after, before, "seeds")
