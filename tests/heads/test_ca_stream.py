"""Cross-Attention Stream against its equations, its printed counts, and GAP."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from xattn.errors import InputError, SettingError
from xattn.heads import CAStream, CAStreamHead, NetworkInfo, StageInfo

RESNET_50 = (64, 256, 512, 1024, 2048)
RESNET_18 = (64, 64, 128, 256, 512)


def count(channels: tuple[int, ...], settings: CAStream) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in CAStreamHead(channels[settings.start :], 1000, settings).parameters())


@pytest.mark.parametrize(
    ("start", "without", "with_bias"),
    [(0, 6_963_264, 6_969_152), (1, 6_947_072, 6_952_704), (2, 6_816_256, 6_821_376), (3, 6_292_480, 6_296_576), (4, 4_196_352, 4_198_400)],
)
def test_parameters_on_a_resnet_50_are_those_of_the_paper(start: int, without: int, with_bias: int) -> None:
    assert count(RESNET_50, CAStream(start=start, bias=False)) == without
    assert count(RESNET_50, CAStream(start=start)) == with_bias


def test_parameters_with_projections_and_on_a_resnet_18() -> None:
    assert count(RESNET_50, CAStream(projection=True)) == 18_126_272
    assert count(RESNET_18, CAStream(bias=False)) == 438_336
    assert count(RESNET_18, CAStream()) == 439_808
    assert count(RESNET_50, CAStream(per_class=True)) == 6_969_152 + 999 * 64


def pyramid(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((2, c, s, s), generator=generator, dtype=dtype) for c, s in ((4, 8), (6, 4), (6, 2))]


@pytest.mark.parametrize("projection", [False, True])
def test_it_is_equations_6_10_and_11(projection: bool) -> None:
    torch.manual_seed(0)
    head = CAStreamHead([4, 6, 6], settings=CAStream(projection=projection)).double()
    given = pyramid()
    found = head(given)
    for b in range(2):
        q = head.query[0]
        for number, features in enumerate(given):
            f = features[b].flatten(1).T
            keys, values = (head.key[number](f), head.value[number](f)) if projection else (f, f)
            scores = torch.stack([q @ key for key in keys]) / math.sqrt(f.shape[1])
            alpha = scores.exp() / scores.exp().sum()
            q = head.project[number](sum(weight * value for weight, value in zip(alpha, values, strict=True)))
        assert torch.allclose(found[b], q, atol=1e-12)


def test_over_the_last_stage_alone_without_a_query_it_is_average_pooling() -> None:  # known answer 9
    head = CAStreamHead([6], settings=CAStream(bias=False)).double()
    with torch.no_grad():
        head.query.zero_()
        head.project[0].weight.copy_(torch.eye(6))
    given = pyramid()[-1:]
    assert torch.allclose(head(given), given[0].mean(dim=(2, 3)), atol=1e-12)


def test_it_starts_as_definitions_say() -> None:
    torch.manual_seed(0)
    head = CAStreamHead([512, 512])
    assert abs(float(head.query.detach().mean()) - 1) < 0.15
    assert abs(float(head.query.detach().std()) - 1) < 0.15
    bound = math.sqrt(6 / 1024)
    weight = head.project[0].weight
    assert float(weight.detach().abs().max()) <= bound
    assert float(weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not head.project[0].bias.any()


def test_released_weights_are_drawn_as_in_the_authors_code() -> None:
    """A bias uniform in ±1/√C beside a Xavier weight on a ResNet; on a ConvNeXt N(0, 0.02) and no bias."""
    torch.manual_seed(0)
    settings = CAStream(init="released")
    stages = [("a", 256, 8), ("b", 512, 16)]
    resnet = settings.build([256, 512], 5, info(*stages, kinds=frozenset({"ResNet"})))
    for linear in resnet.project:
        bound = 1 / math.sqrt(linear.in_features)
        assert 0.9 * bound < float(linear.bias.detach().abs().max()) <= bound
        assert float(linear.weight.detach().abs().max()) <= math.sqrt(6 / (linear.in_features + linear.out_features))
    convnext = settings.build([256, 512], 5, info(*stages, kinds=frozenset({"ConvNeXt"})))
    for linear in convnext.project:
        assert float(linear.weight.detach().std()) == pytest.approx(0.02, rel=0.03)
        assert not linear.bias.any()
    assert not CAStream().build([256, 512], 5, info(*stages, kinds=frozenset({"ResNet"}))).project[0].bias.any()


def test_gradients_are_those_of_differences() -> None:
    torch.manual_seed(0)
    head = CAStreamHead([4, 6, 6]).double()
    given = [features.requires_grad_() for features in pyramid()]
    assert torch.autograd.gradcheck(lambda *f: head(f), tuple(given))


def test_half_precision_does_not_overflow() -> None:
    head = CAStreamHead([2048]).half()
    vector = head([torch.full((1, 2048, 3, 3), 60.0, dtype=torch.float16)])
    assert torch.isfinite(vector).all()


def test_a_query_for_each_class_is_that_of_the_given_classes() -> None:
    torch.manual_seed(0)
    head = CAStreamHead([4, 6, 6], 3, CAStream(per_class=True)).double()
    found = head(pyramid(), torch.tensor([2, 0]))
    single = CAStreamHead([4, 6, 6]).double()
    single.load_state_dict({**head.state_dict(), "query": head.query[:1]})
    assert torch.allclose(found[1], single(pyramid())[1])
    assert not torch.allclose(found[0], single(pyramid())[0])
    with pytest.raises(InputError, match="give the class of each image"):
        head(pyramid())


def info(*stages: tuple[str, int, int], kinds: frozenset[str] = frozenset()) -> NetworkInfo:
    return NetworkInfo("it", tuple(StageInfo(*stage) for stage in stages), kinds, frozenset(name for name, _, _ in stages), True)


def test_it_attends_to_the_last_map_of_each_stride_and_width() -> None:
    found = CAStream().stages(info(("a", 8, 2), ("b", 8, 4), ("c", 8, 4), ("d", 16, 4), ("e", 16, 8), ("f", 16, 8)))
    assert found == ("a", "c", "d", "f")
    assert CAStream(start=2).stages(info(("a", 8, 2), ("b", 8, 4), ("c", 16, 4))) == ("c",)


def test_on_a_resnet_it_attends_to_the_stem_too_even_where_layer1_is_as_wide() -> None:
    names = (("maxpool", 64, 4), ("layer1", 64, 4), ("layer2", 128, 8), ("layer3", 256, 16), ("layer4", 512, 32))
    assert CAStream().stages(info(*names, kinds=frozenset({"ResNet"}))) == tuple(name for name, _, _ in names)


def transformer(blocks: int, *before: tuple[str, int, int]) -> NetworkInfo:
    tokens = [StageInfo("embed", 8, 16, True, "Embedding")]
    tokens += [StageInfo(f"blocks.{number}", 8, 16, True, "Block") for number in range(blocks)]
    stages = (*(StageInfo(*stage) for stage in before), *tokens, StageInfo("norm", 8, 16, True, "LayerNorm"))
    return NetworkInfo("it", stages, frozenset(), frozenset(stage.name for stage in stages), True)


@pytest.mark.parametrize(
    ("blocks", "ends"), [(12, (2, 5, 8)), (24, (5, 11, 17)), (8, (1, 3, 5)), (10, (2, 4, 7)), (3, (0, 1, 2)), (2, (0, 1))]
)
def test_in_a_vision_transformer_a_stage_is_the_end_of_a_group_of_blocks(blocks: int, ends: tuple[int, ...]) -> None:
    names = (*(f"blocks.{number}" for number in ends), "norm")
    assert CAStream().stages(transformer(blocks)) == names
    assert CAStream().stages(transformer(blocks, ("stem", 4, 2), ("before", 8, 16))) == ("stem", *names)
    assert CAStream(start=len(names) - 1).stages(transformer(blocks)) == ("norm",)


def test_in_a_pyramid_of_tokens_stages_end_where_the_map_changes() -> None:
    shapes = (("a", 8, 4), ("b", 8, 4), ("c", 16, 8), ("d", 16, 8))
    stages = tuple(StageInfo(*shape, tokens=True, kind="Block") for shape in shapes)
    assert CAStream().stages(NetworkInfo("it", stages, frozenset(), frozenset("abcd"), True)) == ("b", "d")


def test_a_file_that_names_no_stages_has_those_of_its_time() -> None:
    assert CAStream().unnamed_stages(transformer(12)) == ("norm",)
    assert CAStream().unnamed_stages(info(("a", 8, 2), ("b", 8, 4), ("c", 16, 4))) == ("a", "b", "c")


def test_a_start_behind_the_last_stage_is_refused() -> None:
    with pytest.raises(SettingError, match=r"one of 2 stages of it \(a, b\); got start=2"):
        CAStream(start=2).stages(info(("a", 8, 2), ("b", 8, 4)))
