"""Two-stream networks on hard SketchBirds: the tables of Shroff 2020, and its claims about the maps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pandas as pd
import patches
import torch
from claims import Claim, Line, cell, claim, page
from confidence import logits_of
from estimates import apart, estimate
from printed import TWO_STREAMS, TWO_STREAMS_SUMS
from torch import Tensor
from train_birds import Drawn
from trained import TaskPage, answered, drawn, test_birds

import xattn
from xattn.birds import CLASSES, share_inside
from xattn.metrics.statistics import mean_interval, needed
from xattn.models.streams import looks_kept
from xattn.training import Recipe, fit
from xattn.training.data import Labelled, open_data

NETWORK = "focus:birds:gap:patches=6,box=0.375,side=32"
GLOBAL = "local=cnn,weight=0"  # λ' = 0: the local stream counts neither in the loss nor in the sum
LOCALS = {"+ local, cnn": "local=cnn", "+ local, lstm": "local=lstm", "+ local, attention": "local=attention"}
ATTENTION = LOCALS["+ local, attention"]
SELF_ATTENTION = f"{ATTENTION},self_attention=true,basis=16"
RANKING = (0.0, 0.5, 1.0)  # λ
USUAL = 0.5
MOST_SEEDS = 1000


class TwoStreamsPage(TaskPage):
    """Two-stream networks: the tables and claims of Shroff 2020."""

    @property
    def steps(self) -> int:
        """Number of steps of the local stream."""
        return max(self.budget.sums)

    def text(self) -> str:
        """Writes the page."""
        b = self.budget
        rows: list[Line] = []
        found: dict[str, Tensor] = {}
        for called, settings in {"global alone": GLOBAL, **LOCALS, "+ self-attention between the steps": SELF_ATTENTION}.items():
            found[settings], loss = self.answers(settings)
            rows.append(_row(called, found[settings], loss, TWO_STREAMS.get(called)))
        for k in b.sums:
            found[_sum(k)], loss = self.answers(_sum(k))
            summed = f"sum of steps 1 to {k}" if k > 1 else "step 1 alone"
            rows.append(_row(f"{summed}, no attention", found[_sum(k)], loss, TWO_STREAMS_SUMS.get(k)))
        for ranking in RANKING:
            found[f"λ={ranking:g}"], loss = self.answers(ATTENTION, ranking)
            rows.append(_row(f"attention, λ = {ranking:g}", found[f"λ={ranking:g}"], loss))
        last = max(b.sums)
        lines = [
            _decided(
                "a local stream without repeated looks is no better than the global one alone",
                found[LOCALS["+ local, cnn"]],
                found[GLOBAL],
                0,
            ),
            _decided("an LSTM over repeated looks is better than none", found[LOCALS["+ local, lstm"]], found[LOCALS["+ local, cnn"]], 1),
            _decided("attention over the steps is better than the last step", found[ATTENTION], found[LOCALS["+ local, lstm"]], 1),
            _decided("both streams with attention are better than the global one alone", found[ATTENTION], found[GLOBAL], 1),
            _decided(f"attention is better than the plain sum of all {last} steps", found[ATTENTION], found[_sum(last)], 1),
            _decided(f"the sum of {last} steps is worse than the first alone", found[_sum(last)], found[_sum(b.sums[0])], -1),
            _decided("the ranking loss helps (λ = 0.5 against 0)", found[f"λ={USUAL:g}"], found["λ=0"], 1),
            *self.finer(),
            *self.parts(),
        ]
        about = [
            f"Both streams begin with the weights of birds:gap and are trained for {b.looked} epochs on {b.hard} hard birds, "
            f"{b.hard // len(CLASSES)} per kind (AdamW, one learning rate); {self.steps} steps; 6 patches of 24 pixels, which the network "
            f"finds itself, seen at 32. No setting was searched: all networks have the same. {len(b.seeds)} seeds; ± is half of the 95 % "
            f"interval over seeds × birds; n = {b.tested} hard test birds; cross-entropy in nats.",
            "Printed: Shroff 2020, Tables 5.1 and 6.1, VGG-19 on CUB. Differences are between networks of the same seed.",
        ]
        return page("Two streams (Shroff 2020): local stream, repeated looks, attention over the steps", about, pd.DataFrame(rows), lines)

    def answers(self, settings: str, ranking: float = USUAL) -> tuple[Tensor, Tensor]:
        """Returns for each hard test bird, `(seeds, birds)`: 100 if it is recognised, else 0; and its cross-entropy in nats."""
        found = torch.stack([self._answers(settings, seed, ranking) for seed in self.budget.seeds])
        return 100 * found[..., 0], found[..., 1]

    def finer(self) -> list[Claim]:
        """Answers whether the maps of later steps are finer than those of earlier ones."""
        lines = []
        for called, settings, method in (
            ("Grad-CAM of the steps", ATTENTION, "step-cam:step={}"),
            ("the self-attention A_t", SELF_ATTENTION, "raw-attention:step={}"),
        ):
            entropies, areas = [], []
            for seed in self.budget.seeds:
                maps = self._maps(self.trained(settings, seed), [method.format(step) for step in range(1, self.steps + 1)], "local")
                entropies.append(trend([entropy(each) for each in maps]))
                areas.append(trend([half_area(each) for each in maps]))
            for what, values in (("entropy", entropies), ("the area that holds half of it", areas)):
                text = f"{called} gets finer with t: Spearman's correlation of {what} with t is below 0 (mean over birds)"
                lines.append(claim(text, estimate(torch.stack(values)), -1))
        return lines

    def parts(self) -> list[Claim]:
        """Writes where boxes and maps lie relative to the part that distinguishes a class from its neighbour."""
        shown = self._shown
        shares, held, inside = [], [], []
        for seed in self.budget.seeds:
            classifier = self.trained(ATTENTION, seed)
            boxes = _boxes(classifier, shown.images)
            own = patches.found_by(boxes, shown.parts).any(dim=1).double()
            side = int(boxes[0, 0, 2] - boxes[0, 0, 0])
            at_random = xattn.patches.find(classifier, shown.images, f"random:seed={seed}", boxes.shape[1], side)
            shares.append(100 * float(own.mean()))
            held.append(100 * (own - patches.found_by(at_random, shown.parts).any(dim=1).double()))
            (local,), (whole,) = (self._maps(classifier, ["grad-cam"], stage) for stage in ("local", "global"))
            inside.append(100 * (share_inside(local, shown.parts) - share_inside(whole, shown.parts)))
        said = f"boxes found without labels ({', '.join(f'{share:.1f} %' for share in shares)} of the birds, by seed)"
        more, on_it = (estimate(torch.stack(values)) for values in (held, inside))
        return [
            claim(f"{said} hold the part that tells a kind more often than random ones, in points", more, 1),
            claim("Grad-CAM of the local stream lies on that part more than that of the global one, in points", on_it, 1),
        ]

    def trained(self, settings: str, seed: int, ranking: float = USUAL) -> xattn.Classifier:
        """Returns a classifier with these settings; it is trained on first use."""
        clean = settings.replace("=", "-").replace(",", "_")
        file = self.work / f"{clean}-{ranking:g}-{seed}.safetensors"
        if not file.exists():
            torch.manual_seed(seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the local stream has new weights, as intended
                classifier = xattn.load(f"{NETWORK},steps={self.steps},{settings}")
            ranking = 0.0 if settings == GLOBAL else ranking
            recipe = Recipe(backbone=True, epochs=self.budget.looked, batch_size=32, lr=1e-3, smallest_crop=None, ranking=ranking)
            fit(classifier, hard_birds(self.budget.hard), file, recipe=recipe, seed=seed, workers=0)
        return xattn.load(str(file))

    def _answers(self, settings: str, seed: int, ranking: float) -> Tensor:
        classifier = self.trained(settings, seed, ranking)
        path = self.work / "answers" / f"{classifier.digest()}-{drawn()}-{self.budget.tested}.pt"
        if not path.exists():
            images, labels = test_birds(self.budget.tested, True)
            path.parent.mkdir(exist_ok=True)
            torch.save(answered(logits_of(classifier, images), labels), path)
        found: Tensor = torch.load(path, weights_only=True)
        return found

    def _maps(self, classifier: xattn.Classifier, methods: Sequence[str], stage: str) -> list[Tensor]:
        """Returns masks `(B, H, W)` of each method for the birds' labels."""
        shown = self._shown
        pieces = [
            xattn.explain(classifier, images, methods, target=labels, stage=stage, progress=False).masks.values()
            for images, labels in zip(shown.images.split(20), shown.labels.split(20), strict=True)
        ]
        return [torch.cat([masks.cpu() for masks in of_method]) for of_method in zip(*pieces, strict=True)]

    @property
    def _shown(self) -> patches.Birds:
        return hard_paired_birds(self.budget.explained)


