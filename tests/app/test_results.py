"""What the page computes and keeps, without gradio."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

import xattn
from tests import networks
from tests.report.runs import HOSTILE
from xattn.app import choices, results, session
from xattn.app.recent import Recent
from xattn.app.results import NoLongerWanted, Question, Results, refuse_local
from xattn.app.session import Request, Session, Shown
from xattn.data.pictures import read_picture
from xattn.errors import ImageError, InputError, NameUnknownError, SettingError, UnsupportedError
from xattn.explainers import methods
from xattn.overlays import OverlayStyle

SMALL = f"{networks.__file__}:small"
BIRDS = "birds:gap"


@pytest.fixture
def photo(folder: Path) -> str:
    return str(folder / "0.png")


@pytest.fixture
def kept() -> Results:
    return Results([SMALL], device="cpu")


def last(steps: object) -> Shown:
    return list(steps)[-1]


def test_maps_and_scores_are_those_of_explain_and_evaluate(kept: Results, photo: str) -> None:
    request = Request(photo, BIRDS, 3, ("grad-cam", "random"), ("average-drop", "sparsity"))
    shown = last(Session().explain(kept, request))
    classifier = xattn.load(BIRDS, device="cpu")
    maps = xattn.explain(classifier, photo, ["grad-cam", "random"], target=3)
    rows = xattn.evaluate(classifier, maps.images, maps, ["average-drop", "sparsity"]).set_index(["method", "metric"])["value"]
    assert list(shown.scores) == ["grad-cam", "random"]
    for method, found in shown.scores.items():
        assert torch.equal(kept.maps(request.question(method))[method], maps[method])
        assert found == {metric: pytest.approx(rows[method, metric], abs=1e-9) for metric in ("average-drop", "sparsity")}
    assert shown.messages == ()


def test_an_overlay_lies_where_that_on_the_photograph_lies(kept: Results, photo: str) -> None:
    wide = Path(photo).with_name("wide.png")
    read_picture(photo).resize((640, 400)).save(wide)
    request = Request(str(wide), BIRDS, 0, ("grad-cam",))
    overlay = last(Session().explain(kept, request)).overlays["grad-cam"]
    (on_photograph,) = xattn.explain(xattn.load(BIRDS, device="cpu"), str(wide), target=0).overlay("grad-cam")
    assert overlay.size == on_photograph.size == (640, 400)
    assert overlay.tobytes() == on_photograph.tobytes()


def test_a_picture_is_read_as_elsewhere(kept: Results, tmp_path: Path) -> None:
    turned, deep = tmp_path / "turned.jpg", tmp_path / "deep.png"
    picture = Image.new("RGB", (60, 40), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(turned, exif=exif)
    Image.fromarray((torch.arange(64 * 64).view(64, 64) * 16).to(torch.uint16).numpy()).save(deep)
    preprocessing = kept.classifier(BIRDS).preprocessing
    opened = kept.picture(str(turned), preprocessing)
    assert opened.size == (40, 60)
    assert opened.shown.size == (427, 640)
    assert torch.equal(kept.picture(str(deep), preprocessing).crop, preprocessing.crop(read_picture(deep)))
    assert "16-bit values: 0 to 65535" in " ".join(choices.about(kept, str(deep), BIRDS))


def test_the_first_classes_come_with_their_probabilities(kept: Results, photo: str) -> None:
    classifier = xattn.load(BIRDS, device="cpu")
    p, order = classifier.predict(xattn.explain(classifier, photo).images)[0].softmax(0).sort(descending=True)
    expected = [(int(k), f"{classifier.label(int(k))}, {float(value):.1%}") for value, k in zip(p[:5], order[:5], strict=True)]
    assert kept.classes(photo, BIRDS) == expected
    assert len(kept.classes(photo, SMALL)) == 5


def test_methods_that_a_network_lacks_are_left_out_and_say_why(kept: Results) -> None:
    convolutional, tokens = kept.offered(BIRDS), kept.offered("birds:vit")
    assert {method.spec for method in convolutional} == set(methods.entries)
    shown = {spec for _, spec in choices.method_choices(convolutional)}
    assert {"grad-cam", "rise", "random"} <= shown
    assert not {"rollout", "raw-attention"} & shown
    assert {"rollout", "legrad"} <= {spec for _, spec in choices.method_choices(tokens)}
    told = " ".join(choices.left_out(convolutional))
    assert "rollout: this network has no layers of attention" in told
    assert "Without raw-attention: this head has no attention." in told
    assert ("rise · 4,000 forwards", "rise") in choices.method_choices(convolutional)
    assert choices.chosen_methods(tokens, ["grad-cam", "raw-attention"], []) == ["grad-cam"]
    assert choices.chosen_methods(tokens, ["raw-attention"], ["rollout"]) == ["rollout"]
    assert choices.chosen_methods(convolutional, [], []) == ["grad-cam", "grad-cam++", "layer-cam"]


def test_methods_of_the_command_line_are_offered_with_their_settings() -> None:
    found = Results(methods=["rise:masks=20", "grad-cam"], device="cpu").offered(BIRDS)
    assert [method.spec for method in found[:2]] == ["rise:masks=20", "grad-cam"]
    assert [method.spec for method in found].count("grad-cam") == 1
    with pytest.raises(NameUnknownError, match="Did you mean 'grad-cam'"):
        Results(methods=["gradcam"])


@pytest.mark.parametrize(
    ("request_of", "told"),
    [
        (lambda photo: Request(photo, BIRDS, "wren", ("grad-cam",)), "grad-cam: Unknown class 'wren'."),
        (lambda photo: Request(photo, BIRDS, 0, ("gradcam",)), "gradcam: Unknown method 'gradcam'. Did you mean 'grad-cam'?"),
        (lambda photo: Request(photo, BIRDS, 0, ("rollout",)), "rollout: rollout does not run on birds:gap: this network has no layers"),
        (lambda photo: Request(photo, BIRDS, 0, ("grad-cam",), ("insert",)), "grad-cam: Unknown metric 'insert'."),
        (lambda photo: Request(photo, BIRDS, 0, ("guided-backprop",)), "guided-backprop fails parameter-randomisation tests"),
        (lambda photo: Request(photo, BIRDS, "label", ("grad-cam",)), "grad-cam: target 'label' needs labels"),
    ],
)
def test_errors_and_cautions_are_sentences_and_other_methods_go_on(kept: Results, photo: str, request_of: object, told: str) -> None:
    request = request_of(photo)
    both = Request(request.file, request.network, request.target, (*request.methods, "centre"), request.metrics)
    shown = last(Session().explain(kept, both))
    assert any(message.startswith(told) for message in shown.messages)
    assert "centre" in shown.overlays or request.target in ("wren", "label")


def test_a_blank_map_says_why(kept: Results, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "grey.png")
    shown = last(Session().explain(kept, Request(str(tmp_path / "grey.png"), BIRDS, 0, ("edges",))))
    assert [message.partition(":")[0] for message in shown.messages] == ["edges shows nothing"]


def test_an_error_that_is_not_the_user_s_is_raised() -> None:
    with pytest.raises(RuntimeError, match="a fault"):
        session.sentence(RuntimeError("a fault"))
    assert session.sentence(RuntimeError("CUDA out of memory")).startswith("memory ran out")


@pytest.mark.parametrize(
    "name",
    [
        SMALL,
        "os:getcwd",
        "/etc/net.safetensors",
        "hf:/tmp",
        "hf:/etc/passwd",
        "timm:local-dir:/tmp",
        "focus:timm:local-dir:/tmp",
        "focus:resnet18",
        "resnet50",
        "",
        "torch.hub:load",
        "hf:.",
    ],
)
def test_a_name_typed_on_the_page_runs_no_code_and_reads_no_file(name: str) -> None:
    with pytest.raises(InputError, match="xattn app --model NAME"):
        Results(device="cpu").classifier(name)


def test_names_of_libraries_and_those_of_the_command_line_are_loaded(kept: Results) -> None:
    refuse_local("torchvision:resnet50")
    assert kept.classifier(SMALL).class_count == 5
    with pytest.raises(NameUnknownError, match="Unknown torchvision network"):
        kept.classifier("torchvision:resnet51")


def test_networks_are_loaded_once_and_the_last_used_are_kept(kept: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(results, "load", lambda name, device: loaded.append(name) or object())
    for name in ("birds:gap", "birds:vit", "birds:gap", "birds:b-cnn", "birds:br-npa", "birds:gap", "birds:vit"):
        kept.classifier(name)
    assert loaded == ["birds:gap", "birds:vit", "birds:b-cnn", "birds:br-npa", "birds:vit"]


def test_what_raises_is_tried_again_by_who_waits() -> None:
    recent: Recent[int] = Recent(2)
    first, found = threading.Event(), []

    def fails() -> int:
        first.set()
        threading.Event().wait(0.2)
        raise NoLongerWanted

    def ask() -> None:
        first.wait()
        found.append(recent.get_or_make("key", lambda: 7))

    other = threading.Thread(target=ask)
    other.start()
    with pytest.raises(NoLongerWanted):
        recent.get_or_make("key", fails)
    other.join()
    assert found == [7]
    assert recent._turns == {}


def test_another_request_ends_what_it_does_not_ask_for(kept: Results, photo: str) -> None:
    user = Session()
    slow = user.explain(kept, Request(photo, BIRDS, 0, ("grad-cam", "rise", "random")))
    assert list(next(slow).overlays) == ["grad-cam"]
    started = threading.Event()
    original = results._WhileWanted.__call__

    def noticed(self: results._WhileWanted, images: torch.Tensor) -> torch.Tensor:
        started.set()
        return original(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results._WhileWanted, "__call__", noticed)
        rest: list[Shown] = []
        working = threading.Thread(target=lambda: rest.extend(slow))
        working.start()
        started.wait(10)
        after = list(user.explain(kept, Request(photo, BIRDS, 0, ("grad-cam",))))
        working.join(10)
        assert not working.is_alive()
    assert rest == []
    assert list(after[-1].overlays) == ["grad-cam"]
    assert kept.kept_maps(Question(photo, BIRDS, 0, "rise")) is None


def test_a_map_that_the_next_request_asks_for_too_is_not_begun_again(kept: Results, photo: str) -> None:
    user, question = Session(), Question(photo, BIRDS, 0, "rise:masks=64")
    wanted = Request(photo, BIRDS, 0, (question.method,))
    user.request = wanted
    assert user.wants(question)
    user.request = Request(photo, BIRDS, 0, (question.method, "random"), ("sparsity",))
    assert user.wants(question)
    user.request = Request(photo, BIRDS, 1, (question.method,))
    assert not user.wants(question)
    with pytest.raises(NoLongerWanted):
        kept.maps(question, lambda: user.wants(question))


def test_the_style_changes_what_is_drawn_and_computes_nothing(kept: Results, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    user = Session()
    before = last(user.explain(kept, Request(photo, BIRDS, 0, ("grad-cam", "grad-cam:signed=true"))))
    monkeypatch.setattr(results, "explain", None)
    clear = user.redraw(kept, OverlayStyle(alpha=0.0))
    shown = kept.picture(photo, kept.classifier(BIRDS).preprocessing).shown
    assert [overlay.tobytes() for overlay in clear.values()] == [shown.tobytes()] * 2
    green = user.redraw(kept, OverlayStyle("viridis", 1.0))
    assert {overlay.tobytes() for overlay in green.values()}.isdisjoint(overlay.tobytes() for overlay in before.overlays.values())


def test_two_users_at_once_get_what_each_gets_alone(photo: str) -> None:
    asked = [Request(photo, BIRDS, k, ("guided-backprop", "score-cam:top=4"), ("average-drop",)) for k in range(2)]
    alone = [last(Session().explain(Results(device="cpu"), request)).scores for request in asked]
    shared, found = Results(device="cpu"), {}
    users = [threading.Thread(target=lambda r=request: found.update({r: last(Session().explain(shared, r)).scores})) for request in asked]
    for user in users:
        user.start()
    for user in users:
        user.join()
    for request, expected in zip(asked, alone, strict=True):
        for method, scores in expected.items():
            assert found[request][method] == pytest.approx(scores, abs=1e-3)


def test_bad_files_are_refused_with_their_reason(kept: Results, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "absent.png"):
        with pytest.raises(ImageError):
            kept.classes(str(tmp_path / name), BIRDS)


def test_text_of_others_is_text() -> None:
    assert choices.paragraphs([HOSTILE, "a\x1b[31m\u202eb"]) == ("<p>&lt;img src=x onerror=alert(1)&gt;.jpg</p><p>a\\x1b[31m\\u202eb</p>")


def test_the_table_of_scores_names_units_and_the_better_direction() -> None:
    headers, rows = choices.score_table({"grad-cam": {"average-drop": 12.345, "insertion:step=8": 50.0}, "random": {"average-drop": 1.0}})
    assert headers == ["method", "AD % ↓", "I % ↑ (step=8)"]
    assert rows == [["grad-cam", "12.3", "50.0"], ["random", "1.0", "–"]]


def test_values_that_are_not_finite_are_a_sentence(tmp_path: Path) -> None:
    name = f"{networks.__file__}:not_a_number"
    Image.new("RGB", (40, 40), "black").save(tmp_path / "black.png")
    shown = last(
        Session().explain(Results([name], device="cpu"), Request(str(tmp_path / "black.png"), name, 0, ("centre",), ("average-drop",)))
    )
    assert any("not finite" in message or "non-finite" in message for message in shown.messages)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(SettingError):
        Results(methods=["rise:masks=many"])
    with pytest.raises(UnsupportedError):
        Results(device="cpu").maps(Question("x", BIRDS, 0, "rollout"))
