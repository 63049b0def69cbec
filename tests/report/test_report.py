"""The report's files: what they hold, and that names stay text."""

from __future__ import annotations

import base64
import json
import math
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.report.runs import HOSTILE, METHODS, METRICS, write_pictures, write_run
from xattn.cli import main
from xattn.errors import InputError, RunError
from xattn.metrics.masking import to_masks
from xattn.report import report
from xattn.report import writing as page_writing
from xattn.report.contents import read_contents
from xattn.report.encoding import decoded_map, disagreements, encoded_curve, encoded_map, reduced_map, script_json
from xattn.report.index import _classes_in
from xattn.study.compare import compare_runs
from xattn.study.store import Store

NAMES = ["a.jpg", "b.jpg", "c.jpg", HOSTILE]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_run(folder / "run", write_pictures(folder / "pictures", NAMES, 64))


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return report([run], run.parent / "page.html")


def index_in(page: Path) -> dict:
    found = re.search(r'<script type="application/json" id="index">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def blocks_in(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return {name: json.loads(content) for name, content in re.findall(r'data-block="([^"]+)">(.*?)</script>', text, re.DOTALL)}


def test_a_map_comes_back_from_its_sixteen_bits_within_half_of_one() -> None:
    raw = torch.randn(7, 9)
    assert torch.allclose(decoded_map(encoded_map(raw)), raw, atol=0.51 * float(raw.max() - raw.min()) / 65535 + 1e-7)
    flat = decoded_map(encoded_map(torch.full((3, 3), 2.5)))
    assert torch.equal(flat, torch.full((3, 3), 2.5))


def test_a_reduced_map_holds_cell_means() -> None:
    raw = torch.rand(128, 128)
    means = raw.view(64, 2, 64, 2).mean(dim=(1, 3))
    found = reduced_map(raw)
    assert found.reduced
    assert torch.allclose(decoded_map(found), means, atol=1 / 255)


def test_a_curve_keeps_its_probabilities_and_what_is_no_number() -> None:
    whole = torch.frombuffer(bytearray(encoded_curve([0.0, 0.25, 1.0, math.nan, None])), dtype=torch.int16).to(torch.int32) & 65535
    assert whole.tolist() == [0, round(0.25 * 65534), 65534, 65535, 65535]


def test_disagreement_is_one_less_pearsons_r() -> None:
    masks = torch.rand(1, 3, 196)
    masks[0, 2] = 1 - masks[0, 0]
    coded = disagreements(torch.cat([masks, torch.full((1, 1, 196), 0.5)], dim=1))[0]
    r = torch.corrcoef(torch.stack([masks[0, 0], masks[0, 1]]))[0, 1]
    assert coded[0] / 127 == pytest.approx(1 - float(r), abs=1 / 127)
    assert coded[1] == 254
    assert [int(coded[place]) for place in (2, 4, 5)] == [255, 255, 255]


@pytest.mark.parametrize("text", ["</script><img src=x>", "<!--", "&lt;", "\u2028\u2029"])
def test_json_in_a_script_ends_no_element(text: str) -> None:
    written = script_json([text])
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == [text]


@pytest.mark.parametrize(
    ("target", "classes"), [("7", {7}), ("3 - 0.6*7", {3, 7}), ("-12 + 2*5", {12, 5}), ("value 0", set()), ("similarity", set())]
)
def test_the_classes_of_a_target_are_named(target: str, classes: set[int]) -> None:
    assert _classes_in(target) == classes


