"""DG-Net's identity branch against its parts written out, and how one with several vectors starts from one with a single vector."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import xattn
from tests import networks
from xattn.birds import export_individuals
from xattn.errors import InputError, SettingError, WeightsError
from xattn.heads import BCNN, BCNNHead, DGNet, DGNetHead, representatives
from xattn.heads.dg_net import Block
from xattn.models import Classifier
from xattn.tasks import score
from xattn.training import Recipe, fit
from xattn.training.module import freeze

POOLINGS = ("max", "br-npa", "b-cnn")


def head_of(pooling: str, **settings: float) -> DGNetHead:
    """In float64, with statistics and scales of batch normalisation that are not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        head = DGNetHead(6, 4, DGNet(pooling, width=5, **settings)).double().eval()  # type: ignore[arg-type]
        for block in (head.first, head.second):
            block.norm.running_mean.uniform_(-0.5, 0.5)
            block.norm.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(block.norm.weight, 0.5, 1.5)
            torch.nn.init.uniform_(block.norm.bias, -0.5, 0.5)
            torch.nn.init.normal_(block.classifier.weight)
    return head


def features_of(seed: int = 0, batch: int = 3) -> Tensor:
    return torch.randn(batch, 6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).relu()


def block_written_out(block: Block, pooled: list[float]) -> tuple[list[float], list[float]]:
    """The vector and the logits of one picture in eval mode, sum by sum."""
    norm, vector = block.norm, []
    for k in range(block.linear.out_features):
        value = sum(w * x for w, x in zip(block.linear.weight[k].tolist(), pooled, strict=True)) + block.linear.bias[k].item()
        centred = (value - norm.running_mean[k].item()) / math.sqrt(norm.running_var[k].item() + norm.eps)
        vector.append(centred * norm.weight[k].item() + norm.bias[k].item())
    rows = zip(block.classifier.weight.tolist(), block.classifier.bias.tolist(), strict=True)
    return vector, [sum(w * v for w, v in zip(row, vector, strict=True)) + bias for row, bias in rows]


def pooled_written_out(head: DGNetHead, features: Tensor) -> Tensor:
    if head.settings.pooling == "max":
        return torch.tensor([[max(channel.flatten().tolist()) for channel in one] for one in features], dtype=torch.float64)
    if head.settings.pooling == "br-npa":
        return representatives(features, head.settings.n)[0].flatten(1)
    other = BCNNHead(6, 4, BCNN(head.settings.n)).double().eval()
    other.load_state_dict(
        {key.removeprefix("pool."): value for key, value in head.state_dict().items() if key.startswith("pool.")}, strict=False
    )
    maps = other.attend(features, "s").attention["s"]
    return torch.stack([(features * maps[:, k, None]).mean(dim=(2, 3)) for k in range(head.settings.n)], dim=1).flatten(1)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_logits_vectors_and_loss_are_the_blocks_written_out(pooling: str) -> None:
    head, features, labels = head_of(pooling, loss=0.3, second=0.7), features_of(), torch.tensor([1, 0, 3])
    found = [
        tuple(block_written_out(block, pooled) for block in (head.first, head.second))
        for pooled in pooled_written_out(head, features).tolist()
    ]
    attended = head.start(3, labels)
    head.read(attended, "s", features)
    expected = torch.tensor([first[1] for first, _ in found], dtype=torch.float64)
    torch.testing.assert_close(attended.output, expected)
    of_second = torch.tensor([second[1] for _, second in found], dtype=torch.float64)
    torch.testing.assert_close(attended.penalty, 0.3 * cross_entropy(of_second, labels))
    assert head.attend(features).penalty is None
    head.gives_vectors = True
    vectors = head.attend(features).output.detach()
    assert vectors.shape == (3, head.vector_length)
    cosines = torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0)
    by_block = [torch.nn.functional.cosine_similarity(*torch.tensor([found[i][b][0] for i in (0, 1)]), dim=0) for b in (0, 1)]
    assert float(cosines) == pytest.approx(float(by_block[0] + 0.7 * by_block[1]) / 1.7)


def test_the_map_of_max_pooling_is_the_share_of_channels_whose_maximum_is_there() -> None:
    features = torch.zeros(1, 4, 2, 2)
    features[0, 0, 0, 1] = features[0, 1, 0, 1] = 1.0
    features[0, 2, 1, 0] = features[0, 2, 1, 1] = 2.0  # a tie counts half at each; the last channel, all 0, a quarter everywhere
    maps = DGNetHead(4, 3, DGNet(width=2)).eval().attend(features, "s").attention["s"]
    torch.testing.assert_close(maps[0, 0], torch.tensor([[0.25, 2.25], [0.75, 0.75]]) / 4)


