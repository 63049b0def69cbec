"""Local stream: an LSTM processes a patch in several steps, which attention weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xattn.errors import SettingError
from xattn.focus.settings import TwoStreamSettings

LAYERS = 2  # layers of the LSTM


class Looked(NamedTuple):
    """Outputs of the local stream for P patches.

    Attributes:
        logits: `(P, K)`.
        hidden: `(P, T, D)`, the LSTM's output at each step; with local=cnn the pooled features, T = 1.
        alpha: `(P, T)`, the weight of each step in the classification.
        attention: `(P, T, h, w)`, self-attention map of each step, each summing to 1; None without self-attention.
    """

    logits: Tensor
    hidden: Tensor
    alpha: Tensor
    attention: Tensor | None


class LocalStream(nn.Module):
    """Computes logits of patches `(P, 3, side, side)` from features that an LSTM receives at each of T steps.

    α = softmax over t of a linear layer on H_t, shared by the steps; the logits are a linear layer on Σ α_t H_t.

    Args:
        features: patches → maps `(P, C, h, w)`.
        channels: C, also the size of the LSTM.
        classes: K.
        settings: settings of the network.

    Source: Shroff 2020, Sec. 3.1.3.2 and Ch. 7.

    Differs: Eq. 3.6 has one weight vector per step; here all steps share one, as in the released code.
    """

    def __init__(self, features: nn.Module, channels: int, classes: int, settings: TwoStreamSettings) -> None:
        super().__init__()
        self.settings = settings
        self.features = features
        if settings.self_attention:
            self.looks: nn.Module | None = SelfAttentiveLSTM(channels, settings)
        else:
            self.looks = None if settings.local == "cnn" else nn.LSTM(channels, channels, LAYERS, batch_first=True)
        weighted = settings.local == "attention" and settings.sum_to is None and settings.only_step is None
        self.attention = nn.Linear(channels, 1) if weighted else None
        self.classifier = nn.Linear(channels, classes)

    def forward(self, patches: Tensor) -> Looked:
        features = self.features(patches)
        attention = None
        if isinstance(self.looks, SelfAttentiveLSTM):
            hidden, attention = self.looks(features)
        else:
            pooled = features.mean(dim=(2, 3))[:, None]
            hidden = pooled if self.looks is None else self.looks(pooled.expand(-1, self.settings.steps, -1))[0]
        alpha = self.weights(hidden)
        return Looked(self.classifier((alpha[:, :, None] * hidden).sum(dim=1)), hidden, alpha, attention)

    def weights(self, hidden: Tensor) -> Tensor:
        """Returns the weights `(P, T)` of the sum over the steps `(P, T, D)`."""
        if self.attention is not None:
            scores: Tensor = self.attention(hidden)[:, :, 0]
            return scores.softmax(dim=1)
        steps = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
        chosen = steps <= self.settings.sum_to if self.settings.sum_to else steps == (self.settings.only_step or hidden.shape[1])
        return chosen.to(hidden).expand(len(hidden), -1)


class SelfAttentiveLSTM(nn.Module):
    """LSTM that attends to the feature map before each step: maps `(P, C, h, w)` → outputs `(P, T, C)` and attention `(P, T, h, w)`.

    The channels are split into keys and values, and a fixed spatial basis is concatenated to both. The query of step t is a two-layer
    network of the output of step t − 1, which is zero before the first step. A_t is the softmax over locations of query times key; a
    two-layer network of the sum of A_t times the values is the input of step t.

    Source: Shroff 2020, Ch. 7, after Mott et al. 2019.

    Differs: the text adds the basis to keys and values, but its sizes are those of a concatenation, which is used here. The text places the
    attention between the two LSTMs; here, as in its Fig. 7.1, the attention provides the input of the stack of both. It does not state how
    many channels are keys and how many the basis has.
    """

    basis: Tensor

    def __init__(self, channels: int, settings: TwoStreamSettings) -> None:
        super().__init__()
        self.steps, self.scaled, self.basis_channels = settings.steps, settings.scaled, settings.basis
        self.keys = max(1, channels // 4) if settings.keys is None else settings.keys
        if self.keys >= channels:
            raise SettingError(
                f"the feature map has {channels} channels: {self.keys} keys leave no channel for values. Give fewer (keys=)."
            )
        self.query = _two_layers(channels, channels, self.keys + settings.basis)
        self.answer = _two_layers(channels - self.keys + settings.basis, channels, channels)
        self.cells = nn.ModuleList(nn.LSTMCell(channels, channels) for _ in range(LAYERS))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        count, channels, height, width = features.shape
        basis = spatial_basis(self.basis_channels, (height, width)).to(features).expand(count, -1, -1, -1)
        keys = torch.cat([features[:, : self.keys], basis], dim=1).flatten(2)
        values = torch.cat([features[:, self.keys :], basis], dim=1).flatten(2)
        states = [(features.new_zeros(count, channels),) * 2 for _ in self.cells]
        hidden, attention = [], []
        for _ in range(self.steps):
            scores = (self.query(states[-1][0])[:, :, None] * keys).sum(dim=1)
            attended = (scores / math.sqrt(keys.shape[1]) if self.scaled else scores).softmax(dim=1)
            given = self.answer((attended[:, None] * values).sum(dim=2))
            for number, cell in enumerate(self.cells):
                states[number] = cell(given, states[number])
                given = states[number][0]
            hidden.append(given)
            attention.append(attended.view(count, height, width))
        return torch.stack(hidden, dim=1), torch.stack(attention, dim=1)


def _two_layers(given: int, inner: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(given, inner), nn.ReLU(), nn.Linear(inner, out))


def spatial_basis(channels: int, size: tuple[int, int]) -> Tensor:
    """Returns outer products of cosines, `cos(π·u·y)·cos(π·v·x)` for u and v from 0, with y and x from 0 to 1 over the map.

    Args:
        channels: a square number; its root is the number of frequencies along each side.
        size: height and width of the map.

    Returns:
        `(channels, h, w)` in [−1, 1].

    Source: Mott et al. 2019, for the kind of basis.
    """
    frequencies = torch.arange(math.isqrt(channels)) * math.pi
    rows, columns = (torch.cos(frequencies[:, None] * torch.linspace(0, 1, cells)) for cells in size)
    return (rows[:, None, :, None] * columns[None, :, None, :]).flatten(0, 1)
