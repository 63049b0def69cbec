"""Maps from a share of their passes compared with those from all passes: writes benchmarks/results/budget.json and budget.md.

    python benchmarks/budget.py --count 100                              # Score-CAM, five networks; resumes after an interruption
    python benchmarks/budget.py --method rise --count 2
    python benchmarks/budget.py --page                                   # only the page

The regression's constants were chosen on pictures of imagenette/val; these are photographs, and drawn birds for the network in the wheel.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import budget_page
import click
import torch
from measure import clocked, conditions, forwards
from torch import Tensor

import xattn
from xattn.data.images import ImageSource
from xattn.data.preprocessing import pixels
from xattn.explainers import Maps
from xattn.explainers.regression import expected_similarity
from xattn.inference import Predictor, fastest

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parents[2] / "shared" / "data"
NETWORKS: dict[str, dict[str, Any]] = {
    "birds:gap": {},
    "timm:vit_tiny_patch16_224": {"weights": "vit_tiny_patch16_224.pth", "mean": [0.5], "std": [0.5], "resize": 248},
    "torchvision:squeezenet1_0": {"weights": "squeezenet1_0.pth"},
    "timm:tf_efficientnet_lite0": {"weights": "tf_efficientnet_lite0.pth", "mean": [0.5], "std": [0.5]},
    "torchvision:mobilenet_v2": {"weights": "mobilenet_v2.pth"},
}
TABLE = ["grad-cam", "grad-cam++"]  # run along with Score-CAM in the table job
METRICS = ["average-drop", "average-gain", "average-increase", "insertion", "deletion"]
CURVES = ["insertion", "deletion"]
ADAPTIVE = {"insertion": "insertion:tolerance=4.0", "deletion": "deletion:tolerance=3.0"}
WITHIN = 1.96  # standard errors
ROUNDING = 1e-6  # float32, of a map's largest value
BATCH = 4


def similarity(found: Tensor, exact: Tensor) -> float:
    """Returns the Pearson correlation of a map with the exact one; 0 if one is constant and the other is not, 1 if both are."""
    one, other = (map_.double().flatten() - map_.double().mean() for map_ in (found, exact))
    if not bool(one.any()) or not bool(other.any()):
        return float(not bool(one.any()) and not bool(other.any()))
    return float(one @ other / (one.norm() * other.norm()))


def deviation(error: Tensor, exact: Tensor) -> float:
    """Returns the root mean square of the errors over the cells, in units of the exact map's range."""
    span = (exact.max() - exact.min()).double()
    return float(error.double().pow(2).mean().sqrt() / span) if span else 0.0


def compared(found: Tensor, error: Tensor, exact: Tensor) -> dict[str, float]:
    """A map and the exact one, both `(h, w)`, and the standard error of each cell."""
    slack = ROUNDING * exact.abs().max()
    inside = (found - exact).abs() <= WITHIN * error + slack
    return {
        "r": similarity(found, exact),
        "covered": float(inside.double().mean()),
        "error": deviation(found - exact, exact),
        "predicted": deviation(error, exact),
        "expected": float(expected_similarity(found[None], error[None])),
    }


