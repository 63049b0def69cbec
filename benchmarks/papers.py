"""The papers' tables on SketchBirds, and what no paper could show: maps against true effects.

    python benchmarks/papers.py runs/papers [--only ranks] [--smoke] [--out benchmarks/results/papers]

Trains what it needs (`trained.py`), explains, and writes a table a file, each with the papers' printed values beside, n, seeds, 95 %
intervals, and a line a claim. All of it goes on where it was cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click
import pandas as pd
import torch
import truth
from claims import Line, cell, claim, over_seeds, page
from printed import CA_ACCURACY, CA_BLOCKS, CA_PLACEMENT, CA_QUERIES, CA_TABLE_1, RANKS, RESOLUTION, SELECTION
from trained import SMOKE, Budget, Trainings

import xattn
from xattn.birds import SketchBirds
from xattn.metrics.statistics import paired

CAMS = ("grad-cam", "grad-cam++", "score-cam")
SCORES = {"average-drop": "AD ↓", "average-gain": "AG ↑", "average-increase": "AI ↑", "insertion": "I ↑", "deletion": "D ↓"}
BETTER = {"average-drop": -1, "average-gain": 1, "average-increase": 1, "insertion": 1, "deletion": -1}
BR_NPA = "br-npa:rank_probes=true"  # the probes send no gradient into the features: the head learns as without them
RESULTS = Path(__file__).parent / "results"


class Papers:
    """The tables, from one folder of work.

    Args:
        work: where trainings and runs are kept.
        budget: how much is spent.
    """

    def __init__(self, work: Path, budget: Budget) -> None:
        self.work = work
        self.budget = budget
        self.trainings = Trainings(work / "trained", budget)

    def scores(self, name: str, classifiers: Sequence[xattn.Classifier], methods: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
        """Rows of a study of test birds, explained for their labels."""
        count = self.budget.explained
        pictures = SketchBirds("test", count).export(self.work / f"birds-{count}")
        out = self.work / "runs" / f"{name}-{count}"
        study = xattn.Study(
            classifiers, methods, metrics, pictures, out, labels_csv=pictures / "labels.csv", workers=0, chunk=64, batch_size=20
        )
        study.run()
        return study.scores()

    def cross_attention(self) -> str:
        """CA-Stream, Table 1."""
        pooled, streamed = (xattn.load(f"birds:{name}") for name in ("gap", "ca-stream"))
        rows = self.scores("cross-attention", [pooled, streamed], [*CAMS, "raw-attention"], list(SCORES))
        table, lines = [], []
        for method in (*CAMS, "raw-attention"):
            for head in ("gap", "ca-stream"):
                found = rows[(rows["method"] == method) & (rows["head"] == head)]
                if len(found):
                    printed = CA_TABLE_1.get((method, head))
                    values = {SCORES[m]: cell(_values(found, m)) for m in SCORES}
                    table.append({"attribution": method, "pooling": head} | values | _beside(printed))
        for metric, symbol in SCORES.items():
            for method in CAMS:
                theirs, ours = (_values(rows[(rows["method"] == method) & (rows["head"] == h)], metric) for h in ("gap", "ca-stream"))
                way = BETTER[metric] if metric != "deletion" else 1  # the paper: better in all but deletion, which gets worse
                verb = {-1: "falls", 1: "rises"}[way]
                lines.append(claim(f"{symbol[:-2]} of {method} {verb} with the stream", paired(ours, theirs).difference, way))
        accuracies = {head: self.trainings.accuracy(c)["1 2 3"] for head, c in (("gap", pooled), ("ca-stream", streamed))}
        about = [
            f"birds:gap and birds:ca-stream, one seed, n = {self.budget.explained} test birds, explained for their labels. Printed: "
            "ResNet-50 on ImageNet, in the order of the columns.",
            f"Accuracy on {self.budget.tested} test birds: "
            + ", ".join(f"{head} {value:.2f} (printed {CA_ACCURACY[head]})" for head, value in accuracies.items()),
            "The same on a real network: [MobileNetV2 on imagenette](../trained-ca-stream-imagenette.md), "
            "[Score-CAM](../trained-ca-stream-score-cam.md).",
        ]
        return page("CA-Stream, Table 1: attributions with and without the stream", about, pd.DataFrame(table), lines)

    def stream_design(self) -> str:
        """CA-Stream, Tables 4 to 6."""
        settings = {"ca-stream": "as it is", "ca-stream:projection=true": "Table 4: projections"}
        settings |= {f"ca-stream:start={start}": f"Table 5: start={start}" for start in (1, 2, 3)}
        settings |= {"ca-stream:per_class=true": "Table 6: a query a class"}
        printed = {"ca-stream": CA_BLOCKS["ca-stream"], "ca-stream:projection=true": CA_BLOCKS["ca-stream:projection=true"]}
        printed |= {f"ca-stream:start={start}": CA_PLACEMENT[start + 1] for start in (1, 2, 3)}
        printed["ca-stream:per_class=true"] = CA_QUERIES["ca-stream:per_class=true"]
        table, accuracies, drops = [], {}, {}
        for head, called in settings.items():
            nets = [self.trainings.stream(head, seed) for seed in self.budget.seeds]
            accuracies[head] = [self.trainings.accuracy(net)["1 2 3"] for net in nets]
            rows = self.scores(nets[0].name.rpartition("-")[0], nets, ["grad-cam", "raw-attention"], list(SCORES))
            by_seed = {
                m: [
                    float(rows[(rows["model"] == net.name) & (rows["metric"] == m) & (rows["method"] == "grad-cam")]["value"].mean())
                    for net in nets
                ]
                for m in SCORES
            }
            drops[head] = by_seed["average-drop"]
            size = sum(parameter.numel() for parameter in nets[0].head.parameters())
            row = {"stream": called, "parameters": f"{size:,}", "accuracy": over_seeds(accuracies[head])}
            row |= {f"Grad-CAM {SCORES[m]}": over_seeds(by_seed[m]) for m in SCORES}
            table.append(row | {"printed": f"{printed[head][0]} M, {printed[head][1]}"})
        own = torch.tensor(accuracies["ca-stream"])
        lines = [
            claim("projections are less accurate", paired(torch.tensor(accuracies["ca-stream:projection=true"]), own).difference, -1),
            claim("the last stage alone is less accurate", paired(torch.tensor(accuracies["ca-stream:start=3"]), own).difference, -1),
            claim("a query a class gives nothing", paired(torch.tensor(accuracies["ca-stream:per_class=true"]), own).difference, 0),
        ]
        about = [
            f"Streams beside the frozen birds:gap, {self.budget.stream} epochs of {self.budget.count} pictures (the paper: 90 of "
            f"ImageNet), {_seeds(self.budget)}; accuracy on {self.budget.tested} test birds, scores on {self.budget.explained}. Printed: "
            "ResNet-50, whose five places are four here, the stem and layer1 being alike; `start` counts from the first.",
        ]
        return page("CA-Stream, Tables 4 to 6: projections, placement, queries", about, pd.DataFrame(table), lines)

    def selection(self) -> str:
        """BR-NPA, Table 4 (7 of its supplement)."""
        table, found = [], {}
        for (way, refine), printed in SELECTION.items():
            given = [*([] if way == "active" else ["selection=random"]), *([] if refine else ["refine=false"])]
            head = f"br-npa:{','.join(given)}" if given else BR_NPA
            found[way, refine] = [self.trainings.accuracy(self.trainings.low(head, seed))["1 2 3"] for seed in self.budget.seeds]
            cells = {"selection": way, "refined": "yes" if refine else "no", "accuracy": over_seeds(found[way, refine])}
            table.append(cells | {"printed": f"{printed:.0f}"})
        values = {key: torch.tensor(accuracies) for key, accuracies in found.items()}
        lines = [
            claim("active selection beats random, refined", paired(values["active", True], values["random", True]).difference, 1),
            claim("active selection beats random, not refined", paired(values["active", False], values["random", False]).difference, 1),
            claim("refinement helps active selection", paired(values["active", True], values["active", False]).difference, 1),
            claim("refinement helps random selection", paired(values["random", True], values["random", False]).difference, 1),
        ]
        about = [f"{self._from_scratch()} **Differs**: 8 × 8 maps; the paper trained these at high resolution, from ImageNet's weights."]
        return page("BR-NPA, Table 4: selection and refinement", about, pd.DataFrame(table), lines)

    def ranks(self) -> str:
        """BR-NPA, Table 5, and Fig. 7."""
        nets = [self.trainings.low(BR_NPA, seed) for seed in self.budget.seeds]
        found = [self.trainings.accuracy(net) for net in nets]
        by_ranks = {name: [accuracies[name] for accuracies in found] for name in RANKS}
        table = [{"what": f"ranks {name}", "accuracy": over_seeds(by_ranks[name]), "printed": f"{RANKS[name]}"} for name in RANKS]
        values = {name: torch.tensor(accuracies) for name, accuracies in by_ranks.items()}
        lines = [
            claim("rank 1 alone is better than rank 2 alone", paired(values["1"], values["2"]).difference, 1),
            claim("rank 2 alone is better than rank 3 alone", paired(values["2"], values["3"]).difference, 1),
            claim("ranks 1 and 2 are better than 2 and 3", paired(values["1 2"], values["2 3"]).difference, 1),
            claim("all three are better than ranks 2 and 3", paired(values["1 2 3"], values["2 3"]).difference, 1),
        ]
        for number in self.budget.numbers:
            row = {"what": f"N = {number}"}
            for head in ("br-npa", "b-cnn"):
                spec = (BR_NPA if head == "br-npa" else head) if number == 3 else f"{head}:n={number}"
                row["accuracy" if head == "br-npa" else "b-cnn's"] = f"{self.trainings.accuracy(self.trainings.low(spec, 0))['1 2 3']:.2f}"
            table.append(row | {"printed": "Fig. 7: hardly changes"})
        first = self.budget.seeds[0]
        about = [f"{self._from_scratch()} Rows of N: one seed ({first}). The paper: high resolution; Fig. 7 has no numbers in print."]
        return page("BR-NPA, Table 5 and Fig. 7: ranks, and number of maps", about, pd.DataFrame(table).fillna(""), lines)

    def resolution(self) -> str:
        """BR-NPA, Table 6."""
        table, accuracy, sparse = [], {}, {}
        for head in ("b-cnn", "br-npa"):
            spec = BR_NPA if head == "br-npa" else head
            for kind in ("low", "high alone", "high distilled"):
                nets = [
                    self.trainings.low(spec, s) if kind == "low" else self.trainings.high(spec, s, kind.endswith("distilled"))
                    for s in self.budget.seeds
                ]
                accuracy[head, kind] = [self.trainings.accuracy(net)["1 2 3"] for net in nets]
                rows = self.scores(f"resolution {head} {kind}", nets, ["raw-attention"], ["sparsity"])
                sparse[head, kind] = [float(rows[rows["model"] == net.name]["value"].mean()) for net in nets]
                printed = RESOLUTION[head, kind != "low"] if kind != "high alone" else None
                size = nets[0].stages[-1].size
                table.append(
                    {
                        "head": head,
                        "map": f"{size[0]}×{size[1]}",
                        "distilled": {"low": "", "high alone": "no", "high distilled": "yes"}[kind],
                        "accuracy": over_seeds(accuracy[head, kind]),
                        "sparsity": over_seeds(sparse[head, kind]),
                        "printed": "" if printed is None else f"{printed[0]}, {printed[1]}",
                    }
                )
        a, s = ({key: torch.tensor(values) for key, values in of.items()} for of in (accuracy, sparse))
        lines = []
        for head in ("b-cnn", "br-npa"):
            lines += [
                claim(f"{head}: resolution makes its maps sparser", paired(s[head, "high distilled"], s[head, "low"]).difference, 1),
                claim(
                    f"{head}: the distilled student is the more accurate", paired(a[head, "high distilled"], a[head, "low"]).difference, 1
                ),
                claim(
                    f"{head}: distillation helps at high resolution", paired(a[head, "high distilled"], a[head, "high alone"]).difference, 1
                ),
            ]
        for kind in ("low", "high distilled"):
            lines.append(claim(f"br-npa beats b-cnn, {kind}", paired(a["br-npa", kind], a["b-cnn", kind]).difference, 1))
        lines.append(claim("b-cnn is the sparser at low resolution", paired(s["b-cnn", "low"], s["br-npa", "low"]).difference, 1))
        high = "high distilled"
        lines.append(claim("br-npa is the sparser at high resolution", paired(s["br-npa", high], s["b-cnn", high]).difference, 1))
        about = [
            f"{self._from_scratch()} High resolution: {self.budget.tuned} epochs more, from the weights at low resolution, with and "
            f"without distillation. Sparsity of the head's own map on {self.budget.explained} test birds. Printed: CUB, 14×14 and 56×56.",
        ]
        return page("BR-NPA, Table 6: resolution and distillation", about, pd.DataFrame(table), lines)

    def gradients(self) -> str:
        """BR-NPA, Figs. 8 and 9."""
        layers = ("layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2")
        table: list[dict[str, str]] = []
        spread: dict[str, list[float]] = {}
        for head in ("b-cnn", "br-npa"):
            spec = BR_NPA if head == "br-npa" else head
            logs = []
            for seed in self.budget.seeds:
                self.trainings.low(spec, seed)
                log = pd.read_csv(self.trainings.log("low", spec, seed))
                logs.append(log[[f"gradient_norm/network.{layer}" for layer in layers]].dropna())
            spread[head] = [float(log.var().mean()) for log in logs]
            for layer in layers:
                norms = [log[f"gradient_norm/network.{layer}"] for log in logs]
                means, variances = over_seeds([float(n.mean()) for n in norms]), over_seeds([float(n.var()) for n in norms], 5)
                relative = over_seeds([float(n.std() / n.mean()) for n in norms])
                table.append({"head": head, "layer": layer, "mean norm": means, "variance": variances, "deviation / mean": relative})
        difference = paired(torch.tensor(spread["br-npa"]), torch.tensor(spread["b-cnn"])).difference
        lines = [claim("br-npa's gradient norms vary less", difference, -1, digits=5)]
        about = [
            f"{self._from_scratch()} Norms of the gradients of the last three convolutions, a value a step. The paper shows curves.",
            "Fig. 9, latency and memory: [the head alone](../heads-alone.md), [the whole step on five ResNets](../heads-whole.md).",
        ]
        return page("BR-NPA, Fig. 8: gradient norms", about, pd.DataFrame(table), lines)

    def truth(self) -> str:
        """Maps against true effects."""
        return truth.effects_page(self.work / "truth", self.budget.true)

    def order(self) -> str:
        """What ranked maps lie on."""
        return truth.order_page(self.work / "order", self.budget.true)

    def spurious(self) -> str:
        """Whether maps go to a cue that the network has learnt."""
        return truth.spurious_page(self.work / "spurious", self.budget.true)

    def _from_scratch(self) -> str:
        b = self.budget
        return f"Head and network from random weights, {b.epochs} epochs of {b.count} pictures, {_seeds(b)}; n = {b.tested} test birds."


def _seeds(budget: Budget) -> str:
    return f"{len(budget.seeds)} seeds; ± is Student's 95 % interval over them"


def _values(rows: pd.DataFrame, metric: str) -> torch.Tensor:
    """Values of a metric in the order of the images."""
    found = rows[rows["metric"] == metric].sort_values("image")
    return torch.tensor(found["value"].to_numpy(dtype=float))


def _beside(printed: Sequence[float] | None) -> Line:
    return {"printed": "" if printed is None else " · ".join(f"{value:.2f}" for value in printed)}


TABLES: dict[str, Callable[[Papers], str]] = {
    "cross-attention": Papers.cross_attention,
    "truth": Papers.truth,
    "order": Papers.order,
    "spurious": Papers.spurious,
    "selection": Papers.selection,
    "ranks": Papers.ranks,
    "resolution": Papers.resolution,
    "gradients": Papers.gradients,
    "stream-design": Papers.stream_design,
}


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, type=click.Choice(list(TABLES)))
@click.option("--smoke", is_flag=True, help="At toy size: whether it runs, not what it shows.")
@click.option("--count", default=Budget.count, show_default=True, help="Training pictures.")
@click.option("--epochs", default=Budget.epochs, show_default=True, help="Of head and network from random weights.")
@click.option("--tuned", default=Budget.tuned, show_default=True, help="Epochs at high resolution.")
@click.option("--stream", default=Budget.stream, show_default=True, help="Epochs of a stream.")
@click.option("--birds", default=Budget.explained, show_default=True, help="Test birds that are explained, and whose effects are found.")
@click.option("--out", default=RESULTS / "papers", type=click.Path(path_type=Path))
def main(work: Path, only: tuple[str, ...], smoke: bool, count: int, epochs: int, tuned: int, stream: int, birds: int, out: Path) -> None:
    """Makes the tables in OUT, with what they need in WORK."""
    torch.set_num_threads(2)
    out.mkdir(parents=True, exist_ok=True)
    spent = Budget(count, epochs, tuned, stream, explained=birds, true=birds)
    papers = Papers(work, SMOKE if smoke else spent)
    for name in only or TABLES:
        text = TABLES[name](papers)
        (out / f"{name}.md").write_text(text, encoding="utf-8")
        click.echo(text)


if __name__ == "__main__":
    main()
