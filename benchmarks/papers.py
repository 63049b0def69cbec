"""The papers' tables on SketchBirds, and what no paper could show: maps against true effects.

    python benchmarks/papers.py runs/papers [--only ranks] [--smoke] [--out benchmarks/results/papers]

Trains what it needs (`trained.py`), explains, and writes a table a file, each with the papers' printed values beside, n, seeds, 95 %
intervals, and a line a claim. All of it goes on where it was cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click
import ground_truth
import pandas as pd
import torch
from alignment import alignment_page
from claims import Line, cell, claim, over_seeds, page, shown
from few_shots import FewShotsPage
from printed import CA_ACCURACY, CA_BLOCKS, CA_DESIGN_GRAD_CAM, CA_PLACEMENT, CA_QUERIES, CA_TABLE_1, RANKS, RESOLUTION, SELECTION
from re_identification import ReIdentificationPage
from segmentation import SegmentationPage
from several_labels import SeveralLabelsPage
from trained import SMOKE, Budget, Trainings
from two_streams import TwoStreamsPage

import xattn
from xattn.birds import SketchBirds
from xattn.metrics.statistics import Interval, paired
from xattn.metrics.tables import aggregated

RELEASED = "sparsity:definition=released"
CAMS = ("grad-cam", "grad-cam++", "score-cam")
SCORES = {"average-drop": "AD ↓", "average-gain": "AG ↑", "average-increase": "AI ↑", "insertion": "I ↑", "deletion": "D ↓"}
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
            classifiers, methods, metrics, pictures, out, labels_csv=pictures / "labels.csv", workers=0, tune="chunk=64", batch_size=20
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
                    values = {SCORES[m]: cell(_values(found, m)) for m in SCORES}
                    table.append({"attribution": method, "pooling": head} | values | _beside(CA_TABLE_1.get((method, head))))
        unsure = _unsure(rows)
        for place, (metric, symbol) in enumerate(SCORES.items()):
            for method in CAMS:
                before, after = (rows[(rows["method"] == method) & (rows["head"] == head)] for head in ("gap", "ca-stream"))
                way = 1 if CA_TABLE_1[method, "ca-stream"][place] > CA_TABLE_1[method, "gap"][place] else -1
                text = f"{symbol[:-2]} of {method} {'rises' if way == 1 else 'falls'} with the stream"
                lines.append(claim(text, paired(_values(after, metric), _values(before, metric)).difference, way))
                if metric == "average-increase":
                    some = [_values(found[found["image"].isin(unsure)], metric) for found in (after, before)]
                    lines.append(claim(f"{text}, of birds that both could be surer of", paired(*some).difference, way))
        right = [100 * self.trainings.right(net)["1 2 3"].double() for net in (pooled, streamed)]
        lines.append(claim("the stream is as accurate as average pooling", paired(right[1], right[0]).difference, 0, margin=1))
        sure = {head: 100 * _sure(rows[rows["head"] == head]) for head in ("gap", "ca-stream")}
        about = [
            f"birds:gap and birds:ca-stream, one seed, n = {self.budget.explained} test birds, explained for their labels. Printed: "
            "ResNet-50 on ImageNet, in the order of the columns. A claim goes the way that the printed values go: AD of Grad-CAM++ rises.",
            f"Accuracy on {self.budget.tested} test birds: gap {cell(right[0])} (printed {CA_ACCURACY['gap']}), ca-stream {cell(right[1])} "
            f"(printed {CA_ACCURACY['ca-stream']}).",
            f"The stream is the surer classifier: 1 − p < 1e-6 for {sure['ca-stream']:.0f} % of the birds, with average pooling for "
            f"{sure['gap']:.0f} %; of those no mask can be an increase. Of {len(unsure)} birds 1 − p > 1e-4 for both.",
            "The same on a real network: [MobileNetV2 on imagenette](../trained-ca-stream-imagenette.md), "
            "[Score-CAM](../trained-ca-stream-score-cam.md).",
        ]
        return page("CA-Stream, Table 1: attributions with and without the stream", about, pd.DataFrame(table), lines)

    def stream_design(self) -> str:
        """CA-Stream, Tables 4 to 6."""
        settings = {"ca-stream": "as it is", "ca-stream:projection=true": "Table 4: projections"}
        settings |= {f"ca-stream:start={start}": f"Table 5: start={start}" for start in (1, 2, 3)}
        settings |= {"ca-stream:per_class=true": "Table 6: a query a class"}
        printed = {**CA_BLOCKS, **{f"ca-stream:start={start}": CA_PLACEMENT[start + 1] for start in (1, 2, 3)}, **CA_QUERIES}
        table: list[Line] = []
        accuracy: dict[str, torch.Tensor] = {}
        gain: dict[str, torch.Tensor] = {}
        for head, called in settings.items():
            nets = [self.trainings.stream(head, seed) for seed in self.budget.seeds]
            accuracy[head] = torch.tensor([self.trainings.accuracy(net)["1 2 3"] for net in nets])
            rows = self.scores(nets[0].name.rpartition("-")[0], nets, ["grad-cam"], list(SCORES))
            means = {m: [float(rows[(rows["model"] == net.name) & (rows["metric"] == m)]["value"].mean()) for net in nets] for m in SCORES}
            gain[head] = torch.tensor(means["average-gain"])
            size = sum(parameter.numel() for parameter in nets[0].head.parameters())
            row = {"stream": called, "parameters": f"{size:,}", "accuracy": over_seeds(accuracy[head].tolist())}
            row |= {SCORES[m]: over_seeds(means[m]) for m in SCORES} | _beside(CA_DESIGN_GRAD_CAM.get(head))
            table.append(row | {"printed parameters, accuracy": f"{printed[head][0]:.2f} M, {printed[head][1]}"})

        def against_own(values: dict[str, torch.Tensor], head: str) -> Interval:
            return paired(values[f"ca-stream:{head}"], values["ca-stream"]).difference

        lines = [
            claim("projections are less accurate", against_own(accuracy, "projection=true"), -1),
            claim("the last stage alone is as accurate", against_own(accuracy, "start=3"), 0, margin=1),
            claim("the last stage alone has the lower AG", against_own(gain, "start=3"), -1),
            claim("a query a class gives no accuracy", against_own(accuracy, "per_class=true"), 0, margin=1),
            claim("a query a class gives no AG", against_own(gain, "per_class=true"), 0, margin=1),
        ]
        about = [
            f"Streams beside the frozen birds:gap, {self.budget.stream} epochs of {self.budget.count} pictures (paper: 90 of ImageNet), "
            f"{_seeds(self.budget)}; accuracy on {self.budget.tested} test birds, scores of Grad-CAM on {self.budget.explained}. Printed: "
            "ResNet-50, whose five places are four here, the stem and layer1 being alike; `start` counts from the first. The paper's "
            "Grad-CAM++ and Score-CAM rows are not made again.",
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
        lines.append(claim("all three are better than ranks 1 and 2", paired(values["1 2 3"], values["1 2"]).difference, 1))
        first = self.budget.seeds[0]
        by_number: dict[str, list[float]] = {"br-npa": [], "b-cnn": []}
        for number in self.budget.numbers:
            for head, found_there in by_number.items():
                spec = (BR_NPA if head == "br-npa" else head) if number == 3 else f"{head}:n={number}"
                found_there.append(self.trainings.accuracy(self.trainings.low(spec, first))["1 2 3"])
            cells = {"accuracy": f"{by_number['br-npa'][-1]:.2f}", "b-cnn's": f"{by_number['b-cnn'][-1]:.2f}"}
            table.append({"what": f"N = {number}", "printed": "Fig. 7"} | cells)
        ours, theirs = (torch.tensor(accuracies) for accuracies in by_number.values())
        lines.append(claim("br-npa is more accurate than b-cnn whatever N", paired(ours, theirs).difference, 1))
        spread = {head: max(accuracies) - min(accuracies) for head, accuracies in by_number.items()}
        lines.append(
            f"N changes little: over N = {', '.join(map(str, self.budget.numbers))} br-npa's accuracy spreads over {spread['br-npa']:.2f} "
            f"points and b-cnn's over {spread['b-cnn']:.2f} (one seed, no interval; over seeds at N = 3 br-npa's spreads over "
            f"{max(by_ranks['1 2 3']) - min(by_ranks['1 2 3']):.2f})"
        )
        about = [
            f"{self._from_scratch()} Rows of N: one seed ({first}), their claim's interval over N. The paper: high resolution; Fig. 7 "
            "prints no numbers."
        ]
        return page("BR-NPA, Table 5 and Fig. 7: ranks, and number of maps", about, pd.DataFrame(table).fillna(""), lines)

    def resolution(self) -> str:
        """BR-NPA, Table 6."""
        table, accuracy, sparse, released = [], {}, {}, {}
        for head in ("b-cnn", "br-npa"):
            spec = BR_NPA if head == "br-npa" else head
            for kind in ("low", "high alone", "high distilled"):
                nets = [
                    self.trainings.low(spec, s) if kind == "low" else self.trainings.high(spec, s, kind.endswith("distilled"))
                    for s in self.budget.seeds
                ]
                accuracy[head, kind] = [self.trainings.accuracy(net)["1 2 3"] for net in nets]
                rows = self.scores(f"resolution {head} {kind}", nets, ["raw-attention"], ["sparsity", RELEASED])
                by_net = rows.pivot_table(index=["model", "image"], columns="metric", values="value").groupby("model")
                sparse[head, kind] = [float(by_net.get_group(net.name)["sparsity"].mean()) for net in nets]
                released[head, kind] = [float(1 / (1 / by_net.get_group(net.name)[RELEASED]).mean()) for net in nets]
                printed = RESOLUTION[head, kind != "low"] if kind != "high alone" else None
                size = nets[0].stages[-1].size
                table.append(
                    {
                        "head": head,
                        "map": f"{size[0]}×{size[1]}",
                        "distilled": {"low": "", "high alone": "no", "high distilled": "yes"}[kind],
                        "accuracy": over_seeds(accuracy[head, kind]),
                        "sparsity, released": over_seeds(released[head, kind]),
                        "sparsity": over_seeds(sparse[head, kind]),
                        "printed": "" if printed is None else f"{printed[0]}, {printed[1]}",
                    }
                )
        a, s, r = ({key: torch.tensor(values) for key, values in of.items()} for of in (accuracy, sparse, released))
        lines = []
        for head in ("b-cnn", "br-npa"):
            pairs = {
                "the distilled student is the more accurate": (a[head, "high distilled"], a[head, "low"]),
                "distillation helps at high resolution": (a[head, "high distilled"], a[head, "high alone"]),
                "resolution makes its maps sparser, as released": (r[head, "high distilled"], r[head, "low"]),
                "resolution makes its maps sparser": (s[head, "high distilled"], s[head, "low"]),
            }
            lines += [claim(f"{head}: {said}", paired(*values).difference, 1) for said, values in pairs.items()]
        for kind in ("low", "high distilled"):
            lines.append(claim(f"br-npa beats b-cnn, {kind}", paired(a["br-npa", kind], a["b-cnn", kind]).difference, 1))
        for by, of in ((", as released", r), ("", s)):
            for first, second, kind in (("b-cnn", "br-npa", "low"), ("br-npa", "b-cnn", "high distilled")):
                resolution = kind.partition(" ")[0]
                difference = paired(of[first, kind], of[second, kind]).difference
                lines.append(claim(f"{first} is the sparser at {resolution} resolution{by}", difference, 1))
        about = [
            f"{self._from_scratch()} High resolution: {self.budget.tuned} epochs more, from the weights at low resolution, with and "
            f"without distillation. Sparsity on {self.budget.explained} test birds: as released, of the head's several maps, the "
            "inverse of the mean over birds, as the paper prints it; and xattn's default, of the head's one saliency map. Printed: CUB, "
            "14×14 and 56×56.",
        ]
        return page("BR-NPA, Table 6: resolution and distillation", about, pd.DataFrame(table), lines) + f"\n#{self.sparsity()}"

    def sparsity(self) -> str:
        """BR-NPA, Table 6, sparsity alone: by the released definition and by xattn's, on the classifiers in the wheel."""
        table = []
        for name, printed in (("b-cnn", ("b-cnn", False)), ("br-npa", ("br-npa", False)), ("br-npa-high-res", ("br-npa", True))):
            classifier = xattn.load(f"birds:{name}")
            rows = self.scores(f"sparsity {name}", [classifier], ["raw-attention"], ["sparsity", RELEASED])
            by_metric = {metric: torch.tensor(found["value"].to_numpy()) for metric, found in rows.groupby("metric")}
            size = classifier.stages[-1].size
            table.append(
                {
                    "classifier": f"birds:{name}",
                    "map": f"{size[0]}×{size[1]}",
                    "released: inverse of the mean": shown(aggregated(by_metric[RELEASED], "harmonic mean")),
                    "default: mean": cell(by_metric["sparsity"]),
                    "printed": f"{RESOLUTION[printed][1]}",
                }
            )
        about = [
            f"One seed each, n = {self.budget.explained} test birds; ± is half the 95 % interval. As released: each of the head's several "
            "maps times the norm of the features, over its own maximum; the paper prints the inverse of the mean over maps and images. "
            "Default: maximum over mean of the head's one saliency map. Printed: CUB, 14×14 and 56×56, by the released definition.",
        ]
        return page("BR-NPA, Table 6: sparsity by two definitions", about, pd.DataFrame(table), [])

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
                logs.append(self.trainings.log(spec, seed)[[f"gradient_norm/network.{layer}" for layer in layers]])
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
            "Fig. 9, latency and memory, is measured on ResNets: [the head alone](../heads-alone.md), [the whole step](../heads-whole.md). "
            "BR-NPA is the faster head by far, and in the whole step by the median on all five; on a GPU: not testable here.",
        ]
        return page("BR-NPA, Fig. 8: gradient norms", about, pd.DataFrame(table), lines)

    def _from_scratch(self) -> str:
        b = self.budget
        return f"Head and network from random weights, {b.epochs} epochs of {b.count} pictures, {_seeds(b)}; n = {b.tested} test birds."


