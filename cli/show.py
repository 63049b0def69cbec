"""`xattn show`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import click

from xattn.cli.options import PathOrURL
from xattn.cli.terminal import say


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PathOrURL(exists=True, file_okay=False))
def show(runs: Sequence[str]) -> None:
    """Say what is in RUNS: what was explained by what, how far it is, what failed, and the command that made it."""
    from xattn.study.store import Store

    for number, folder in enumerate(runs):
        store = Store(folder)
        run = store.read_run()
        settings, images = run["settings"], run["settings"]["images"]
        shard, of = settings.get("shard", (1, 1))
        lines = {
            "state": "finished" if store.finished else f"{len(store.done())} parts are done: the same command goes on",
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
            lines["command"] = shlex.join(["xattn", *map(str, run["command"][1:])])
        rows = (row for table in store.tables() for row in table.select(["image", "error"]).to_pylist())
        failed = list({row["image"]: row["error"] for row in rows if row["error"] is not None}.items())
        say(("\n" if number else "") + str(store.folder))
        for name, text in lines.items():
            say(f"  {name:9} {text}")
        if failed:
            say(f"  {'failed':9} {len(failed)} images:")
            for name, reason in failed[:10]:
                say(f"    {name}: {reason}")
            if len(failed) > 10:
                say("    …, the others in scores.csv")
