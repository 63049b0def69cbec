"""The other libraries' side of every job, as a user who follows their documentation would write it.

torch-cam takes normalised images and the network; its metrics compute the map themselves, from a score that `logits_fn` returns, again for
each metric. pytorch-grad-cam returns masks as NumPy arrays at the images' size. Quantus perturbs NumPy arrays. All get the batch size at
which the network alone is fastest, and the targets, so that none has to find them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytorch_grad_cam
import quantus
import torch
from captum.attr import GuidedBackprop
from pytorch_grad_cam import score_cam
from pytorch_grad_cam.metrics.cam_mult_image import CamMultImageConfidenceChange
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from subjects import Subject
from torch import Tensor
from torchcam import methods as torch_cam
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

TORCH_CAM = {"grad-cam": "GradCAM", "grad-cam++": "GradCAMpp", "score-cam": "ScoreCAM"}
GRAD_CAM = {"grad-cam": "GradCAM", "grad-cam++": "GradCAMPlusPlus", "score-cam": "ScoreCAM"}
SOFTMAX = partial(torch.softmax, dim=-1)
score_cam.tqdm = SimpleNamespace(tqdm=iter)  # it draws a progress bar for each image


class KeptMaps:
    """Replaces the extractor that torch-cam's metrics expect, and returns existing maps. Its documentation does not describe this."""

    def __init__(self, subject: Subject, maps: Tensor) -> None:
        self.model = subject.network
        self.maps = maps

    def __call__(self, *_: object, **__: object) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> AbstractContextManager[None]:
        return nullcontext()


@contextmanager
def _extractor(subject: Subject, method: str, batch: int) -> Iterator[Any]:
    """Makes a torch-cam extractor whose hooks are removed at the end; methods that need no gradient run without."""
    more = {"batch_size": batch} if method == "score-cam" else {}
    found = getattr(torch_cam, TORCH_CAM[method])(subject.network, target_layer=subject.place, **more)
    with found as extractor, torch.no_grad() if method == "score-cam" else nullcontext():
        yield extractor


def torch_cam_map(subject: Subject, images: Tensor, targets: Tensor, method: str, batch: int) -> Tensor:
    """Returns raw maps `(B, h, w)`, before they are resized to the images."""
    with _extractor(subject, method, batch) as extractor:
        scores = subject.network(subject.normalised(images))
        (found,) = extractor(targets.tolist(), scores, normalized=False)
    return found.detach()


def torch_cam_scores(
    subject: Subject,
    images: Tensor,
    targets: Tensor,
    extractor: Any,
    batch: int,
    *,
    baseline: Callable[[Tensor], Tensor] | None = None,
    classification: bool = True,
) -> dict[str, float]:
    """Returns average drop and increase, insertion and deletion, averaged over the batch, in [0, 1]."""
    given, classes = subject.normalised(images), targets.tolist()
    metrics = [DeletionInsertionMetric(extractor, SOFTMAX, steps=subject.steps, baseline=baseline, batch_size=batch)]
    metrics += [ClassificationMetric(extractor, SOFTMAX)] if classification else []
    found: dict[str, float] = {}
    for metric in metrics:
        metric.update(given, classes)
        found |= metric.summary()
    return found


def torch_cam_table(subject: Subject, images: Tensor, targets: Tensor, batch: int) -> dict[str, dict[str, float]]:
    """As documented: the metrics receive the extractor."""
    found = {}
    for method in TORCH_CAM:
        with _extractor(subject, method, batch) as extractor:
            found[method] = torch_cam_scores(subject, images, targets, extractor, batch)
    return found


def torch_cam_table_of_kept(subject: Subject, images: Tensor, targets: Tensor, batch: int) -> dict[str, dict[str, float]]:
    """Computes each map once; a replacement extractor passes it to both metrics."""
    found = {}
    for method in TORCH_CAM:
        kept = KeptMaps(subject, _normalised(torch_cam_map(subject, images, targets, method, batch)))
        with torch.no_grad():
            found[method] = torch_cam_scores(subject, images, targets, kept, batch)
    return found


def torch_cam_curves(subject: Subject, images: Tensor, targets: Tensor, batch: int) -> dict[str, float]:
    """Computes Grad-CAM, and its insertion and deletion."""
    with _extractor(subject, "grad-cam", batch) as extractor:
        return torch_cam_scores(subject, images, targets, extractor, batch, classification=False)


def _normalised(maps: Tensor) -> Tensor:
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low + 1e-8)


