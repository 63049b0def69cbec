"""Segmentation of birds' parts: Table 8 and Fig. 10 of BR-NPA, OCR with representatives, and the uniformity of their maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from claims import Line, cell, claim, over_seeds, page, question, verdicts
from estimates import Estimate, apart
from printed import SEGMENTATION
from torch import Tensor
from torch.nn import functional
from trained import BR_NPA, TaskPage, Trainings

import xattn
from xattn.birds import CLASSES, PARTS, export_parts
from xattn.data.preprocessing import channels_first
from xattn.data.published import PublishedSplit, open_published
from xattn.metrics.targets import Region
from xattn.training import Recipe, fit

NONE, MEAN, REPRESENTATIVES = NETWORKS = ("none", "mean", "representatives")
CALLED = {NONE: "no object context", MEAN: "OCR, usual region vectors", REPRESENTATIVES: "OCR, representatives"}
RANKS = (1, 2, 3)
ENTROPY, VARIATION = range(2)
SHARE = 0.5  # share of a cell's pixels above which the cell belongs to a region


class SegmentationPage(TaskPage):
    """Segmentation: Table 8 and Fig. 10 of BR-NPA.

    Args:
        work: where pictures, trainings and runs are stored, so that they resume.
        trainings: trainings of the fine-grained classifiers.
    """

    def __init__(self, work: Path, trainings: Trainings) -> None:
        super().__init__(work, trainings.budget)
        self.trainings = trainings

    def text(self) -> str:
        """Writes the page."""
        b = self.budget
        scores = {network: [self.scores(network, seed) for seed in b.seeds] for network in NETWORKS}
        mean = {network: [found["mIoU"] for found in of] for network, of in scores.items()}
        table: list[Line] = []
        for network in NETWORKS:
            cells = {"mIoU": over_seeds(mean[network])}
            cells |= {name: over_seeds([found[name] for found in scores[network]], 1) for name in ("ground", *PARTS)}
            table.append({"network": CALLED[network]} | cells | {"printed": f"{SEGMENTATION[network]}" if network in SEGMENTATION else ""})
        shown = {network: self.uniformity(network) for network in (MEAN, REPRESENTATIVES)}
        fine = self.fine_grained()
        maps = [
            {"map": f"{CALLED[network]}, of the class", "over": region} | _cells(shown[network][region])
            for network in shown
            for region in ("a part", "the ground")
        ]
        maps += [
            {"map": f"fine-grained, map {rank}", "over": region} | _cells(found)
            for region in ("a part", "the bird")
            for rank, found in zip(RANKS, fine[region], strict=True)
        ]
        own, usual = shown[REPRESENTATIVES]["a part"], shown[MEAN]["a part"]
        lines = [
            claim(
                "with representatives mIoU is that of the usual region vectors", _over_seeds(mean[REPRESENTATIVES], mean[MEAN]), 0, margin=1
            ),
            claim("… and slightly lower", _over_seeds(mean[REPRESENTATIVES], mean[MEAN]), -1),
            question("Is mIoU with the usual region vectors above that without object context?", _over_seeds(mean[MEAN], mean[NONE])),
        ]
        for region in ("a part", "the bird"):
            of = f"than the fine-grained maps are over {'the same part' if region == 'a part' else region}"
            text = f"maps of representatives are more uniform over a part {of}: higher entropy"
            against = torch.stack(fine[region]).mean(dim=0)
            lines.append(claim(text, apart(own[..., ENTROPY], against[..., ENTROPY], "pictures"), 1, digits=3))
            lower = apart(own[..., VARIATION], against[..., VARIATION], "pictures")
            lines.append(claim("… lower coefficient of variation", lower, -1, digits=3))
        above = apart(own[..., ENTROPY], usual[..., ENTROPY], "pictures")
        lines.append(question("Is their entropy above that of the usual weights?", above, digits=3))
        about = [
            "The part of every pixel of SketchBirds, five parts and the ground; the body does not count. OCR networks on birds:gap, layer4 "
            f"with stride 1, from its weights, are trained for {b.segmented} epochs of {b.parts} pictures, a tenth of which is held out, "
            f"with the auxiliary loss (0.4), the poly schedule and random scales. {len(b.seeds)} seeds, no setting was searched; ± is "
            f"half of Student's 95 % interval over seeds; scores of {b.explained} pictures of the split val, in percent.",
            "Printed: BR-NPA, Table 8, HRNet on Cityscapes, whose representatives start from trained OCR weights. **Differs**: each "
            "network starts from a classifier's weights.",
        ]
        where = (
            "Fig. 10, in numbers. A map is cut to the cells of a region by the labels, and brought to sum to 1 there: its entropy is "
            "divided by the logarithm of the number of cells, and is 1 where it is uniform; the coefficient of variation is 0 there. A map "
            "that is the same everywhere is uniform over any region, too: the last column is the share of the map that is in the region. "
            f"Fine-grained maps are those of BR-NPA at high resolution, trained to tell {len(CLASSES)} kinds of birds apart "
            "([resolution](resolution.md)), brought to the same cells, on the same pictures, with as many seeds. Each value is the mean "
            "over a picture's regions, ± half of the 95 % interval over seeds × pictures. The paper shows pictures."
        )
        made = page("BR-NPA, Table 8 and Fig. 10: segmentation", about, pd.DataFrame(table), [])
        return f"{made}\n{where}\n\n{pd.DataFrame(maps).to_markdown(index=False, disable_numparse=True)}\n\n{verdicts(lines)}\n"

    def trained(self, network: str, seed: int) -> xattn.Classifier:
        """Returns a segmentation network; it is trained on first use."""
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
        """Returns mIoU, and the intersection over union of each class, in percent."""
        classifier, place = self.trained(network, seed), f"cityscapes:{self.pictures}"
        found = xattn.tasks.score(classifier, place, task="segmentation", workers=0, progress=False)
        return {name: interval.mean for name, interval in (found.scores | found.classes).items()}

    def uniformity(self, network: str) -> dict[str, Tensor]:
        """Returns the uniformity of class maps over their regions, `(seeds, pictures, 3)`: over a picture's parts, over the ground."""
        images, labels = self.shown
        found: dict[str, list[Tensor]] = {"a part": [], "the ground": []}
        for seed in self.budget.seeds:
            classifier = self.trained(network, seed)
            of_classes = []
            for index in range(1 + len(PARTS)):
                regions = (labels == index).float()
                values = torch.full((len(images), 3), torch.nan, dtype=torch.float64)
                some = regions.flatten(1).any(dim=1)
                if bool(some.any()):
                    target = Region(torch.full((int(some.sum()),), index), regions[some])
                    raw = xattn.explain(classifier, images[some], ["raw-attention"], target=target, progress=False).raw["raw-attention"]
                    values[some] = uniformities(raw.cpu(), regions[some])
                of_classes.append(values)
            found["the ground"].append(of_classes[0])
            found["a part"].append(torch.stack(of_classes[1:]).nanmean(dim=0))
        return {region: torch.stack(values) for region, values in found.items()}

    def fine_grained(self) -> dict[str, list[Tensor]]:
        """Returns the uniformity of fine-grained classifiers' ranked maps by rank, `(seeds, pictures, 3)`: over a part, over the bird."""
        images, labels = self.shown
        cells = self.trained(REPRESENTATIVES, self.budget.seeds[0]).stages[-1].size
        found: dict[str, list[list[Tensor]]] = {"a part": [[] for _ in RANKS], "the bird": [[] for _ in RANKS]}
        for seed in self.budget.seeds:
            classifier = self.trainings.high(BR_NPA, seed, distilled=True)
            raw = xattn.explain(classifier, images, [f"raw-attention:rank={rank}" for rank in RANKS], progress=False).raw
            for place, maps in enumerate(raw.values()):
                each = functional.adaptive_avg_pool2d(maps.cpu()[:, None], cells)[:, 0]
                of_parts = [uniformities(each, (labels == index).float()) for index in range(1, 1 + len(PARTS))]
                found["a part"][place].append(torch.stack(of_parts).nanmean(dim=0))
                found["the bird"][place].append(uniformities(each, (labels != 0).float()))
        return {region: [torch.stack(of_rank) for of_rank in ranks] for region, ranks in found.items()}

    @cached_property
    def shown(self) -> tuple[Tensor, Tensor]:
        """Returns pictures in pixel space and the class of every pixel of the split val."""
        split: PublishedSplit = open_published("cityscapes", self.pictures, "val")
        assert split.label_maps is not None
        images = [channels_first(xattn.data.images.read_picture(path)) for path in split.paths]
        labels = [channels_first(split.label_maps.read(number))[0] for number in range(len(images))]
        return torch.stack(images).float() / 255, torch.stack(labels)

    @cached_property
    def pictures(self) -> Path:
        """Writes the pictures, in the layout of Cityscapes."""
        folder = self.work / f"parts-{self.budget.parts}-{self.budget.explained}"
        if not (folder / "done").exists():
            export_parts(folder, train=self.budget.parts, validation=self.budget.explained)
            (folder / "done").touch()
        return folder


