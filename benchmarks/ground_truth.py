"""Maps compared with the ground truth of SketchBirds: the effect of each part, where the bird is, and a cue that a network has learnt."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from claims import cell, page, question
from estimates import apart
from torch import Tensor
from torch.nn import functional
from trained import BR_NPA, Budget, Trainings, drawn

import xattn
from xattn.birds import PARTS, Scene, SketchBirds, effects, in_parts, masks, pixels, rank_correlation, share_inside
from xattn.explainers import Need, methods
from xattn.inference import Predictor, Tuning

HIGH_RES = "br-npa, high resolution"
HEADS = ("gap", "ca-stream", "b-cnn", "br-npa", HIGH_RES)
SEVERAL = ("b-cnn", "br-npa", HIGH_RES)
METHODS = ("activation-map", "grad-cam", "grad-cam++", "score-cam", "guided-backprop", "guided-grad-cam", "raw-attention")
ON_TOKENS = ("vit", "vit with ca-stream")
SPURIOUS = "gap, with cues"
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


def network(trainings: Trainings, name: str, seed: int) -> xattn.Classifier:
    """Returns a network of a page, by its name there; it is trained on first use."""
    if name == "ca-stream":
        return trainings.stream(name, seed)
    if name == HIGH_RES:
        return trainings.high(BR_NPA, seed, distilled=True)
    if name in ON_TOKENS:
        return trainings.tokens(seed, "ca-stream" if name == ON_TOKENS[1] else "gap")
    return trainings.low(BR_NPA if name == "br-npa" else "gap" if name == SPURIOUS else name, seed, cues=name == SPURIOUS)


def found_of(folder: Path, trainings: Trainings, name: str, make: Callable[[xattn.Classifier, str, int], pd.DataFrame]) -> pd.DataFrame:
    """Returns the results for the networks of a name, with their seeds; cached as long as neither a network nor a pixel changes."""
    count, frames = trainings.budget.true, []
    for seed in trainings.budget.seeds:
        classifier = network(trainings, name, seed)
        file = folder / f"{classifier.name}-{count}-{classifier.digest()}-{drawn()}.csv"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            make(classifier, name, count).to_csv(file, index=False)
        frames.append(pd.read_csv(file).assign(seed=seed))
    return pd.concat(frames)


def found_effects(classifier: xattn.Classifier, name: str, count: int) -> pd.DataFrame:
    """Makes one row per bird and method: rank correlations of its map in the parts with removal and Shapley value; energy in the bird."""
    rows: list[dict[str, Any]] = []
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


def _of(frame: pd.DataFrame, method: str | int, column: str, by: str = "method") -> Tensor:
    """Returns a column of one method's rows: `(seeds, birds)`."""
    rows = frame[frame[by] == method]
    return torch.tensor(rows[column].to_numpy(dtype=float)).reshape(rows["seed"].nunique(), -1)