def test_the_table_holds_the_numbers_of_compare(run: Path, page: Path) -> None:
    table = index_in(page)["table"]
    plain, against = compare_runs([run]), compare_runs([run], "random")
    assert [column["name"] for column in table["columns"]][: len(METRICS)] == list(METRICS)
    for row, (_, expected) in zip(table["rows"], plain.frame.iterrows(), strict=True):
        assert row["names"] == [expected["model"], expected["head"], expected["method"]]
        assert row["values"][: len(METRICS)] == pytest.approx([expected[metric] for metric in METRICS])
    shown = plain.text("markdown").splitlines()[2:]
    for row, line in zip(table["rows"], shown, strict=False):
        assert [cell.strip() for cell in line.strip("|").split("|")][3:] == row["cells"]
    latex = against.text("latex")
    for cells in table["references"]["random"]["latex"]:
        for cell in cells:
            assert re.match(r"[\w.+-]*", cell)[0] in latex  # type: ignore[index]
    assert table["references"]["random"]["notes"] == list(against.notes)
    assert table["notes"] == list(plain.notes)
    p = [[None if math.isnan(row[f"{metric} p"]) else row[f"{metric} p"] for metric in METRICS] for _, row in against.frame.iterrows()]
    assert table["references"]["random"]["p"] == p


def test_scores_answers_maps_and_curves_are_those_of_the_run(run: Path, page: Path) -> None:
    index, items = index_in(page), blocks_in(page)["items-0"]
    rows, store = Store(run).rows(), Store(run)
    assert sorted(index["names"]) == sorted(NAMES)
    scores = torch.frombuffer(bytearray(base64.b64decode(index["scores"])), dtype=torch.float32).view(
        len(METHODS), len(METRICS), len(NAMES)
    )
    maps, curves = store.maps(NAMES), store.curves()
    for number, name in enumerate(index["names"]):
        of_picture = rows[rows["image"] == name]
        assert index["answers"][0]["label"][number] == of_picture["label"].iloc[0]
        assert index["answers"][0]["predicted"][number] == of_picture["predicted"].iloc[0]
        assert items[number]["classes"][0][0][0] == of_picture["predicted"].iloc[0]
        assert items[number]["pictures"][0].startswith("data:image/webp;base64,")
        for column, method in enumerate(METHODS):
            of_method = of_picture[of_picture["method"] == method].set_index("metric")["value"]
            assert scores[column, :, number].tolist() == pytest.approx([of_method[metric] for metric in METRICS], rel=1e-6)
            height, width, low, high, reduced, data = items[number]["maps"][column]
            assert (height, width, reduced) == (7, 7, 0)
            whole = torch.frombuffer(bytearray(base64.b64decode(data)), dtype=torch.int16).to(torch.int32) & 65535
            raw = torch.from_numpy(maps[name, "made:net", "gap", method].raw)
            assert torch.allclose(whole.view(7, 7) / 65535 * (high - low) + low, raw, atol=1e-4)
    for column, metric, shares, data in items[0]["curves"]:
        kept = next(
            curve
            for key, curve in curves.items()
            if key[0] == index["names"][0] and key[3] == METHODS[column] and key[4] == METRICS[metric]
        )
        whole = torch.frombuffer(bytearray(base64.b64decode(data)), dtype=torch.int16).to(torch.int32) & 65535
        assert (whole / 65534).tolist() == pytest.approx(kept.p, abs=1e-5)
        assert index["shares"][shares] == pytest.approx(kept.shares, rel=1e-5)


def test_names_are_json_and_nothing_else_of_the_page_changes_with_them(run: Path, tmp_path: Path) -> None:
    text = report([run], tmp_path / "page.html", title="<script>alert(1)</script>").read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "<script>alert" not in text
    assert "<b>cat" not in text
    assert index_in(tmp_path / "page.html")["title"] == "<script>alert(1)</script>"
    assert text.count("<script>") == 1 + len(blocks_in(tmp_path / "page.html"))


