"""What is printed of a table, and that LaTeX and Typst compile it."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from xattn.errors import InputError, NameUnknownError, SettingError
from xattn.metrics.tables import Table, comparison
from xattn.metrics.typeset import COLUMN

METHODS = ("grad-cam", "grad-cam++", "score-cam", "guided-grad-cam++", "random")
METRICS = {"average-drop": 20, "average-gain": 10, "average-increase": 0, "insertion": 60, "deletion": 15, "sparsity": 2.5}
HOSTILE = r"net_1 & 50% #{x}~^\ $<b>|*_`@[]=/"


def scores(models: tuple[str, ...] = ("mobilenet_v2", "vit_tiny_patch16_224"), images: int = 40) -> pd.DataFrame:
    """Rows in which a method is better by 5 than the one before, in the metrics where higher is better."""
    chance = random.Random(0)
    rows = []
    for model in models:
        for place, method in enumerate(METHODS):
            for number in range(images):
                given = {"model": model, "head": "gap", "method": method, "image": f"{number}.png", "degenerate": False, "target": "1"}
                given |= {"target_rule": "predicted", "label": 1.0, "predicted": float(number % 2)}
                for metric, mean in METRICS.items():
                    value = chance.choice([0.0, 100.0]) if metric == "average-increase" else chance.gauss(mean + 5 * place, 10)
                    rows.append({**given, "metric": metric, "value": value})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def table() -> Table:
    return comparison(scores(), "random")


def cells(text: str, method: str) -> list[str]:
    line = next(line for line in text.splitlines() if f"| {method} " in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_decimals_follow_the_interval_or_what_is_asked(table: Table) -> None:
    assert re.fullmatch(r"\d+\.\d \[\d+\.\d, \d+\.\d\] △", cells(table.text("markdown"), "grad-cam")[3])  # a half-width of about 3.2
    assert re.fullmatch(r"\d+ \[\d+, \d+\]", cells(table.text("markdown"), "grad-cam")[5])  # of about 15
    assert re.fullmatch(r"\d+\.\d{3} \[\d+\.\d{3}, \d+\.\d{3}\] △", cells(table.text("markdown", digits=3), "grad-cam")[3])
    with pytest.raises(SettingError, match="0 to 6 decimals; got 7"):
        table.text("markdown", digits=7)


def test_columns_are_chosen_by_name_or_symbol_in_their_order(table: Table) -> None:
    text = table.text("markdown", columns=["I", "average-drop", "acc."])
    header = text.splitlines()[0]
    assert "AD: average-drop" in text
    assert "AG: average-gain" not in text
    assert [cell.strip() for cell in header.strip("|").split("|")][3:] == ["I ↑", "AD ↓", "acc.", "n", "degenerate"]
    with pytest.raises(NameUnknownError, match="AJ"):
        table.text("markdown", columns=["AJ"])


def test_marks_say_which_way(table: Table) -> None:
    line = cells(table.text("markdown"), "grad-cam")  # lower than the control by 20 in every metric but one
    assert [cell[-1] for cell in line[3:9]] == ["△", "▽", "]", "▽", "△", "▽"]
    assert not any(mark in cell for mark in "△▽" for cell in cells(table.text("markdown"), "random"))


def test_a_difference_is_that_of_pairs_with_its_interval(table: Table) -> None:
    frame = table.frame.set_index(["model", "method"])
    row = frame.loc["mobilenet_v2", "grad-cam"]
    assert row["average-drop difference"] == pytest.approx(row["average-drop"] - frame.loc["mobilenet_v2", "random"]["average-drop"])
    assert row["average-drop difference low"] < row["average-drop difference"] < row["average-drop difference high"] < 0
    text = table.text("markdown", difference=True, digits=1)
    ends = (f"{row[f'average-drop difference{end}']:.1f}" for end in ("", " low", " high"))
    assert "{} [{}, {}]".format(*ends) in cells(text, "grad-cam")[3]
    assert "Differences to random" in text
    with pytest.raises(SettingError, match="--against"):
        comparison(scores()).text("markdown", difference=True)


def test_notes_of_a_metric_stay_when_the_same_metric_with_other_settings_is_left_out() -> None:
    rows = scores()
    other = rows[rows["metric"] == "insertion"].assign(metric="insertion:protocol=rise")
    other.loc[other.index[:6], "value"] = float("nan")
    text = comparison(pd.concat([rows, other]), "random").text("markdown", columns=["insertion:protocol=rise"])
    assert "insertion:protocol=rise: undefined for 6 maps" in text
    assert "insertion: " not in text


def test_a_table_of_differences_has_no_rows_of_the_reference_and_no_column_that_is_no_difference(table: Table) -> None:
    text = table.text("markdown", difference=True)
    assert "| random" not in text
    assert "acc." not in text.splitlines()[0]
    with_accuracy = table.text("markdown", difference=True, columns=["AD", "acc."])
    assert "acc." in with_accuracy.splitlines()[0]
    assert "acc.: no difference but the mean" in with_accuracy
    assert "no difference but" not in text
    by_model = comparison(scores(), "mobilenet_v2").text("markdown", difference=True)
    assert [line.split("|")[1].strip() for line in by_model.splitlines()[2:7]] == ["vit_tiny_patch16_224"] * 5
    assert "| mobilenet_v2" not in by_model
    assert "| random" in table.text("markdown")


def test_digits_stand_below_each_other_where_some_cells_have_a_mark(table: Table) -> None:
    lines = [line.removesuffix(r" \\").split(" & ") for line in table.text("latex").splitlines() if line.startswith(METHODS)]
    for cells_of in zip(*(line[1:7] for line in lines), strict=True):
        ends = {re.sub(r".*?(\\phantom\{\$\\triangle\$\}|\$\\triangle\$|\$\\nabla\$|)$", r"\1", cell) for cell in cells_of}
        assert ends == {""} or "" not in ends
    assert r"\phantom" not in comparison(scores()).text("latex")
    assert "#hide[△]" in table.text("typst")


def test_typst_leaves_intervals_out_where_they_would_be_wider_than_a_column(table: Table) -> None:
    wide, narrow = table.text("typst"), table.text("typst", columns=["AD", "S"])
    assert "Half\\-widths of the 95 % confidence intervals, at most: AD" in wide
    assert "±" not in wide
    assert "Half\\-widths" not in narrow
    assert "±" in narrow
    assert "#box[grad\\-cam]" in wide
    assert "−" in comparison(scores(), "random").text("typst", difference=True)


def test_a_classifier_is_a_reference_for_each_method_with_its_own() -> None:
    rows = scores()
    rows.loc[rows["model"] == "vit_tiny_patch16_224", "target"] = "2"  # its own prediction
    rows.loc[rows["model"] == "vit_tiny_patch16_224", "value"] += 7
    found = comparison(rows, "mobilenet_v2").frame.set_index(["model", "method"])
    assert found.loc["mobilenet_v2"]["insertion p"].isna().all()
    for method in METHODS:
        row = found.loc["vit_tiny_patch16_224", method]
        assert row["insertion difference"] == pytest.approx(row["insertion"] - found.loc["mobilenet_v2", method]["insertion"])
    heads = rows.assign(head=rows["model"].map({"mobilenet_v2": "gap", "vit_tiny_patch16_224": "ca-stream"}), model="net")
    by_head = comparison(heads, "gap")
    assert by_head.frame.set_index(["head", "method"]).loc["ca-stream", "grad-cam"]["insertion difference"] == pytest.approx(
        found.loc["vit_tiny_patch16_224", "grad-cam"]["insertion difference"]
    )
    assert "worse than the same method of gap on the same images" in by_head.text("markdown")
    with pytest.raises(InputError, match=r"'net' has several rows of grad-cam: name one of net · gap, net · ca-stream"):
        comparison(heads, "net")
    with pytest.raises(NameUnknownError, match="method, model or head"):
        comparison(heads, "nett")


def test_the_best_of_a_network_is_bold_and_the_second_underlined(table: Table) -> None:
    lines = [line for line in table.text("latex").splitlines() if line.startswith(("grad-cam &", "grad-cam++ &", "random &"))]
    drop, insertion = ([line.split(" & ")[place] for line in lines] for place in (1, 4))
    for network in (slice(0, 3), slice(3, 6)):
        best, second, worst = drop[network]
        assert best.startswith(r"\textbf{")
        assert second.startswith(r"\underline{")
        assert "{" not in worst.partition(r"\phantom")[0].replace(r"{\tiny", "")
        assert insertion[network][2].startswith(r"\textbf{")


def measured(source: str, folder: Path) -> float:
    """Width in pt of the table's tabular, by pdflatex itself."""
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    boxed = source.replace(r"\begin{tabular}", r"\setbox0=\hbox{\begin{tabular}").replace(
        r"\end{tabular}", r"\end{tabular}}\typeout{WIDTH \the\wd0}\box0"
    )
    document = "\n".join(
        [r"\documentclass[twocolumn]{article}", r"\usepackage{booktabs}", r"\begin{document}", r"\small", boxed, r"\end{document}"]
    )
    (folder / "table.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:]
    return float(re.search(r"WIDTH ([\d.]+)pt", ran.stdout)[1])  # type: ignore[index]


def test_latex_fits_a_column_and_compiles_with_booktabs_alone(table: Table, tmp_path: Path) -> None:
    whole = table.text("latex")
    assert measured(whole, tmp_path) <= COLUMN
    assert "Half-widths of the 95 \\% confidence intervals, at most: AD " in whole
    few = table.text("latex", columns=["AD", "AG", "AI"])
    assert r"\pm" in few
    assert "Half-widths" not in few
    assert measured(few, tmp_path) <= COLUMN


def test_names_with_any_character_compile(tmp_path: Path) -> None:
    hostile = comparison(scores((HOSTILE,)), "random")
    assert measured(hostile.text("latex", caption=HOSTILE, label="tab:a_b-1"), tmp_path) <= COLUMN
    with pytest.raises(SettingError, match="a label consists of letters"):
        hostile.text("latex", label="a}b")
    assert "&lt;b&gt;" in hostile.text("html")


@pytest.mark.parametrize("models", [("mobilenet_v2", "vit_tiny_patch16_224"), (HOSTILE,)])
def test_typst_compiles(models: tuple[str, ...], tmp_path: Path) -> None:
    typst = pytest.importorskip("typst")
    (tmp_path / "table.typ").write_text(comparison(scores(models), "random").text("typst", caption=models[0]), encoding="utf-8")
    assert typst.compile(str(tmp_path / "table.typ"))[:4] == b"%PDF"


def test_html_is_well_formed_and_groups_rows_by_network(table: Table) -> None:
    open_tags: list[str] = []
    groups: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            open_tags.append(tag)
            groups.extend(["rowgroup"] * (("scope", "rowgroup") in attrs))

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Reader().feed(table.text("html"))
    assert not open_tags
    assert len(groups) == 2