def _seeds(budget: Budget) -> str:
    return f"{len(budget.seeds)} seeds; ± is Student's 95 % interval over them"


def _values(rows: pd.DataFrame, metric: str) -> torch.Tensor:
    """Values of a metric in the order of the images."""
    found = rows[rows["metric"] == metric].sort_values("image")
    return torch.tensor(found["value"].to_numpy(dtype=float))


def _sure(rows: pd.DataFrame) -> float:
    """Share of the images whose target's probability is within AI's margin of 1."""
    return float((rows.groupby("image")["probability"].first() > 1 - 1e-6).mean())


def _unsure(rows: pd.DataFrame) -> set[str]:
    """Images of which every classifier could be surer."""
    highest = rows.groupby("image")["probability"].max()
    return set(highest[highest < 1 - 1e-4].index)


def _beside(printed: Sequence[float] | None) -> Line:
    return {"printed": "" if printed is None else " · ".join(f"{value:.2f}" for value in printed)}


def _against_truth(name: str, make: Callable[[Path, int], str]) -> Callable[[Papers], str]:
    """A page of `ground_truth`, whose work is kept under its name."""
    return lambda papers: make(papers.work / name, papers.budget.true)


TABLES: dict[str, Callable[[Papers], str]] = {
    "cross-attention": Papers.cross_attention,
    "truth": _against_truth("truth", ground_truth.effects_page),
    "tokens": _against_truth("tokens", ground_truth.tokens_page),
    "order": _against_truth("order", ground_truth.order_page),
    "spurious": _against_truth("spurious", ground_truth.spurious_page),
    "selection": Papers.selection,
    "ranks": Papers.ranks,
    "resolution": Papers.resolution,
    "gradients": Papers.gradients,
    "stream-design": Papers.stream_design,
    "alignment": lambda papers: alignment_page(papers.trainings, papers.scores),
    "several-labels": lambda papers: SeveralLabelsPage(papers.work / "several-labels", papers.budget).text(),
    "re-identification": lambda papers: ReIdentificationPage(papers.work / "re-identification", papers.budget).text(),
    "segmentation": lambda papers: SegmentationPage(papers.work / "segmentation", papers.budget).text(),
    "two-streams": lambda papers: TwoStreamsPage(papers.work / "two-streams", papers.budget).text(),
    "few-shot": lambda papers: FewShotsPage(papers.work / "few-shot", papers.budget).text(),
}


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, type=click.Choice(list(TABLES)))
@click.option("--smoke", is_flag=True, help="At toy size: whether it runs, not what it shows.")
@click.option("--count", default=Budget.count, show_default=True, help="Training pictures.")
@click.option("--epochs", default=Budget.epochs, show_default=True, help="Of head and network from random weights.")
@click.option("--tuned", default=Budget.tuned, show_default=True, help="Epochs at high resolution.")
@click.option("--stream", default=Budget.stream, show_default=True, help="Epochs of a stream.")
@click.option("--seeds", default=len(Budget.seeds), show_default=True, help="How many.")
@click.option("--birds", default=Budget.explained, show_default=True, help="Test birds that are explained, and whose effects are found.")
@click.option(
    "--precision", default=Budget.precision, show_default=True, help="Of the trainings; 32-true where the processor has no bfloat16."
)
@click.option("--threads", default=2, show_default=True, help="Of this process; several may share WORK, each with --only of its own.")
@click.option("--out", default=RESULTS / "papers", type=click.Path(path_type=Path))
def main(
    work: Path,
    only: tuple[str, ...],
    smoke: bool,
    count: int,
    epochs: int,
    tuned: int,
    stream: int,
    seeds: int,
    birds: int,
    precision: str,
    threads: int,
    out: Path,
) -> None:
    """Makes the tables in OUT, with what they need in WORK."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    seeds_of = tuple(range(seeds))
    spent = Budget(count, epochs=epochs, tuned=tuned, stream=stream, seeds=seeds_of, explained=birds, true=birds, precision=precision)
    papers = Papers(work, SMOKE if smoke else spent)
    for name in only or TABLES:
        text = TABLES[name](papers)
        (out / f"{name}.md").write_text(text, encoding="utf-8")
        click.echo(text)


if __name__ == "__main__":
    main()