def entropy(masks: Tensor) -> Tensor:
    """Returns entropy in nats of masks `(B, H, W)` as distributions over the pixels: `(B,)`, NaN for an empty one."""
    p = masks.flatten(1).double()
    return torch.special.entr(p / p.sum(dim=1, keepdim=True)).sum(dim=1)


def half_area(masks: Tensor) -> Tensor:
    """Returns the smallest share of the pixels that holds half of the sum of masks `(B, H, W)`: `(B,)`, NaN for an empty one."""
    ordered = masks.flatten(1).double().sort(dim=1, descending=True).values.cumsum(dim=1)
    total = ordered[:, -1:]
    share = (ordered < total / 2).sum(dim=1).add(1) / masks[0].numel()
    return torch.where(total[:, 0] > 0, share, torch.nan)


def trend(values: Sequence[Tensor]) -> Tensor:
    """Returns Spearman's correlation of values `(B,)` at each step with the step's number: `(B,)`, NaN for constant ones."""
    frame = pd.DataFrame(torch.stack(list(values)).numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant columns give NaN
        return torch.tensor(frame.corrwith(pd.Series(range(len(frame))), method="spearman").to_numpy())


@cache
def hard_birds(count: int) -> Labelled:
    """Returns training pictures, and separate hard birds for validation."""
    data, validation = (open_data(Drawn(split, some, hard=True)) for split, some in (("train", count), ("validation", min(160, count))))
    return replace(data, validation=validation)


@cache
def hard_paired_birds(count: int) -> patches.Birds:
    """Returns the first hard test pictures of classes that have a neighbour, whose part is visible."""
    return patches.birds(count, hard=True)


def _boxes(classifier: xattn.Classifier, images: Tensor) -> Tensor:
    found = []
    for some in images.split(100):
        with looks_kept(classifier.network) as kept:
            classifier.predict(some.to(classifier.device))
        found.append(kept[-1].boxes.cpu())
    return torch.cat(found)


def _row(called: str, right: Tensor, loss: Tensor, printed: float | None = None) -> Line:
    cells = {"accuracy": cell(right), "cross-entropy": cell(loss, 3)}
    return {"network": called} | cells | {"printed": "" if printed is None else f"{printed:.2f}"}


def _sum(k: int) -> str:
    return f"{ATTENTION},sum_to={k}"


def _decided(text: str, after: Tensor, before: Tensor, way: int) -> Claim:
    """A claim on accuracies, in points; if it is not decided, the note says how many seeds would show it, by the seeds' spread."""
    seeds = needed(mean_interval((after - before).mean(dim=1)))
    spread = (
        ""
        if math.isnan(seeds)
        else f"{f'about {seeds:,.0f}' if seeds <= MOST_SEEDS else f'more than {MOST_SEEDS:,}'} seeds would decide it alone"
    )
    return claim(text, apart(after, before), way, margin=1.0, undecided=spread)
