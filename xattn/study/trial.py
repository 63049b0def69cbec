"""Trial of the metrics of runs, from the stored rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from xattn.deferred import pandas as pd
from xattn.metrics.trial import Trial, trial
from xattn.study.compare import joint_rows
from xattn.study.questions import shown_names
from xattn.study.store import Store


def trial_runs(
    runs: Sequence[str | Path],
    planted: Sequence[str] = (),
    *,
    truth: bool = False,
    places: str | Path | Sequence[str | Path] | None = None,
    device: str | None = None,
) -> Trial:
    """Tests every metric of some runs; see `xattn.metrics.trial.trial`. Nothing is run again, except for the truth.

    Args:
        runs: run folders.
        planted: methods that are expected to score worse, in addition to the controls.
        truth: also compare with the true effects of the parts, for runs over SketchBirds; see `xattn.study.truth.bird_truth`.
        places: where their pictures are now; None: where the runs found them.
        device: device of the networks that the truth needs.

    Raises:
        RunError: a folder is not a run.
        InputError: there are no methods or no controls, or as for `bird_truth`.
        NameUnknownError: a method of `planted` has no rows.
        UnsupportedError: as for `bird_truth`.
    """
    stores = [Store(run) for run in runs]
    names = shown_names(stores)
    rows, notes = joint_rows(stores, names)
    truths = None
    if truth:
        from xattn.study.truth import bird_truth

        frames = [bird_truth(run, places, device=device) for run in runs]
        for frame, called in zip(frames, names, strict=True):
            frame["model"] = [called.get(key, key[0]) for key in zip(frame["model"], frame["head"], strict=True)]
        truths = pd.concat(frames, ignore_index=True)
    found = trial(rows, planted, truths)
    unfinished = [f"{store.folder} is not finished: the trial is over the images done so far." for store in stores if not store.finished]
    return replace(found, notes=(*found.notes, *notes, *unfinished))
