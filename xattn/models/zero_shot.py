"""Classifiers whose classes are texts: the logit of a class is the similarity of the image with its text, as in CLIP and SigLIP."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from xattn.errors import InputError
from xattn.models.building import Prompts, Request
from xattn.text import counted

logger = logging.getLogger("xattn")

TEXTS_AT_ONCE = 256


class ZeroShot(nn.Module):
    """Scaled cosine similarity of an image with each class's text. Source: Radford et al. 2021, Sec. 3.1.2; Zhai et al. 2023, Sec. 3.2.

    Args:
        encoder: normalised images `(B, 3, H, W)` → embeddings `(B, D)`.
        texts: embeddings of the classes `(K, D)`, of length 1.
        scale: factor of the cosine.
        bias: added to every logit; 0 if the model has none.
    """

    texts: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, encoder: nn.Module, texts: Tensor, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("texts", texts)
        self.register_buffer("scale", scale.detach().reshape(()).clone())
        self.register_buffer("bias", bias.detach().reshape(()).clone())

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` for normalised images `(B, 3, H, W)`."""
        return self.scale * functional.normalize(self.encoder(images), dim=-1) @ self.texts.T + self.bias


def prompts_of(request: Request) -> Prompts:
    """The classes by text of a request.

    Raises:
        InputError: the request has none.
    """
    if request.prompts is None:
        raise InputError(
            f"{request.model} compares images with texts: give the text of each class, --classes FILE with one per line, in Python "
            "classes=['a dog', 'a cat']."
        )
    return request.prompts


@torch.no_grad()
def text_embeddings(prompts: Prompts, encode: Callable[[list[str]], Tensor]) -> Tensor:
    """Embeddings `(K, D)` of the classes, of length 1: the mean over the templates of embeddings of length 1.

    Args:
        prompts: the classes.
        encode: texts → embeddings `(N, D)`.
    """
    texts = prompts.texts()
    parts = [encode(texts[start : start + TEXTS_AT_ONCE]) for start in range(0, len(texts), TEXTS_AT_ONCE)]
    embeddings = functional.normalize(torch.cat(parts).float(), dim=-1)
    return functional.normalize(embeddings.unflatten(0, (len(prompts.classes), -1)).mean(dim=1), dim=-1)


def report_classes(model: str, prompts: Prompts, sigmoid: bool) -> None:
    """Logs the classes, the templates and the probability of a classifier by text."""
    logger.info(
        "%s: %s by text, templates: %s; a class's probability is %s",
        model,
        counted(len(prompts.classes), "class"),
        " | ".join(prompts.templates),
        "the sigmoid of its logit, each class for itself" if sigmoid else "the softmax over these classes",
    )