def test_the_same_runs_give_the_same_bytes(run: Path, page: Path, tmp_path: Path) -> None:
    assert report([run], tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_a_folder_holds_the_same_blocks_as_a_file(run: Path, page: Path, tmp_path: Path) -> None:
    index = report([run], tmp_path / "folder", folder=True)
    assert index == tmp_path / "folder" / "index.html"
    blocks = blocks_in(page)
    assert {path.stem for path in (tmp_path / "folder" / "data").iterdir()} == set(blocks)
    for name, content in blocks.items():
        assert (tmp_path / "folder" / "data" / f"{name}.js").read_text() == f'xattnBlock("{name}", {script_json(content)});\n'
    report([run], tmp_path / "folder", folder=True)


def test_what_is_no_report_is_not_written_into(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="neither a report nor empty"):
        report([run], tmp_path / "mine", folder=True)
    with pytest.raises(RunError, match="could not be written"):
        report([run], tmp_path / "mine" / "notes.txt" / "page.html")


def test_a_file_that_would_be_too_large_says_how_to_have_a_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_writing, "LARGEST_FILE", 1000)
    with pytest.raises(InputError, match="--folder"):
        report([run], tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_reading_ends_where_maps_and_curves_alone_fill_a_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_contents([run])
    parts = [each.data for item in whole.items for each in item.maps.values()]
    parts += [p for item in whole.items for _, p in item.curves.values()]
    needed = sum(len(base64.b64encode(part)) for part in parts)
    assert len(read_contents([run], needed).items) == len(whole.items)
    with pytest.raises(InputError, match="the maps and curves alone in one file would be larger") as caught:
        read_contents([run], needed - 1)
    assert "--side" not in str(caught.value)  # smaller pictures would not help
    monkeypatch.setattr(page_writing, "LARGEST_FILE", needed - 1)
    monkeypatch.setattr(page_writing, "Pictures", None)  # which is not reached
    with pytest.raises(InputError, match="--folder"):
        report([run], tmp_path / "page.html")


def test_a_report_without_its_pictures_says_so_and_shows_the_rest(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", ["a.jpg", "b.jpg"], 64)
    run = write_run(tmp_path / "run", pictures, methods=["grad-cam"])
    (pictures / "a.jpg").unlink()
    blocks = blocks_in(report([run], tmp_path / "page.html"))
    assert [item["pictures"][0] is None for item in blocks["items-0"]] == [True, False]
    assert blocks["missing"] == [["no longer where the run found them", 1]]
    (pictures / "b.jpg").unlink()
    blocks = blocks_in(report([run], tmp_path / "page.html"))
    assert blocks["missing"][0][1] == 2
    assert "no longer where the run found them" in blocks["missing"][0][0]


def test_two_runs_of_one_network_share_their_pictures(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", run.parent / "pictures", model="made:other", seed=1, methods=["grad-cam", "random"])
    contents = read_contents([run, other])
    assert len(contents.items) == len(NAMES)
    assert [column.model for column in contents.columns] == ["made:net"] * len(METHODS) + ["made:other"] * 2
    assert all(len(item.maps) == len(METHODS) + 2 for item in contents.items)


def test_the_order_among_equals_is_that_of_the_metrics(page: Path) -> None:
    from xattn.metrics.perturbations import ranks

    blocks = blocks_in(page)
    order = torch.frombuffer(bytearray(base64.b64decode(blocks["order-4096"])), dtype=torch.int32).long()
    masks = to_masks(torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]), (64, 64)).masks
    levels = (masks * 65536).round().flatten()
    mine = torch.empty(4096, dtype=torch.long)
    mine[order[levels[order].argsort(descending=True, stable=True)]] = torch.arange(4096)
    assert torch.equal(mine.view(1, 64, 64), ranks(masks))


def test_the_command_writes_a_page_and_says_where(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["report", str(run), "--out", str(out), "--title", "Mine"])
    assert done.exit_code == 0
    assert done.output.strip().splitlines()[-1] == str(out)
    assert "<title>Mine · xattn report</title>" in out.read_text(encoding="utf-8")


def test_a_side_that_is_none_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="from 32 to 1024 pixels; got 4"):
        report([run], tmp_path / "page.html", side=4)
    with pytest.raises(InputError, match="at least one run"):
        report([], tmp_path / "page.html")