def test_layers_on_one_vector_start_layers_on_several_as_their_mean() -> None:
    one, features = head_of("max"), features_of(1)
    for pooling in ("br-npa", "b-cnn"):
        several = head_of(pooling)
        own = {key: value.clone() for key, value in several.pool.state_dict().items()}
        several.load_state_dict(several.fitted(one.state_dict()))
        for key, value in several.pool.state_dict().items():
            assert torch.equal(value, own[key])  # the layers of the maps stay
        vectors = pooled_written_out(several, features).view(3, 3, 6)
        for block, other in ((several.first, one.first), (several.second, one.second)):
            torch.testing.assert_close(block(vectors.flatten(1))[1], other(vectors.mean(dim=1))[1])
    back = head_of("max")
    back.load_state_dict(back.fitted(one.state_dict()))
    assert all(torch.equal(value, one.state_dict()[key]) for key, value in back.state_dict().items())


def test_settings_that_do_not_fit_are_told() -> None:
    for settings in ({"n": 0}, {"width": 0}, {"loss": -1.0}, {"second": math.inf}):
        with pytest.raises(SettingError, match="dg-net takes n and width of at least 1"):
            DGNet(**settings)


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_individuals(tmp_path_factory.mktemp("birds") / "market", train=3, test=2, cameras=2, each=3, distractors=2, junk=1)


def begun(pooling: str) -> Classifier:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        head = f"dg-net:pooling={pooling},width=8"
        return xattn.load("birds:gap", head=head, classes=3, high_res=["layer4"], input_size=(64, 32), resize=(64, 32), device="cpu")


@pytest.fixture(scope="module")
def trained(market: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("trained") / "person.safetensors"
    recipe = Recipe(backbone=True, epochs=1, batch_size=8, smallest_crop=None)
    fit(begun("br-npa"), f"market:{market}", file, task="re-identification", recipe=recipe, workers=0, progress=False)
    return file


def test_both_blocks_are_trained() -> None:
    classifier = begun("b-cnn")
    freeze(classifier, backbone=False)
    assert all(parameter.requires_grad for parameter in classifier.head.parameters())


def test_a_trained_file_gives_logits_or_vectors_and_is_scored_by_vectors(market: Path, trained: Path, tmp_path: Path) -> None:
    classifier, of_vectors = (xattn.load(str(trained), output=output, device="cpu") for output in (None, "vectors"))
    images = networks.pictures(2, size=64)[:, :, :, :32]
    assert classifier.predict(images).shape == (2, 3)
    assert classifier.stages[-1].size == (16, 8)
    vectors = of_vectors.predict(images)
    assert (vectors.shape, of_vectors.class_count) == ((2, 16), 16)
    torch.testing.assert_close(vectors.norm(dim=1), torch.full((2,), math.sqrt(1.5)))
    place = f"market:{market}"
    with pytest.raises(InputError, match=r"compares pictures by vectors, .*--output vectors"):
        score(classifier, place, task="re-identification", workers=0, progress=False)
    plain = score(of_vectors, place, task="re-identification", workers=0, progress=False)
    flipped = score(of_vectors, place, task="re-identification:flip=true", workers=0, progress=False)
    assert (plain.task, flipped.task) == ("re-identification", "re-identification:flip=true")
    assert plain.n == flipped.n == 4
    of_vectors.save(str(tmp_path / "again.safetensors"))
    again = xattn.load(str(tmp_path / "again.safetensors"), device="cpu")
    assert torch.equal(again.predict(images), classifier.predict(images))


def test_logits_and_pairs_of_vectors_are_explained_by_ranked_maps(market: Path, trained: Path, tmp_path: Path) -> None:
    images = networks.pictures(2, size=64)[:, :, :, :32]
    maps = xattn.explain(xattn.load(str(trained), device="cpu"), images, ["raw-attention:rank=1", "grad-cam"])
    assert bool(torch.isfinite(maps.raw["raw-attention:rank=1"]).all())
    of_vectors = xattn.load(str(trained), output="vectors", device="cpu")
    methods, places = ["raw-attention:rank=1", "grad-cam"], (f"market:{market}:query", f"market:{market}:gallery")
    study = xattn.Study(
        [of_vectors], methods, ["sparsity"], places[0], tmp_path / "run", gallery=places[1], workers=0, tune="chunk=8", progress=False
    )
    study.run()
    rows = study.scores()
    assert set(rows["method"]) == set(methods)
    assert bool(rows["value"].notna().all())


def test_a_network_with_ranked_maps_starts_from_one_with_max_pooling(trained: Path) -> None:
    one, several = begun("max"), begun("br-npa")
    several.start_from(one)
    assert torch.equal(several.head.first.linear.weight, one.head.first.linear.weight.repeat(1, 3) / 3)
    with pytest.raises(WeightsError, match="do not fit DGNetHead"):
        several.start_from(xattn.load("birds:gap", head="b-cnn", high_res=["layer4"], input_size=(64, 32), resize=(64, 32), device="cpu"))
