"""`xattn show`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from xattn.cli.options import PathOrURL
from xattn.cli.terminal import say
from xattn.text import counted

if TYPE_CHECKING:
    from xattn.study.store import Store


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PathOrURL(exists=True, file_okay=False))
def show(runs: Sequence[str]) -> None:
    """Print what is in RUNS: what was explained by which methods, progress, failures, and the command that made it."""
    from xattn.study.store import Store

    for number, folder in enumerate(runs):
        store = Store(folder)
        run = store.read_run()
        settings, images = run["settings"], run["settings"]["images"]
        shard, of = settings.get("shard", (1, 1))
        lines = {
            "state": "finished" if store.finished else _unfinished(store, run),
            "images": f"{images['count']}" + (f", shard {shard} of {of}" if of > 1 else ""),
            "from": ", ".join(images["origin"] or ["a data set in memory"]),
            "target": str(settings.get("target")),
            "networks": ", ".join(f"{model['name']} · {model['head']} (stage {model.get('stage')})" for model in settings["models"]),
            "methods": ", ".join(settings["methods"]),
            "metrics": ", ".join(settings["metrics"]) or "none",
            "level": f"{settings.get('level')}, seed {settings.get('seed')}, on {settings.get('device')}",
            "made by": f"xattn {settings.get('xattn')}, torch {settings.get('torch')}",
        }
        if "began" in run:
            lines["began"] = str(run["began"])
        if run.get("command"):
            lines["command"] = _command(run)
        failed = store.failed()
        say(("\n" if number else "") + str(store.folder))
        for name, text in lines.items():
            say(f"  {name:9} {text}")
        for added in run.get("added", []):
            say(f"  {'added':9} {_added(added)}, began {added['began']}\n  {'command':9} {_command(added)}")
        if failed:
            say(f"  {'failed':9} {counted(len(failed), 'image')}:")
            for name, reason in failed[:10]:
                say(f"    {name}: {reason}")
            if len(failed) > 10:
                say("    …, the others in scores.csv")


def _unfinished(store: Store, run: Mapping[str, Any]) -> str:
    """How far a run is, and which command continues it."""
    adding = [added for added in run.get("added", []) if not added["finished"]]
    if not adding:
        return f"{counted(len(store.done()), 'part is', 'parts are')} done: the same command continues the run"
    return f"not all parts have {', '.join(map(_added, adding))} yet: the command below, which added them, continues the run"


def _added(entry: Mapping[str, Any]) -> str:
    return ", ".join(spec for what in ("methods", "metrics") for spec in entry.get(what, []))


def _command(entry: Mapping[str, Any]) -> str:
    return shlex.join(["xattn", *map(str, entry["command"][1:])])
