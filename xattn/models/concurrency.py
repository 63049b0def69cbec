"""Lets several threads explain one network: hooks that act in their own thread, counted flags, and turns.

xattn's own methods only read a network, so any number of threads may run one at once. Other libraries change modules, hooks and the
process's random generators while they run: they get the network exclusively, and all other threads wait.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A module hook that does nothing in forwards of threads other than the one that registers it."""
    if torch.compiler.is_compiling():  # compiled code runs only the hooks that existed when it was compiled
        return hook
    owner = threading.get_ident()
    return lambda *args: hook(*args) if threading.get_ident() == owner else None


class _Turns:
    """Decides who runs a network: any number of threads at once, or one that changes it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.running: Counter[int] = Counter()
        self.alone: int | None = None

    @contextmanager
    def shared(self) -> Iterator[None]:
        me = threading.get_ident()
        with self.changed:
            self.changed.wait_for(lambda: self.alone in (None, me))
            self.running[me] += 1
        try:
            yield
        finally:
            with self.changed:
                self.running[me] -= 1
                self.running += Counter()  # drops finished threads
                self.changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        me = threading.get_ident()
        with self.changed:
            self.changed.wait_for(lambda: self.alone is None and not set(self.running) - {me})
            self.alone = me
        try:
            yield
        finally:
            with self.changed:
                self.alone = None
                self.changed.notify_all()


_lock = threading.Lock()
_turns: WeakKeyDictionary[nn.Module, _Turns] = WeakKeyDictionary()
_evaluated: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # modules in training mode held in eval mode, and how many times
_recurrent: WeakKeyDictionary[nn.RNNBase, tuple[int, bool, float]] = WeakKeyDictionary()  # how many times held; training and dropout before
_precise = 0
_tf32 = False
OF_RECURRENT = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)


def _turns_of(network: nn.Module) -> _Turns:
    with _lock:
        return _turns.setdefault(network, _Turns())


@contextmanager
def exclusive(network: nn.Module) -> Iterator[None]:
    """Keeps other threads from running the network in the block, if they run it through xattn."""
    with _turns_of(network).exclusive():
        yield


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Sets eval mode and, on a GPU, full float32 for convolutions in the block; restores each module's flag and the precision afterwards.

    With several threads, the last to leave restores the flags. cuDNN has no backward of an LSTM, GRU or RNN in eval mode: with a GPU, these
    are in training mode without dropout instead, which computes the same. A subclass with its own forward, which may read the mode, is in
    eval mode.

    Args:
        module: a classifier, or a network.
    """
    network = getattr(module, "network", module)
    with _turns_of(network).shared():
        held, recurrent = _hold(module)
        try:
            yield
        finally:
            _release(held, recurrent)


def _hold(module: nn.Module) -> tuple[list[nn.Module], list[nn.RNNBase]]:
    global _precise, _tf32
    with _lock:
        has_gpu = torch.cuda.is_available()
        parts = module.modules() if has_gpu else ()
        recurrent = [part for part in parts if isinstance(part, nn.RNNBase) and type(part).forward in OF_RECURRENT]
        held = [part for part in module.modules() if part.training or (_evaluated and part in _evaluated)]
        held = [part for part in held if part not in recurrent]
        for part in held:
            _evaluated[part] = _evaluated.get(part, 0) + 1
            part.training = False
        for part in recurrent:
            times, training, dropout = _recurrent.get(part, (0, part.training, part.dropout))
            _recurrent[part] = times + 1, training, dropout
            part.training, part.dropout = True, 0.0
        if has_gpu:
            _tf32 = _tf32 if _precise else torch.backends.cudnn.allow_tf32
            torch.backends.cudnn.allow_tf32 = False  # keeps probabilities within 1e-5 for every batch
            _precise += 1
    return held, recurrent


def _release(held: list[nn.Module], recurrent: list[nn.RNNBase]) -> None:
    global _precise
    with _lock:
        for layer in recurrent:
            times, training, dropout = _recurrent.pop(layer)
            if times > 1:
                _recurrent[layer] = times - 1, training, dropout
            else:
                layer.training, layer.dropout = training, dropout
        for part in held:
            _evaluated[part] -= 1
            if not _evaluated[part]:
                del _evaluated[part]
                part.training = True
        if torch.cuda.is_available():
            _precise -= 1
            torch.backends.cudnn.allow_tf32 = _tf32 if not _precise else torch.backends.cudnn.allow_tf32