def grad_cam_map(subject: Subject, images: Tensor, targets: Tensor, method: str, batch: int) -> np.ndarray:
    """Returns pytorch-grad-cam's masks `(B, H, W)`."""
    chosen = [ClassifierOutputTarget(target) for target in targets.tolist()]
    with getattr(pytorch_grad_cam, GRAD_CAM[method])(model=subject.network, target_layers=[subject.layer]) as extractor:
        extractor.batch_size = batch  # batch size of Score-CAM's forwards
        found: np.ndarray = extractor(input_tensor=subject.normalised(images), targets=chosen)
    return found


def quantus_step(pixels: int, steps: int) -> int:
    """Returns the number of features per step that Quantus accepts, for at most a given number of steps.

    It counts the three channels of a pixel as three features, and accepts only steps that divide the number of *pixels*: 8·W pixels, which
    are three times as many features, are refused.
    """
    return next(size for size in range(math.ceil(3 * pixels / steps), pixels + 1) if pixels % size == 0)


def quantus_curve(subject: Subject, given: np.ndarray, targets: Tensor, masks: np.ndarray, becomes: np.ndarray | None) -> np.ndarray:
    """Returns probabilities `(B, T)` along pixel flipping, from the first changed image on; a forward holds one step of every picture.

    Args:
        subject: the network.
        given: `(B, 3, H, W)`, the normalised starting images.
        targets: `(B,)`.
        masks: `(B, H, W)`.
        becomes: new values of the pixels; None: 0, the mean colour.
    """

    def put(arr: np.ndarray, indices: np.ndarray, **_: object) -> np.ndarray:
        changed = arr.copy()
        np.put_along_axis(changed, indices, np.take_along_axis(becomes.reshape(len(becomes), -1), indices, axis=1), axis=1)
        return changed

    how: dict[str, Any] = {"perturb_baseline": 0.0} if becomes is None else {"perturb_func": put}
    metric = quantus.PixelFlipping(
        features_in_step=quantus_step(given.shape[2] * given.shape[3], subject.steps),
        normalise=False,  # only the order counts
        disable_warnings=True,
        display_progressbar=False,
        **how,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a step that changes nothing, a baseline that needs care
        found = metric(
            model=subject.network,
            x_batch=given,
            y_batch=targets.cpu().numpy(),
            a_batch=masks[:, None],
            softmax=True,
            device=str(subject.classifier.device),
            channel_first=True,
            batch_size=len(given),
        )
    return np.asarray(found)


def quantus_curves(subject: Subject, images: Tensor, targets: Tensor, masks: np.ndarray, blurred: Tensor) -> dict[str, float]:
    """Computes insertion (with a custom perturbation that restores the image from a blurred one) and deletion, averaged over the batch."""
    given, from_blur = subject.normalised(images).cpu().numpy(), subject.normalised(blurred).cpu().numpy()
    deletion = quantus_curve(subject, given, targets, masks, None)
    insertion = quantus_curve(subject, from_blur, targets, masks, given)
    return {"deletion": float(deletion.mean()), "insertion": float(insertion.mean())}


def grad_cam_and_quantus_table(
    subject: Subject, images: Tensor, targets: Tensor, blurred: Callable[[Tensor], Tensor], batch: int
) -> dict[str, dict[str, float]]:
    """Computes pytorch-grad-cam's maps and its confidence change, from which AD, AG and AI follow; Quantus' pixel flipping both ways."""
    given = subject.normalised(images)
    chosen = [ClassifierOutputSoftmaxTarget(target) for target in targets.tolist()]
    with torch.no_grad():
        p = SOFTMAX(subject.network(given)).gather(1, targets[:, None])[:, 0].double().cpu().numpy()
    start, found = blurred(images), {}
    for method in GRAD_CAM:
        masks = grad_cam_map(subject, images, targets, method, batch)
        seen = CamMultImageConfidenceChange()(given, masks, chosen, subject.network, return_diff=False)
        found[method] = {
            "average-drop": float((np.maximum(p - seen, 0) / p).mean()),
            "average-gain": float((np.maximum(seen - p, 0) / (1 - p)).mean()),
            "average-increase": float((seen > p).mean()),
        }
        found[method] |= quantus_curves(subject, images, targets, masks, start)
    return found


def captum_guided(subject: Subject, images: Tensor, targets: Tensor) -> Tensor:
    """Returns the largest magnitude over the channels, in pixel space as in xattn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = GuidedBackprop(subject.network).attribute(subject.normalised(images).requires_grad_(), target=targets)
    return (found / subject.classifier.std).abs().amax(dim=1).detach()
