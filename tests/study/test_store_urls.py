"""Runs and pictures at URLs, with fsspec's store in memory for an object store."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem

import xattn
from tests import networks
from xattn.cli import main
from xattn.data.images import ImageSource, read_picture
from xattn.errors import ImageError, InputError, RunError
from xattn.models import Classifier
from xattn.study import Store
from xattn.study.compare import compare_runs


@pytest.fixture
def memory(folder: Path) -> Iterator[MemoryFileSystem]:
    """A store that holds the folder as memory://photos."""
    files = fsspec.filesystem("memory")
    files.put(str(folder), "/photos", recursive=True)
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def study(classifier: Classifier, images: object, out: object, **settings: object) -> xattn.Study:
    given = {"images": images, "out": out, "batch_size": 3, "workers": 0, "progress": False, **settings}
    return xattn.Study([classifier], ["grad-cam", "random"], ["average-drop", "deletion"], **given)  # type: ignore[arg-type]  # by name


@pytest.mark.usefixtures("memory")
def test_a_run_at_a_url_of_pictures_at_a_url_has_the_rows_of_a_local_one(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study(tiny, folder, tmp_path / "run").run()
    plan = study(tiny, "memory://photos", "memory://runs/a/")
    assert plan.run().failed == []
    store = Store("memory://runs/a")
    assert store.files.read("scores.csv") == (tmp_path / "run" / "scores.csv").read_bytes()
    assert store.files.read("table.csv") == (tmp_path / "run" / "table.csv").read_bytes()
    pd.testing.assert_frame_equal(plan.table(), pd.read_csv(tmp_path / "run" / "table.csv"))
    assert json.loads(store.files.read("run.json"))["settings"]["images"]["origin"] == ["memory://photos"]
    there, here = store.maps(["3.png"]), Store(tmp_path / "run").maps(["3.png"])
    assert there.keys() == here.keys()
    assert all((there[key].raw == here[key].raw).all() for key in here)
    both = compare_runs(["memory://runs/a", tmp_path / "run"])
    assert both.text("markdown") == compare_runs([tmp_path / "run"]).text("markdown")


def test_a_run_at_a_url_goes_on_and_is_refused_with_other_settings(tiny: Classifier, memory: MemoryFileSystem) -> None:
    study(tiny, "memory://photos", "memory://run").run()
    whole = memory.cat_file("/run/scores.csv")
    made = memory.modified("/run/parts/00-000000.parquet")
    for name in ("scores.csv", "table.csv", "parts/00-000002.parquet"):
        memory.rm_file(f"/run/{name}")
    assert "its part of the table is over the images done so far" in compare_runs(["memory://run"]).text("markdown")
    study(tiny, "memory://photos", "memory://run").run()
    assert memory.cat_file("/run/scores.csv") == whole
    assert memory.modified("/run/parts/00-000000.parquet") == made
    with pytest.raises(RunError, match="'memory://run' holds a run with other settings.*seed was 0, is 1"):
        study(tiny, "memory://photos", "memory://run", seed=1).run()


def test_a_place_at_a_url_that_is_no_run_or_damaged_or_full_says_so(
    tiny: Classifier, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=r"'memory://photos' is not empty and holds no run\.json"):
        study(tiny, "memory://photos", "memory://photos").run()
    with pytest.raises(RunError, match="'memory://nothing' is not a run"):
        compare_runs(["memory://nothing"])
    store = Store("memory://run")
    for name in (Path("../outside.txt"), Path("/outside.txt")):
        with pytest.raises(RunError, match="lies outside the run folder"), store.whole(name) as path:
            path.write_text("x")

    def full(self: object, file: str, path: str, **settings: object) -> None:
        raise OSError(errno.ENOSPC, "quota exceeded")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "put_file", full)
        with pytest.raises(RunError, match=r"'memory://run/run\.json' could not be written .quota exceeded"):
            study(tiny, "memory://photos", "memory://run").run()
    study(tiny, "memory://photos", "memory://run").run()
    memory.pipe_file("/run/parts/00-000001.parquet", b"PAR1 nonsense")
    with pytest.raises(RunError, match="'memory://run/parts/00-000001.parquet' is damaged.*Delete it and run the same command"):
        study(tiny, "memory://photos", "memory://run").run()


