"""The base learner: a linear layer fitted to the few labelled pictures of an episode by written-out gradient steps."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from xattn.errors import InputError


def fit_linear(
    vectors: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, *, steps: int = 50, lr: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Weights of a softmax regression after steps of gradient descent on its mean cross-entropy, for several episodes at once.

    Each step is W ← W − lr·(softmax(FWᵀ + b) − Y)ᵀF/n and b ← b − lr·Σ(softmax(FWᵀ + b) − Y)/n, with F the vectors and Y the one-hot
    labels. It is differentiable in the vectors and in the weights that it starts from.

    Args:
        vectors: of the labelled pictures of each episode, `(E, n, D)`.
        labels: their classes, `(E, n)`, in 0 … K − 1.
        weight: from which every episode starts, `(K, D)`.
        bias: likewise, `(K,)`.
        steps: number of steps.
        lr: learning rate.

    Returns:
        Weights `(E, K, D)` and biases `(E, K)`.

    Raises:
        InputError: shapes that do not belong together.

    Source: Sun et al. 2019, Sec. 4.2.

    >>> import torch
    >>> weight, bias = fit_linear(torch.eye(2)[None], torch.tensor([[0, 1]]), torch.zeros(2, 2), torch.zeros(2), steps=1, lr=4.0)
    >>> weight[0].tolist(), bias[0].tolist()
    ([[1.0, -1.0], [-1.0, 1.0]], [0.0, 0.0])
    """
    if vectors.dim() != 3 or labels.shape != vectors.shape[:2] or weight.dim() != 2 or weight.shape[1] != vectors.shape[2]:
        raise InputError(
            f"vectors (episodes, pictures, D), labels (episodes, pictures) and a weight (K, D) are required; got {tuple(vectors.shape)}, "
            f"{tuple(labels.shape)} and {tuple(weight.shape)}."
        )
    wanted = functional.one_hot(labels, len(weight)).to(vectors.dtype)
    count = vectors.shape[1]
    weights, biases = weight.expand(len(vectors), -1, -1), bias.expand(len(vectors), -1)
    for _ in range(steps):
        errors = ((vectors @ weights.transpose(1, 2) + biases[:, None]).softmax(dim=2) - wanted) / count
        weights = weights - lr * errors.transpose(1, 2) @ vectors
        biases = biases - lr * errors.sum(dim=1)
    return weights, biases


def episode_logits(
    support: Tensor, labels: Tensor, queries: Tensor, weight: Tensor, bias: Tensor, *, steps: int = 50, lr: float = 0.01
) -> Tensor:
    """Logits `(E, q, K)` of the queries of episodes, by a linear layer that is fitted to the support set of each; see `fit_linear`.

    Args:
        support: vectors `(E, n, D)`.
        labels: of the support set, `(E, n)`.
        queries: vectors `(E, q, D)`.
        weight: from which every episode starts, `(K, D)`.
        bias: likewise, `(K,)`.
        steps: of the gradient descent.
        lr: its learning rate.
    """
    weights, biases = fit_linear(support, labels, weight, bias, steps=steps, lr=lr)
    return queries @ weights.transpose(1, 2) + biases[:, None]
