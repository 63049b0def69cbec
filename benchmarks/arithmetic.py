"""Estimates what ImageNet's validation set by ten networks would cost, from measured figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speed_page import number, table

IMAGES, NETWORKS, DEVICES = 50_000, 10, (1, 8, 64)
CORES = 8  # decoding cores for each device


@dataclass(frozen=True)
class Figures:
    """Measured figures of one network on one device.

    Attributes:
        device: the device, in words.
        network: the network.
        passes: forwards per image, of all methods and metrics.
        compute: seconds per image of all methods and metrics, on one device.
        decode: seconds per image to read and crop, on one core.
        write: seconds per part.
        finish: seconds per image and network, in the end, on one core: `scores.csv` and `table.csv`.
        stored: bytes per image and network in the run folder.
        batch: images per part.
        priced: whether devices of this kind have a price.
        source: where `compute` comes from, in words.
    """

    device: str
    network: str
    passes: float
    compute: float
    decode: float
    write: float
    finish: float
    stored: float
    batch: int
    priced: bool
    source: str


@dataclass(frozen=True)
class Cost:
    """Returns the hours of each part of the work with a given number of devices."""

    devices: int
    compute: float
    decode: float
    write: float
    finish: float

    @property
    def wall(self) -> float:
        """Returns the total time: decoding runs in parallel with computing; parts are written between batches; the tables come last."""
        return max(self.compute + self.write, self.decode) + self.finish

    @property
    def bottleneck(self) -> str:
        parts = {"computing": self.compute, "decoding": self.decode, "writing parts": self.write, "making the tables": self.finish}
        return max(parts, key=lambda name: parts[name])


def cost(of: Figures, devices: int, images: int = IMAGES, networks: int = NETWORKS) -> Cost:
    """Returns hours by part: computing and writing are divided by the devices, decoding by their cores; one process makes the tables."""
    jobs, hours = images * networks, 3600.0
    return Cost(
        devices,
        jobs * of.compute / devices / hours,
        images * of.decode / (devices * CORES) / hours,
        images / of.batch * of.write / devices / hours,
        jobs * of.finish / hours,
    )


def breaks(of: Figures) -> float:
    """Returns the number of devices at which making the tables, in one process, takes as long as computing."""
    return of.compute / of.finish


def starves(of: Figures, networks: int = NETWORKS) -> float:
    """Returns the number of forwards per second of a device above which its cores cannot decode fast enough."""
    return of.passes * networks * CORES / of.decode


def arithmetic(figures: Sequence[Figures], price: float, speed_up: float | None) -> str:
    """Writes one section per device and network."""
    workers = "No two workers were measured" if speed_up is None else f"Two workers were measured {number(speed_up)} × as fast as one"
    parts = [
        f"## {IMAGES:,} validation images × {NETWORKS} networks",
        f"Assumed: all {NETWORKS} networks cost as much as the one measured and share one decoding; {CORES} cores decode beside each "
        f"device; each device's process writes its own parts; computing divides evenly by the devices. {workers}.",
    ]
    for of in figures:
        costs = [cost(of, devices) for devices in DEVICES]
        rows = [
            [
                str(one.devices),
                *(number(hours) for hours in (one.compute, one.decode, one.write, one.finish, one.wall)),
                number(one.wall * one.devices * price) if of.priced else "",
                one.bottleneck,
            ]
            for one in costs
        ]
        names = (of.device, "computing, h", "decoding, h", "writing parts, h", "tables, h", "in all, h")
        parts += [
            f"### {of.network}, {of.device}",
            f"{number(of.passes)} forwards per image; {number(of.compute)} s per image to compute on one device ({of.source}); measured on "
            f"one core: {number(1000 * of.decode)} ms per image to decode, {number(1000 * of.write)} ms to write a part of {of.batch} "
            f"images, {number(1000 * of.finish)} ms per image and network for the tables in the end, {number(of.stored / 1024)} KiB per "
            "image and network kept.",
            table((*names, f"price at {number(price)} per device-hour", "longest"), rows),
            f"What breaks first: the tables, which with {breaks(of):,.0f} devices take as long as the computing. Decoding would starve a "
            f"device of more than {starves(of):,.0f} forwards per second. The run folder holds "
            f"{number(IMAGES * NETWORKS * of.stored / 2**30)} GiB in {IMAGES / of.batch:,.0f} parts.",
        ]
    return "\n\n".join(parts)
