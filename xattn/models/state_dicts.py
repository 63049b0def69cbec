"""Fits state dicts to networks: finds a network's weights, explains why they do not fit, and computes a digest."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from xattn.errors import WeightsError

logger = logging.getLogger("xattn")

AVERAGED = ("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema_model_state_dict", "params_ema")  # a moving average's


def fit_weights(network: nn.Module, weights: dict[str, Tensor], path: str | Path, advice: str = "") -> None:
    """Loads a state dict, after removing wrappers' prefixes; every weight of the network must be there.

    Weights that do not belong to the network, such as those of a loss or a moving average, are left out and logged.

    Raises:
        WeightsError: the state dict does not fit, with the missing and unknown keys and the shapes that differ.
    """
    fitting, left_out = matched(weights, network.state_dict())
    if problem := mismatch(network, fitting):
        raise WeightsError(f"weights '{path}' do not fit {type(network).__name__}: {problem}.{advice and ' '}{advice}")
    if left_out:
        logger.warning("left out of the weights, as they are not the network's: %s", _grouped(left_out))
    own = network.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}  # old files have none
    state = OrderedDict(counters | fitting)
    state._metadata = own._metadata  # type: ignore[attr-defined]  # some modules store their version there
    network.load_state_dict(state)


def matched(weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that belong to a network, under its own keys, and the keys of the others.

    The network's weights are those with the prefix (`module.`, `model.backbone.`, …, or none) whose removal matches most keys of the
    network; of equally good prefixes, the first in the file that is not a moving average's. If every weight of the network is there, those
    of modules that it does not have are also left out.

    >>> weights = {"model.fc.weight": torch.ones(1), "loss.weight": torch.ones(1)}
    >>> matched(weights, {"fc.weight": torch.zeros(1)})
    ({'fc.weight': tensor([1.])}, ['loss.weight'])
    """
    if not own:
        return weights, []
    counts: Counter[str] = Counter()
    for key in weights:
        parts = key.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in own:
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    prefix = max(counts, key=lambda found: (counts[found], not set(AVERAGED) & set(found.split("."))), default="")
    inner = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    left_out = [key for key in weights if not key.startswith(prefix)]
    if all(key in inner for key in own if not key.endswith("num_batches_tracked")):
        modules = {key.partition(".")[0] for key in own}
        foreign = [key for key in inner if key.partition(".")[0] not in modules]
        inner = {key: value for key, value in inner.items() if key not in foreign}
        left_out += [f"{prefix}{key}" for key in foreign]
    return inner, left_out


def _grouped(keys: Sequence[str]) -> str:
    """Keys in words: several of one module as `module.* (3)`."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        groups[key.partition(".")[0]].append(key)
    return ", ".join(several[0] if len(several) == 1 else f"{name}.* ({len(several)})" for name, several in groups.items())


def mismatch(network: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """The reason why a state dict does not fit, in words; empty if it fits."""
    own = network.state_dict()
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    unknown = [key for key in weights if key not in own]
    shapes = [
        f"{key} is {tuple(weights[key].shape)}, needed {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    parts = [
        f"{len(keys)} {what} ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''})"
        for what, keys in (("keys missing", missing), ("keys unknown", unknown), ("shapes differ", shapes))
        if keys
    ]
    return "; ".join(parts)


def classes_in(network: nn.Module, weights: dict[str, Tensor]) -> int | None:
    """The number of classes in a checkpoint that differs from the network only in the size of its last layer; None otherwise."""
    weights, _ = matched(weights, network.state_dict())
    differing = [key for key, own in network.state_dict().items() if key in weights and weights[key].shape != own.shape]
    counts = {weights[key].shape[0] for key in differing}
    last = {key.rpartition(".")[0] for key in differing}
    return counts.pop() if len(last) >= 1 and len(counts) == 1 else None


def channels_in(network: nn.Module, weights: dict[str, Tensor]) -> int | None:
    """The number of channels that the first convolution of a checkpoint takes, where it differs from the network's; None otherwise."""
    weights, _ = matched(weights, network.state_dict())
    for key, own in network.state_dict().items():
        if own.dim() == 4:
            kept = weights[key].shape if key in weights else own.shape
            others_fit = len(kept) == 4 and (kept[0], *kept[2:]) == (own.shape[0], *own.shape[2:])
            return int(kept[1]) if others_fit and kept[1] != own.shape[1] else None
    return None


def digest_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors by name, first 16 digits."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
