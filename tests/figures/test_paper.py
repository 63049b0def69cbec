"""Figures are as wide as was asked, with text that can be read at that width, and say each thing once."""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import xattn
from tests import networks
from xattn.cli import main
from xattn.errors import InputError, NameUnknownError
from xattn.figures import FigureStyle, figure, kinds, pages, save
from xattn.figures.canvas import caption, common_limits, shown_map
from xattn.figures.columns import columns_once
from xattn.figures.matrix import Item, Lane, Panel, matrix
from xattn.figures.sheet import fitted, text_width, wrapped
from xattn.figures.style import MM
from xattn.study.schema import StoredMap

METHODS = ["grad-cam", "activation-map", "random", "centre"]
KINDS = [name for name in kinds.entries if name not in ("pairs", "parts", "steps")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks, four methods, eleven pictures, one of them named in a way that is no formula."""
    home = tmp_path_factory.mktemp("paper")
    (home / "photos").mkdir()
    for number, picture in enumerate(networks.pictures(11, size=40)):
        Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy()).save(home / "photos" / f"{number:02d} $x_1$.png")
    labels = [f"class {k}" for k in range(5)]
    classifiers = [
        xattn.attach(networks.seeded(networks.small, seed), input_size=32, resize=36, name=f"net:{name}", labels=labels)
        for seed, name in enumerate(("one", "two"))
    ]
    metrics = ["average-drop", "insertion", "deletion", "sparsity"]
    xattn.Study(classifiers, METHODS, metrics, home / "photos", home / "run", workers=0, progress=False).run()
    return home / "run"


def pictures(drawn: list[Figure]) -> int:
    return sum(len(page.axes[0].get_images()) for page in drawn)


def texts(page: Figure) -> list[Text]:
    return [text for text in page.findobj(Text) if text.get_text().strip()]


@pytest.mark.parametrize(("width", "transpose"), [("column", False), ("column", True), ("page", True), (120, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_is_at_most_as_wide_as_asked_and_all_its_text_is_on_it_in_6_to_8_points(
    kind: str, width: str | float, transpose: bool, run: Path
) -> None:
    check_width_and_text(run, kind, FigureStyle(width, title="A title", transpose=transpose))


def check_width_and_text(run: Path, kind: str, style: FigureStyle) -> None:
    for page in pages([run], kind, style=style):
        across, down = (side * MM for side in page.get_size_inches())
        assert across <= style.millimetres + 1e-6
        assert down < 240
        canvas = FigureCanvasAgg(page)
        with matplotlib.rc_context(style.rc()):
            canvas.draw()
            drawn = page.get_tightbbox(canvas.get_renderer())  # type: ignore[no-untyped-call]
        shown = texts(page)
        sizes = {text.get_fontsize() for text in shown}
        assert min(sizes) >= 6
        assert max(sizes) <= 8
        assert "A title" in {text.get_text() for text in shown}
        assert min(drawn.x0, drawn.y0) > -0.01
        assert drawn.x1 * MM < across + 0.3
        assert drawn.y1 * MM < down + 0.3


@pytest.mark.parametrize(("kind", "ending"), [("grid", "pdf"), ("grid", "svg"), ("curves", "pdf"), ("curves", "svg"), ("ranks", "png")])
def test_the_same_data_give_the_same_bytes(kind: str, ending: str, run: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.{ending}" for number in range(2)]
    for file in files:
        given = figure([run], file, kind, dpi=72, **({"count": 2} if kind == "grid" else {"metrics": ["insertion"]}))
        assert isinstance(given, Figure)
    assert files[0].read_bytes() == files[1].read_bytes()
    if ending == "pdf":
        assert b"/FontFile2" in files[0].read_bytes()  # TrueType, embedded
        assert b"/Type3" not in files[0].read_bytes()


def test_the_size_of_a_file_is_that_of_the_figure(run: Path, tmp_path: Path) -> None:
    save(pages([run], "curves", style=FigureStyle("column")), tmp_path / "x.png", dpi=100)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width == 350
    figure([run], tmp_path / "x.pdf", "heat", style=FigureStyle("column"))
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", (tmp_path / "x.pdf").read_bytes())
    assert box is not None
    assert float(box[1]) <= 252 + 1e-6  # points of a column


def test_controls_are_drawn_once_and_each_network_says_what_it_predicts(run: Path) -> None:
    page = pages([run], count=1)[0]
    shown = [text.get_text() for text in texts(page)]
    assert [shown.count(name) for name in ("random", "centre", "grad-cam", "one", "two", "controls")] == [1, 1, 2, 1, 1, 1]
    assert pictures([page]) == 1 + 2 * 2 + 2 + 1  # input, methods of both, controls, colour bar
    answers = [text for text in shown if text.startswith("predicted: class")]
    assert len(answers) == 2
    assert all(re.search("p\u00a0[=<>]\u00a0[01]\\.\\d\\d", text) for text in answers)


def test_columns_keep_classifiers_together_and_controls_last() -> None:
    columns = [("a", "gap", "random"), ("a", "gap", "grad-cam"), ("b", "gap", "random"), ("b", "gap", "grad-cam")]
    assert columns_once(columns) == [("a", "gap", "grad-cam"), ("b", "gap", "grad-cam"), ("a", "gap", "random")]


def test_many_pictures_make_pages_that_hold_each_of_them_once(run: Path, tmp_path: Path) -> None:
    drawn = pages([run], count=11, methods=["grad-cam", "random"])
    assert len(drawn) == 2
    assert pictures(drawn) == 11 * (1 + 2 + 1) + 2
    assert save(drawn, tmp_path / "x.svg") == [tmp_path / "x.svg", tmp_path / "x-2.svg"]
    assert save(drawn, tmp_path / "x.pdf") == [tmp_path / "x.pdf"]
    assert len(re.findall(rb"/Type /Page\b", (tmp_path / "x.pdf").read_bytes())) == 2
    turned = pages([run], count=11, style=FigureStyle("column", transpose=True))
    assert pictures(turned) == 11 * (1 + 2 * 2 + 2) + len(turned)


def test_captions_say_what_is_explained_and_what_is_predicted() -> None:
    about = {"target": "1", "predicted": 1, "probability": 0.831, "label": None}
    names = ["cat", "dog", "bird"]
    said = [caption(found, names).replace("\u00a0", " ") for found in (about, {**about, "predicted": 2}, {**about, "probability": 0.001})]
    assert said == ["predicted: dog, p = 0.83", "dog, p = 0.83 (predicted: bird)", "predicted: dog, p < 0.01"]
    assert caption({**about, "target": "1 - 0.6*2", "probability": None}, names) == "1 - 0.6*2"


def test_on_a_common_scale_maps_of_one_column_can_be_compared() -> None:
    crop = np.zeros((3, 2, 2), dtype=np.uint8)
    weak, strong = (StoredMap(top * np.array([[0, 1], [0, 0]], dtype=np.float32), {}) for top in (1.0, 4.0))
    each = [shown_map(crop, stored, "grad-cam", smooth=False, colours="gray")[0, 1, 0] for stored in (weak, strong)]
    assert each[0] == each[1]
    limits = common_limits([weak, strong])
    assert limits == (0, 4)
    common = [shown_map(crop, stored, "grad-cam", smooth=False, limits=limits, colours="gray")[0, 1, 0] for stored in (weak, strong)]
    assert float(common[0]) == pytest.approx(0.6 * 0.25, abs=0.01)
    assert float(common[1]) == pytest.approx(0.6)


def test_text_is_broken_where_words_end_and_fits() -> None:
    lines = wrapped("predicted: Egyptian_cat, p\u00a0=\u00a00.83", 16, 6)
    assert lines == ["predicted:", "Egyptian_cat,", "p\u00a0=\u00a00.83"]
    assert all(text_width(line, 6) <= 16 for line in wrapped("a" * 90 + " integrated-gradients", 16, 6))
    assert fitted("squeezenet1_0", 20.2, 7, bold=True) == (["squeezenet1_0"], 6.5)


def test_headings_and_titles_of_narrow_cells_are_not_broken_within_a_word() -> None:
    methods = ("grad-cam", "raw-attention", "attention-rollout") * 2
    lanes = [Lane("", "input"), *(Lane("net", method) for method in methods), Lane("last", "random")]
    items = [Item([Panel(np.random.default_rng(0).random((4, 4, 3)))] * len(lanes), {})]
    style = FigureStyle("column")
    (page,) = matrix(lanes, items, {"net": "birds:b-cnn", "last": "controls"}, [], style)
    assert {"controls", "attention-rollout"} <= {text.get_text() for text in texts(page)}
    canvas = FigureCanvasAgg(page)
    with matplotlib.rc_context(style.rc()):
        canvas.draw()
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts(page)]
    width, height = page.get_window_extent().size
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])


@pytest.mark.parametrize("kind", ["grid", "curves"])
def test_a_notebook_shows_a_figure_by_itself_without_pyplot(kind: str, run: Path) -> None:
    drawn = figure([run], kind=kind, style=FigureStyle("column"))
    width, height = (side * 120 for side in drawn.get_size_inches())
    shown = Image.open(io.BytesIO(drawn._repr_png_()))  # type: ignore[attr-defined]
    assert shown.size == (int(width), int(height))
    assert len(shown.convert("L").getcolors() or ()) > 2


def test_what_cannot_be_drawn_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    for width in ("wide", "10", 1e9, float("nan")):
        with pytest.raises(InputError, match="'column', 'page' or millimetres from 30 to 1000"):
            FigureStyle(width)
    with pytest.raises(NameUnknownError, match="font on this machine 'DejaVu Sanz'. Did you mean 'DejaVu Sans'"):
        FigureStyle(font="DejaVu Sanz")
    with pytest.raises(NameUnknownError, match="scale 'both'"):
        FigureStyle(scale="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not both"):
        pages([run], images=["x"], count=2)
    with pytest.raises(InputError, match="shows maps, not metrics"):
        pages([run], metrics=["insertion"])
    with pytest.raises(NameUnknownError, match="metric in these runs 'insertoin'. Did you mean 'insertion'"):
        pages([run], "heat", metrics=["insertoin"])
    with pytest.raises(InputError, match="these runs have no curves"):
        pages([run], "curves", metrics=["sparsity"])
    with pytest.raises(InputError, match="a scatter plot needs two metrics, but the rows have sparsity"):
        pages([run], "scatter", metrics=["sparsity"])
    with pytest.raises(InputError, match="at least two methods"):
        pages([run], "ranks", methods=["grad-cam"])


def test_the_command_takes_every_option_and_prints_the_files(run: Path, tmp_path: Path) -> None:
    look = ["--width", "column", "--font", "serif", "--cmap", "viridis", "--scale", "common", "--transpose", "--title", "T", "--dpi", "72"]
    for kind in ("grid", "scatter:each=image", "ranks:test=wilcoxon"):
        out = tmp_path / f"{kind.partition(':')[0]}.png"
        result = CliRunner().invoke(main, ["figure", str(run), "--kind", kind, "--out", str(out), "--count", "9", *look])
        assert result.exit_code == 0, result.output
        assert out.stat().st_size > 1000
        assert str(out) in result.stdout
    wrong = CliRunner().invoke(main, ["figure", str(run), "--out", str(tmp_path / "x.png"), "--width", "wide"])
    assert (wrong.exit_code, "a width is 'column', 'page' or millimetres" in wrong.output) == (2, True)
