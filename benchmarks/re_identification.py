"""Re-identification of individual birds: Table 9 of BR-NPA, and whether its first map stays on the same part in other cameras."""

from __future__ import annotations

import warnings
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path

import pandas as pd
import torch
from claims import Line, cell, claim, over_seeds, page, verdicts
from estimates import apart
from printed import RE_IDENTIFICATION
from torch import Tensor
from trained import TaskPage

import xattn
from xattn.birds import export_individuals, masks
from xattn.birds.drawing import SIDE
from xattn.birds.individuals import WIDTH, picture, sighting
from xattn.training import Recipe, fit

CAMERAS, EACH = 4, 3
SIZE = (SIDE, WIDTH)
POOLING, B_CNN, BR_NPA, HIGH, RGA = NETWORKS = ("pooling", "b-cnn", "br-npa", "br-npa, higher resolution", "rga")
HEADS = {POOLING: "max", B_CNN: "b-cnn", BR_NPA: "br-npa", HIGH: "br-npa", RGA: "max"}
RANKS = tuple(f"raw-attention:rank={rank}" for rank in (1, 2, 3))
SHOWN = {POOLING: ("grad-cam",), B_CNN: ("raw-attention",), BR_NPA: RANKS, HIGH: RANKS, RGA: ("grad-cam",)}


