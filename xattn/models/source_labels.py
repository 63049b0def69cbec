"""Converts the labels of an image source, such as folder names or class indices, to classes of the classifiers of a run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence

from xattn.data.images import ImageSource
from xattn.data.labels import folder_of, is_index
from xattn.errors import InputError
from xattn.models.class_names import names_a_class
from xattn.models.classifier import Classifier

logger = logging.getLogger("xattn")


def with_labels(source: ImageSource, classifiers: Sequence[Classifier]) -> ImageSource:
    """The source with labels that every classifier understands.

    Folders whose names are all classes label their images. Class indices of a data set are replaced by names if the data set's classes have
    another order than the classifiers'.

    Args:
        source: the images.
        classifiers: of the run.

    Raises:
        InputError: labels are indices of classes other than the classifiers'.
    """
    if not classifiers or any(classifier.regression for classifier in classifiers):
        return source
    if source.class_names is not None:
        return _by_class_names(source, source.class_names, classifiers)
    if source.dataset is not None or source.labels_from == "none":
        return source
    folders = sorted({folder_of(image.name) for image in source.images})
    if not all(_named(folders, classifier) for classifier in classifiers):
        _say_that_folders_are_no_labels(source, folders, classifiers[0])
        return source
    if source.labels_from is None and all(image.label is None for image in source.images):
        found = copy.copy(source)
        found.label_by_folders()
        logger.info(
            "labels: the names of %d folders, all of them classes (%s); --labels-from none (labels_from='none') leaves them out",
            len(folders),
            _shown(folders, classifiers[0]),
        )
        return found
    _refuse_order_of_folders(source, folders, classifiers)
    return source


def _named(names: Iterable[str], classifier: Classifier) -> bool:
    return all(names_a_class(name, classifier.labels, classifier.class_count) for name in names)


def _shown(names: Sequence[str], classifier: Classifier) -> str:
    return ", ".join(f"{name} is {classifier.class_index(name)}" for name in names[:3]) + (", …" if len(names) > 3 else "")


def _say_that_folders_are_no_labels(source: ImageSource, folders: Sequence[str], classifier: Classifier) -> None:
    """Logs which folders do not name a class, if images have no other labels; as a warning if most names, or numbers, seem to be
    classes."""
    if source.labels_from is not None or len(folders) < 2 or any(image.label is not None for image in source.images):
        return
    other = [name for name in folders if not _named([name], classifier)]
    is_near = len(other) < len(folders) / 2 or all(is_index(name) for name in folders)
    logger.log(
        logging.WARNING if is_near else logging.INFO,
        "labels: none, as %d of %d folders name no class of %s (%s%s); --labels-from folders (labels_from='folders') takes them",
        len(other),
        len(folders),
        classifier.name,
        ", ".join(other[:3]),
        ", …" if len(other) > 3 else "",
    )


def _refuse_order_of_folders(source: ImageSource, folders: Sequence[str], classifiers: Sequence[Classifier]) -> None:
    """Raises if labels are indices of the sorted folders, and these folders are other classes."""
    if len(folders) < 2 or not all(is_index(image.label) for image in source.images):
        return
    places = {name: place for place, name in enumerate(folders)}
    counted = all(int(float(str(image.label))) == places[folder_of(image.name)] for image in source.images)
    for classifier in classifiers:
        if counted and any(classifier.class_index(name) != place for name, place in places.items()):
            raise InputError(
                f"labels are indices of the folders (0 to {len(folders) - 1}), which are other classes in {classifier.name}: "
                f"{_shown(folders, classifier)}. Leave the label file out and use --labels-from folders (labels_from='folders')."
            )


def _by_class_names(source: ImageSource, names: tuple[str, ...], classifiers: Sequence[Classifier]) -> ImageSource:
    if all(_named(names, classifier) for classifier in classifiers):
        if all([classifier.class_index(name) for name in names] == list(range(len(names))) for classifier in classifiers):
            return source
        found = copy.copy(source)
        found.by_name = True
        logger.info("labels: by the names of the data set's %d classes (%s)", len(names), _shown(names, classifiers[0]))
        return found
    for classifier in classifiers:
        if len(names) != classifier.class_count and not classifier.multi_label:
            raise InputError(
                f"labels are indices among the data set's {len(names)} classes ({', '.join(names[:3])}, …), and {classifier.name} has "
                f"{classifier.class_count}. Give the data set's classes the network's names, or leave the labels out: labels_from='none'."
            )
    return source