def test_pictures_at_urls_are_named_as_those_of_folders_globs_and_tables_are(
    memory: MemoryFileSystem, folder: Path, tmp_path: Path
) -> None:
    memory.pipe_file("/photos/.hidden.png", b"x")
    memory.pipe_file("/photos/notes.txt", b"x")

    def names(images: object, **more: object) -> list[str]:
        return [image.name for image in ImageSource(images, **more).images]  # type: ignore[arg-type]  # of any kind

    assert names("memory://photos/") == names(folder)
    assert names("memory://photos/*.png") == names(str(folder / "*.png"))
    assert names("memory://photos/**/*.png") == names(str(folder / "**" / "*.png"))
    assert names("memory://photos/3.png") == ["3.png"]
    assert names(["memory://photos/3.png", "memory://photos/below"]) == ["3.png", "8.png", "9.png"]
    assert names(["memory://photos", str(folder / "3.png")])[-1].endswith("photos/3.png")
    assert names(f"file://{folder}") == names(folder)
    memory.pipe_file("/photos/labels.csv", b"image,label\n3.png,1\nbelow/8.png,2\n")
    listed = ImageSource("memory://photos/labels.csv").images
    assert [(image.name, image.label) for image in listed] == [("3.png", "1"), ("below/8.png", "2")]
    labelled = ImageSource(["memory://photos/3.png"], labels_csv="memory://photos/labels.csv")
    assert labelled.images[0].label == "1"
    for nothing in ("memory://nowhere", "memory://photos/*.gif"):
        with pytest.raises(InputError, match=f"'{nothing.replace('*', '.')}' is not a file, not a folder, and not a pattern"):
            ImageSource(nothing)


def test_pictures_that_changed_at_a_url_are_another_source(memory: MemoryFileSystem) -> None:
    before = ImageSource("memory://photos").digest()
    assert ImageSource("memory://photos").digest() == before
    memory.pipe_file("/photos/3.png", memory.cat_file("/photos/3.png") + b"x")
    assert ImageSource("memory://photos").digest() != before


def test_a_bad_picture_at_a_url_is_its_error_and_a_store_that_does_not_answer_stops_the_run(
    tiny: Classifier, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe_file("/photos/1.png", b"")
    memory.pipe_file("/photos/2.png", b"no picture")
    failed = study(tiny, "memory://photos", "memory://run").run().failed
    assert failed == [("1.png", "empty file (0 bytes)"), ("2.png", "not a picture in a known format")]
    with pytest.raises(ImageError, match="not there"):
        read_picture("memory://photos/none.png")

    def unanswered(self: object, path: str, **settings: object) -> bytes:
        raise ConnectionError("timed out") if path.endswith("5.png") else FileNotFoundError(path)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", unanswered)
    with pytest.raises(RunError, match="'memory://photos/5.png' could not be read .timed out.*the same command to continue"):
        read_picture("memory://photos/5.png")


def test_a_url_that_nothing_installed_reaches_says_what_to_install(tiny: Classifier) -> None:
    with pytest.raises(InputError, match="'nowhere://x' cannot be reached: Protocol not known: nowhere.*s3fs for s3://"):
        ImageSource("nowhere://x")


def test_commands_take_urls(memory: MemoryFileSystem, tmp_path: Path) -> None:
    memory.pipe_file("/labels.csv", b"image,label\n3.png,1\n4.png,2\n")
    model = f"--model {networks.__file__}:small --input-size 32 --resize 36 --workers 0 --device cpu --method grad-cam --metric sparsity"
    given = f"explain memory://photos/3.png memory://photos/4.png {model} --labels-csv memory://labels.csv --out memory://run"
    result = CliRunner().invoke(main, given.split())
    assert result.exit_code == 0, result.output
    assert "figure: memory://run/figures/grid.png" in result.stderr
    assert memory.cat_file("/run/figures/grid.png").startswith(b"\x89PNG")
    shown = CliRunner().invoke(main, ["compare", "memory://run"])
    assert "grad-cam" in shown.stdout, shown.output
    drawn = CliRunner().invoke(main, ["figure", "memory://run", "--out", str(tmp_path / "grid.png")])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "grid.png").stat().st_size > 0
