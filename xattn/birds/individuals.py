"""Individual birds in pictures of several cameras: small pictures for re-identification, in the layout of Market-1501."""

from __future__ import annotations

import math
import random
from pathlib import Path

from PIL import Image

from xattn.birds.drawing import SIDE, render
from xattn.birds.scene import CLUTTER, HABITATS, PALETTE, PARTS, VARIANTS, Look, Pose, Scene, Thing
from xattn.data.market import DISTRACTOR, FOLDERS, JUNK
from xattn.errors import InputError

WIDTH = SIDE // 2
MOST_IDENTITIES, MOST_CAMERAS = 1501, 6  # as in Market-1501
STRANGERS = 5000  # identities from this number on are distractors
QUALITY = 95


def sighting(identity: int, camera: int, number: int, *, seed: int = 0) -> Scene:
    """Returns the scene of an individual in front of a camera.

    The individual determines colours and variants of the parts; the camera determines ground, light and viewing side.

    Args:
        identity: the individual's number, from 0.
        camera: the camera's number, from 1.
        number: the picture's number: the bird has moved slightly, and other things are in front of the camera.
        seed: seed of the data set.
    """
    own = random.Random(f"individual {seed} {identity}")
    looks = {
        part: Look(own.randrange(len(VARIANTS[part])), own.uniform(0.9, 1.15), own.uniform(-0.1, 0.1), (_tint(own), _tint(own), _tint(own)))
        for part in PARTS
    }
    plumage = (own.randint(60, 220), own.randint(60, 220), own.randint(60, 220))
    place = random.Random(f"camera {seed} {camera}")
    facing, tilt, light, background = place.choice((-1, 1)), place.uniform(0.7, 1.1), place.uniform(0.6, 1.05), place.getrandbits(32)
    moment = random.Random(f"sighting {seed} {identity} {camera} {number}")
    pose = Pose(
        0.5 + moment.uniform(-0.03, 0.03),
        0.55 + moment.uniform(-0.04, 0.04),
        moment.uniform(0.58, 0.68),
        tilt + moment.uniform(-0.12, 0.12),
        facing,
    )
    return Scene(0, pose, looks, plumage, HABITATS[(camera + seed) % len(HABITATS)], background, light, _clutter(moment))


def picture(scene: Scene) -> Image.Image:
    """Returns the middle of a scene, upright like a detector's box: RGB, 64 pixels high and 32 wide."""
    left = (SIDE - WIDTH) // 2
    return render(scene).crop((left, 0, left + WIDTH, SIDE))


def export_individuals(
    root: str | Path,
    *,
    train: int = 24,
    test: int = 12,
    cameras: int = 3,
    each: int = 3,
    distractors: int = 12,
    junk: int = 6,
    seed: int = 0,
) -> Path:
    """Writes pictures of individual birds in the layout of Market-1501: `bounding_box_train/`, `query/` and `bounding_box_test/`.

    The pictures are the same in every call with the same arguments. For each test individual, the first picture of each camera is a query,
    and the others are in the gallery. Distractors are other birds; junk pictures show a gallery bird that is mostly outside its box.

    Args:
        root: folder, new or empty.
        train: number of individuals for training.
        test: number of other individuals, which are queried.
        cameras: number of cameras that see each individual.
        each: number of pictures by each camera, two or more.
        distractors: number of pictures of birds that are not queried.
        junk: number of pictures that count neither as right nor as wrong.
        seed: seed of the data set.

    Returns:
        The folder, for `market:ROOT`.

    Raises:
        InputError: the folder holds other things, or a number is out of range.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(path.name for path in export_individuals(folder, train=2, test=1, distractors=0, junk=0).iterdir())
    ['bounding_box_test', 'bounding_box_train', 'query']
    """
    folder = Path(root)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"'{folder}' is not empty: export into a new folder.")
    if not (train >= 1 <= test and train + test <= MOST_IDENTITIES and 2 <= cameras <= MOST_CAMERAS and each >= 2):
        raise InputError(
            f"give at least one individual each for training and for tests, at most {MOST_IDENTITIES} in all, 2 to {MOST_CAMERAS} "
            f"cameras and at least two pictures per camera; got train={train}, test={test}, cameras={cameras}, each={each}."
        )
    for split in FOLDERS.values():
        (folder / split).mkdir(parents=True)
    for identity in range(1, train + test + 1):
        for camera in range(1, cameras + 1):
            for number in range(each):
                split = "train" if identity <= train else "query" if number == 0 else "gallery"
                _save(picture(sighting(identity, camera, number, seed=seed)), folder / FOLDERS[split], identity, camera, number)
    for number in range(distractors):
        stranger = picture(sighting(STRANGERS + number, number % cameras + 1, 0, seed=seed))
        _save(stranger, folder / FOLDERS["gallery"], DISTRACTOR, number % cameras + 1, number)
    for number in range(junk):
        camera = number % cameras + 1
        scene = sighting(train + 1 + number % test, camera, each + number, seed=seed)
        missed = render(scene).crop((4, 4, 4 + 3 * WIDTH // 4, 4 + 3 * SIDE // 4)).resize((WIDTH, SIDE), Image.Resampling.BILINEAR)
        _save(missed, folder / FOLDERS["gallery"], JUNK, camera, number)
    return folder


def _save(shown: Image.Image, folder: Path, identity: int, camera: int, number: int) -> None:
    name = "-1" if identity == JUNK else f"{identity:04d}"
    shown.save(folder / f"{name}_c{camera}s1_{number:06d}_01.jpg", quality=QUALITY, subsampling=0)


def _clutter(draw: random.Random) -> tuple[Thing, ...]:
    colours = tuple(PALETTE)
    return tuple(
        Thing(
            draw.choice(CLUTTER),
            draw.choice(colours),
            draw.uniform(0.28, 0.72),
            draw.uniform(0.03, 0.97),
            draw.uniform(0.05, 0.1),
            draw.uniform(0, math.tau),
            draw.random() < 0.3,
        )
        for _ in range(draw.randint(1, 4))
    )


def _tint(draw: random.Random) -> int:
    return draw.randint(-32, 32)
