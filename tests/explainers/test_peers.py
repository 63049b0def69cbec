"""The same inputs through pytorch-grad-cam 1.5.7, torch-cam 0.5 and captum 0.9; where one is known to be wrong, against the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import xattn
from tests import networks
from tests.explainers.test_transformer_peers import attached, torchvision_vit
from xattn.explainers import trace
from xattn.metrics import to_masks
from xattn.models import Classifier

pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
torchcam_methods = pytest.importorskip("torchcam.methods")
captum_attr = pytest.importorskip("captum.attr")

TARGETS = [4, 0, 2]
PEER = 1e-5  # pytorch-grad-cam upsamples with OpenCV and adds 1e-7 in its min-max


@pytest.fixture
def clf() -> Classifier:
    return xattn.attach(networks.small(), input_size=32, resize=36, name="tiny")


@pytest.fixture
def images() -> Tensor:
    return networks.pictures(3)


def peer_map(clf: Classifier, images: Tensor, name: str, stage: str = "3") -> Tensor:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with getattr(pytorch_grad_cam, name)(model=clf.network, target_layers=[clf.network[int(stage)]]) as method:
        found = method(input_tensor=clf.normalise(images).contiguous(), targets=[ClassifierOutputTarget(t) for t in TARGETS])
    return torch.as_tensor(found)


def rescaled(masks: Tensor) -> Tensor:
    """pytorch-grad-cam min-maxes once more after the upsampling."""
    return to_masks(masks, (masks.shape[1], masks.shape[2])).masks


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def test_grad_cam_agrees_with_pytorch_grad_cam_and_torch_cam(clf: Classifier, images: Tensor) -> None:
    ours = xattn.explain(clf, images, ["grad-cam"], target=TARGETS)
    assert float((rescaled(ours["grad-cam"]) - peer_map(clf, images, "GradCAM")).abs().max()) < PEER
    with torchcam_methods.GradCAM(clf.network, target_layer="3") as extractor:
        scores = clf.network(clf.normalise(images).requires_grad_())
        (raw,) = extractor(TARGETS, scores, normalized=False)
    assert torch.allclose(ours.raw["grad-cam"], raw.detach(), atol=1e-5)


def test_grad_cam_agrees_with_captum_s_before_its_relu(clf: Classifier, images: Tensor) -> None:
    theirs = captum_attr.LayerGradCam(clf.network, clf.network[3]).attribute(clf.normalise(images), target=TARGETS)
    ours = xattn.explain(clf, images, ["grad-cam"], target=TARGETS).raw["grad-cam"]
    assert torch.allclose(ours, theirs[:, 0].relu().detach(), atol=1e-6)


def test_torch_cam_s_grad_cam_plus_plus_lacks_its_denominator_and_ours_has_it(clf: Classifier, images: Tensor) -> None:
    with torchcam_methods.GradCAMpp(clf.network, target_layer="3") as extractor:
        scores = clf.network(clf.normalise(images).requires_grad_())
        (theirs,) = extractor(TARGETS, scores, normalized=False)
    traced = trace(clf, images, torch.tensor(TARGETS))
    g, features = traced.gradients.double(), traced.features.double()
    undivided = ((g**2 * g.relu()).sum((2, 3), keepdim=True) * features).sum(1).relu()
    ours = xattn.explain(clf, images, ["grad-cam++"], target=TARGETS).raw["grad-cam++"]
    for i in range(3):
        assert correlation(theirs[i].detach(), undivided[i]) > 0.9999  # what it computes
    alpha = g**2 / (2 * g**2 + features.sum((2, 3), keepdim=True) * g**3)
    paper = ((alpha.nan_to_num(0) * g.relu()).sum((2, 3), keepdim=True) * features).sum(1).relu()
    assert torch.allclose(ours.double(), paper, rtol=1e-4, atol=1e-7)
    assert not all(
        torch.allclose(to_masks(a[None], (8, 8)).masks, to_masks(b[None].float(), (8, 8)).masks, atol=1e-2)
        for a, b in zip(ours, theirs.detach(), strict=True)
    )


def test_pytorch_grad_cam_s_grad_cam_plus_plus_is_ours_with_its_epsilon(clf: Classifier, images: Tensor) -> None:
    traced = trace(clf, images, torch.tensor(TARGETS))
    g, features = traced.gradients.double(), traced.features.double()
    alpha = g**2 / (2 * g**2 + features.sum((2, 3), keepdim=True) * g**3 + 1e-6)
    weights = (torch.where(g != 0, alpha, 0) * g.relu()).sum((2, 3), keepdim=True)
    masks = rescaled(to_masks((weights * features).sum(1).relu().float(), (32, 32)).masks)
    assert float((masks - peer_map(clf, images, "GradCAMPlusPlus")).abs().max()) < PEER


def test_score_cam_by_softmax_of_logits_agrees_with_pytorch_grad_cam(clf: Classifier, images: Tensor) -> None:
    # It masks the normalised image, we mask in pixel space: with mean 0 and std 1 the two are the same.
    plain = xattn.attach(clf.network, input_size=32, resize=36, mean=(0, 0, 0), std=(1, 1, 1))
    spec = "score-cam:weighting=logit-softmax,align_corners=true"  # it upsamples channels so
    ours = xattn.explain(plain, images, [spec], target=TARGETS)
    assert float((rescaled(ours[spec]) - peer_map(plain, images, "ScoreCAM")).abs().max()) < PEER


@pytest.mark.parametrize(("spec", "theirs"), [("layer-cam", "LayerCAM"), ("hires-cam", "HiResCAM"), ("xgrad-cam", "XGradCAM")])
def test_gradient_cams_agree_with_pytorch_grad_cam_and_torch_cam(clf: Classifier, images: Tensor, spec: str, theirs: str) -> None:
    ours = xattn.explain(clf, images, [spec], target=TARGETS, stage="2")
    assert float((rescaled(ours[spec]) - peer_map(clf, images, theirs, "2")).abs().max()) < 5 * PEER
    if spec == "hires-cam":
        return  # torch-cam has none
    with getattr(torchcam_methods, theirs)(clf.network, target_layer="2") as extractor:
        (raw,) = extractor(TARGETS, clf.network(clf.normalise(images).requires_grad_()), normalized=False)
    assert torch.allclose(ours.raw[spec], raw.detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "theirs"), [("grad-cam", "GradCAM"), ("layer-cam", "LayerCAM"), ("hires-cam", "HiResCAM"), ("xgrad-cam", "XGradCAM")]
)
def test_cams_of_tokens_are_those_of_pytorch_grad_cam(spec: str, theirs: str) -> None:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    # HiResCAM is taken behind the norm: of tokens that enter a norm alone it is blank, and theirs is what its ε and rounding leave.
    vit, pictures = attached(torchvision_vit(), "vit"), networks.pictures(3).double()
    stage = vit.stage("encoder.layers.encoder_layer_2.ln_1" if spec == "hires-cam" else None)

    def as_maps(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)

    layer = vit.network.get_submodule(stage.module)
    with getattr(pytorch_grad_cam, theirs)(vit.network, [layer], reshape_transform=as_maps) as method:
        found = method(vit.normalise(pictures).contiguous(), [ClassifierOutputTarget(target) for target in TARGETS])
    ours = xattn.explain(vit, pictures, [spec], target=TARGETS, stage=stage.name)[spec]
    assert float((rescaled(ours) - torch.as_tensor(found)).abs().max()) < 5 * PEER


def test_centred_eigen_cam_is_pytorch_grad_cam_s_or_its_negative(clf: Classifier, images: Tensor) -> None:
    spec = "eigen-cam:centred=true"
    raw, theirs = xattn.explain(clf, images, [spec]).raw[spec], peer_map(clf, images, "EigenCAM")
    for own, peer in zip(raw, theirs, strict=True):
        signed = [rescaled(to_masks((sign * own).relu()[None], (32, 32)).masks)[0] for sign in (1, -1)]
        assert min(float((mask - peer).abs().max()) for mask in signed) < 5 * PEER


def test_finer_cam_with_one_similar_class_agrees_with_pytorch_grad_cam(clf: Classifier, images: Tensor) -> None:
    ours = xattn.explain(clf, images, ["finer-cam:similar=1"], stage="2")["finer-cam:similar=1"]
    method = pytorch_grad_cam.FinerCAM(clf.network, [clf.network[2]])
    theirs = torch.as_tensor(method(input_tensor=clf.normalise(images).contiguous(), alpha=0.6, comparison_categories=[1]))
    method.base_cam.activations_and_grads.release()
    assert float((rescaled(ours) - theirs).abs().max()) < 5 * PEER


def plain(clf: Classifier) -> Classifier:
    """With mean 0 and std 1, pixel space is the normalised one in which captum works."""
    return xattn.attach(clf.network, input_size=32, resize=36, mean=(0, 0, 0), std=(1, 1, 1))


def test_occlusion_of_the_score_is_captum_s(clf: Classifier, images: Tensor) -> None:
    spec = "occlusion:window=10,stride=4,fill=black,response=score"
    theirs = captum_attr.Occlusion(clf.network).attribute(images, (3, 10, 10), (3, 4, 4), target=TARGETS)[:, 0]
    assert torch.allclose(xattn.explain(plain(clf), images, [spec], target=TARGETS).raw[spec], theirs.float(), atol=1e-5)


def test_integrated_gradients_at_the_middle_of_each_step_and_smooth_grad_without_noise_are_captum_s(
    clf: Classifier, images: Tensor
) -> None:
    ours = xattn.explain(plain(clf), images, ["integrated-gradients:steps=6", "smooth-grad:samples=1,sigma=0.0"], target=TARGETS).raw
    theirs = captum_attr.IntegratedGradients(clf.network).attribute(images, target=TARGETS, n_steps=6, method="riemann_middle")
    assert torch.allclose(ours["integrated-gradients:steps=6"], theirs.abs().amax(dim=1).float(), atol=1e-6)
    saliency = captum_attr.Saliency(clf.network).attribute(images.clone().requires_grad_(), target=TARGETS)
    assert torch.allclose(ours["smooth-grad:samples=1,sigma=0.0"], saliency.amax(dim=1), atol=1e-6)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU:UserWarning")
def test_guided_backprop_agrees_with_captum_up_to_the_normalisation(clf: Classifier, images: Tensor) -> None:
    theirs = captum_attr.GuidedBackprop(clf.network).attribute(clf.normalise(images).requires_grad_(), target=TARGETS)
    ours = xattn.explain(clf, images, ["guided-backprop"], target=TARGETS).raw["guided-backprop"]
    assert torch.allclose(ours, (theirs / clf.std).abs().amax(dim=1).detach(), atol=1e-5)
    door = xattn.explain(clf, images, ["captum:GuidedBackprop"], target=TARGETS).raw["captum:GuidedBackprop"]
    assert torch.allclose(door, theirs.abs().amax(dim=1).detach(), atol=1e-6)


def test_captum_leaves_a_functional_relu_unguided_and_ours_does_not(images: Tensor) -> None:
    clf = xattn.attach(networks.seeded(lambda: networks.Rectifiers("functional")), input_size=32, resize=36)
    with pytest.raises(xattn.XattnError, match="guides only nn.ReLU modules"):
        xattn.explain(clf, images, ["captum:GuidedBackprop"])
    traced = trace(clf, images)
    guided = xattn.explain(clf, images, ["guided-backprop"]).raw["guided-backprop"]
    assert not torch.allclose(guided, traced.image_gradients.abs().amax(dim=1))


def test_captum_s_layer_grad_cam_is_refused_where_channels_come_last() -> None:
    torchvision = pytest.importorskip("torchvision")
    swin = networks.seeded(lambda: torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [7, 7], num_classes=5))
    clf = xattn.attach(swin, input_size=56, name="swin")
    nhwc = next(stage.name for stage in clf.stages if stage.layout.axes == "NHWC")
    with pytest.raises(xattn.XattnError, match="channels; stage .* has other axes"):
        xattn.explain(clf, networks.pictures(1, size=56), ["captum:LayerGradCam"], stage=nhwc)
    ours = xattn.explain(clf, networks.pictures(1, size=56), ["grad-cam", "grad-cam:GradCAM"], stage=nhwc)
    assert float((rescaled(ours["grad-cam"]) - ours["grad-cam:GradCAM"]).abs().max()) < PEER


def test_integrated_gradients_through_the_door_are_captum_s(clf: Classifier, images: Tensor) -> None:
    theirs = captum_attr.IntegratedGradients(clf.network).attribute(clf.normalise(images[:1]), target=4)
    ours = xattn.explain(clf, images[:1], ["captum:IntegratedGradients"], target=4).raw["captum:IntegratedGradients"]
    assert torch.allclose(ours, theirs.abs().amax(dim=1).float(), atol=1e-6)


def test_occlusion_through_the_door_is_what_is_lost_behind_a_window(clf: Classifier, images: Tensor) -> None:
    ours = xattn.explain(clf, images[:1], ["captum:Occlusion:cells=2"], target=4).raw["captum:Occlusion:cells=2"]
    normalised = clf.normalise(images[:1])
    hidden = normalised.clone()
    hidden[..., :16, :16] = 0
    lost = float((clf.logits(normalised) - clf.logits(hidden))[0, 4].detach())
    assert float(ours[0, 0, 0]) == pytest.approx(3 * lost, rel=1e-4)  # the corner is in one window alone; three channels


def test_upsampling_is_torch_s_without_aligned_corners() -> None:
    raw = torch.rand(1, 7, 7)
    scaled = (raw - raw.min()) / (raw.max() - raw.min())
    assert torch.equal(
        to_masks(raw, (224, 224)).masks,
        functional.interpolate(scaled[:, None], size=224, mode="bilinear", align_corners=False)[:, 0].clamp(0, 1),
    )
