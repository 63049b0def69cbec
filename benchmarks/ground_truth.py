"""Maps against what is true of SketchBirds: the effect of each part, where the bird is, and a cue that a network has learnt."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from claims import cell, page, question
from estimates import apart
from torch import Tensor
from torch.nn import functional
from trained import drawn

import xattn
from xattn.birds import PARTS, Scene, SketchBirds, effects, in_parts, masks, pixels, rank_correlation, share_inside
from xattn.explainers import Need, methods
from xattn.inference import Predictor, Tuning

HEADS = ("gap", "ca-stream", "b-cnn", "br-npa", "br-npa-high-res")
METHODS = ("activation-map", "grad-cam", "grad-cam++", "score-cam", "guided-backprop", "guided-grad-cam", "raw-attention")
ON_TOKENS = ("vit", "vit-ca-stream")
TOKEN_METHODS = ("activation-map", "grad-cam", "grad-cam++", "layer-cam", "score-cam", "integrated-gradients", "smooth-grad")
CONTROLS = ("random", "centre", "edges")
CHUNK = 20


def _pieces(data: SketchBirds) -> list[list[Scene]]:
    scenes = [data.scene(number) for number in range(len(data))]
    return [scenes[start : start + CHUNK] for start in range(0, len(scenes), CHUNK)]


def _images(scenes: Sequence[Scene]) -> Tensor:
    return torch.stack([pixels(scene) for scene in scenes]).float() / 255


def _methods(name: str) -> list[str]:
    if name in ON_TOKENS:
        of_layers = sorted(method for method, entry in methods.entries.items() if Need.LAYERS in entry.metadata.needs)
        return [*TOKEN_METHODS, *(of_layers if name == "vit" else ["raw-attention"]), *CONTROLS]
    return [*(method for method in METHODS if name != "gap" or method != "raw-attention"), *CONTROLS]


@cache
def _load(name: str) -> xattn.Classifier:
    return xattn.load(f"birds:{name}")


def _kept(folder: Path, name: str, count: int, make: Callable[[str, int], pd.DataFrame]) -> pd.DataFrame:
    """What was found of a shipped classifier and so many birds, found again while neither it nor a pixel has changed."""
    file = folder / f"{name}-{count}-{_load(name).digest()}-{drawn()}.csv"
    if not file.exists():
        frame = make(name, count)
        folder.mkdir(parents=True, exist_ok=True)
        frame.to_csv(file, index=False)
    return pd.read_csv(file)


def _effects(name: str, count: int) -> pd.DataFrame:
    """A row a bird and method: rank correlations of the map in the parts with removal and Shapley value, and its energy in the bird."""
    classifier, rows = _load(name), []
    for scenes in _pieces(SketchBirds("test", count)):
        labels = [scene.label for scene in scenes]
        true = effects(classifier.predict, scenes, labels)
        found = [masks(scene) for scene in scenes]
        visible, bird = torch.stack([mask.visible for mask in found]), torch.stack([mask.bird for mask in found])
        maps = xattn.explain(
            classifier,
            _images(scenes),
            _methods(name),
            target="label",
            labels=labels,
            batch_size=CHUNK,
            predictor=Predictor(classifier, Tuning(64)),
        )
        area = bird.double().mean(dim=(1, 2))
        for method in maps:
            shown = maps[method].cpu()
            in_each = in_parts(shown, visible)
            columns = {
                "removal": rank_correlation(in_each, true.removal),
                "shapley": rank_correlation(in_each, true.shapley),
                "inside": share_inside(shown, bird),
                "area": area,
                "empty": maps.degenerate[method].double().cpu(),
            }
            rows += [{"method": method} | {key: float(column[i]) for key, column in columns.items()} for i in range(len(scenes))]
    return pd.DataFrame(rows)


def _of(frame: pd.DataFrame, method: str, column: str) -> Tensor:
    return torch.tensor(frame[frame["method"] == method][column].to_numpy(dtype=float))


def _ranked(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Rank correlation with the true effects, and energy inside the bird, by classifier and method."""
    rows = [
        {
            "classifier": f"birds:{name}",
            "method": method,
            "ρ with Shapley ↑": cell(_of(frame, method, "shapley")),
            "ρ with removal ↑": cell(_of(frame, method, "removal")),
            "n of ρ": f"{int(_of(frame, method, 'shapley').isfinite().sum())}",
            "energy in the bird, % ↑": cell(100 * _of(frame, method, "inside"), 1),
            "without contrast, %": f"{100 * float(_of(frame, method, 'empty').mean()):.1f}",
        }
        for name, frame in frames.items()
        for method in _methods(name)
    ]
    return pd.DataFrame(rows)


