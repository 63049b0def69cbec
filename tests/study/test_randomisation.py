"""The test of parameter randomisation: what is drawn, what is compared, and that a user's network stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

import xattn
from tests import networks
from tests.explainers.test_contract import same, state
from xattn.cli import main
from xattn.errors import InputError, NameUnknownError, UnsupportedError
from xattn.figures.randomised import maps_figure, similarity_figure
from xattn.metrics.similarity import spearman
from xattn.models import Classifier
from xattn.models.randomised import copied, layers_of, redraw
from xattn.study.randomisation import OTHER, Randomisation, randomise


@pytest.fixture
def found(tiny: Classifier, images: Tensor) -> Randomisation:
    return randomise(tiny, images, ["grad-cam", "edges"], orders=["cascading", "independent"], progress=False)


def test_layers_are_those_with_parameters_in_the_order_of_the_forward() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(6, 5), nn.Conv2d(3, 6, 3)  # the order in which they are made is not that of the forward
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.scale = nn.BatchNorm2d(6)  # as made: ones and zeros, which stay what they are

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.scale(self.first(x)).relu().flatten(2).mT
            return self.last((tokens + self.attention(tokens, tokens, tokens)[0]).mean(dim=1))

    classifier = xattn.attach(networks.seeded(Reversed), input_size=12, resize=12)
    classifier.network.scale.running_mean.zero_()
    layers = layers_of(copied(classifier))
    assert [layer.name for layer in layers] == ["first", "attention", "last"]
    assert set(layers[1].parameters) == {"network.attention.in_proj_weight", "network.attention.out_proj.weight"}
    assert [layer.name for layer in layers_of(copied(classifier), 2)] == ["first", "attention … last"]


def test_a_tensor_is_drawn_with_its_own_mean_and_deviation_whatever_was_drawn_before(tiny: Classifier) -> None:
    alone, after = copied(tiny), copied(tiny)
    layers = layers_of(alone)
    for layer in (layers[2], layers[0]):
        redraw(after, layer, 3)
    redraw(alone, layers[0], 3)
    (name, *_) = layers[0].parameters
    before, drawn, again = (dict(of.named_parameters())[name].detach().double() for of in (tiny, alone, after))
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, before)
    error = before.std() / before.numel() ** 0.5
    assert abs(float(drawn.mean() - before.mean())) < 4 * float(error)
    assert float(drawn.std() / before.std()) == pytest.approx(1, abs=0.25)
    redraw(after, layers[0], 4)
    assert not torch.equal(dict(after.named_parameters())[name].detach().double(), drawn)


def test_the_first_step_of_a_cascade_is_that_layer_alone_and_each_step_is_written_out(found: Randomisation, tiny: Classifier) -> None:
    network, layers = copied(tiny), layers_of(copied(tiny))[::-1]
    images = networks.pictures(7)
    maps = xattn.explain(tiny, images, ["grad-cam"])
    rows = found.rows[(found.rows["method"] == "grad-cam") & (found.rows["metric"] == "spearman")]
    for step, layer in enumerate(layers, 1):
        redraw(network, layer)
        again = xattn.explain(network, images, ["grad-cam"], target=maps.target)
        expected = spearman(maps.raw["grad-cam"], again.raw["grad-cam"])
        here = torch.tensor(rows[(rows["order"] == "cascading") & (rows["step"] == step)]["value"].to_list(), dtype=torch.float64)
        assert torch.allclose(here, expected, atol=1e-9, equal_nan=True)
        alone = copied(tiny)
        redraw(alone, layer)
        expected = spearman(maps.raw["grad-cam"], xattn.explain(alone, images, ["grad-cam"], target=maps.target).raw["grad-cam"])
        here = torch.tensor(rows[(rows["order"] == "independent") & (rows["step"] == step)]["value"].to_list(), dtype=torch.float64)
        assert torch.allclose(here, expected, atol=1e-9, equal_nan=True)
    assert tuple(layer.name for layer in layers) == found.layers


def test_a_map_that_ignores_the_network_fails_and_is_as_alike_at_the_end(found: Randomisation) -> None:
    verdicts = found.verdicts().set_index("method")
    edges = verdicts.loc["edges"]
    assert edges["verdict"] == "fails"
    assert [edges[name] for name in ("spearman", "ssim at the end", "pearson")] == pytest.approx([1, 1, 1])
    assert edges["entropy-rise"] == 0
    assert abs(edges["spearman of another picture"]) < 0.5
    assert verdicts.loc["grad-cam", "spearman"] < 1
    assert "| edges" in found.text()


def test_pictures_are_compared_with_the_next_one_by_the_trained_network(found: Randomisation, tiny: Classifier) -> None:
    raw = xattn.explain(tiny, networks.pictures(7), ["edges"]).raw["edges"]
    rows = found.rows[(found.rows["order"] == OTHER) & (found.rows["method"] == "edges") & (found.rows["metric"] == "spearman")]
    assert rows["value"].to_list() == pytest.approx(spearman(raw, raw[[1, 2, 3, 4, 5, 6, 0]]).tolist(), abs=1e-12)


def test_values_are_the_same_in_batches_of_1_and_7_also_over_noisy_copies(images: Tensor) -> None:
    classifier = xattn.attach(networks.precise(), input_size=32, resize=36)
    for samples in (0, 2):
        one, seven = (
            randomise(classifier, images.double(), ["grad-cam", "random"], steps=2, samples=samples, batch_size=size, progress=False)
            for size in (1, 7)
        )
        columns = ["image", "method", "step", "metric"]
        assert one.rows[columns].equals(seven.rows[columns])
        assert one.rows["value"].to_list() == pytest.approx(seven.rows["value"].to_list(), abs=1e-6, nan_ok=True)


def test_the_users_network_stays_bit_for_bit_as_it_was_also_when_a_method_fails_in_between(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = networks.small()
    network[2].train()
    network[0].weight.grad = torch.full_like(network[0].weight, 7.0)
    classifier = xattn.attach(network, input_size=32, resize=36)
    before, digest = state(classifier), classifier.digest()
    randomise(classifier, images[:2], ["grad-cam"], steps=2, progress=False)
    assert all(same(value, state(classifier)[key]) for key, value in before.items())

    def broken(*_arguments: object) -> None:
        raise RuntimeError("broken in between")

    monkeypatch.setattr("xattn.study.randomisation.spearman", broken)
    with pytest.raises(RuntimeError, match="broken in between"):
        randomise(classifier, images[:2], ["grad-cam"], steps=2, progress=False)
    assert all(same(value, state(classifier)[key]) for key, value in before.items())
    assert classifier.digest() == digest


def test_what_cannot_be_tested_says_why(tiny: Classifier, images: Tensor) -> None:
    with pytest.raises(NameUnknownError, match="Unknown order of layers 'cascade'. Did you mean 'cascading'"):
        randomise(tiny, images, ["edges"], orders=["cascade"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="got steps=0, samples=0"):
        randomise(tiny, images, ["edges"], steps=0)
    with pytest.raises(InputError, match="between 0 and 1; got 1"):
        randomise(tiny, images, ["edges"], threshold=1)

    class Uncopied(nn.Sequential):
        def __deepcopy__(self, memo: object) -> None:
            raise TypeError("it holds a socket")

    classifier = xattn.attach(Uncopied(*networks.small()), input_size=32, resize=36)
    with pytest.raises(UnsupportedError, match="cannot be copied.*it holds a socket"):
        randomise(classifier, images, ["edges"], progress=False)


def test_a_single_picture_has_no_other_and_a_blank_map_no_similarity(tiny: Classifier, images: Tensor) -> None:
    found = randomise(tiny, images[:1], ["uniform", "edges"], steps=1, progress=False)
    assert OTHER not in set(found.rows["order"])
    lines = found.verdicts().set_index("method")
    assert lines.loc["uniform", "verdict"] == lines.loc["edges", "verdict"] == "undecided"
    assert lines.loc["uniform", "without contrast"] == 1
    assert "uniform, n = 0: 100% of its maps show nothing" in found.text()


def test_the_command_writes_rows_verdicts_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, picture in enumerate(networks.pictures(2, size=40)):
        Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy()).save(tmp_path / f"{number}.png")
    monkeypatch.chdir(Path(__file__).parents[2])
    arguments = ["randomise", str(tmp_path / "*.png"), "--model", "tests/networks.py:small", "--input-size", "32", "--resize", "36"]
    arguments += ["--method", "grad-cam", "--method", "edges", "--steps", "2", "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "| edges    | undecided |" in done.output or "| edges    | fails" in done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scores.csv", "verdicts.csv", "similarity.png", "maps.png"}
    wrong = CliRunner().invoke(main, [*arguments[:-4], "--out", str(tmp_path / "out"), "--method", "gradcam"])
    assert wrong.exit_code == 2


def test_figures_draw_a_line_per_method_and_a_column_per_step(found: Randomisation) -> None:
    figure = similarity_figure(found)
    axes = figure.get_axes()
    assert len(axes) == 6  # three similarities, two orders
    assert [len(axis.lines) for axis in axes] == [4] * 6  # a line and a dotted one for each of two methods
    texts = {text.get_text() for text in maps_figure(found)[0].findobj(lambda artist: hasattr(artist, "get_text"))}
    assert {"input", "trained", "grad-cam", "edges"} <= texts
