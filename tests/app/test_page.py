"""The page as gradio serves it, in a browser."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import xattn
from tests import networks
from tests.report.runs import HOSTILE, write_pictures
from tests.report.test_page import browser  # noqa: F401  # a fixture; skips all of this where there is no browser
from xattn.app import results, served
from xattn.errors import InputError

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'xattn[app]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

LABELS = [f"<img src=x onerror=alert({k})> **{k}**" for k in range(5)]
WAIT_MS = 15_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    def load(name: str, device: str) -> Any:
        results.refuse_local(name) if name != "a network" else None
        return xattn.attach(networks.small(), input_size=32, resize=36, name=name, labels=LABELS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "load", load)
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        with served(["a network"], ["grad-cam", "centre"], device="cpu", port=free_port()) as url:
            yield url


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:  # noqa: F811
    """The page, opened; fails if it reports an error on the console or asks another machine for anything."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    page, wrong = context.new_page(), []
    page.set_default_timeout(WAIT_MS)
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith((address, "data:", "blob:")) else None)
    page.goto(address)
    page.wait_for_function("document.querySelector('#scores')?.innerText.includes('centre')")
    wait_for_maps(page, 3)
    yield page
    context.close()
    assert wrong == []


def wait_for_maps(page: Any, count: int) -> None:
    """The browser may show messages and scores before it has loaded the maps that come with them."""
    drawn = "nodes.length === count && nodes.every((node) => node.naturalWidth > 0)"
    page.wait_for_function(f"(count) => {{ const nodes = [...document.querySelectorAll('#maps img')]; return {drawn}; }}", arg=count)


def images_of(page: Any) -> list[str]:
    return page.eval_on_selector_all("#maps img", "nodes => nodes.map((node) => node.src)")


def test_a_picture_is_dropped_and_its_maps_and_scores_are_seen(page: Any, tmp_path: Path) -> None:
    before = images_of(page)
    picture = write_pictures(tmp_path / "pictures", [HOSTILE], 64) / HOSTILE
    page.get_by_label("Clear").first.click()
    page.get_by_text("Choose a picture: drop a file").wait_for()
    wait_for_maps(page, 0)
    page.set_input_files("#picture input[type=file]", str(picture))
    page.wait_for_function("document.querySelector('#scores').innerText.includes('centre')")
    wait_for_maps(page, 3)
    assert set(images_of(page)).isdisjoint(before)
    assert page.eval_on_selector_all("#maps img", "nodes => nodes.map((node) => node.naturalWidth)") == [640] * 3
    assert re.search(r"grad-cam\s+\d+\.\d\s+\d+\.\d\s+\d+\.\d\s+\d+\.\d{3}\s+centre\s+\d", page.locator("#scores").inner_text())
    assert HOSTILE.removesuffix(".jpg") in page.locator("#picture").inner_text()
    assert page.locator("img[src=x]").count() == 0
    assert "<img src=x" in page.locator("#classes").inner_text()


def test_what_is_drawn_follows_opacity_methods_and_class(page: Any) -> None:
    before = images_of(page)
    page.locator("#opacity input[type=number]").fill("0")
    page.locator("#opacity input[type=number]").press("Enter")
    changed = "(old) => { const drawn = document.querySelectorAll('#maps img'); return drawn.length > 1 && drawn[1].src !== old; }"
    page.wait_for_function(changed, arg=before[1])
    clear = images_of(page)
    assert clear[0] == before[0] == clear[1] == clear[2]
    page.locator("#opacity input[type=number]").fill("0.5")
    page.locator("#opacity input[type=number]").press("Enter")
    page.wait_for_function(changed, arg=clear[1])
    assert images_of(page) == before
    page.locator("#classes input").nth(4).check()
    page.wait_for_function(changed, arg=before[1])
    assert page.locator("#maps").inner_text().startswith("Maps for <img src=x")
    page.locator("#methods input").click()
    page.get_by_role("option", name="edges · control").click()
    wait_for_maps(page, 4)
    page.wait_for_function("document.querySelector('#scores').innerText.includes('edges')")
    page.get_by_role("button", name="coffee").click()
    page.wait_for_function(changed, arg=images_of(page)[1])
    page.get_by_text("Picture: 600 × 400 pixels.").wait_for()


def test_axe_finds_nothing_serious_in_light_and_dark(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="accessibility: pip install 'xattn[dev]'")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        if scheme == "dark":
            page.reload()
            page.wait_for_function("document.querySelector('#scores')?.innerText.includes('centre')")
        assert page.locator("body.dark").count() == (scheme == "dark")
        found = axe.Axe().run(page).response["violations"]
        serious = [(one["id"], [node["target"] for node in one["nodes"]][:3]) for one in found if one["impact"] in ("serious", "critical")]
        assert serious == []


def test_errors_are_sentences_and_their_text_is_text(page: Any) -> None:
    page.locator("#other").locator("textarea, input").fill("<b>wren</b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#messages p")
    assert page.locator("#messages").inner_text().startswith("Unknown class '<b>wren</b>'.")
    assert page.locator("#messages b").count() == 0
    page.locator("#network input").fill("os:getcwd")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#messages').innerText.startsWith(\"'os:getcwd' is code\")")
    wait_for_maps(page, 0)


def test_a_port_that_is_taken_is_named(address: str) -> None:
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(InputError, match=rf"port {port}.*Give another: --host, --port"), served(["a network"], port=port):
        pass