def _about(count: int, area: float) -> str:
    return (
        f"Spearman's ρ, within each of n = {count} test birds, between the mean of the mask in a part's visible pixels and the part's true "
        "effect on the label's logit: its Shapley value over all 2⁵ renders of the bird with and without its parts, and what its removal "
        "from the whole bird costs. Mean ± 95 % interval over the birds whose map is not constant in the parts; in the questions a "
        f"constant map counts as ρ = 0. One network a head. The bird covers {area:.1f} % of the picture: so much energy would lie in it by "
        "chance."
    )


def effects_page(folder: Path, count: int) -> str:
    """Maps of heads on the residual network against true effects."""
    frames = {head: _kept(folder, head, count, _effects) for head in HEADS}
    lines = []
    for head in HEADS[1:]:
        for method in ("grad-cam", "grad-cam++"):
            ours, theirs = (_of(frames[head], which, "shapley").nan_to_num(0) for which in ("raw-attention", method))
            text = f"birds:{head}: does its attention rank the parts better than {method} of the same classifier?"
            lines.append(question(text, apart(ours, theirs)))
    for method in ("grad-cam", "score-cam", "guided-grad-cam", "activation-map", "edges"):
        against = apart(_of(frames["gap"], method, "shapley"), _of(frames["gap"], "random", "shapley"))
        lines.append(question(f"birds:gap: does {method} rank the parts better than noise?", against))
    area = 100 * float(frames["gap"]["area"].mean())
    return page("Do maps rank the parts as the network does?", [_about(count, area)], _ranked(frames), lines)


def tokens_page(folder: Path, count: int) -> str:
    """Maps of the vision transformer, and of a stream beside it, against true effects."""
    frames = {name: _kept(folder, name, count, _effects) for name in ON_TOKENS}
    lines = []
    for name, frame in frames.items():
        grad_cam = _of(frame, "grad-cam", "shapley").nan_to_num(0)
        for method in _methods(name):
            if method != "grad-cam":
                text = f"birds:{name}: does {method} rank the parts better than grad-cam?"
                lines.append(question(text, apart(_of(frame, method, "shapley").nan_to_num(0), grad_cam)))
    area = 100 * float(frames["vit"]["area"].mean())
    return page("Do maps of a vision transformer rank the parts as it does?", [_about(count, area)], _ranked(frames), lines)


def order_page(folder: Path, count: int) -> str:
    """On which part each ranked map lies, against the part of the greatest effect."""
    table, hits, guesses = [], {}, {}
    for head in ("b-cnn", "br-npa", "br-npa-high-res"):
        frame = _kept(folder, head, count, _order)
        tops = frame[frame["map"] == 1]["top"]
        guess = tops.value_counts().index[0]
        guesses[head] = torch.tensor((tops == guess).to_numpy(dtype=float))
        table.append(
            {
                "classifier": f"birds:{head}",
                "map": f"always the {guess}",
                "lies on the part that matters most, %": cell(100 * guesses[head], 1),
            }
        )
        for rank in (1, 2, 3):
            of_rank = frame[frame["map"] == rank]
            hits[head, rank] = torch.tensor(of_rank["hit"].to_numpy(dtype=float))
            inside = torch.tensor(of_rank["inside"].to_numpy(dtype=float))
            on = of_rank["part"].value_counts(normalize=True)
            table.append(
                {
                    "classifier": f"birds:{head}",
                    "map": str(rank),
                    "lies on the part that matters most, %": cell(100 * hits[head, rank], 1),
                    "Shapley rank of its part (0 the most)": cell(torch.tensor(of_rank["place"].to_numpy(dtype=float))),
                    "energy in the bird, %": cell(100 * inside, 1),
                    "lies on": ", ".join(f"{part} {100 * share:.0f}" for part, share in on.items()),
                }
            )
    lines = []
    for head in ("br-npa", "br-npa-high-res"):
        first = 100 * hits[head, 1]
        text = f"birds:{head}: does its first map lie on the part that matters most"
        lines.append(question(f"{text} more often than one part in five?", apart(first, torch.full_like(first, 20))))
        lines.append(question(f"{text} more often than always the same part would?", apart(first, 100 * guesses[head])))
        lines.append(question(f"{text} more often than its third?", apart(first, 100 * hits[head, 3])))
    about = [
        f"n = {count} test birds. A map lies on the part in which its mean is greatest, of the parts that are to be seen; the part that "
        "matters most has the greatest Shapley value for the label's logit. By chance: 20 %, rank 2. Shares of the parts in %.",
    ]
    return page("Does the first map lie on the part that matters most?", about, pd.DataFrame(table).fillna(""), lines)


