"""Results of different kinds of evidence for the same methods, and their contradictions: writes benchmarks/results/evidence.md.

    python benchmarks/evidence.py WORK --data path/to/data            # boxes, boxes.csv, photos, weights

WORK is a folder for runs; interrupted runs resume.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from claims import Claim, question, verdicts
from estimates import apart
from kinds import KINDS, Ranks, best_table, over_networks, ranks_of, tau_table, trials

import xattn
from xattn.birds import SketchBirds, pretrained_names
from xattn.catalogue import is_planted
from xattn.explainers import Need, methods
from xattn.study import Study
from xattn.study.compare import compare_runs
from xattn.study.store import Store

RESULT = Path(__file__).parent / "results" / "evidence.md"
DATA = Path(__file__).parents[2] / "shared" / "data"
HALF = [0.5, 0.5, 0.5]
NETWORKS: dict[str, dict[str, Any]] = {
    "torchvision:mobilenet_v2": {"weights": "mobilenet_v2.pth"},
    "timm:tf_efficientnet_lite0": {"weights": "tf_efficientnet_lite0.pth", "mean": HALF, "std": HALF},
    "timm:vit_tiny_patch16_224": {"weights": "vit_tiny_patch16_224.pth", "mean": HALF, "std": HALF, "resize": 248},
}
CAMS = ("activation-map", "grad-cam", "grad-cam++", "layer-cam")
GRADIENTS = ("smooth-grad:samples=4", "integrated-gradients:steps=8")
GUIDED = ("guided-backprop",)  # for networks with rectifiers
OF_LAYERS = tuple(sorted(name for name, entry in methods.entries.items() if Need.LAYERS in entry.metadata.needs))
CONTROLS = ("random", "centre", "edges", "uniform", "fake-cam")
STEP = 12_544  # a quarter of the pixels of 224 × 224
FAITHFUL = (f"deletion:step={STEP}", f"insertion:step={STEP}", "average-drop")
BIRD_STEP = 1024  # a quarter of the pixels of 64 × 64
NONE_DECIDED = "No pair of methods is decided by both kinds on these pictures: none of them is enough to speak of a contradiction."
ABOUT = (
    "Methods, without the controls, are ranked on each picture by each metric of a kind, 1 the best, and a picture's ranks are averaged "
    "over the metrics: mean rank [95 %, Student's]. Two methods are told apart by Wilcoxon's signed-rank test over pictures, adjusted by "
    "Holm over all pairs of a kind and network, p < 0.05. Kendall's τ is between the mean ranks by two kinds, with a percentile bootstrap "
    "over pictures. On birds and photographs the answer of the network is explained, on boxes the label. Curves have four steps. "
    "What is found speaks of these networks alone."
)
ON_BIRDS = (f"deletion:step={BIRD_STEP}", f"insertion:step={BIRD_STEP}", "average-drop", "energy-pointing", "segmentation-ap")


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        data: "photographs", "boxes", "birds" or "birds with a cue".
        network: name of the model.
        images: images of the study.
        methods: to run.
        metrics: metrics of their maps.
        options: options of the study.
        load: options for loading the network.
    """

    data: str
    network: str
    images: Any
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)

    def folder(self, work: Path) -> Path:
        """Its run folder."""
        return work / f"{self.data.replace(' ', '-')}-{self.network.partition(':')[2]}"


