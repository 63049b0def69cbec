"""Networks of tokens: which of their tokens are cells of a map, where they are cut, and which attention they are seen to have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import xattn
from tests import networks
from tests.own_methods import OF_ANY_HEAD, OF_LAYERS
from xattn.errors import UnsupportedError
from xattn.explainers.trace import trace
from xattn.models import Classifier, Layout
from xattn.models.attention import attention_kept, between_tokens, by_head
from xattn.models.layout import other_tokens, to_nchw
from xattn.models.tokens import token_layouts

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3}
HF = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 16,
    "num_labels": 5,
}


def of_timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5, **settings)


def of_transformers(kind: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        given = settings or HF
        return getattr(transformers, f"{kind}ForImageClassification")(getattr(transformers, f"{kind}Config")(**given))

    return make


class SequenceFirst(nn.Module):
    """An encoder over (tokens, batch, channels), with a class token behind the others."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.randn(1, 1, 16))
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 3, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).permute(2, 0, 1)
        tokens = torch.cat([tokens, self.token.expand(-1, len(images), -1)])
        return self.fc(self.encoder(tokens)[-1])


# name: how to build it, its size, then the default stage, its channels and sides, prefix, and how many layers of attention are seen
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], str, int, tuple[int, int], int, int]] = {
    "class token": (of_timm("vit_tiny_patch16_224", img_size=64, **SMALL), (64, 64), "blocks.1", 48, (4, 4), 1, 3),
    "wide": (of_timm("vit_tiny_patch16_224", img_size=(64, 96), **SMALL), (64, 96), "blocks.1", 48, (4, 6), 1, 3),
    "distillation token": (of_timm("deit_tiny_distilled_patch16_224", img_size=64, **SMALL), (64, 64), "blocks.1", 48, (4, 4), 2, 3),
    "registers": (of_timm("vit_small_patch14_reg4_dinov2", img_size=56, **SMALL), (56, 56), "blocks.1", 48, (4, 4), 5, 3),
    "rotary": (of_timm("vit_small_patch16_dinov3", img_size=64, **SMALL), (64, 64), "norm", 48, (4, 4), 5, 3),
    "pooled by attention": (of_timm("vit_base_patch32_siglip_256", img_size=128, **SMALL), (128, 128), "norm", 48, (4, 4), 0, 3),
    "eva": (of_timm("eva02_tiny_patch14_224", img_size=56, **SMALL), (56, 56), "blocks.2", 48, (4, 4), 1, 3),
    "beit": (of_timm("beit_base_patch16_224", img_size=64, **SMALL), (64, 64), "blocks.2", 48, (4, 4), 1, 3),
    "cait": (of_timm("cait_xxs24_224", img_size=64, **SMALL), (64, 64), "blocks.2", 48, (4, 4), 0, 0),
    "levit": (of_timm("levit_128s"), (224, 224), "stages.2.blocks.3", 384, (4, 4), 0, 0),
    "mixer": (of_timm("mixer_s32_224"), (224, 224), "norm", 512, (7, 7), 0, 0),
    "hiera": (
        of_timm("hiera_tiny_224", embed_dim=24, stages=(1, 1, 2, 1), num_heads=1, img_size=(64, 64)),
        (64, 64),
        *("blocks.4", 192, (2, 2), 0, 0),
    ),
    "torchvision": (
        lambda: torchvision.models.VisionTransformer(64, 16, 3, 3, 48, 96, num_classes=5),
        (64, 64),
        *("encoder.layers.encoder_layer_1", 48, (4, 4), 1, 3),
    ),
    "sequence first": (SequenceFirst, (64, 64), "encoder.layers.1", 16, (8, 8), 0, 3),
    "transformers' ViT": (of_transformers("ViT"), (64, 64), "vit.layers.1", 48, (4, 4), 1, 3),
    "transformers' BEiT": (of_transformers("Beit"), (64, 64), "beit.layers.2", 48, (4, 4), 1, 3),
    "transformers' DINOv2": (of_transformers("Dinov2"), (64, 64), "dinov2.layernorm", 48, (4, 4), 1, 3),
    "transformers' Swin": (
        of_transformers(
            "Swin", image_size=64, num_labels=5, patch_size=4, embed_dim=24, depths=[1, 1, 2], num_heads=[2, 2, 2], window_size=4
        ),
        (64, 64),
        *("swin.layernorm", 96, (4, 4), 0, 0),
    ),
}