def _order(head: str, count: int) -> pd.DataFrame:
    classifier, rows = _load(head), []
    for scenes in _pieces(SketchBirds("test", count)):
        labels = [scene.label for scene in scenes]
        true = effects(classifier.predict, scenes, labels).shapley
        found = [masks(scene) for scene in scenes]
        visible, bird = torch.stack([mask.visible for mask in found]), torch.stack([mask.bird for mask in found])
        ranked = xattn.explain(classifier, _images(scenes), ["activation-map"], batch_size=CHUNK).ranked
        if ranked is None:
            raise TypeError(f"birds:{head} has no ranked maps")
        large = functional.interpolate(ranked.cpu(), size=bird.shape[1:], mode="bilinear", align_corners=False)
        for place in range(large.shape[1]):
            on = in_parts(large[:, place], visible).nan_to_num(-1).argmax(dim=1)
            inside = share_inside(large[:, place], bird)
            for number, part in enumerate(on.tolist()):
                above = int((true[number] > true[number, part]).sum())
                top = PARTS[int(true[number].argmax())]
                row = {"map": place + 1, "part": PARTS[part], "top": top, "hit": above == 0, "place": above}
                rows.append(row | {"inside": float(inside[number])})
    return pd.DataFrame(rows)


def spurious_page(folder: Path, count: int) -> str:
    """Whether maps of a network that has learnt a cue go to the cue, and those of one that has not do not."""
    table, frames = [], {}
    for name in ("gap", "gap-spurious"):
        frames[name] = _kept(folder, name, count, _spurious)
        for method in _methods("gap"):
            frame = frames[name]
            table.append(
                {
                    "classifier": f"birds:{name}",
                    "method": method,
                    "energy in the cue, %": cell(100 * _of(frame, method, "cue"), 1),
                    "energy in the bird, %": cell(100 * _of(frame, method, "bird"), 1),
                    "brighter in the cue than in the bird, % of pictures": cell(100 * _of(frame, method, "brighter"), 1),
                }
            )
    found = [method for method in _methods("gap") if method not in CONTROLS]
    led = frames["gap-spurious"]["cue_effect"] > 0  # in the other pictures the cue speaks against the answer
    lines = []
    for method in found:
        there, elsewhere = (100 * _of(frame[led.to_numpy()], method, "cue") for frame in (frames["gap-spurious"], frames["gap"]))
        text = f"does {method} go to the cue where the answer rests on it?"
        lines.append(question(text, apart(there, elsewhere)))
    about = [
        "Energy of the mask in the cue (a mushroom or a kite in a corner) and in the bird. The questions are of the pictures in which the "
        "answer of birds:gap-spurious rests on the cue: its logit falls without it; compared with birds:gap on the same pictures."
    ]
    for name, frame in frames.items():
        once = frame[frame["method"] == "grad-cam"]
        numbers = [torch.tensor(once[column].to_numpy(dtype=float)) for column in ("said_cue", "said_bird", "cue_effect", "bird_effect")]
        about.append(
            f"birds:{name}, on n = {count} test birds with a cue of another class: says the cue's class for {cell(100 * numbers[0], 1)} % "
            f"and the bird's for {cell(100 * numbers[1], 1)} %; its answer's logit falls by {cell(numbers[2])} without the cue, by "
            f"{cell(numbers[3])} without all parts of the bird."
        )
    about.append(
        "birds:gap-spurious was trained with the cue of the bird's class in every picture; birds:gap never saw one. Explained: the "
        "answer given."
    )
    return page("Do maps leave the bird where the network does?", about, pd.DataFrame(table), lines)


def _spurious(name: str, count: int) -> pd.DataFrame:
    classifier, rows = _load(name), []
    for scenes in _pieces(SketchBirds("test", count, spurious=0.0)):
        images = _images(scenes)
        found = [masks(scene) for scene in scenes]
        cue, bird = torch.stack([mask.cue for mask in found]), torch.stack([mask.bird for mask in found])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            maps = xattn.explain(classifier, images, _methods("gap"), batch_size=CHUNK, predictor=Predictor(classifier, Tuning(64)))
        bare = [replace(scene, clutter=scene.clutter[:-1]) for scene in scenes]  # the cue is the last
        partless = [scene.without(*PARTS) for scene in scenes]
        whole, without_cue, without_parts = (classifier.predict(_images(some)).double().cpu() for some in (scenes, bare, partless))
        target = maps.targets.cpu()[:, None]
        falls = [(whole.gather(1, target) - less.gather(1, target))[:, 0] for less in (without_cue, without_parts)]
        for method in maps:
            shown = maps[method].cpu()
            means = [(shown.double() * some).sum(dim=(1, 2)) / some.sum(dim=(1, 2)) for some in (cue, bird)]
            in_cue, in_bird = share_inside(shown, cue), share_inside(shown, bird)
            for number, scene in enumerate(scenes):
                answer = int(maps.targets[number])
                rows.append(
                    {
                        "method": method,
                        "cue": float(in_cue[number]),
                        "bird": float(in_bird[number]),
                        "brighter": float(means[0][number] > means[1][number]),
                        "said_cue": float(answer == scene.cue),
                        "said_bird": float(answer == scene.label),
                        "cue_effect": float(falls[0][number]),
                        "bird_effect": float(falls[1][number]),
                    }
                )
    return pd.DataFrame(rows)