class ReIdentificationPage(TaskPage):
    """Re-identification: Table 9 and Fig. 14 of BR-NPA."""

    def text(self) -> str:
        """Writes the page."""
        b = self.budget
        scores = {network: [self.scores(network, seed) for seed in b.seeds] for network in NETWORKS}
        rank_1, precision = ({of: [seed[name] for seed in found] for of, found in scores.items()} for name in ("rank-1", "mAP"))
        table: list[Line] = []
        for network in NETWORKS:
            height, width = self.trained(network, b.seeds[0]).stages[-1].size
            cells = {"rank-1": over_seeds(rank_1[network]), "mAP": over_seeds(precision[network])}
            table.append({"network": network, "map": f"{height}×{width}"} | cells | {"printed": f"{RE_IDENTIFICATION[network]:.1f}"})
        same, other, inside = self.stability()
        views = [
            {
                "network": network,
                "map": method,
                "same part, same individual": cell(same[network, method]),
                "same part, others": cell(other[network, method]),
                "points at the bird": cell(inside[network, method]),
            }
            for network in NETWORKS
            for method in SHOWN[network]
        ]
        first = BR_NPA, RANKS[0]
        lines = [
            claim("br-npa has a higher rank-1 than b-cnn", apart(rank_1[BR_NPA], rank_1[B_CNN], "seeds"), 1),
            claim("br-npa has a lower rank-1 than max pooling", apart(rank_1[BR_NPA], rank_1[POOLING], "seeds"), -1),
            claim("br-npa has a lower rank-1 at the higher resolution", apart(rank_1[HIGH], rank_1[BR_NPA], "seeds"), -1),
            claim("rga has the rank-1 of br-npa", apart(rank_1[RGA], rank_1[BR_NPA], "seeds"), 0, margin=1),
            *(
                claim(
                    f"map 1 stays on the same part before two cameras more often than map {rank}",
                    apart(same[first], same[of], "individuals"),
                    1,
                )
                for rank, of in ((2, (BR_NPA, RANKS[1])), (3, (BR_NPA, RANKS[2])))
            ),
            claim("… than Grad-CAM of max pooling", apart(same[first], same[POOLING, "grad-cam"], "individuals"), 1),
            claim("… than with other individuals before these cameras", apart(same[first], other[first], "individuals"), 1),
        ]
        about = [
            f"Individual birds, {b.persons} for training and {self._tested} others for the test, before {CAMERAS} cameras, {EACH} pictures "
            f"by each. birds:gap with the identity branch of DG-Net, layer4 with stride 1, is trained for {b.met} epochs with max pooling; "
            f"b-cnn, br-npa and rga start from its weights and are trained for {b.met} more, the higher resolution (layer3 with stride 1 "
            f"too) from br-npa's for {self._tuned}, taught by it. No setting was searched. {len(b.seeds)} seeds; ± is half of the 95 % "
            "interval over them, of maps over seeds × individuals. Vectors of both blocks, the flipped picture's added.",
            "Printed: BR-NPA, Table 9, ResNet-50 on Market-1501, rank-1; its higher resolution is 64×32. **Differs**: identities alone, "
            "without DG-Net's generator; max pooling is trained for half of the epochs of what starts from it.",
        ]
        where = (
            f"Fig. 14, in percent: a map points at the part (one of five, or the rest of the body) that has its largest value. Pairs are "
            f"of an individual before two cameras, {self._tested * len(_pairs())} per seed; of others, of two individuals before them. "
            "Grad-CAM is of the cosine with the individual before the next camera. The paper shows pictures."
        )
        made = page("BR-NPA, Table 9 and Fig. 14: re-identification", about, pd.DataFrame(table), [])
        return f"{made}\n{where}\n\n{pd.DataFrame(views).to_markdown(index=False, disable_numparse=True)}\n\n{verdicts(lines)}\n"

    def trained(self, network: str, seed: int, output: str | None = None) -> xattn.Classifier:
        """Returns a classifier with logits or vectors as its output; it is trained on first use."""
        file = self.work / f"{network.replace(', ', '-').replace(' ', '-')}-{seed}.safetensors"
        if not file.exists():
            torch.manual_seed(seed)
            start = {POOLING: None, HIGH: BR_NPA}.get(network, POOLING)
            before = None if start is None else self.trained(start, seed)
            strides = ["layer3", "layer4"] if network == HIGH else ["layer4"]
            name = f"rga:birds:gap:height={SIZE[0]},width={SIZE[1]}" if network == RGA else "birds:gap"
            size = {"input_size": SIZE, "resize": SIZE}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the head has new weights, as intended
                head = f"dg-net:pooling={HEADS[network]}"
                classifier = xattn.load(name, head=head, classes=self.budget.persons, high_res=strides, **size)
            if before is not None:
                _start(classifier, before)
            epochs = self._tuned if network == HIGH else self.budget.met
            recipe = Recipe(backbone=True, epochs=epochs, batch_size=32, lr=1e-3 / (1 + (network == HIGH)), smallest_crop=None)
            options = {"recipe": recipe, "seed": seed, "workers": 0, "teacher": before if network == HIGH else None}
            fit(classifier, f"market:{self.pictures}", file, task="re-identification", **options)
        return xattn.load(str(file), output=output)

    def scores(self, network: str, seed: int) -> dict[str, float]:
        """Returns rank-1 and mAP in percent."""
        classifier, place = self.trained(network, seed, "vectors"), f"market:{self.pictures}"
        found = xattn.tasks.score(classifier, place, task="re-identification:flip=true", workers=0, progress=False).scores
        return {name: found[name].mean for name in ("rank-1", "mAP")}

    def stability(self) -> tuple[dict[tuple[str, str], Tensor], ...]:
        """Returns by network and map, `(seeds, individuals)`, in percent: how often two maps of an individual point at the same part, how
        often maps of two individuals do, and how often a map points at the bird."""
        images, parts = _seen(self.budget.persons + 1, self._tested)
        same: dict[tuple[str, str], list[Tensor]] = {}
        other: dict[tuple[str, str], list[Tensor]] = {}
        inside: dict[tuple[str, str], list[Tensor]] = {}
        for network in NETWORKS:
            for seed in self.budget.seeds:
                classifier = self.trained(network, seed, "vectors")
                partners = images.roll(-1, dims=1).flatten(0, 1)
                target = xattn.Similarity(classifier.predict(partners))
                found = xattn.explain(classifier, images.flatten(0, 1), SHOWN[network], target=target, progress=False).masks
                for method, saliency in found.items():
                    at = pointed(saliency.cpu(), parts.flatten(0, 1)).view(parts.shape[:2])
                    key = network, method
                    same.setdefault(key, []).append(agreement(at, at))
                    other.setdefault(key, []).append(agreement(at, at.roll(1, dims=0)))
                    inside.setdefault(key, []).append(100 * (at > 0).double().mean(dim=1))
        return tuple({key: torch.stack(values) for key, values in of.items()} for of in (same, other, inside))

    @property
    def _tested(self) -> int:
        return max(2, self.budget.persons // 2)

    @property
    def _tuned(self) -> int:
        return max(1, self.budget.met // 4)

    @cached_property
    def pictures(self) -> Path:
        """Writes the pictures, in the layout of Market-1501."""
        folder, count = self.work / f"individuals-{self.budget.persons}", self.budget.persons
        if (folder / "done").exists():
            return folder
        made = export_individuals(folder, train=count, test=self._tested, cameras=CAMERAS, each=EACH, distractors=count, junk=count // 4)
        (made / "done").touch()
        return made


def pointed(saliency: Tensor, parts: Tensor) -> Tensor:
    """Returns the part `(B,)` at the largest value of masks `(B, H, W)`.

    Args:
        saliency: the masks.
        parts: `(B, H, W)`, the number of the part at each pixel; 0: background.
    """
    return parts.flatten(1).gather(1, saliency.flatten(1).argmax(dim=1)[:, None])[:, 0]


def agreement(one: Tensor, other: Tensor) -> Tensor:
    """Returns how often two cameras agree on the part of the bird, in percent of the pairs of cameras: `(I,)`.

    Args:
        one: parts `(I, C)` seen by the cameras; 0, background, never agrees.
        other: parts of the individual that the second camera of a pair sees.
    """
    found = [(one[:, a] == other[:, b]) & (one[:, a] > 0) for a, b in _pairs()]
    return 100 * torch.stack(found).double().mean(dim=0)


def _pairs() -> list[tuple[int, int]]:
    return list(combinations(range(CAMERAS), 2))


@cache
def _seen(first: int, count: int) -> tuple[Tensor, Tensor]:
    """Returns individuals by camera, `(I, C, 3, H, W)` in pixel space, and the part at each pixel `(I, C, H, W)`: 1 the body, 2 to 6."""
    left = (SIDE - WIDTH) // 2
    images, parts = [], []
    for identity in range(first, first + count):
        for camera in range(1, CAMERAS + 1):
            scene = sighting(identity, camera, 0)
            shown = picture(scene)
            images.append(torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8).view(*SIZE, 3).permute(2, 0, 1) / 255)
            found = masks(scene)
            at = found.bird.long()
            for number, visible in enumerate(found.visible, start=2):
                at = torch.where(visible, number, at)
            parts.append(at[:, left : left + WIDTH])
    return torch.stack(images).unflatten(0, (count, CAMERAS)), torch.stack(parts).unflatten(0, (count, CAMERAS))


def _start(classifier: xattn.Classifier, before: xattn.Classifier) -> None:
    """Copies the weights of another network; those of relation-aware attention, which the other lacks, stay new."""
    own, weights = classifier.network.state_dict(), before.network.state_dict()
    taken = {key: weights.get(key.replace(".features.", "."), value) for key, value in own.items()}
    classifier.network.load_state_dict(taken)
    classifier.head.load_state_dict(classifier.head.fitted(before.head.state_dict()))