def attached(family: str, **settings: Any) -> Classifier:
    """A classifier of a family, with weights drawn where it begins with zeros."""
    make, size, *_ = FAMILIES[family]

    def drawn() -> nn.Module:
        network = make()
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.05)
        return network

    return xattn.attach(networks.seeded(drawn).eval(), input_size=size, resize=size, name=family, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_stage_of_tokens_is_the_last_map_that_the_output_depends_on(family: str) -> None:
    _, _, name, channels, sides, prefix, layers = FAMILIES[family]
    clf = attached(family)
    stage = clf.stages[-1]
    assert (stage.name, stage.channels, stage.size, stage.layout.prefix) == (name, channels, sides, prefix)
    assert clf.attention_layers == layers
    images = torch.rand(2, 3, *clf.input_size, generator=torch.Generator().manual_seed(1))
    maps = xattn.explain(clf, images, ["grad-cam", "hires-cam", "score-cam:top=4"], target=1)
    for method in maps:
        assert maps.raw[method].shape == (2, *sides)
    assert all(gradient.any() for gradient in trace(clf, images, 1).gradients)
    one = xattn.explain(clf, images[1:], ["hires-cam"], target=1).raw["hires-cam"]
    assert torch.allclose(one, maps.raw["hires-cam"][1:], atol=1e-5 * float(one.abs().max()) + 1e-9)


AS_RUN = {"score-cam": "score-cam:top=4"} | {name: f"{name}:activations=all" for name in OF_ANY_HEAD if name.startswith("guided")}
METHODS = [AS_RUN.get(spec, spec) for spec in OF_ANY_HEAD]  # few of these networks have rectifiers
SMALL_FAMILIES = [family for family, (_, size, *_) in FAMILIES.items() if max(size) < 128]


@pytest.mark.parametrize("family", SMALL_FAMILIES)
def test_every_method_has_the_same_map_of_an_image_alone_and_in_a_batch(family: str) -> None:
    clf = attached(family)
    images = torch.rand(2, 3, *clf.input_size, generator=torch.Generator().manual_seed(1))
    methods = [*METHODS, *OF_LAYERS] if clf.attention_layers else METHODS
    maps, alone = (xattn.explain(clf, some, methods, target=1, untrained=True) for some in (images, images[1:]))
    for method in methods:
        raw, own = maps.raw[method][1], alone.raw[method][0]
        assert torch.isfinite(maps.raw[method]).all(), method
        assert maps[method].shape == images[:, 0].shape, method
        assert torch.allclose(raw, own, atol=1e-3 * float(own.abs().max()) + 1e-9), method
    if not clf.attention_layers:
        for method in OF_LAYERS:
            with pytest.raises(UnsupportedError):
                xattn.explain(clf, images, [method], target=1)


@pytest.mark.parametrize("family", ["class token", "wide", "registers", "rotary", "mixer", "sequence first", "transformers' Swin"])
def test_a_cell_of_the_map_is_the_token_that_answers_the_patch_at_its_place(family: str) -> None:
    clf = attached(family)
    height, width = clf.input_size
    stage = clf.stages[-1]
    rows, columns = stage.size
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(2))
    cells = [(0, columns - 1), (rows - 1, 0), (rows // 2, columns // 2)]
    changed = []
    for row, column in cells:
        patch = image.clone()
        patch[..., row * height // rows : (row + 1) * height // rows, column * width // columns : (column + 1) * width // columns] = 1
        changed.append(patch)
    features = clf.features(torch.cat([image, *changed]), [stage.name])[stage.name]
    moves = (features[1:] - features[:1]).norm(dim=1)
    moves /= moves.mean(dim=0)
    assert [divmod(int(move.argmax()), columns) for move in moves] == cells


@pytest.mark.parametrize("family", [name for name, found in FAMILIES.items() if found[-1]])
def test_attention_is_taken_in_every_layer_as_the_network_computes_it_and_its_output_stays(family: str) -> None:
    clf = attached(family)
    images = torch.rand(2, 3, *clf.input_size, generator=torch.Generator().manual_seed(3), requires_grad=True)
    plain = clf(images)
    with attention_kept() as kept:
        output = clf(images)
    assert torch.allclose(output, plain, atol=1e-5 * float(plain.detach().abs().max()))
    layers = between_tokens(kept, 2, clf.token_stages[-1].layout.count)
    assert len(layers) == FAMILIES[family][-1]
    gradients = torch.autograd.grad(output[:, 1].sum(), layers)
    for layer, gradient in zip(layers, gradients, strict=True):
        assert torch.allclose(by_head(layer, 2).sum(dim=-1), torch.ones(()), atol=1e-5)
        assert by_head(layer, 2).shape[0] == 2
        assert gradient.any()


def test_tokens_mixed_by_something_else_than_attention_are_noticed() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, **SMALL)
            self.vit.blocks[1].mlp = nn.Sequential(Shift(), self.vit.blocks[1].mlp)

        def forward(self, images: Tensor) -> Tensor:
            return self.vit(images)

    class Shift(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens.roll(1, dims=1)

    clf = xattn.attach(networks.seeded(Mixed).eval(), input_size=64, name="mixed")
    assert clf.stages[-1].name == "vit.blocks.1"
    assert clf.attention_layers == 0
    with pytest.raises(UnsupportedError, match="mixed has no layers of attention that alone mix its tokens"):
        xattn.explain(clf, torch.rand(1, 3, 64, 64), ["rollout"])


def test_tokens_in_an_order_of_their_own_are_put_in_place_and_a_grid_keeps_its_aspect() -> None:
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    plain = torch.rand(2, 4, 2, 3)
    tokens = torch.cat([torch.zeros(2, 1, 4), plain.flatten(2).transpose(1, 2)[:, order.argsort()]], dim=1)
    assert torch.equal(to_nchw(tokens, Layout("NLC", 1, 0, (2, 3), tuple(order.tolist()))), plain)
    assert to_nchw(torch.rand(1, 1 + 4 * 6, 5), Layout("NLC", 1, 0, (2, 3))).shape == (1, 5, 4, 6)
    with pytest.raises(UnsupportedError, match="7 tokens do not form a map with the aspect ratio of 2 × 3"):
        to_nchw(torch.rand(1, 8, 5), Layout("NLC", 1, 0, (2, 3)))
    assert torch.equal(other_tokens(tokens, Layout("NLC", 1, 0, (2, 3))), tokens[:, :1])


def test_a_head_reads_the_last_tokens_also_where_a_class_token_alone_is_classified() -> None:
    with pytest.warns(UserWarning, match="starts with a fresh classifier"):
        clf = attached("class token", head="br-npa:n=2")
    assert (clf.stages[-1].name, clf.attachment.stages[0].name) == ("norm", "norm")
    assert not clf.trained
    images = torch.rand(2, 3, 64, 64)
    maps = xattn.explain(clf, images, ["raw-attention", "grad-cam"], untrained=True)
    assert maps.raw["raw-attention"].shape == (2, 4, 4)
    stream = attached("class token", head="ca-stream")
    network = stream.network
    seen: list[Tensor] = []
    handle = network.head.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    logits = stream(images)
    handle.remove()
    assert torch.allclose(network.head(seen[-1]), logits, atol=1e-6)
    assert not torch.allclose(logits, network(stream.normalise(images)))
    with pytest.raises(UnsupportedError, match="ca-stream replaces the pooled vector"):
        attached("distillation token", head="ca-stream")


def test_the_order_of_tokens_is_found_cell_by_cell_and_what_answers_nowhere_is_no_map() -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))

    def capture(images: Tensor) -> dict[str, Tensor]:
        cells = nn.functional.adaptive_avg_pool2d(images, (4, 5)).flatten(2).transpose(1, 2)
        return {"own order": cells[:, order], "the mean": cells.mean(dim=1, keepdim=True) * torch.ones(20, 1)}

    image = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(1))
    found = token_layouts(capture, image, {"own order": (1, 20, 3), "the mean": (1, 20, 3)}, farthest=0.7)
    assert set(found) == {"own order"}
    map_of_order = to_nchw(capture(image)["own order"], found["own order"])
    assert torch.equal(map_of_order, nn.functional.adaptive_avg_pool2d(image, (4, 5)))


def test_gradient_checkpointing_that_attention_cannot_pass_is_said_and_cams_pass_it() -> None:
    clf = attached("class token")
    clf.network.set_grad_checkpointing(True)
    images = torch.rand(1, 3, 64, 64)
    assert xattn.explain(clf, images, ["grad-cam"]).raw["grad-cam"].shape == (1, 4, 4)
    with pytest.raises(UnsupportedError, match=r"or switch its gradient checkpointing off, as by set_grad_checkpointing\(False\)"):
        xattn.explain(clf, images, ["generic-attention"])


def test_a_network_made_for_a_size_of_its_own_is_given_it_and_not_that_of_its_weights() -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, **SMALL).eval()
    assert xattn.attach(network).input_size == (64, 64)
