"""Networks that are built oddly, and compute the same as the plain one."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import lightning
import torch
import torch._dynamo
from odd_plain import SIDE, Odd, Plain, frozen_by, of_plain, plain
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint


class Functional(nn.Module):
    """A `Plain` without a submodule."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in plain().named_parameters():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(value.detach().clone()))
        for name, value in plain().named_buffers():
            self.register_buffer(name.replace(".", "_"), value.clone())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.body_0_weight, self.body_0_bias, padding=1)
        x = functional.batch_norm(x, self.body_1_running_mean, self.body_1_running_var, self.body_1_weight, self.body_1_bias)
        x = functional.conv2d(x.relu(), self.body_3_weight, self.body_3_bias, stride=2, padding=1).relu()
        return functional.linear(x.mean(dim=(2, 3)), self.fc_weight, self.fc_bias)


class Hidden(nn.Module):
    """A `Plain` in a list, where torch does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [plain()]

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x)


class Shared(Plain):
    """A `Plain` whose rectifier is one module that runs twice, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.load_state_dict(plain().state_dict())
        self.body[2] = self.body[4] = nn.ReLU(inplace=True)
        self.eval()


class Checkpointed(Plain):
    """A `Plain` whose features are computed again in the backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.load_state_dict(plain().state_dict())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(checkpoint(self.body, x, use_reentrant=self.reentrant).mean(dim=(2, 3)))


class Mixed(Plain):
    """A `Plain` in bfloat16 with a linear layer in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.load_state_dict(plain().state_dict())
        self.body.bfloat16()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x.bfloat16()).float().mean(dim=(2, 3)))


def lightning_module() -> nn.Module:
    """A `Plain` as a LightningModule."""

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = plain()

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)

    return Module().eval()


def in_inference_mode() -> nn.Module:
    """A `Plain` whose weights are inference tensors."""
    with torch.inference_mode():
        network = Plain().eval()
        network.load_state_dict(plain().state_dict())
        return network


def built() -> Iterator[Odd]:
    """Returns networks that are built oddly, and compute the same as `Plain`."""
    same = of_plain()
    yield Odd("plain", plain, same)
    yield Odd("without gradients of weights", lambda: plain().requires_grad_(False), same)
    yield Odd("in training mode", lambda: plain().train(), same)
    yield Odd("partly in training mode", lambda: plain(lambda network: network.body[1].train()), same)
    yield Odd("half precision", lambda: plain().half(), of_plain(dtype=torch.float16), tolerance=2e-2)
    yield Odd("bfloat16", lambda: plain().bfloat16(), of_plain(dtype=torch.bfloat16), tolerance=1e-1)
    yield Odd("double precision", lambda: plain().double(), of_plain(dtype=torch.float64))
    yield Odd("bfloat16 and float32", Mixed, of_plain(dtype=torch.bfloat16), tolerance=1e-1)
    yield Odd("channels last", lambda: plain().to(memory_format=torch.channels_last), same)
    yield Odd("images that are not contiguous", plain, same, images=lambda x: x.transpose(2, 3).contiguous().transpose(2, 3))
    yield Odd("images with strides", plain, same, images=lambda x: x.repeat_interleave(2, dim=3)[..., ::2])
    yield Odd("images expanded", plain, same, images=lambda x: x[:1].expand(3, -1, -1, -1))
    yield Odd("images that require gradients", plain, same, images=lambda x: x.requires_grad_())
    yield Odd("images made in inference mode", plain, same, images=inferred)
    yield Odd("no modules inside", Functional, ends="refused")
    yield Odd("modules that torch does not see", Hidden, same, ends="any")
    yield Odd("a module that runs twice", Shared, same)
    yield Odd("weight norm", frozen_by(lambda n: parametrizations.weight_norm(n.body[0])), same)
    yield Odd("weight norm of old", frozen_by(lambda n: nn.utils.weight_norm(n.body[3])), same)
    yield Odd("pruned", frozen_by(lambda n: prune.l1_unstructured(n.body[0], "weight", 0.0)), same)
    yield Odd("spectral norm", frozen_by(lambda n: nn.utils.spectral_norm(n.fc)), None)
    yield Odd("a parametrization", frozen_by(lambda n: nn.utils.parametrize.register_parametrization(n.fc, "weight", Twice())), None)
    yield Odd("data parallel", lambda: nn.DataParallel(plain()), same)
    yield Odd("compiled", lambda: torch.compile(plain(), backend="eager"), same)
    yield Odd("compiled in place", frozen_by(lambda n: n.compile(backend="eager")), ends="refused")
    yield Odd("a part compiled", frozen_by(lambda n: setattr(n, "body", torch.compile(n.body, backend="eager"))), ends="refused")
    yield Odd("traced by fx", lambda: torch.fx.symbolic_trace(plain()), same)
    yield Odd(
        "exported",
        lambda: torch.export.export(plain(), (torch.rand(2, 3, SIDE, SIDE),), dynamic_shapes=({0: torch.export.Dim("b")},)).module(),
        same,
        ends="any",
    )
    yield Odd("a lightning module", lightning_module, same)
    yield Odd("weights made in inference mode", in_inference_mode, same, ends="any")
    yield Odd("copied", lambda: copy.deepcopy(plain()), same)
    yield Odd("checkpointed", lambda: Checkpointed(False), same)
    yield Odd("checkpointed, reentrant", lambda: Checkpointed(True), same, ends="any")
    yield Odd("weights that are not contiguous", frozen_by(strided), same)
    yield Odd("names with + and #", lambda: renamed(plain()), same)
    yield Odd(
        "a hook that doubles its output", frozen_by(lambda n: n.register_forward_hook(lambda m, a, out: out * 2)), of_plain(lambda z: z * 2)
    )
    yield Odd("a hook that halves its input", frozen_by(lambda n: n.fc.register_forward_pre_hook(lambda m, a: (a[0] * 1,))), same)
    yield Odd("a backward hook", frozen_by(lambda n: n.body[0].register_full_backward_hook(lambda m, a, b: None)), same)
    yield Odd(
        "a backward hook on all", frozen_by(lambda n: [m.register_full_backward_hook(lambda m, a, b: None) for m in n.modules()]), same
    )
    yield Odd("a hook of gradients of weights", frozen_by(lambda n: n.fc.weight.register_hook(lambda g: g * 3)), same)


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def inferred(images: Tensor) -> Tensor:
    """Makes a copy in inference mode."""
    with torch.inference_mode():
        return images.clone()


def strided(network: Plain) -> None:
    """Stores a weight with other strides."""
    network.fc.weight = nn.Parameter(network.fc.weight.detach().t().contiguous().t())


def renamed(network: Plain) -> nn.Module:
    """The same with names that are used differently for stages."""
    made = nn.Sequential()
    made.add_module("a+relu", network.body)
    made.add_module("b#2", nn.AdaptiveAvgPool2d(1))
    made.add_module("c d", nn.Flatten())
    made.add_module("ü", network.fc)
    return made.eval()
