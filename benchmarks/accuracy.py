"""Accuracy of classifiers over all their classes and over the classes that occur among the labels, as a Markdown table.

python benchmarks/accuracy.py IMAGES LABELS_CSV MODEL[=WEIGHTS]…
"""

from __future__ import annotations

import sys

import pandas as pd
import torch
from scipy.stats import binomtest

import xattn
from xattn.data.images import ImageSource
from xattn.data.preprocessing import pixels


def right(classifier: xattn.Classifier, source: ImageSource) -> dict[str, list[bool]]:
    """Returns whether each image is recognised, over all classes and over those that occur."""
    labels = torch.tensor([index for image in source.images if image.label is not None for index in classifier.class_indices(image.label)])
    occurring = labels.unique()
    logits = [
        classifier.predict(pixels(batch.crops, classifier.device)).cpu()
        for batch in source.batches(classifier.preprocessing, 16, workers=1)
    ]
    found = torch.cat(logits)
    return {
        "all classes": (found.argmax(dim=1) == labels).tolist(),
        f"the {len(occurring)} that occur": (occurring[found[:, occurring].argmax(dim=1)] == labels).tolist(),
    }


def main(images: str, labels_csv: str, *models: str) -> None:
    source = ImageSource(images, labels_csv)
    lines, first = [], None
    for model in models:
        name, _, weights = model.partition("=")
        classifier = xattn.load(name, weights=weights or None)
        found = right(classifier, source)
        first = found if first is None else first
        line = {"model": classifier.name, "head": classifier.head_name, "n": len(source)}
        for classes, hits in found.items():
            interval = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
            gained = sum(a and not b for a, b in zip(hits, first[classes], strict=True))
            lost = sum(b and not a for a, b in zip(hits, first[classes], strict=True))
            p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
            against = "" if found is first else f", +{gained} −{lost} images against the first, p = {p:.2g}"
            line[f"accuracy over {classes}, %"] = (
                f"{100 * sum(hits) / len(hits):.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]{against}"
            )
        lines.append(line)
    print(pd.DataFrame(lines).to_markdown(index=False))
    print("\n95 % intervals: Wilson; p: exact sign test on the images on which the two differ (McNemar).")


if __name__ == "__main__":
    main(*sys.argv[1:])
