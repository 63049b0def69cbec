"""Masked images in a vision transformer without the tokens of zeroed patches: writes benchmarks/results/tokens-dropped.md.

    python benchmarks/tokens_dropped.py --data path/to/data            # photos, weights

Measures the deviation from the masked image's own forward, the saving, and the part of a forward that all masks of an image share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import timm
import torch
from measure import conditions, repeated
from subjects import photographs, subject
from torch import Tensor, nn
from torchvision import models

import xattn

RESULT = Path(__file__).parent / "results" / "tokens-dropped.md"
DATA = Path(__file__).parents[2] / "shared" / "data"
NAME, METHOD, PATCH = "vit_tiny_patch16_224", "generic-attention", 16
SHARES = (0.75, 0.5, 0.25, 0.1)
RANDOM: dict[str, Callable[[], nn.Module]] = {
    **{f"timm:{name}": partial(timm.create_model, name) for name in ("deit_tiny_distilled_patch16_224", "deit3_small_patch16_224")},
    "timm:vit_base_patch16_clip_224": partial(timm.create_model, "vit_base_patch16_clip_224"),
    "torchvision:vit_b_16": partial(models.vit_b_16, weights=None),
}


def masks_of(maps: Tensor, share: float) -> Tensor:
    """Returns the visible patches, `(B, N)`: those with the highest mean of the mask, the same number for each image."""
    cells = nn.functional.avg_pool2d(maps[:, None], PATCH).flatten(1)
    kept = cells.argsort(dim=1, descending=True)[:, : round(share * cells.shape[1])]
    return torch.zeros_like(cells, dtype=torch.bool).scatter(1, kept, True)


def masked(images: Tensor, seen: Tensor) -> Tensor:
    """Returns images `(B, C, H, W)` with the other patches set to zero, in pixel space."""
    rows = images.shape[2] // PATCH
    mask = seen.view(len(seen), 1, rows, -1).repeat_interleave(PATCH, dim=2).repeat_interleave(PATCH, dim=3)
    return images * mask


def blocks_of(network: Any) -> nn.Module:
    """Returns the first layer, which receives all tokens with their positions."""
    block: nn.Module = network.blocks[0] if hasattr(network, "blocks") else network.encoder.layers[0]
    return block


@contextmanager
def dropping(network: nn.Module, seen: Tensor) -> Iterator[None]:
    """Removes the tokens of invisible patches before the first layer; class tokens stay."""

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens, *others = args
        first = tokens.shape[1] - seen.shape[1]
        kept = torch.cat([seen.new_ones(len(seen), first), seen], dim=1)
        return (tokens[kept].view(len(tokens), -1, tokens.shape[2]), *others)

    handle = blocks_of(network).register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def entering(network: nn.Module, places: dict[str, nn.Module], images: Tensor) -> dict[str, Tensor]:
    """Returns the outputs of some modules in one forward."""
    found: dict[str, Tensor] = {}
    handles = [module.register_forward_hook(lambda _, __, out, name=name: found.update({name: out})) for name, module in places.items()]
    network(images)
    for handle in handles:
        handle.remove()
    return found


def probability(classifier: xattn.Classifier, images: Tensor, targets: Tensor) -> Tensor:
    """In percent, `(B,)`."""
    return 100 * classifier(images).double().softmax(dim=1).gather(1, targets[:, None])[:, 0]


def by_turns(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Measures the seconds of each, round by round, after one untimed round."""
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(median(repeated(run, torch.device("cpu"), 0.3)))
    return found