def jobs(data: Path, photographs: int, boxes: int, birds: int, cues: int) -> list[Job]:
    """Returns all runs.

    Args:
        data: folder of the real data.
        photographs: number of photographs.
        boxes: number of pictures with true boxes, spread equally over all classes.
        birds: number of drawn birds.
        cues: number of drawn birds with a cue of another class.
    """
    found = []
    photos = sorted((data / "photos").glob("*.jpg"))[:photographs]
    table = pd.read_csv(data / "boxes.csv")
    boxed = [data / "boxes" / name for name in table["image"].iloc[:: max(1, len(table) // boxes)].iloc[:boxes]]
    for name, about in NETWORKS.items():
        load = about | {"weights": str(data / "weights" / about["weights"])}
        own = OF_LAYERS if "vit" in name else GUIDED
        wanted = (*CAMS, *GRADIENTS, *own, *CONTROLS)
        found.append(Job("photographs", name, photos, wanted, FAITHFUL, {"target": "predicted"}, load))
        where = {"target": "label", "labels_csv": str(data / "boxes.csv"), "regions": str(data / "boxes.csv")}
        found.append(Job("boxes", name, boxed, wanted, KINDS["localisation"], where, load))
    for name in pretrained_names():
        layers = "vit" in name and "ca-stream" not in name
        own = (*(OF_LAYERS if layers else ()), *(() if "vit" in name else GUIDED))
        heads = () if name in ("birds:gap", "birds:gap-spurious", "birds:vit") else ("raw-attention",)
        wanted = (*heads, *CAMS, GRADIENTS[0], "occlusion:window=16,stride=12", *own, *CONTROLS)
        asked = (*(metric for metric in KINDS["true parts"] if metric != "clever-hans"), *ON_BIRDS)
        found.append(Job("birds", name, SketchBirds("test", birds), wanted, asked, {"target": "predicted"}))
        found.append(
            Job("birds with a cue", name, SketchBirds("test", cues, spurious=0.0), wanted, ("clever-hans",), {"target": "predicted"})
        )
    return found


def run(job: Job, work: Path) -> str:
    """Computes what a run lacks, and prints what it is."""
    torch.set_num_threads(1)
    classifier = xattn.load(job.network, device="cpu", **job.load)
    study = Study(
        [classifier],
        job.methods,
        job.metrics,
        job.images,
        job.folder(work),
        workers=0,
        tune="off",
        batch_size=4,
        progress=False,
        **job.options,
    )
    failed = study.run().failed
    return f"{job.data}, {job.network}{f': {len(failed)} failed' if failed else ''}"


def rows_of(done: list[Job], work: Path) -> dict[tuple[str, str], pd.DataFrame]:
    """Returns the scores of each run by its pictures and network; birds with a cue count as birds."""
    found: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for job in done:
        rows = Store(job.folder(work)).rows()
        rows["image"] = f"{job.data} " + rows["image"]
        found.setdefault((job.data.removesuffix(" with a cue"), job.network), []).append(rows)
    return {key: pd.concat(frames, ignore_index=True) for key, frames in found.items()}


def of_attention(rows: dict[tuple[str, str], pd.DataFrame]) -> list[Claim]:
    """Answers whether a head's own attention ranks the parts better than post-hoc maps."""
    found = []
    for (_, network), of in rows.items():
        table = of[of["metric"] == "parts-shapley"].pivot(index="image", columns="method", values="value").fillna(0)
        if "raw-attention" not in table:
            continue
        others = [method for method in table if method != "raw-attention" and not is_planted(method)]
        for other in dict.fromkeys(("grad-cam", str(table[others].mean().idxmax()))):
            what = f"{other}, the best of the others on these birds" if other != "grad-cam" else other
            difference = apart(torch.tensor(table["raw-attention"].to_numpy()), torch.tensor(table[other].to_numpy()))
            found.append(question(f"{network}: does its attention rank the parts better than {what}?", difference))
    return found


def best_lines(ranks: list[Ranks]) -> list[str]:
    """Lists the best method by each kind, over networks."""
    lines = []
    for kind, data in dict.fromkeys((each.kind, each.data) for each in ranks):
        means, count = over_networks(ranks, kind, data)
        firsts = pd.Series([each.best for each in ranks if (each.kind, each.data) == (kind, data)]).value_counts()
        best = ", ".join(f"{method} ({times})" for method, times in firsts.items())
        order = ", ".join(f"{method} {mean:.1f}" for method, mean in means.head(4).items())
        lines.append(
            f"**{kind}, {data}**: best on how many of {count} networks: {best}. The first of the {len(means)} methods that all of them "
            f"have, with their mean place: {order}."
        )
    return lines


def decided_lines(ranks: list[Ranks]) -> list[str]:
    """Lists what the intervals allow."""
    lines = []
    for kind, data in dict.fromkeys((each.kind, each.data) for each in ranks):
        some = [each for each in ranks if (each.kind, each.data) == (kind, data)]
        told = sum(len(each.decided()) for each in some)
        count = sum(each.ranks.shape[1] * (each.ranks.shape[1] - 1) // 2 for each in some)
        alone = sum(len({worse for better, worse in each.decided() if better == each.best}) == each.ranks.shape[1] - 1 for each in some)
        lines.append(
            f"{kind}, {data}: {told} of {count} pairs of methods are told apart ({100 * told / count:.0f} %); the best method is told from "
            f"all others on {alone} of {len(some)} networks."
        )
    return lines


def contradiction_lines(taus: pd.DataFrame) -> list[str]:
    """Lists the contradictions between kinds."""
    lines = []
    for kinds, of in taus.groupby("kinds", sort=False):
        against = int((of["high"] < 0).sum())
        alike = int((of["low"] > 0).sum())
        pairs, wrong = (int(of[column].astype(int).sum()) for column in ("decided by both", "contradict"))
        lines.append(
            f"{kinds}: over {len(of)} networks τ is {of['τ'].mean():.2f} on average, from {of['τ'].min():.2f} to {of['τ'].max():.2f}; "
            f"its interval lies above 0 on {alike} and below 0 on {against}. "
            + (f"Of {pairs} pairs of methods that both kinds decide, they contradict each other on {wrong}." if pairs else NONE_DECIDED)
        )
    return lines


def trial_lines(table: pd.DataFrame, kind: str) -> str:
    """Lists which metrics of a kind fail."""
    of = table[table["metric"].isin(KINDS[kind])]
    failed = of[of["fails"].astype(int) > 0]
    clean = of[(of["fails"].astype(int) == 0) & (of["passes"].astype(int) > 0)]
    named = ", ".join(f"{row['metric']} (on {row['fails']})" for row in failed.to_dict("records")) or "none"
    never = ", ".join(clean["metric"]) or "none"
    return f"{kind}: metrics that fail on a network or more: {named}; that pass on one or more and never fail: {never}."


def page(done: list[Job], work: Path, count: str) -> str:
    """Writes the page."""
    rows = rows_of(done, work)
    ranks = [
        ranks_of(of, kind, data, network)
        for kind in KINDS
        for (data, network), of in rows.items()
        if any(metric.partition(":")[0] in KINDS[kind] for metric in of["metric"].unique())
    ]
    taus, tried = tau_table(ranks), trials([job.folder(work) for job in done])
    parts = [
        "# What kinds of evidence say of the same methods",
        f"Made by `python benchmarks/evidence.py WORK --data DATA` on {count}. {ABOUT}",
        "## Which method is best by which kind",
        listed(best_lines(ranks)),
        best_table(ranks).to_markdown(index=False, disable_numparse=True),
        "## Where kinds contradict each other",
        listed(contradiction_lines(taus)),
        taus.drop(columns=["τ", "low", "high"]).to_markdown(index=False, disable_numparse=True),
        "## Do heads' own maps beat those made afterwards, by true parts?",
        "Difference of ρ with the parts' Shapley values, on the birds without a cue; a map that is constant in the parts counts as 0.",
        verdicts(of_attention(rows)),
        "## Which metrics fail their trial",
        "In how many runs (networks and pictures) `xattn trial` lets a metric pass, and which controls it puts ahead of the methods.",
        listed([trial_lines(tried, kind) for kind in KINDS]),
        tried.to_markdown(index=False, disable_numparse=True),
        "## What the intervals allow",
        listed(decided_lines(ranks)),
    ]
    for data in dict.fromkeys(job.data for job in done):
        folders = [job.folder(work) for job in done if job.data == data]
        parts += [f"## Values: {data}", compare_runs(folders).text("markdown").strip()]
    return "\n\n".join(parts) + "\n"


def listed(lines: list[str]) -> str:
    """Formats lines as a list."""
    return "\n".join(f"- {line}" for line in lines)


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--data", default=DATA, type=click.Path(exists=True, path_type=Path), help="Folder with boxes, boxes.csv, photos, weights.")
@click.option("--photographs", default=12, show_default=True, help="Number of photographs.")
@click.option("--boxes", default=24, show_default=True, help="Number of pictures with true boxes.")
@click.option("--birds", default=12, show_default=True, help="Number of drawn birds.")
@click.option("--cues", default=8, show_default=True, help="Number of drawn birds with a cue of another class.")
@click.option("--run/--no-run", "wanted", default=True, help="Run what is missing; without it the page is of what the runs hold so far.")
@click.option("--processes", default=2, show_default=True, help="Runs at once.")
@click.option("--out", default=RESULT, type=click.Path(path_type=Path), help="Page that is written.")
def main(work: Path, data: Path, photographs: int, boxes: int, birds: int, cues: int, wanted: bool, processes: int, out: Path) -> None:
    """Run what is missing, and write the page."""
    done = jobs(data, photographs, boxes, birds, cues)
    if wanted:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            for said in pool.map(run, done, [work] * len(done)):
                click.echo(said, err=True)
    count = f"{photographs} photographs, {boxes} pictures with true boxes, {birds} drawn birds, and {cues} with a cue of another class"
    begun = [job for job in done if any((job.folder(work) / "parts").glob("*.parquet"))]
    if not begun:
        raise click.ClickException(f"'{work}' holds no run with a finished part: leave out --no-run.")
    if lacking := [f"{job.data} of {job.network}" for job in done if not Store(job.folder(work)).finished]:
        count += f"; {len(lacking)} of {len(done)} runs were cut off or not begun, and n in the tables is of what they hold"
    out.write_text(page(begun, work, count), encoding="utf-8")


if __name__ == "__main__":
    main()