def uniformities(maps: Tensor, regions: Tensor) -> Tensor:
    """Measures the uniformity of each map over its region.

    Args:
        maps: `(n, h, w)`, ≥ 0.
        regions: `(n, H, W)`, 1 inside and 0 outside; cells of which `SHARE` is inside count.

    Returns:
        `(n, 3)` float64: entropy divided by the logarithm of the number of cells, 1 for a uniform map; standard deviation divided by mean,
        0 for a uniform map; and the percentage of the map inside the region. NaN if the region has fewer than two cells or the map is 0
        there.
    """
    found = torch.full((len(maps), 3), torch.nan, dtype=torch.float64)
    insides = functional.adaptive_avg_pool2d(regions[:, None], maps.shape[1:])[:, 0] >= SHARE
    for number, (each, inside) in enumerate(zip(maps.double(), insides, strict=True)):
        values = each[inside]
        if len(values) > 1 and float(values.sum()) > 0:
            entropy = torch.special.entr(values / values.sum()).sum() / math.log(len(values))
            found[number] = torch.stack([entropy, values.std(correction=0) / values.mean(), 100 * values.sum() / each.sum()])
    return found


def _cells(found: Tensor) -> Line:
    """Returns a row's values of `(seeds, pictures, 3)`."""
    names = {"entropy": 3, "coefficient of variation": 3, "inside, %": 1}
    return {name: cell(found[..., place], digits) for place, (name, digits) in enumerate(names.items())}


def _over_seeds(after: Sequence[float], before: Sequence[float]) -> Estimate:
    """Returns the mean of the seeds' differences."""
    return apart(after, before, "seeds")
