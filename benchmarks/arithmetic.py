"""What ImageNet's validation set by ten networks would cost, from measured figures: a page of arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speed_page import number, table

IMAGES, NETWORKS, GPUS = 50_000, 10, (1, 8, 64)
CORES = 8  # a GPU's share of a server's


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        device: on which.
        network: of which.
        compute: seconds an image of all methods and metrics, on one device.
        decode: seconds an image to read and crop, on one core.
        write: seconds a part, on the one process that writes.
        finish: seconds an image, in the end, on one core: `scores.csv` and `table.csv`.
        stored: bytes an image in the run folder.
        batch: images a part.
        speed_up: of two workers over one; 2 is perfect.
    """

    device: str
    network: str
    compute: float
    decode: float
    write: float
    finish: float
    stored: float
    batch: int
    speed_up: float | None


@dataclass(frozen=True)
class Cost:
    """Hours of each part of the work with so many GPUs, and which takes longest."""

    gpus: int
    compute: float
    decode: float
    write: float
    finish: float

    @property
    def wall(self) -> float:
        """Decoding and writing go on beside the computing; the tables come after."""
        return max(self.compute, self.decode, self.write) + self.finish

    @property
    def bottleneck(self) -> str:
        parts = {"computing": self.compute, "decoding": self.decode, "writing parts": self.write, "making the tables": self.finish}
        return max(parts, key=lambda name: parts[name])


def cost(of: Figures, gpus: int, images: int = IMAGES, networks: int = NETWORKS) -> Cost:
    """Computing divides by the GPUs, decoding by their servers' cores; the parts are written and the tables made by one process."""
    jobs = images * networks
    hours = 3600.0
    return Cost(
        gpus,
        jobs * of.compute / gpus / hours,
        images * of.decode / (gpus * CORES) / hours,
        images / of.batch * of.write / hours,
        jobs * of.finish / hours,
    )


def breaks(of: Figures, networks: int = NETWORKS) -> dict[str, float]:
    """With how many GPUs each serial part takes as long as the computing."""
    each = networks * of.compute
    serial = {"one writer of parts": of.write / of.batch, "making the tables": networks * of.finish}
    return {name: each / seconds for name, seconds in serial.items() if seconds > 0}


def arithmetic(figures: Sequence[Figures], price: float) -> str:
    """A section a device and network."""
    parts = [f"## {IMAGES:,} validation images × {NETWORKS} networks"]
    for of in figures:
        costs = [cost(of, gpus) for gpus in GPUS]
        rows = [
            [
                str(one.gpus),
                *(number(hours) for hours in (one.compute, one.decode, one.write, one.finish, one.wall)),
                number(one.wall * one.gpus * price) if of.device == "cuda" else "",
                one.bottleneck,
            ]
            for one in costs
        ]
        names = (of.device if of.device == "cuda" else "cores", "computing, h", "decoding, h", "writing parts, h", "tables, h", "in all, h")
        limits = breaks(of)
        first = min(limits, key=lambda name: limits[name])
        workers = "no two workers were measured" if of.speed_up is None else f"two workers were {number(of.speed_up)} × as fast as one"
        parts += [
            f"Measured of {of.network} on {of.device}: {number(of.compute)} s an image to compute on one device, {number(of.decode)} s "
            f"to decode on one core, {number(1000 * of.write)} ms to write a part of {of.batch} images, {number(1000 * of.finish)} ms an "
            f"image for the tables in the end, {number(of.stored / 1024)} KiB an image kept. Assumed: all {NETWORKS} networks cost as much "
            f"as this one and share one decoding ({CORES} cores beside each device), one process writes all parts, and computing divides "
            f"evenly; {workers}.",
            table((*names, f"price at {number(price)} a GPU-hour", "longest"), rows),
            f"Breaks first: {first}, which with {limits[first]:,.0f} devices takes as long as the computing; "
            + "; ".join(f"{name}, with {devices:,.0f}" for name, devices in limits.items() if name != first)
            + f". The run folder holds {number(IMAGES * NETWORKS * of.stored / 2**30)} GiB in {IMAGES / of.batch:,.0f} parts.",
        ]
    return "\n\n".join(parts)