class Job:
    """One network, run by its tuned predictor.

    Args:
        name: name by which it is loaded.
        classifier: the network.
    """

    def __init__(self, name: str, classifier: xattn.Classifier) -> None:
        self.name, self.classifier = name, classifier
        self.predictor: Predictor = fastest(classifier)

    def run(self, images: Tensor, spec: str, what: str) -> dict[str, Any]:
        """Computes maps by a method, `(B, h, w)`, with the seconds and the passes of the batch.

        Args:
            images: `(B, 3, H, W)`.
            spec: the method.
            what: "maps"; "curves", with insertion and deletion; "table", among the methods and metrics of the table job, in which an
                estimate is also scored by the adaptive form of the curves.
        """
        methods = [*TABLE, spec] if what == "table" else [spec]
        maps: list[Maps] = []

        def explain() -> None:
            maps.append(xattn.explain(self.classifier, images, methods, predictor=self.predictor))

        with forwards(self.classifier.network) as seen:
            seconds = clocked(explain, self.classifier.device)
        (found,) = maps
        errors = found.errors.get(spec)
        made: dict[str, Any] = {"raw": found.raw[spec].cpu(), "error": None if errors is None else errors.cpu(), "seconds": seconds}
        made |= {"passes": sum(seen)}

        def scored(metrics: list[str]) -> tuple[float, dict[str, list[float]]]:
            rows: list[Any] = []
            evaluate = partial(xattn.evaluate, self.classifier, images, found, metrics, predictor=self.predictor)
            more = clocked(lambda: rows.append(evaluate()), self.classifier.device)
            own = rows[0][rows[0]["method"] == spec]
            return seconds + more, {metric: own[own["metric"] == metric]["value"].tolist() for metric in metrics}

        if what != "maps":
            total, values = scored(METRICS if what == "table" else CURVES)
            made |= {metric: values[metric] for metric in CURVES}
            made |= {"table": total} if what == "table" else {}
        if what == "table" and errors is not None:
            made["adaptive_table"], values = scored([ADAPTIVE.get(metric, metric) for metric in METRICS])
            made |= {f"adaptive_{metric}": values[ADAPTIVE[metric]] for metric in CURVES}
        return made


def measured(job: Job, images: Tensor, spec: str, settings: list[str], kept: Path | None, what: str) -> list[list[dict[str, Any]]]:
    """Returns for each setting the numbers of each picture of a batch; exact maps are computed in the same turn, or cached."""
    joint = "," if ":" in spec else ":"
    at_once = kept is None or not kept.exists()
    exact = job.run(images, spec, what) if at_once else torch.load(kept, weights_only=True)
    if kept is not None and at_once:
        torch.save(exact, kept)
    count = len(images)
    rows = []
    for setting in settings:
        found = job.run(images, f"{spec}{joint}{setting}", what)
        shared = {"passes": found["passes"] / count, "of": exact["passes"] / count}
        if at_once:
            for name in ("seconds", "table") if what == "table" else ("seconds",):
                shared |= {name: found[name] / count, f"exact_{name}": exact[name] / count}
            shared |= {"adaptive_table": found["adaptive_table"] / count} if "adaptive_table" in found else {}
        rows.append([{**shared, **_beside(found, exact, number)} for number in range(count)])
    return rows


def _beside(found: dict[str, Any], exact: dict[str, Any], number: int) -> dict[str, float]:
    """Compares a picture's estimate with its exact map; quality is left out if every mask was run."""
    quality = {} if found["error"] is None else compared(found["raw"][number], found["error"][number], exact["raw"][number])
    curves = {metric: found[metric][number] - exact[metric][number] for metric in CURVES if metric in found and metric in exact}
    for metric in CURVES if "adaptive_table" in found else ():
        curves[f"adaptive_{metric}"] = found[f"adaptive_{metric}"][number] - exact[metric][number]
    return quality | curves


def subjects(
    model: str, count: int, data: Path, device: str, files: list[Path] | None = None
) -> tuple[xattn.Classifier, list[str], Callable[[int], Tensor]]:
    """Returns a network, the names of its pictures (by default the first photographs), and a function that makes each, `(1, 3, H, W)`."""
    if model.startswith("birds:"):
        drawn = xattn.birds.SketchBirds("test", count)
        classifier = xattn.load(model, device=device)
        draw = lambda number: (xattn.birds.pixels(drawn.scene(number)).float() / 255)[None].to(classifier.device)  # noqa: E731
        return classifier, [f"bird-{number}" for number in range(count)], draw
    given = NETWORKS[model]
    classifier = xattn.load(model, **{**given, "weights": data / "weights" / given["weights"]}, device=device)
    files = sorted((data / "photos").glob("*.jpg"))[:count] if files is None else files[:count]
    source = ImageSource(files)
    decode = lambda number: pixels(source.decode(source.images[number], classifier.preprocessing)[1][None], classifier.device)  # noqa: E731
    return classifier, [file.stem for file in files], decode