def shares(classifier: xattn.Classifier, images: Tensor, maps: Tensor, rounds: int) -> list[str]:
    """Makes one row for each share of the patches: error and time relative to the masked image's own forward."""
    plain = classifier(images)
    targets = plain.argmax(dim=1)
    whole = probability(classifier, images, targets)
    rows = []
    for share in SHARES:
        seen = masks_of(maps, share)
        given = masked(images, seen)
        own, own_class = probability(classifier, given, targets), classifier(given).argmax(dim=1)
        with dropping(classifier.network, seen):
            found, found_class = probability(classifier, given, targets), classifier(given).argmax(dim=1)
        apart = (found - own).abs()

        def without(given: Tensor = given, seen: Tensor = seen) -> None:
            with dropping(classifier.network, seen):
                classifier(given)

        seconds = by_turns({"whole": partial(classifier, given), "dropped": without}, rounds)
        faster = median(a / b for a, b in zip(seconds["whole"], seconds["dropped"], strict=True))
        cells = [
            f"{share:.0%}",
            f"{(own - whole).abs().mean():.1f}",
            f"{apart.mean():.1f}",
            f"{apart.median():.2f}",
            f"{apart.max():.1f}",
            f"{int((own_class == found_class).sum())} of {len(images)}",
            f"{faster:.2f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
        click.echo(rows[-1], err=True)
    return rows


def same(classifier: xattn.Classifier, images: Tensor, maps: Tensor) -> list[str]:
    """Returns how far visible patches' tokens are from the unmasked image's, after each of the first layers, relative to their size."""
    network: Any = classifier.network
    seen = masks_of(maps, 0.5)
    first, second = network.blocks[0], network.blocks[1]
    places = {
        "patch embedding": network.patch_embed,
        "queries, keys and values of layer 1": first.attn.qkv,
        "output of layer 1": first,
        "queries, keys and values of layer 2": second.attn.qkv,
        "output of the last layer": network.blocks[-1],
    }
    given = [classifier.normalise(each) for each in (images, masked(images, seen))]
    whole, own = (entering(network, places, each) for each in given)
    rows = []
    for name in places:
        a, b = (found[name][:, -seen.shape[1] :][seen].double() for found in (whole, own))
        rows.append(f"| {name} | {float((a - b).norm() / a.norm()):.2g} |")
    hidden = own["patch embedding"][~seen].norm(dim=1).mean() / own["patch embedding"][seen].norm(dim=1).mean()
    return [*rows, "", f"The embedding of a zeroed patch is {hidden:.2f} times as long as that of a seen one, on average."]


def reusable(classifier: xattn.Classifier, images: Tensor, rounds: int) -> str:
    """Returns the largest share of a forward's time that all masks of an image can share."""
    network: Any = classifier.network
    given, first = classifier.normalise(images), network.blocks[0]
    tokens = torch.zeros(len(images), network.patch_embed.num_patches + 1, network.embed_dim)
    width = network.embed_dim
    weight, bias = first.attn.qkv.weight[width:], first.attn.qkv.bias[width:]
    seconds = by_turns(
        {
            "whole": partial(classifier, images),
            "embedding": partial(network.patch_embed, given),
            "keys and values": lambda: nn.functional.linear(first.norm1(tokens), weight, bias),
        },
        rounds,
    )
    of = {name: median(a / b for a, b in zip(seconds[name], seconds["whole"], strict=True)) for name in seconds}
    most = of["embedding"] + of["keys and values"]
    return (
        f"The patch embedding takes {of['embedding']:.1%} of a forward, norm, keys and values of layer 1 {of['keys and values']:.1%}. "
        "Taken from the unmasked image for every patch, which is more than any mask allows, they would make a forward "
        f"{1 / (1 - most):.2f} times as fast."
    )


def others(side: int) -> list[str]:
    """Measures on networks with random weights how far dropping moves the input of the last layer, relative to its size."""
    rows = []
    for name, built in RANDOM.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = built().eval()
        head: Any = getattr(network, "head", None) or network.heads  # type: ignore[union-attr]
        images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        seen = masks_of(torch.rand(2, side, side, generator=torch.Generator().manual_seed(1)), 0.5)
        given: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda _, args, given=given: given.append(args[0]))
        zeroed = masked(images, seen)
        network(zeroed)
        with dropping(network, seen):
            network(zeroed)
        handle.remove()
        rows.append(f"| `{name}` | {float((given[0] - given[1]).norm() / given[0].norm()):.2g} |")
        click.echo(rows[-1], err=True)
    return rows


@click.command()
@click.option("--count", default=12, show_default=True, help="Photographs.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), envvar="XATTN_DATA", default=DATA)
@click.option("--out", type=click.Path(path_type=Path), default=RESULT)
def main(count: int, rounds: int, threads: int, data: Path, out: Path) -> None:
    """Measures dropped tokens and reused values, and writes the page."""
    torch.set_num_threads(threads)
    one = subject(NAME, data, torch.device("cpu"))
    classifier = one.classifier.eval()
    if one.origin != "ImageNet":
        raise click.UsageError(f"{data / 'weights' / NAME}.pth is not there: set XATTN_DATA or --data.")
    images = photographs(data, classifier, count)
    maps = xattn.explain(classifier, images, [METHOD])[METHOD]
    with torch.inference_mode():
        table, alike, most, random = (
            shares(classifier, images, maps, rounds),
            same(classifier, images, maps),
            reusable(classifier, images, rounds),
            others(224),
        )
    about = conditions(torch.device("cpu"))
    place = f"{about['processor']}, {about['threads']} thread{'s' * (about['threads'] > 1)} of {about['cores']} cores"
    lines = [
        "# Zeroed patches without their tokens, and what masks of an image share",
        "",
        f"ViT-Tiny/16 (ImageNet) on {len(images)} photographs. The patches that `{METHOD}` marks highest are left to see, all other",
        "pixels are 0. Probability of the class that is predicted for the unmasked image, in points: what masking changes; and the error",
        "of a forward without the tokens of zeroed patches, against the masked image's own forward. × faster: median over rounds in",
        "which both run in turn.",
        "",
        "| patches seen | masking changes, mean | error, mean | median | largest | same class | × faster |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        *table,
        "",
        "A zeroed patch still is a token: the bias of the embedding and its position, which the others attend to. So dropping it is",
        "another network's answer. It would be exact where the network itself gives such tokens no attention, by a mask of keys that it",
        "makes of the pixels; we know of none in timm or torchvision. Half of the patches dropped on networks with random weights: how",
        "far what enters the last layer is moved, relative to its size (0: exact).",
        "",
        "| network | moved |",
        "|---|---:|",
        *random,
        "",
        "# What is exact to use again",
        "",
        "Tokens of seen patches, half of all, in the masked image against those in the unmasked one: norm of the difference over norm.",
        "",
        "| place | difference |",
        "|---|---:|",
        *alike,
        "",
        most,
        "",
        f"Made by `{about['command']}` on {about['date']}: {place}, load {about['load']:.1f}; xattn {about['versions']['xattn']}, torch",
        f"{about['versions']['torch']}.",
        "",
    ]
    out.write_text("\n".join(lines), encoding="utf-8")
    click.echo(out, err=True)


if __name__ == "__main__":
    main()
