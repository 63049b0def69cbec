"""Seeds derived from other seeds."""

from __future__ import annotations


def mixed(seed: int, epoch: int, number: int) -> int:
    """Returns one seed from three numbers, different from the seeds of neighbouring triples."""
    value = 0
    for part in (seed, epoch, number):
        value = ((value ^ (part & 0xFFFFFFFF)) * 0x9E3779B97F4A7C15 + 0x7F4A7C15) & 0x7FFFFFFFFFFFFFFF
        value ^= value >> 29
    return value