def _key(sample: dict[str, Any]) -> tuple[str, str, str, str]:
    return sample["network"], sample["method"], sample["setting"], sample["picture"]


def kept_samples(out: Path) -> dict[str, Any]:
    """Reads earlier measurements."""
    return json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"conditions": {}, "samples": []}


def keep(samples: dict[str, Any], out: Path) -> None:
    """Writes the samples atomically, one per line."""
    rounded = [{key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()} for row in samples["samples"]]
    lines = ",\n".join(json.dumps(row) for row in rounded)
    unfinished = out.with_suffix(".unfinished")
    unfinished.write_text(f'{{"conditions": {json.dumps(samples["conditions"], indent=1)},\n"samples": [\n{lines}\n]}}\n', encoding="utf-8")
    unfinished.replace(out)


@click.command()
@click.option("--networks", default=",".join(NETWORKS), show_default=True, help="Networks to add, or whose samples to make anew.")
@click.option("--method", default="score-cam", show_default=True)
@click.option("--setting", "settings", multiple=True, default=["budget=0.1"], show_default=True, help="Of the method; once for each.")
@click.option("--count", default=12, show_default=True, help="Pictures of each network.")
@click.option("--curves", default=24, show_default=True, help="Of these, the first ones, with insertion and deletion.")
@click.option("--tables", default=4, show_default=True, help="Of these, the first ones, as the table job.")
@click.option("--anew", is_flag=True, help="Measure settings that were measured before, too.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder that keeps exact maps, for other settings.")
@click.option("--threads", default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--page", is_flag=True, help="Only write the page.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), envvar="XATTN_DATA", default=DATA)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "budget.json")
def main(
    networks: str,
    method: str,
    settings: tuple[str, ...],
    count: int,
    curves: int,
    tables: int,
    anew: bool,
    work: Path | None,
    threads: int,
    device: str,
    page: bool,
    data: Path,
    out: Path,
) -> None:
    """Compares maps from a share of their passes with those of all passes, picture by picture, and writes the page."""
    torch.set_num_threads(threads)
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    for model in [] if page else networks.split(","):
        classifier, pictures, make = subjects(model, count, data, device)
        job: Job | None = None
        for start in range(0, count, BATCH):
            some = pictures[start : start + BATCH]
            samples = kept_samples(out)  # another process may have added to it
            known = {_key(row) for row in samples["samples"]}
            wanted = [setting for setting in settings if anew or any((model, method, setting, own) not in known for own in some)]
            if not wanted:
                continue
            job = job or Job(model, classifier)
            what = "maps" if method != "score-cam" or start >= curves else "table" if start < tables else "curves"
            kept = None if work is None else work / f"{model}-{method}-{start}-{len(some)}-{what}.pt".replace(":", "-")
            images = torch.cat([make(number) for number in range(start, start + len(some))])
            found = measured(job, images, method, wanted, kept, what)
            new = [
                {"network": model, "method": method, "setting": setting, "picture": picture, **numbers}
                for setting, rows in zip(wanted, found, strict=True)
                for picture, numbers in zip(some, rows, strict=True)
            ]
            replaced = {_key(row) for row in new}
            samples["samples"] = [row for row in samples["samples"] if _key(row) not in replaced] + new
            about = conditions(torch.device(device)) | {"tuning": str(job.predictor.tuning)}
            samples["conditions"].setdefault(model, {})[about["command"]] = about
            keep(samples, out)
            click.echo("\n".join(f"{model} {row['setting']} {row['picture']} r {row.get('r', 1):.4f}" for row in new), err=True)
    budget_page.write(kept_samples(out), out.with_suffix(".md"))
    click.echo(out.with_suffix(".md"), err=True)


if __name__ == "__main__":
    main()
