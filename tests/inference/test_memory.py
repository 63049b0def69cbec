"""What computations hold, and that Score-CAM holds little."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys

import pytest
import torch

from xattn.errors import InputError
from xattn.inference.memory import free_memory, parse_size, peak_bytes, shown


@pytest.mark.parametrize(("text", "size"), [("2GB", 2**31), ("500 MB", 500 * 2**20), ("1.5GiB", 3 * 2**29), ("64k", 2**16), (1000, 1000)])
def test_a_size_is_a_number_with_a_unit(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["much", "-2GB", "0", "2 XB", "1.2.3G", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="a number with a unit, such as 500MB or 2GB"):
        parse_size(text)


def test_a_size_is_shown_in_the_unit_that_fits() -> None:
    assert (shown(3 * 2**30), shown(5 * 2**20)) == ("3.0 GB", "5 MB")


def test_the_peak_is_what_is_held_at_one_time_not_what_was_made_in_all() -> None:
    def one_after_the_other() -> None:
        for _ in range(10):
            torch.zeros(1000)

    assert peak_bytes(one_after_the_other) == 4000
    assert peak_bytes(lambda: [torch.zeros(1000) for _ in range(10)]) == 40000


def test_a_view_of_what_is_held_weighs_nothing() -> None:
    given = torch.zeros(1000)
    assert peak_bytes(lambda: given.view(10, 100).t()) == 0


def test_free_memory_is_something() -> None:
    assert free_memory(torch.device("cpu")) > 2**20


PAGES = """
import resource
import torch
from xattn.inference.memory import kept_pages

def faults():
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(16 * 2**20)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20

plain = faults()
with kept_pages():
    with kept_pages():
        pass
    kept, inside = faults(), held()
print(plain, kept, inside - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told to keep pages")
def test_pages_are_kept_inside_and_given_back_behind() -> None:
    ran = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    plain, kept, given_back = (int(number) for number in ran.stdout.split())
    assert kept < 0.5 * plain
    assert given_back >= 32


AFTERWARDS = """
import resource
import torch
from xattn.inference.memory import kept_pages

def work():
    for _ in range(10):
        held = [torch.ones(15 * 2**18) for _ in range(3)]  # 15 MB each, freed for the next: what a forward of some images makes
        del held

with kept_pages():
    torch.ones(2**18)
work()  # glibc's own adaptation takes one round too
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told to keep pages")
def test_other_code_of_the_process_allocates_as_cheaply_afterwards_as_in_a_fresh_one() -> None:
    fresh = AFTERWARDS.replace("with kept_pages()", "if True")
    faults = [int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for code in (fresh, AFTERWARDS)]
    assert faults[1] <= faults[0] + 100


AGAIN = """
import resource
import torch
from torch import nn
import xattn

torch.set_num_threads(1)
convolutions = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)
network = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
classifier = xattn.attach(network, input_size=256, name="large maps")  # 4 MB of features
images = torch.rand(2, 3, 256, 256)
xattn.explain(classifier, images, ["grad-cam"], batch_size=1)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    xattn.explain(classifier, images, ["grad-cam"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told to keep pages")
def test_a_batch_explained_again_and_again_finds_the_pages_of_the_time_before() -> None:
    ran = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, check=True)
    assert int(ran.stdout) * resource.getpagesize() < 8 * 2**20


LIMITED = """
import resource, sys
import torch
from torch import nn
import xattn
from pytorch_grad_cam import ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

torch.set_num_threads(1)
torch.manual_seed(0)
network = nn.Sequential(
    nn.Sequential(nn.Conv2d(3, 8, 7, stride=8, padding=3), nn.ReLU()),
    nn.Sequential(nn.Conv2d(8, 2048, 3, stride=4, padding=1), nn.ReLU()),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 10),
).eval()
classifier = xattn.attach(network, input_size=224, name="wide")
images = torch.rand(1, 3, 224, 224)
xattn.explain(classifier, images, ["grad-cam"])
held = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (held + 700 * 2**20,) * 2)
if sys.argv[1] == "ours":
    found = xattn.explain(classifier, images, ["score-cam"]).raw["score-cam"]
else:
    cam = ScoreCAM(network, [network[1]])
    cam.batch_size = 8
    found = cam(classifier.normalise(images), [ClassifierOutputTarget(0)])
print("map", tuple(found.shape))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_under_a_limit_in_which_a_peers_score_cam_of_2048_channels_dies_ours_finishes() -> None:
    pytest.importorskip("pytorch_grad_cam")

    def run(whose: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", LIMITED, whose],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    ours = run("ours")
    assert ours.stdout.strip() == "map (1, 7, 7)", ours.stderr
    theirs = run("theirs")
    assert theirs.returncode != 0
    assert "alloc" in theirs.stderr or "MemoryError" in theirs.stderr
