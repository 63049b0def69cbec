"""Every registered method × what holds of all of them."""

from __future__ import annotations

import gc
import resource

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests import networks
from tests.own_methods import OWN
from xattn.errors import ImageError, InputError, NameUnknownError, SettingError, UnsupportedError
from xattn.explainers import Need, methods
from xattn.heads import heads
from xattn.inference import Predictor
from xattn.models import Classifier

FOREIGN = [
    "captum:IntegratedGradients:n_steps=4",
    "captum:LayerGradCam",
    "captum:NoiseTunnel",
    "captum:Occlusion:cells=4",
    "captum:DeepLift",
]
FOREIGN += ["grad-cam:LayerCAM", "grad-cam:EigenCAM", "grad-cam:AblationCAM", "grad-cam:RandomCAM"]


def head_for(spec: str) -> str:
    """A head that a method can be asked of."""
    return "br-npa" if spec in OWN and Need.ATTENTION in methods.create(spec).metadata.needs else "gap"


def state(module: nn.Module) -> dict[str, object]:
    """All that a call may not change."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "hooks": [len(getattr(m, table)) for m in module.modules() for table in hooks],
        "training": [m.training for m in module.modules()],
        "modules": [(name, id(m)) for name, m in module.named_modules()],
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "values": [v.clone() for v in module.state_dict().values()],
        "device": [p.device for p in module.parameters()],
    }


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("spec", [*OWN, *FOREIGN])
def test_a_method_leaves_no_trace(spec: str, images: Tensor) -> None:
    network = networks.small()
    network[2].train()  # a mixture of flags, and gradients that are in use
    network[0].weight.grad = torch.full_like(network[0].weight, 7.0)
    network[0].bias.requires_grad_(False)
    clf = xattn.attach(network, head=head_for(spec), input_size=32, resize=36)
    pictures = images[:2].clone()
    before, mode = state(clf), torch.is_grad_enabled()
    generator = torch.random.get_rng_state()
    xattn.explain(clf, pictures, methods=[spec])
    after = state(clf)
    for key, value in before.items():
        assert same(value, after[key]), key
    assert torch.is_grad_enabled() == mode
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert torch.equal(pictures, images[:2])
    assert not pictures.requires_grad


@pytest.mark.parametrize("head", sorted(heads.entries))
@pytest.mark.parametrize("spec", ["grad-cam", "score-cam", "guided-backprop", "raw-attention", "captum:LayerGradCam", "grad-cam:LayerCAM"])
def test_a_method_leaves_no_trace_on_any_head(spec: str, head: str, images: Tensor) -> None:
    clf = xattn.attach(networks.small(), head=head, input_size=32, resize=36)
    if spec == "raw-attention" and not heads.create(head).metadata.attention:
        pytest.skip(f"{head} has no attention")
    before = state(clf)
    maps = xattn.explain(clf, images[:2], methods=[spec], untrained=True)
    after = state(clf)
    for key, value in before.items():
        assert same(value, after[key]), key
    assert torch.equal(maps.logits, clf.predict(images[:2]))


def test_a_foreign_module_that_runs_no_hooks_is_refused_below_a_head(images: Tensor) -> None:
    for head in ("ca-stream", "br-npa"):
        clf = xattn.attach(networks.small(), head=head, input_size=32, resize=36)
        with pytest.raises(UnsupportedError, match="did not reach '3', which the head reads"):
            xattn.explain(clf, images[:1], methods=["grad-cam:AblationCAM"], untrained=True)


@pytest.mark.parametrize("spec", [*OWN, *FOREIGN])
def test_maps_have_the_batch_s_size_are_finite_and_masks_lie_in_0_and_1(spec: str, images: Tensor) -> None:
    clf = xattn.attach(networks.small(), head=head_for(spec), input_size=32, resize=36)
    maps = xattn.explain(clf, images[:2], methods=[spec])
    (name,) = maps
    assert maps.raw[name].shape[0] == 2
    assert maps.raw[name].dim() == 3
    assert torch.isfinite(maps.raw[name]).all()
    assert maps[name].shape == (2, 32, 32)
    assert maps[name].dtype == images.dtype
    assert float(maps[name].min()) >= 0
    assert float(maps[name].max()) <= 1
    assert not maps[name].requires_grad


@pytest.mark.parametrize("spec", [*OWN, *FOREIGN])
def test_an_image_s_map_is_the_same_in_batches_of_1_7_and_32(spec: str, images: Tensor) -> None:
    clf = xattn.attach(networks.small().double(), head=head_for(spec), input_size=32, resize=36)
    pictures = networks.pictures(32 if spec in OWN else 7).double()
    if spec in OWN:
        whole = xattn.explain(clf, pictures, methods=[spec], batch_size=32).raw
    else:
        whole = xattn.explain(clf, pictures[:3], methods=[spec], batch_size=3).raw
    seven = xattn.explain(clf, pictures[:7], methods=[spec], batch_size=7).raw if spec in OWN else None
    (name,) = whole
    for i in (0, 2):
        single = xattn.explain(clf, pictures[i : i + 1], methods=[spec]).raw[name][0]
        scale = float(single.abs().max())
        assert torch.allclose(whole[name][i], single, atol=1e-10 * scale)
        assert seven is None or torch.allclose(seven[name][i], single, atol=1e-10 * scale)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("spec", OWN)
def test_a_gpu_gives_the_cpu_s_maps(spec: str, images: Tensor) -> None:
    clf = xattn.attach(networks.small().double(), head=head_for(spec), input_size=32, resize=36)
    expected = xattn.explain(clf, images.double(), methods=[spec])
    found = xattn.explain(clf.cuda(), images.double().cuda(), methods=[spec])
    assert torch.allclose(found[spec].cpu(), expected[spec], atol=1e-6)


def test_one_forward_and_one_backward_serve_all_gradient_methods_and_one_more_all_guided_ones(tiny: Classifier, images: Tensor) -> None:
    forwards, backwards = [], []
    tiny.network.register_forward_hook(lambda *_: forwards.append(1))
    tiny.network[-1].weight.requires_grad_()

    def count(_module, _inputs, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: backwards.append(1))

    tiny.network[-1].register_forward_hook(count)
    forwards.clear()
    xattn.explain(tiny, images, methods=["activation-map", "grad-cam", "grad-cam++", "edges", "random"])
    assert (len(forwards), len(backwards)) == (1, 1)
    forwards.clear(), backwards.clear()
    everything = ["grad-cam", "grad-cam++", "guided-backprop", "guided-grad-cam", "guided-grad-cam++"]
    xattn.explain(tiny, images, methods=everything)
    assert (len(forwards), len(backwards)) == (1, 2)


def test_no_hook_is_alive_while_score_cam_runs_the_network(tiny: Classifier, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = []
    run = Predictor.__call__

    def watched(self: Predictor, batch: Tensor) -> Tensor:
        hooks.append(sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in tiny.modules()))
        return run(self, batch)

    monkeypatch.setattr(Predictor, "__call__", watched)
    xattn.explain(tiny, images[:1], ["score-cam"])
    assert hooks
    assert not any(hooks)


def test_half_precision_networks_are_explained(images: Tensor) -> None:
    clf = xattn.attach(networks.small().to(torch.bfloat16), input_size=32, resize=36)
    full = xattn.attach(networks.small(), input_size=32, resize=36)
    for method in ("grad-cam", "grad-cam++", "score-cam", "guided-grad-cam"):
        found = xattn.explain(clf, images, [method], target=1)[method]
        assert torch.isfinite(found).all()
        assert float((found - xattn.explain(full, images, [method], target=1)[method]).abs().mean()) < 0.1
    maps = xattn.explain(clf, images, ["activation-map", "grad-cam"])
    assert {raw.dtype for raw in maps.raw.values()} == {torch.float32}
    assert len(maps["activation-map"][0].unique()) > 900  # a mask in half precision has a third of these levels


def test_500_calls_keep_memory_flat_and_leave_no_hooks(tiny: Classifier, images: Tensor) -> None:
    gradient_methods = ["grad-cam", "grad-cam++", "guided-grad-cam", "edges"]

    def call() -> None:
        xattn.explain(tiny, images, methods=gradient_methods)

    for _ in range(50):
        call()
    gc.collect()
    before, objects = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sum(issubclass(type(o), Tensor) for o in gc.get_objects())
    for _ in range(450):
        call()
    gc.collect()
    assert sum(issubclass(type(o), Tensor) for o in gc.get_objects()) <= objects
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in tiny.modules())


@pytest.mark.parametrize("stage", ["0", "2", "3", "3.0"])
def test_any_stage_can_be_named(tiny: Classifier, images: Tensor, stage: str) -> None:
    side = {"0": 32, "2": 16, "3": 8, "3.0": 8}[stage]
    assert xattn.explain(tiny, images, methods=["grad-cam"], stage=stage).raw["grad-cam"].shape == (7, side, side)


def test_a_stage_before_an_in_place_rectifier_keeps_its_features(images: Tensor) -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()
    clf = xattn.attach(network, input_size=32, resize=36)
    expected = network[0](clf.normalise(images)).mean(dim=1).detach()
    for needed in (["activation-map"], ["activation-map", "grad-cam"], ["activation-map", "guided-grad-cam"]):
        assert torch.allclose(xattn.explain(clf, images, methods=needed, stage="0").raw["activation-map"], expected, atol=1e-6)


def test_targets_follow_their_rule(tiny: Classifier, images: Tensor) -> None:
    predicted = tiny.predict(images).argmax(dim=1)
    assert torch.equal(xattn.explain(tiny, images, ["grad-cam"]).targets, predicted)
    assert xattn.explain(tiny, images, ["grad-cam"]).target_rule == "predicted"
    labels = [0, 1, 2, 3, 4, 0, 1]
    by_label = xattn.explain(tiny, images, ["grad-cam"], target="label", labels=labels)
    assert by_label.targets.tolist() == labels
    assert by_label.target_rule == "label"
    assert xattn.explain(tiny, images, ["grad-cam"], target="class 3").targets.tolist() == [3] * 7
    assert xattn.explain(tiny, images, ["grad-cam"], target=labels).target_rule == "given"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["gradcam"]}, r"Unknown method 'gradcam'\. Did you mean 'grad-cam'\? Known: .*activation-map"),
        ({"methods": []}, "no method is named"),
        ({"methods": "grad-cam"}, r"methods are a list: write methods=\['grad-cam'\]"),
        ({"methods": ["layer-cam:x=1"]}, "'layer-cam' has no settings; got x"),
        ({"methods": ["score-cam:weighing=probability"]}, "Unknown setting of method 'score-cam' 'weighing'. Did you mean 'weighting'"),
        ({"methods": ["score-cam:weighting=logits"]}, r"takes weighting=probability\|logit-softmax\|increase; got 'logits'"),
        ({"methods": ["captum:Salience"]}, "Unknown captum method 'Salience'. Did you mean 'Saliency'"),
        ({"methods": ["captum:Saliency:abss=1"]}, "captum:Saliency has no setting 'abss'"),
        ({"target": "label"}, "needs labels"),
        ({"target": 5}, r"class 5 is outside the 5 classes of tiny \(0 … 4\)"),
        ({"target": "clas 3"}, "Unknown class 'clas 3'. Did you mean 'class 3'"),
        ({"target": [0, 1]}, "7 images need 7 classes; got 2"),
        ({"stage": "layer4"}, "Unknown stage 'layer4'"),
        ({"stage": "5"}, r"'5' gives \(1, 16\)\. Choose one of: 1, 2, 3"),
    ],
)
def test_a_wrong_argument_is_answered_with_what_to_do(tiny: Classifier, images: Tensor, arguments: dict[str, object], message: str) -> None:
    with pytest.raises((NameUnknownError, InputError, SettingError, xattn.XattnError), match=message):
        xattn.explain(tiny, images, **{"methods": ["grad-cam"], **arguments})


def test_normalised_images_and_wrong_shapes_are_refused(tiny: Classifier, images: Tensor) -> None:
    with pytest.raises(InputError, match="do not normalise them: the classifier does"):
        xattn.explain(tiny, (images - 0.5) / 0.2)
    with pytest.raises(InputError, match="with at least one image"):
        xattn.explain(tiny, images[0])
    with pytest.raises(InputError, match=r"takes images of \(32, 32\); got \(20, 20\)"):
        xattn.explain(tiny, images[..., :20, :20])
    with pytest.raises(
        ImageError, match=r"arrays \(height, width, channels\) of uint8, .*; got an array \(3, 32, 32\) of float32\. A study"
    ):
        xattn.explain(tiny, list(images.numpy()))
    with pytest.raises(InputError, match=r"xattn\.load takes a network's name"):
        xattn.attach("resnet18")
    maps = xattn.explain(tiny, images)
    with pytest.raises(KeyError, match="there are no maps of 'score-cam', only of grad-cam"):
        _ = maps["score-cam"]
    assert len(repr(tiny)) < 300
    assert repr(maps) == "Maps of 7 images by grad-cam, target predicted"
    with pytest.raises(InputError, match="got uint8. Divide 8-bit images by 255"):
        xattn.explain(tiny, (images * 255).byte())


def test_explain_works_inside_inference_mode_and_on_images_made_there(tiny: Classifier, images: Tensor) -> None:
    expected = xattn.explain(tiny, images, ["grad-cam", "guided-backprop"])
    with torch.inference_mode():
        made = images.clone()
        inside = xattn.explain(tiny, made, ["grad-cam", "guided-backprop"])
    outside = xattn.explain(tiny, made, ["grad-cam", "guided-backprop"])
    for method in expected:
        assert torch.allclose(inside[method], expected[method], atol=1e-6)
        assert torch.allclose(outside[method], expected[method], atol=1e-6)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.last = nn.Conv2d(3, 6, 3, stride=2), nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU()), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mix(self.mix(self.stem(x))).mean(dim=(2, 3)))


@pytest.mark.parametrize("spec", ["grad-cam:GradCAM", "captum:LayerGradCam"])
def test_other_libraries_hooks_are_refused_on_a_module_that_runs_twice(spec: str, images: Tensor) -> None:
    clf = xattn.attach(networks.seeded(Twice), input_size=32, resize=36)
    assert clf.stages[-1].name == "mix#2"
    for stage in (None, "mix"):
        with pytest.raises(xattn.XattnError, match="'mix' runs 2 times per forward"):
            xattn.explain(clf, images[:1], [spec], stage=stage)


def test_a_foreign_method_that_fails_in_the_middle_leaves_no_trace(tiny: Classifier, images: Tensor) -> None:
    before = state(tiny)
    calls = []

    def fail(*_: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory")

    handle = tiny.network[-1].register_forward_hook(fail)
    with pytest.raises(xattn.XattnError, match="cannot run on tiny: out of memory"):
        xattn.explain(tiny, images[:1], ["grad-cam:AblationCAM:batch_size=2"])
    handle.remove()
    after = state(tiny)
    assert all(same(value, after[key]) for key, value in before.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_cpu_s_values(images: Tensor) -> None:
    clf = xattn.attach(networks.small().double(), input_size=32, resize=36)
    metrics = ["average-drop", "insertion", "deletion:protocol=gomez", "deletion-correlation", "sparsity"]
    expected = xattn.evaluate(clf, images.double(), xattn.explain(clf, images.double(), ["grad-cam"]), metrics)
    clf.cuda()
    found = xattn.evaluate(clf, images.double(), xattn.explain(clf, images.double(), ["grad-cam"]), metrics)
    assert (expected["value"] - found["value"]).abs().max() < 1e-6
