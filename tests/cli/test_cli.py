"""The commands as a user types them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from tests import networks
from tests.data.test_images import bad_files
from xattn.cli import listing, main
from xattn.cli.explain import GROUPS, explain
from xattn.cli.options import LocalPath
from xattn.explainers import methods
from xattn.heads import heads
from xattn.metrics import PROTOCOLS, metrics

MODEL = ["--model", f"{networks.__file__}:small", "--input-size", "32", "--resize", "36", "--workers", "0", "--device", "cpu"]
QUICK = ["--method", "grad-cam", "--method", "centre", "--metric", "average-drop", "--metric", "sparsity"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def done(folder: Path, tmp_path: Path) -> Path:
    result = run("explain", folder, *MODEL, *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


def test_explain_leaves_scores_a_table_and_a_figure_and_tells_the_stage(folder: Path, tmp_path: Path) -> None:
    result = run("explain", folder, *MODEL, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    for name in ("run.json", "scores.csv", "table.csv", "figures/grid.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert "stage 3 (16 × 8 × 8): the last map that every path from the image to the output crosses" in result.stderr
    assert "other stages: 1, 2" in result.stderr
    assert "resize 36 (bilinear), crop 32×32, mean 0.485 0.456 0.406" in result.stderr
    assert "grad-cam++" in result.stdout
    assert "stage" not in result.stdout
    assert len(pd.read_csv(tmp_path / "run" / "table.csv")) == 5


def test_repeated_models_heads_methods_and_metrics_are_one_product(folder: Path, tmp_path: Path) -> None:
    result = run("explain", folder, *MODEL, "--model", "tests.networks:small", *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "run" / "scores.csv")
    assert len(rows) == 2 * 2 * 2 * 10
    assert (tmp_path / "run" / "figures" / "grid.png").exists()


def test_weights_go_with_models_in_order_and_tell_two_of_one_name_apart(folder: Path, tmp_path: Path) -> None:
    import torch

    for name, seed in (("one", 1), ("two", 2)):
        torch.save(networks.seeded(networks.small, seed).state_dict(), tmp_path / f"{name}.pth")
    weights = ["--weights", tmp_path / "one.pth", "--weights", tmp_path / "two.pth"]
    result = run("explain", folder, *MODEL, *MODEL[:2], *weights, *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert {name.rpartition("@")[2] for name in pd.read_csv(tmp_path / "run" / "scores.csv")["model"]} == {"one", "two"}
    assert run("explain", folder, *MODEL, *weights, *QUICK, "--out", tmp_path / "other").exit_code == 2


def test_bad_files_end_with_3_and_are_named_on_stderr(folder: Path, tmp_path: Path) -> None:
    bad = bad_files(folder)
    result = run("explain", folder, *MODEL, *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 3
    for name in bad:
        assert f"  {name}: " in result.stderr
    assert len(pd.read_csv(tmp_path / "run" / "scores.csv")) == 10 * 4 + len(bad)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--method", "gradcam"], 2, "Did you mean 'grad-cam'"),
        (["--metric", "averag-drop"], 2, "Did you mean 'average-drop'"),
        (["--metric", "insertion:protocol=risk"], 2, r"protocol=ca-stream\|rise\|gomez\|br-npa; got 'risk'"),
        (["--stage", "9"], 2, "Unknown stage '9'"),
        (["--target", "cat"], 2, "has no labels: pass labels, or an index"),
        (["--target", "label"], 2, "needs a label for every image"),
        (["--mean", "a,b,c"], 2, "give one number per channel"),
        (["--head", "br-npaa"], 2, "Unknown head"),
        (["--weights", "nowhere.pth"], 2, "there is no weights file 'nowhere.pth'"),
        (["--device", "gpu"], 2, "device 'gpu' cannot be used"),
        (["--mean", "128,128,128"], 2, "Divide values of 8-bit images by 255"),
        (["--metric", "insertion:blur=4"], 2, "odd, from 1 to 1001, or 0 for none; got 4"),
        (["--method", "captum:Saliencies"], 2, "Did you mean 'Saliency'"),
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line_with_its_exit_code(
    folder: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    result = run("explain", folder, *MODEL, *arguments, "--out", tmp_path / "run")
    assert result.exit_code == code, result.output
    assert re.search(message, result.stderr)
    assert "Traceback" not in result.output


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("explain", tmp_path / "empty", *MODEL, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "no images in" in result.stderr


def test_what_is_left_out_of_a_folder_is_told_once_and_one_thing_is_counted_as_one(folder: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(next(folder.glob("*.png")), one / "a.png")
    (one / "a.psd").write_bytes(b"x")
    result = run("explain", one, *MODEL, "--method", "centre", "--metric", "sparsity", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("1 file is left out, as it is no picture in a format that is read: 1 .psd (a.psd)") == 1
    assert "1 image × 1 method × 1 metric" in result.stderr
    for command in (["figure", tmp_path / "run", "--out", tmp_path / "f.png"], ["report", tmp_path / "run", "--out", tmp_path / "r.html"]):
        again = run(*command)
        assert again.exit_code == 0, again.output
        assert "left out" not in again.stderr


def test_a_folder_where_every_image_is_bad_is_told_and_ends_with_3(tmp_path: Path) -> None:
    bad_files(tmp_path)
    result = run("explain", tmp_path, *MODEL, *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 3
    assert "7 of 7 images failed" in result.stderr


def test_the_same_command_goes_on_and_another_is_refused(done: Path, folder: Path) -> None:
    assert run("explain", folder, *MODEL, *QUICK, "--out", done).exit_code == 0
    other = run("explain", folder, *MODEL, *QUICK, "--seed", "1", "--out", done)
    assert other.exit_code == 1
    assert "seed was 0, is 1" in other.stderr


@pytest.mark.parametrize(
    ("form", "start"),
    [("csv", "model,head,method,"), ("markdown", "| model"), ("latex", r"\begin{table}"), ("html", "<table>"), ("typst", "#figure(")],
)
def test_compare_prints_a_table(done: Path, form: str, start: str) -> None:
    result = run("compare", done, "--format", form, "--against", "centre")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(start)
    assert run("compare", done, "--against", "center").exit_code == 2


def test_compare_prints_what_may_be_concluded(done: Path) -> None:
    result = run("compare", done, "--tests", "--margin", "average-drop=3")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("### average-drop ↓ (%), ")
    assert "this speaks of that network only" in result.stdout
    assert "margin average-drop ±3" in result.stdout
    assert run("compare", done, "--tests", "--format", "csv").stdout.startswith("result,model,head,method,metric,n,")
    for arguments, said in (
        (["--margin", "average-drop=3"], "--margin is for tests"),
        (["--tests", "--margin", "3"], "as average-drop=2; got '3'"),
        (["--tests", "--margin", "average-dorp=3"], "Did you mean 'average-drop'?"),
        (["--tests", "--format", "latex"], "--tests prints all metrics as markdown or csv; --format latex"),
        (["--tests", "--digits", "2"], "--digits"),
    ):
        refused = run("compare", done, *arguments)
        assert refused.exit_code == 2, arguments
        assert said in refused.stderr


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
def test_figure_draws_the_chosen_images_and_methods(done: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"grid.{suffix}"
    result = run("figure", done, "--kind", "grid", "--out", out, "--image", "3.png", "--image", "below/8.png", "--method", "grad-cam")
    assert result.exit_code == 0, result.output
    assert out.stat().st_size > 1000
    if suffix == "pdf":
        assert b"/FontFile2" in out.read_bytes()  # TrueType, embedded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "33.png"], "Unknown image in these runs '33.png'"),
        (["--method", "grad-camm"], "Unknown method in these runs"),
        ([], "a figure ends in"),
    ],
)
def test_figure_says_what_it_cannot_draw(done: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run("figure", done, "--out", tmp_path / ("x.png" if arguments else "x.bmp"), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_figure_says_where_the_pictures_were(done: Path, folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "elsewhere")
    result = run("figure", done, "--out", tmp_path / "x.png")
    assert result.exit_code == 2
    assert "are no longer where the run found them" in result.stderr


def test_a_dry_run_counts_forwards_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    result = run("explain", folder, *MODEL, *QUICK, "--dry-run", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    found = re.search(r"(\d+) forwards for each image, (\d+) in all: about 0:00:0\d here", result.stdout)
    assert found is not None, result.stdout
    assert int(found[2]) == 10 * int(found[1]) > 0
    assert not (tmp_path / "run").exists()
    assert run("explain", folder, *MODEL, *QUICK, "--out", tmp_path / "run").exit_code == 0


@pytest.mark.parametrize("place", ["weights", "out", "images"])
def test_a_path_that_is_too_long_is_said_to_be(place: str, folder: Path, tmp_path: Path) -> None:
    long = "x" * 300
    arguments = [long if place == "images" else folder, *MODEL, *QUICK, "--out", long if place == "out" else tmp_path / "run"]
    result = run("explain", *arguments, *(["--weights", long] if place == "weights" else []))
    assert result.exit_code == 2
    assert "a path is longer than this system takes: 'xxx" in result.stderr


def test_help_is_grouped_and_names_every_option_once() -> None:
    shown = run("explain", "--help").stdout
    assert [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")] == [f"{group}:" for group in GROUPS]
    for param in explain.params:
        if isinstance(param, click.Option):
            assert len(re.findall(rf"^  (-\w, )?{param.opts[0]}\b(?!-)", shown, re.MULTILINE)) == 1, param.opts[0]


def test_show_says_what_is_in_a_folder(done: Path, folder: Path, tmp_path: Path) -> None:
    shown = run("show", done).stdout
    for text in ("state     finished", "methods   grad-cam", "target    predicted", f"from      {folder}", "command   xattn"):
        assert text in shown, text
    assert "failed" not in shown
    (tmp_path / "copy").mkdir()
    shutil.copytree(done, tmp_path / "copy" / "run")
    (tmp_path / "copy" / "run" / "table.csv").unlink()
    assert "the same command continues the run" in run("show", tmp_path / "copy" / "run").stdout
    about = json.loads((done / "run.json").read_text())
    added = {
        "began": "2030-01-01",
        "command": ["/bin/xattn", "explain", "--method", "hires-cam"],
        "methods": ["hires-cam"],
        "finished": False,
    }
    shutil.copytree(done, tmp_path / "more")
    (tmp_path / "more" / "run.json").write_text(json.dumps({**about, "added": [added]}))
    shown = run("show", tmp_path / "more").stdout
    assert "state     not all parts have hires-cam yet: the command below, which added them, continues the run" in shown
    assert "added     hires-cam, began 2030-01-01\n  command   xattn explain --method hires-cam\n" in shown
    assert run("show", folder).exit_code == 1


def test_the_names_of_another_library_are_kept_until_a_package_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = listing.listing("methods", "captum:")
    assert len(first) > 10
    monkeypatch.setattr(methods, "adapted_names", lambda libraries: {"captum:Other": ""})
    assert listing.listing("methods", "captum:") == first
    (tmp_path / "another-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert "captum:Other" in [entry["name"] for entry in listing.listing("methods", "captum:")]


def test_list_shows_every_registered_part_with_its_settings_and_cautions() -> None:
    shown = run("list", "methods").stdout
    for name in [*methods.entries, "captum:NAME", "grad-cam:NAME", "lxt:NAME"]:
        assert name in shown
    libraries = ("captum:", "grad-cam:*", "lxt:")
    of_others = [line.split()[0] for library in libraries for line in run("list", "methods", library).stdout.splitlines()]
    assert sorted(of_others) == sorted(methods.adapted_names())
    assert "captum:IntegratedGradients" in of_others
    assert "randomisation" in next(line for line in shown.splitlines() if line.startswith("guided-grad-cam "))
    entries = json.loads(run("list", "metrics", "--json").stdout)
    assert {entry["name"] for entry in entries} == set(metrics.entries)
    assert next(entry for entry in entries if entry["name"] == "insertion")["settings"]["protocol"] == "ca-stream"
    assert {line.split()[0] for line in run("list", "protocols").stdout.splitlines()} == set(PROTOCOLS)
    assert [line.split()[0] for line in run("list", "heads").stdout.splitlines()] == sorted(heads.entries)
    assert "torchvision:resnet50" in run("list", "models").stdout.split()


def test_list_takes_a_part_of_a_name_or_a_glob() -> None:
    def names(*arguments: str) -> list[str]:
        return [line.split()[0] for line in run("list", *arguments).stdout.splitlines()]

    assert names("heads", "NPA") == ["br-npa"]
    assert names("metrics", "*correlation") == ["deletion-correlation", "insertion-correlation"]
    assert {"birds:vit", "torchvision:vit_b_16"} <= set(names("models", "*vit*")) < set(names("models"))
    nothing = run("list", "metrics", "precision")
    assert (nothing.exit_code, nothing.stdout) == (2, "")
    assert "none of the metrics matches 'precision'" in nothing.stderr


def test_masks_are_saved_when_asked_for(folder: Path, tmp_path: Path) -> None:
    assert run("explain", folder, *MODEL, *QUICK, "--save-maps", "--out", tmp_path / "run").exit_code == 0
    assert len(list((tmp_path / "run" / "maps").rglob("*.png"))) == 20


def test_the_demo_leaves_pictures_scores_a_table_and_two_figures_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = run("demo", "--out", out, "--birds", 1)
    assert result.exit_code == 0, result.output
    for made in ("birds-1/labels.csv", "run-1/scores.csv", "run-1/table.csv", "grid.png", "parts.png"):
        assert (out / made).stat().st_size > 0
    assert "birds:br-npa-high-res" in result.stdout
    assert f"xattn explain {out}/birds-1 --labels-csv" in result.stderr
    assert "For your own network and pictures" in result.stderr


def test_what_the_demo_prints_is_the_command_that_does_it(tmp_path: Path) -> None:
    result = run("demo", "--out", tmp_path / "demo", "--birds", 1)
    command = next(line.split() for line in result.stderr.splitlines() if line.startswith("  xattn explain"))
    again = run(*command[1:])
    assert again.exit_code == 0, again.output  # the same settings: it finds all done


def test_figure_draws_ranked_maps(tmp_path: Path) -> None:
    from xattn.birds import SketchBirds

    pictures = SketchBirds("test", 1).export(tmp_path / "birds")
    arguments = ["--model", "birds:b-cnn", "--method", "grad-cam", "--metric", "sparsity", "--out", tmp_path / "run", "--workers", 0]
    assert run("explain", pictures, *arguments).exit_code == 0
    result = run("figure", tmp_path / "run", "--kind", "parts", "--out", tmp_path / "parts.svg")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "parts.svg").stat().st_size > 0


def test_classes_by_text_and_their_templates_reach_the_loader(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import xattn.models

    class Reached(Exception):
        pass

    def load(model: str, **options: object) -> None:
        raise Reached(model, options["classes"], options["templates"])

    monkeypatch.setattr(xattn.models, "load", load)
    (tmp_path / "prompts.txt").write_text("cat\na dog\n")
    given = ("--classes", tmp_path / "prompts.txt", "--template", "a photo of {}.", "--template", "{}")
    result = run("explain", folder, "--model", "open_clip:RN50", *given, "--out", tmp_path / "run")
    assert isinstance(result.exception, Reached)
    assert result.exception.args == ("open_clip:RN50", str(tmp_path / "prompts.txt"), ("a photo of {}.", "{}"))


PATHS = [
    pytest.param(command, parameter, id=f"{name} {parameter.opts[0]}")
    for name, command in main.commands.items()
    for parameter in command.params
    if isinstance(parameter.type, click.Path)
]


@pytest.mark.parametrize(("command", "parameter"), PATHS)
def test_a_path_with_a_null_byte_is_refused_by_every_command(command: click.Command, parameter: click.Parameter) -> None:
    assert isinstance(parameter.type, LocalPath)
    with pytest.raises(click.BadParameter, match="a path must not contain null bytes"):
        parameter.type.convert("a\0b", parameter, click.Context(command))