def _ranked(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Writes rank correlation with the true effects, and energy inside the bird, by classifier and method."""
    rows = [
        {
            "network": name,
            "method": method,
            "ρ with Shapley ↑": cell(_of(frame, method, "shapley")),
            "ρ with removal ↑": cell(_of(frame, method, "removal")),
            "known ρ, %": f"{100 * float(_of(frame, method, 'shapley').isfinite().double().mean()):.1f}",
            "energy in the bird, % ↑": cell(100 * _of(frame, method, "inside"), 1),
            "without contrast, %": f"{100 * float(_of(frame, method, 'empty').mean()):.1f}",
        }
        for name, frame in frames.items()
        for method in _methods(name)
    ]
    return pd.DataFrame(rows)


def _about(budget: Budget, trained: str, area: float) -> list[str]:
    return [
        f"Networks from random weights, {trained}, {len(budget.seeds)} seeds; no setting was searched.",
        f"Spearman's ρ, within each of {budget.true} test birds, between the mean of the mask in a part's visible pixels and the part's "
        "true effect on the label's logit: its Shapley value over all 2⁵ renders of the bird with and without its parts, and what its "
        "removal from the whole bird costs. Mean ± half of the 95 % interval over seeds × birds, of the birds whose map is not constant in "
        f"the parts; in the questions a constant map counts as ρ = 0. The bird covers {area:.1f} % of the picture: so much energy would "
        "lie in it by chance.",
    ]


def effects_page(folder: Path, trainings: Trainings) -> str:
    """Compares maps of heads on the residual network with true effects."""
    budget = trainings.budget
    frames = {head: found_of(folder, trainings, head, found_effects) for head in HEADS}
    lines = []
    for head in HEADS[1:]:
        for method in ("grad-cam", "grad-cam++"):
            ours, theirs = (_of(frames[head], which, "shapley").nan_to_num(0) for which in ("raw-attention", method))
            text = f"{head}: does its attention rank the parts better than {method} of the same network?"
            lines.append(question(text, apart(ours, theirs)))
    for method in ("grad-cam", "score-cam", "guided-grad-cam", "activation-map", "edges"):
        against = apart(*(_of(frames["gap"], which, "shapley").nan_to_num(0) for which in (method, "random")))
        lines.append(question(f"gap: does {method} rank the parts better than noise?", against))
    area = 100 * float(frames["gap"]["area"].mean())
    trained = (
        f"{budget.epochs} epochs of {budget.count} pictures, at high resolution {budget.tuned} more, taught by the same head at low "
        f"resolution; ca-stream stands beside the frozen birds:gap, {budget.stream} epochs"
    )
    return page("Do maps rank the parts as the network does?", _about(budget, trained, area), _ranked(frames), lines)


def tokens_page(folder: Path, trainings: Trainings) -> str:
    """Compares maps of the vision transformer, and of a stream on it, with true effects."""
    budget = trainings.budget
    frames = {name: found_of(folder, trainings, name, found_effects) for name in ON_TOKENS}
    lines = []
    for name, frame in frames.items():
        grad_cam = _of(frame, "grad-cam", "shapley").nan_to_num(0)
        for method in _methods(name):
            if method != "grad-cam":
                text = f"{name}: does {method} rank the parts better than grad-cam?"
                lines.append(question(text, apart(_of(frame, method, "shapley").nan_to_num(0), grad_cam)))
    area = 100 * float(frames["vit"]["area"].mean())
    right = ", ".join(
        f"{name} {cell(trainings.accuracy([network(trainings, name, seed) for seed in budget.seeds]))} %" for name in ON_TOKENS
    )
    trained = (
        f"{budget.attended} epochs of {budget.embedded} pictures, the stream beside it, frozen, {budget.stream} epochs of {budget.count} "
        f"(accuracy on {budget.tested} test birds: {right})"
    )
    return page("Do maps of a vision transformer rank the parts as it does?", _about(budget, trained, area), _ranked(frames), lines)


def order_page(folder: Path, trainings: Trainings) -> str:
    """Compares the part that each ranked map highlights with the part of the greatest effect."""
    budget, table, lines = trainings.budget, [], []
    hits: dict[tuple[str, int], Tensor] = {}
    for head in SEVERAL:
        frame = found_of(folder, trainings, head, found_order)
        tops = frame[frame["map"] == 1].groupby("seed")["top"]
        guesses = tops.agg(lambda parts: parts.value_counts().index[0])
        guess = torch.stack([torch.tensor((parts == guesses[seed]).to_numpy(dtype=float)) for seed, parts in tops])
        always = f"always the {' or '.join(dict.fromkeys(guesses))}"
        table.append({"network": head, "map": always, "lies on the part that matters most, %": cell(100 * guess, 1)})
        for rank in (1, 2, 3):
            hits[head, rank], place, inside = (_of(frame, rank, column, "map") for column in ("hit", "place", "inside"))
            on = frame[frame["map"] == rank]["part"].value_counts(normalize=True)
            table.append(
                {
                    "network": head,
                    "map": str(rank),
                    "lies on the part that matters most, %": cell(100 * hits[head, rank], 1),
                    "Shapley rank of its part (0 the most)": cell(place),
                    "energy in the bird, %": cell(100 * inside, 1),
                    "lies on": ", ".join(f"{part} {100 * share:.0f}" for part, share in on.items()),
                }
            )
        if head != "b-cnn":
            first = 100 * hits[head, 1]
            text = f"{head}: does its first map lie on the part that matters most"
            lines.append(question(f"{text} more often than one part in five?", apart(first, torch.full_like(first, 20))))
            lines.append(question(f"{text} more often than always the same part would?", apart(first, 100 * guess)))
            lines.append(question(f"{text} more often than its third?", apart(first, 100 * hits[head, 3])))
    about = [
        f"Networks from random weights, {budget.epochs} epochs of {budget.count} pictures, at high resolution {budget.tuned} more, "
        f"{len(budget.seeds)} seeds; no setting was searched. {budget.true} test birds; ± is half of the 95 % interval over seeds × birds.",
        "A map lies on the part in which its mean is greatest, of the visible ones; one that is the same in all of them lies on none, "
        "which has no rank. The part that matters most has the greatest Shapley value for the label's logit. By chance: 20 %, rank 2. "
        "*Always the same part* is, of each seed's network, the one that most often matters most. Shares of the parts in %.",
    ]
    return page("Does the first map lie on the part that matters most?", about, pd.DataFrame(table).fillna(""), lines)


def found_order(classifier: xattn.Classifier, name: str, count: int) -> pd.DataFrame:
    """Makes one row per bird and ranked map: the part that it highlights, and that part's rank by Shapley value."""
    rows: list[dict[str, Any]] = []
    for scenes in _pieces(SketchBirds("test", count)):
        labels = [scene.label for scene in scenes]
        true = effects(classifier.predict, scenes, labels).shapley
        found = [masks(scene) for scene in scenes]
        visible, bird = torch.stack([mask.visible for mask in found]), torch.stack([mask.bird for mask in found])
        ranked = xattn.explain(classifier, _images(scenes), ["activation-map"], batch_size=CHUNK).ranked
        if ranked is None:
            raise TypeError(f"{name} has no ranked maps")
        large = functional.interpolate(ranked.cpu(), size=bird.shape[1:], mode="bilinear", align_corners=False)
        for place in range(large.shape[1]):
            in_each = in_parts(large[:, place], visible)
            shows = in_each.nan_to_num(-1).amax(dim=1) > in_each.nan_to_num(torch.inf).amin(dim=1)  # a dead map lies on no part
            on = in_each.nan_to_num(-1).argmax(dim=1)
            inside = share_inside(large[:, place], bird)
            for number, part in enumerate(on.tolist()):
                above = int((true[number] > true[number, part]).sum())
                row: dict[str, Any] = {"map": place + 1, "top": PARTS[int(true[number].argmax())], "inside": float(inside[number])}
                found = {"part": PARTS[part], "hit": above == 0, "place": above} if shows[number] else {"part": "none", "hit": False}
                rows.append(row | found)
    return pd.DataFrame(rows)


def spurious_page(folder: Path, trainings: Trainings) -> str:
    """Answers whether maps of a network that has learnt a cue point to the cue, and those of one that has not do not."""
    budget, table = trainings.budget, []
    frames = {name: found_of(folder, trainings, name, found_spurious) for name in ("gap", SPURIOUS)}
    for name, frame in frames.items():
        for method in _methods("gap"):
            table.append(
                {
                    "network": name,
                    "method": method,
                    "energy in the cue, %": cell(100 * _of(frame, method, "cue"), 1),
                    "energy in the bird, %": cell(100 * _of(frame, method, "bird"), 1),
                    "brighter in the cue than in the bird, % of pictures": cell(100 * _of(frame, method, "brighter"), 1),
                }
            )
    lines = []
    for method in _methods("gap"):
        if method not in CONTROLS:
            led = _of(frames[SPURIOUS], method, "cue_effect") > 0  # in the other pictures the cue speaks against the answer
            there, elsewhere = (100 * _of(frames[name], method, "cue") for name in (SPURIOUS, "gap"))
            difference = apart(torch.where(led, there, torch.nan), elsewhere)
            lines.append(question(f"does {method} go to the cue where the answer rests on it?", difference))
    about = [
        f"Networks from random weights, {budget.epochs} epochs of {budget.count} pictures, {len(budget.seeds)} seeds; no setting was "
        f"searched. *{SPURIOUS}* was trained with the cue of the bird's class in every picture; *gap* never saw one. ± is half of the 95 % "
        "interval over seeds × birds. Explained: the answer given.",
        "Energy of the mask in the cue (a mushroom or a kite in a corner) and in the bird. The questions are of the pictures in which the "
        "answer of the network with cues rests on the cue: its logit falls without it; compared with the network without, of the same "
        "seed, on the same pictures.",
    ]
    for name, frame in frames.items():
        said, bird, cue_effect, bird_effect = (
            _of(frame, "grad-cam", column) for column in ("said_cue", "said_bird", "cue_effect", "bird_effect")
        )
        about.append(
            f"*{name}*, on {budget.true} test birds with a cue of another class: says the cue's class for {cell(100 * said, 1)} % and the "
            f"bird's for {cell(100 * bird, 1)} %; its answer's logit falls by {cell(cue_effect)} without the cue, by {cell(bird_effect)} "
            "without all parts of the bird."
        )
    return page("Do maps leave the bird where the network does?", about, pd.DataFrame(table), lines)


def found_spurious(classifier: xattn.Classifier, name: str, count: int) -> pd.DataFrame:
    """Makes one row per bird and method: the map's energy in the cue and in the bird, the network's output, and its evidence."""
    rows: list[dict[str, Any]] = []
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
