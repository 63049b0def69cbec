"""The papers' tables on SketchBirds, and a comparison that no paper could make: maps against true effects.

    python benchmarks/papers.py runs/papers [--only ranks] [--smoke] [--out benchmarks/results/papers]

Trains what it needs (`trained.py`), explains, and writes one file per table, with the papers' printed values for comparison, n, seeds, 95 %
intervals, and one line per claim. Everything resumes after an interruption.
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
from cross_attention import SCORES, beside, cross_attention_page, streams_of
from estimates import Estimate, apart
from few_shots import FewShotsPage
from printed import CA_BLOCKS, CA_DESIGN_GRAD_CAM, CA_PLACEMENT, CA_QUERIES, RANKS, RESOLUTION, SELECTION
from re_identification import ReIdentificationPage
from segmentation import SegmentationPage
from several_labels import SeveralLabelsPage
from trained import ALL_RANKS, BR_NPA, SMOKE, Budget, Trainings, by_net
from two_streams import TwoStreamsPage

import xattn
from xattn.birds import SketchBirds
from xattn.metrics.tables import aggregated

RELEASED = "sparsity:definition=released"
RESULTS = Path(__file__).parent / "results"


class Papers:
    """The tables, from one folder of work.

    Args:
        work: where trainings and runs are stored.
        budget: extent of the trainings.
    """

    def __init__(self, work: Path, budget: Budget) -> None:
        self.work = work
        self.budget = budget
        self.trainings = Trainings(work / "trained", budget)

    def scores(self, name: str, classifiers: Sequence[xattn.Classifier], methods: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
        """Returns rows of a study of test birds, explained for their labels."""
        count = self.budget.explained
        pictures = SketchBirds("test", count).export(self.work / f"birds-{count}")
        out = self.work / "runs" / f"{name}-{count}"
        study = xattn.Study(
            classifiers, methods, metrics, pictures, out, labels_csv=pictures / "labels.csv", workers=0, tune="chunk=64", batch_size=20
        )
        study.run()
        return study.scores()

    def stream_design(self) -> str:
        """CA-Stream, Tables 4 to 6."""
        settings = {"ca-stream": "as it is", "ca-stream:projection=true": "Table 4: projections"}
        settings |= {f"ca-stream:start={start}": f"Table 5: start={start}" for start in (1, 2, 3)}
        settings |= {"ca-stream:per_class=true": "Table 6: a query per class"}
        printed = {**CA_BLOCKS, **{f"ca-stream:start={start}": CA_PLACEMENT[start + 1] for start in (1, 2, 3)}, **CA_QUERIES}
        table: list[Line] = []
        accuracy: dict[str, torch.Tensor] = {}
        hard: dict[str, torch.Tensor] = {}
        gain: dict[str, torch.Tensor] = {}
        for head, called in settings.items():
            nets = [self.trainings.stream(head, seed) for seed in self.budget.seeds]
            accuracy[head], hard[head] = self.trainings.accuracy(nets), self.trainings.accuracy(nets, hard=True)
            rows = self.scores(nets[0].name.rpartition("-")[0], nets, ["grad-cam"], list(SCORES))
            values = {metric: by_net(rows[rows["metric"] == metric]) for metric in SCORES}
            gain[head] = values["average-gain"]
            size = sum(parameter.numel() for parameter in nets[0].head.parameters())
            row = {"stream": called, "parameters": f"{size:,}", "accuracy": cell(accuracy[head])}
            row |= {"cross-entropy": cell(self.trainings.cross_entropy(nets), 3), "accuracy, hard birds": cell(hard[head])}
            row |= {SCORES[metric]: cell(values[metric]) for metric in SCORES} | beside(CA_DESIGN_GRAD_CAM.get(head))
            table.append(row | {"printed parameters, accuracy": f"{printed[head][0]:.2f} M, {printed[head][1]}"})

        def against_own(values: dict[str, torch.Tensor], head: str) -> Estimate:
            return apart(values[f"ca-stream:{head}"], values["ca-stream"])

        lines = [
            claim("projections are less accurate", against_own(accuracy, "projection=true"), -1),
            claim("the last stage alone is as accurate", against_own(accuracy, "start=3"), 0, margin=1),
            claim("the last stage alone is as accurate, of hard birds", against_own(hard, "start=3"), 0, margin=1),
            claim("the last stage alone has the lower AG", against_own(gain, "start=3"), -1),
            claim("a query per class gives no accuracy", against_own(accuracy, "per_class=true"), 0, margin=1),
            claim("a query per class gives no accuracy, of hard birds", against_own(hard, "per_class=true"), 0, margin=1),
            claim("a query per class gives no AG", against_own(gain, "per_class=true"), 0, margin=1),
        ]
        about = [
            f"Streams beside the frozen birds:gap, {streams_of(self.budget)} (paper: 90 epochs of ImageNet). ± is half of the 95 % "
            f"interval over seeds × birds; accuracy on {self.budget.tested} test birds, and as many hard ones, scores of Grad-CAM on "
            f"{self.budget.explained}, cross-entropy in nats. Printed: ResNet-50, whose five places are four here, the stem and layer1 "
            "being alike; `start` counts from the first. The paper's Grad-CAM++ and Score-CAM rows are not made again.",
        ]
        return page("CA-Stream, Tables 4 to 6: projections, placement, queries", about, pd.DataFrame(table), lines)

    def selection(self) -> str:
        """BR-NPA, Table 4 (7 of its supplement)."""
        table: list[Line] = []
        found: dict[tuple[str, bool], torch.Tensor] = {}
        for (way, refine), printed in SELECTION.items():
            given = [*([] if way == "active" else ["selection=random"]), *([] if refine else ["refine=false"])]
            head = f"br-npa:{','.join(given)}" if given else BR_NPA
            nets = [self.trainings.low(head, seed) for seed in self.budget.seeds]
            found[way, refine] = self.trainings.accuracy(nets)
            table.append({"selection": way, "refined": "yes" if refine else "no"} | self._recognised(nets) | {"printed": f"{printed:.0f}"})
        lines = [
            claim("active selection beats random, refined", apart(found["active", True], found["random", True]), 1),
            claim("active selection beats random, not refined", apart(found["active", False], found["random", False]), 1),
            claim("refinement helps active selection", apart(found["active", True], found["active", False]), 1),
            claim("refinement helps random selection", apart(found["random", True], found["random", False]), 1),
        ]
        about = [
            f"{self._from_scratch()} {self._tested()} **Differs**: 8 × 8 maps; the paper trained these at high resolution, from "
            "ImageNet's weights."
        ]
        return page("BR-NPA, Table 4: selection and refinement", about, pd.DataFrame(table), lines)

    def ranks(self) -> str:
        """BR-NPA, Table 5, and Fig. 7."""
        nets = [self.trainings.low(BR_NPA, seed) for seed in self.budget.seeds]
        right = {ranks: self.trainings.accuracy(nets, ranks) for ranks in RANKS}
        table = [{"what": f"ranks {ranks}"} | self._recognised(nets, ranks) | {"printed": f"{RANKS[ranks]}"} for ranks in RANKS]
        lines = [
            claim("rank 1 alone is better than rank 2 alone", apart(right["1"], right["2"]), 1),
            claim("rank 2 alone is better than rank 3 alone", apart(right["2"], right["3"]), 1),
            claim("ranks 1 and 2 are better than 2 and 3", apart(right["1 2"], right["2 3"]), 1),
            claim("all three are better than ranks 2 and 3", apart(right["1 2 3"], right["2 3"]), 1),
            claim("all three are better than ranks 1 and 2", apart(right["1 2 3"], right["1 2"]), 1),
        ]
        first = self.budget.seeds[0]
        by_number: dict[str, list[float]] = {"br-npa": [], "b-cnn": []}
        for number in self.budget.numbers:
            for head, found_there in by_number.items():
                spec = (BR_NPA if head == "br-npa" else head) if number == 3 else f"{head}:n={number}"
                found_there.append(float(self.trainings.accuracy([self.trainings.low(spec, first)]).mean()))
            cells = {"accuracy": f"{by_number['br-npa'][-1]:.2f}", "b-cnn's": f"{by_number['b-cnn'][-1]:.2f}"}
            table.append({"what": f"N = {number}", "printed": "Fig. 7"} | cells)
        lines.append(claim("br-npa is more accurate than b-cnn whatever N", apart(*by_number.values(), "numbers of maps"), 1))
        spread = {head: max(accuracies) - min(accuracies) for head, accuracies in by_number.items()}
        of_seeds = right["1 2 3"].mean(dim=1)
        about = [
            f"{self._from_scratch()} {self._tested()} Rows of N: one seed ({first}), their claim's interval over N. The paper: high "
            "resolution; Fig. 7 prints no numbers.",
            f"N changes little: over N = {', '.join(map(str, self.budget.numbers))} br-npa's accuracy spreads over {spread['br-npa']:.2f} "
            f"points and b-cnn's over {spread['b-cnn']:.2f} (one seed, no interval; over seeds at N = 3 br-npa's spreads over "
            f"{float(of_seeds.max() - of_seeds.min()):.2f}).",
        ]
        return page("BR-NPA, Table 5 and Fig. 7: ranks, and number of maps", about, pd.DataFrame(table).fillna(""), lines)

    def resolution(self) -> str:
        """BR-NPA, Table 6."""
        table: list[Line] = []
        accuracy: dict[tuple[str, str], torch.Tensor] = {}
        sparse: dict[tuple[str, str], torch.Tensor] = {}
        released: dict[tuple[str, str], list[float]] = {}
        for head in ("b-cnn", "br-npa"):
            spec = BR_NPA if head == "br-npa" else head
            for kind in ("low", "high alone", "high distilled"):
                nets = [
                    self.trainings.low(spec, s) if kind == "low" else self.trainings.high(spec, s, kind.endswith("distilled"))
                    for s in self.budget.seeds
                ]
                accuracy[head, kind] = self.trainings.accuracy(nets)
                rows = self.scores(f"resolution {head} {kind}", nets, ["raw-attention"], ["sparsity", RELEASED])
                sparse[head, kind], as_released = (by_net(rows[rows["metric"] == metric]) for metric in ("sparsity", RELEASED))
                released[head, kind] = (1 / (1 / as_released).mean(dim=1)).tolist()
                printed = RESOLUTION[head, kind != "low"] if kind != "high alone" else None
                size = nets[0].stages[-1].size
                table.append(
                    {"head": head, "map": f"{size[0]}×{size[1]}"}
                    | {"distilled": {"low": "", "high alone": "no", "high distilled": "yes"}[kind]}
                    | self._recognised(nets)
                    | {"sparsity, released": over_seeds(released[head, kind]), "sparsity": cell(sparse[head, kind])}
                    | {"printed": "" if printed is None else f"{printed[0]}, {printed[1]}"}
                )
        lines = []
        for head in ("b-cnn", "br-npa"):
            pairs = {
                "the distilled student is the more accurate": (accuracy, "low"),
                "distillation helps at high resolution": (accuracy, "high alone"),
                "resolution makes its maps sparser": (sparse, "low"),
            }
            for said, (values, before) in pairs.items():
                lines.append(claim(f"{head}: {said}", apart(values[head, "high distilled"], values[head, before]), 1))
            difference = apart(released[head, "high distilled"], released[head, "low"], "seeds")
            lines.append(claim(f"{head}: resolution makes its maps sparser, as released", difference, 1))
        for kind in ("low", "high distilled"):
            lines.append(claim(f"br-npa beats b-cnn, {kind}", apart(accuracy["br-npa", kind], accuracy["b-cnn", kind]), 1))
        for first, second, kind in (("b-cnn", "br-npa", "low"), ("br-npa", "b-cnn", "high distilled")):
            text = f"{first} is the sparser at {kind.partition(' ')[0]} resolution"
            lines.append(claim(f"{text}, as released", apart(released[first, kind], released[second, kind], "seeds"), 1))
            lines.append(claim(text, apart(sparse[first, kind], sparse[second, kind]), 1))
        about = [
            f"{self._from_scratch()} {self._tested()} High resolution: {self.budget.tuned} epochs more, from the weights at low "
            f"resolution, with and without distillation. Sparsity on {self.budget.explained} test birds: as released, of the head's "
            "several maps, the inverse of the mean over birds, as the paper prints it; and xattn's default, of the head's one saliency "
            "map. Printed: CUB, 14×14 and 56×56.",
        ]
        return page("BR-NPA, Table 6: resolution and distillation", about, pd.DataFrame(table), lines) + f"\n#{self.sparsity()}"

    def sparsity(self) -> str:
        """BR-NPA, Table 6, only sparsity: by the released definition and by xattn's, on the shipped classifiers."""
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
        lines = [claim("br-npa's gradient norms vary less", apart(spread["br-npa"], spread["b-cnn"], "seeds"), -1, digits=5)]
        about = [
            f"{self._from_scratch('seeds')} Norms of the gradients of the last three convolutions, one value per step. "
            "The paper shows curves.",
            "Fig. 9, latency and memory, is measured on ResNets: [the head alone](../heads-alone.md), [the whole step](../heads-whole.md). "
            "BR-NPA is the faster head by far, and in the whole step by the median on all five; on a GPU it was not measured.",
        ]
        return page("BR-NPA, Fig. 8: gradient norms", about, pd.DataFrame(table), lines)

    def _from_scratch(self, over: str = "seeds × birds") -> str:
        b = self.budget
        return (
            f"Head and network from random weights, {b.epochs} epochs of {b.count} pictures, {len(b.seeds)} seeds; no setting was "
            f"searched, all heads have the same. ± is half of the 95 % interval over {over}."
        )

    def _tested(self) -> str:
        return f"n = {self.budget.tested} test birds, and as many hard ones; cross-entropy in nats."

    def _recognised(self, nets: Sequence[xattn.Classifier], ranks: str = ALL_RANKS) -> Line:
        """Formats cells of how well test birds are recognised."""
        of = self.trainings
        cells = {"accuracy": cell(of.accuracy(nets, ranks)), "cross-entropy": cell(of.cross_entropy(nets, ranks), 3)}
        return cells | {"accuracy, hard birds": cell(of.accuracy(nets, ranks, hard=True))}


def _against_truth(name: str, make: Callable[[Path, Trainings], str]) -> Callable[[Papers], str]:
    """Writes a page of `ground_truth`; its work is stored under its name."""
    return lambda papers: make(papers.work / name, papers.trainings)


TABLES: dict[str, Callable[[Papers], str]] = {
    "cross-attention": lambda papers: cross_attention_page(papers.work, papers.trainings),
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
    "segmentation": lambda papers: SegmentationPage(papers.work / "segmentation", papers.trainings).text(),
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
    """Makes the tables in OUT, and what they need in WORK."""
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
