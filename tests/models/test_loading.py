"""Where classifiers come from, and what is said when they cannot."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

import xattn
from tests import networks
from xattn.errors import InputError, MissingPackageError, NameUnknownError, UnsupportedError, WeightsError

FACTORY = f"{Path(networks.__file__)}:small"
SMALL = {"input_size": 32, "resize": 36, "device": "cpu"}


def test_a_factory_in_a_module_and_in_a_file_give_the_same_network(images: Tensor) -> None:
    one, two = xattn.load(FACTORY, **SMALL), xattn.load("tests.networks:small", **SMALL)
    assert torch.equal(one.predict(images), two.predict(images))
    assert one.name == FACTORY


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": {f"module.{k}": v for k, v in s.items()}, "epoch": 3}]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_is_read_through_its_wrappers(tmp_path: Path, wrap, suffix: str, images: Tensor) -> None:
    trained = networks.seeded(networks.small, seed=4)
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save(wrap(trained.state_dict()), path)
    else:
        save_file(trained.state_dict(), path)
    clf = xattn.load(FACTORY, weights=path, **SMALL)
    assert torch.allclose(clf.predict(images), xattn.attach(trained, input_size=32, resize=36).predict(images), atol=1e-6)


def test_a_mismatch_names_keys_and_shapes(tmp_path: Path) -> None:
    state = networks.small(7).state_dict()
    state["extra.weight"] = state.pop("0.bias")
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(
        WeightsError, match=r"1 keys missing \(0\.bias\); 1 keys unknown \(extra\.weight\).*6\.weight is \(7, 16\), needed \(5, 16\)"
    ):
        xattn.load(FACTORY, weights=tmp_path / "other.pth", **SMALL)


class Evil:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


@pytest.mark.parametrize("content", ["pickle", "text", "empty", "list"])
def test_a_file_that_holds_more_or_less_than_tensors_is_refused_and_not_executed(tmp_path: Path, content: str, capsys) -> None:
    path = tmp_path / "file.pth"
    if content == "pickle":
        torch.save({"state_dict": Evil()}, path)
    elif content == "list":
        torch.save([1, 2], path)
    else:
        path.write_text("hello" if content == "text" else "")
    with pytest.raises(WeightsError):
        xattn.load(FACTORY, weights=path, **SMALL)
    assert "executed" not in capsys.readouterr().out


def test_local_torchvision_weights_of_another_number_of_classes_set_the_width_of_the_last_layer(tmp_path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1(num_classes=7).state_dict(), tmp_path / "seven.pth")
    (tmp_path / "labels.txt").write_text("\n".join(f"bird {k}" for k in range(7)))
    clf = xattn.load("torchvision:squeezenet1_1", weights=tmp_path / "seven.pth", labels=tmp_path / "labels.txt", device="cpu")
    assert (clf.class_count, clf.label(6)) == (7, "bird 6")
    assert (clf.preprocessing.resize, clf.input_size) == (256, (224, 224))
    with pytest.raises(InputError, match="needs 7 labels, one name per class in order; got 2"):
        xattn.load("torchvision:squeezenet1_1", weights=tmp_path / "seven.pth", labels=["a", "b"], device="cpu")


def test_default_weights_come_from_the_cache_with_their_preprocessing_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enum = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), cache / Path(enum.url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for weights in (None, "IMAGENET1K_V1"):
        clf = xattn.load("torchvision:squeezenet1_1", weights=weights, device="cpu")
        assert clf.label(9) == "ostrich"
        assert clf.preprocessing.resize == enum.transforms().resize_size[0]


def test_weights_that_cannot_be_downloaded_say_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_args: object, **_kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(WeightsError, match=r"are not at .*squeezenet1_1.*could not be downloaded.*TORCH_HOME"):
        xattn.load("torchvision:squeezenet1_1", device="cpu")


def test_timm_networks_load_with_local_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("resnet10t", num_classes=4).state_dict(), tmp_path / "four.pth")
    clf = xattn.load("timm:resnet10t", weights=tmp_path / "four.pth", device="cpu")
    assert (clf.class_count, clf.labels, clf.stages[-1].name) == (4, None, "layer4")


def test_without_timm_its_networks_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'xattn\[timm\]'"):
        xattn.load("timm:resnet18")


def test_a_saved_classifier_loads_with_its_settings(tmp_path: Path, images: Tensor) -> None:
    clf = xattn.load(FACTORY, labels=list("abcde"), mean=(0.1, 0.2, 0.3), std=(1, 1, 1), **SMALL)
    clf.save(str(tmp_path / "mine.safetensors"))
    again = xattn.load(str(tmp_path / "mine.safetensors"), device="cpu", trust_code=True)
    assert torch.equal(again.predict(images), clf.predict(images))
    assert (again.preprocessing, again.labels, again.digest()) == (clf.preprocessing, clf.labels, clf.digest())


def test_a_module_in_hand_cannot_be_saved_without_a_name_to_build_it_by(tiny: xattn.Classifier, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"load it as 'package\.module:factory'"):
        tiny.save(str(tmp_path / "mine.safetensors"))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("resnet50", InputError, "write birds:NAME, torchvision:NAME"),
        ("torchvision:resnet5", NameUnknownError, "Did you mean 'resnet50'"),
        ("timm:resnet_18", NameUnknownError, "Unknown timm network"),
        ("no.such.module:f", InputError, "no module 'no'"),
        ("nowhere.py:f", InputError, "there is no file nowhere.py"),
        ("tests.networks:smal", NameUnknownError, "Did you mean 'small'"),
        ("tests.networks:pictures", InputError, "calling the factory without arguments failed"),
        ("missing.safetensors", WeightsError, "could not be read"),
    ],
)
def test_a_model_that_cannot_be_found_says_how_to_name_one(model: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        xattn.load(model)


def test_weights_alone_in_safetensors_are_told_from_a_saved_classifier(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match="name the network as the model and give this file as its weights"):
        xattn.load(str(tmp_path / "plain.safetensors"))


def test_an_input_size_alone_takes_the_resize_along() -> None:
    assert xattn.load(FACTORY, input_size=32, device="cpu").preprocessing.resize == 37
    with pytest.raises(InputError, match="smaller than the crop"):
        xattn.load(FACTORY, input_size=32, resize=30, device="cpu")
    with pytest.raises(InputError, match="three values"):
        xattn.load(FACTORY, input_size=32, mean=(0.5, 0.5), device="cpu")


def test_the_real_networks_recognise_the_photographs(data: Path) -> None:
    import csv

    with open(data / "photos.csv") as file:
        rows = list(csv.DictReader(file))[:16]
    clf = xattn.load("torchvision:mobilenet_v2", weights=data / "weights" / "mobilenet_v2.pth", device="cpu")
    maps = xattn.explain(clf, [data / "photos" / row["image"] for row in rows], ["grad-cam"])
    right = sum(int(row["label"]) == target for row, target in zip(rows, maps.targets.tolist(), strict=True))
    assert right >= 11
    alone, seven = (torch.cat([clf.predict(part) for part in maps.images.split(size)]).softmax(1) for size in (1, 7))
    together = clf.predict(maps.images.repeat(2, 1, 1, 1))[:16].softmax(1)
    assert float((alone - together).abs().max()) < 1e-5
    assert float((seven - together).abs().max()) < 1e-5
    assert clf.stages[-1].name == "features.18"


def test_readable_with_the_wrong_extension_is_still_not_weights(tmp_path: Path) -> None:
    shutil.copy(__file__, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError):
        xattn.load(FACTORY, weights=tmp_path / "x.safetensors", **SMALL)


@pytest.mark.parametrize("name", ["googlenet"])
def test_inceptions_come_back_from_their_file_as_they_were(name: str, tmp_path: Path) -> None:
    network = torchvision.models.get_model(name, weights=None, init_weights=False, aux_logits=False, transform_input=True)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    clf = xattn.load(f"torchvision:{name}", weights=tmp_path / "mine.pth", device="cpu")
    assert clf.network.transform_input
    clf.save(str(tmp_path / "mine.safetensors"))
    again = xattn.load(str(tmp_path / "mine.safetensors"), device="cpu")
    images = torch.rand(1, 3, 224, 224)
    assert torch.equal(again.predict(images), clf.predict(images))
    with pytest.raises(InputError, match="holds its own weights"):
        xattn.load(str(tmp_path / "mine.safetensors"), weights=tmp_path / "mine.pth")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the classifier, which is new
def test_an_inception_with_other_classes_is_otherwise_what_its_weights_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = torchvision.models.get_model("googlenet", weights=None, init_weights=False, aux_logits=True, transform_input=True)
    monkeypatch.setattr(torchvision.models.GoogLeNet_Weights, "get_state_dict", lambda *_, **__: made.state_dict())
    clf = xattn.load("torchvision:googlenet", classes=3, device="cpu")
    assert (clf.network.transform_input, clf.network.aux_logits, clf.class_count) == (True, False, 3)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert clf.network(images).shape == (1, 3)
    assert torch.equal(clf.network.state_dict()["conv1.conv.weight"], made.state_dict()["conv1.conv.weight"])


def test_a_file_finds_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "xattn_neighbour.py").write_text("from tests.networks import small")
    (tmp_path / "net.py").write_text("from xattn_neighbour import small")
    assert xattn.load(f"{tmp_path}/net.py:small", **SMALL).class_count == 5
    (tmp_path / "broken.py").write_text("import xattn_no_such_module")
    with pytest.raises(InputError, match="could not be imported.*xattn_no_such_module"):
        xattn.load(f"{tmp_path}/broken.py:small", **SMALL)


def test_class_names_that_look_like_numbers_are_names() -> None:
    clf = xattn.attach(networks.small(), input_size=32, resize=36, labels=["1", "2", "3", "4", "5"])
    assert clf.class_index("2") == 1
    assert clf.class_index(2) == 2


def test_timm_s_own_preprocessing_is_timm_s(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet18")
    network.pretrained_cfg = {**network.pretrained_cfg, "crop_pct": 0.95, "interpolation": "bicubic"}
    monkeypatch.setattr(timm, "create_model", lambda *_args, **_kwargs: network)
    clf = xattn.load("timm:resnet18", device="cpu")
    config = timm.data.resolve_model_data_config(network)
    theirs = timm.data.create_transform(**config, is_training=False)
    from PIL import Image

    picture = Image.effect_noise((300, 260), 90).convert("RGB")
    ours = clf.normalise(clf.preprocessing.crop(picture)[None] / 255)[0]
    assert clf.preprocessing.resize == 235
    assert torch.allclose(ours, theirs(picture), atol=1e-5)


def test_of_a_wrapper_of_devices_or_of_the_compiler_the_module_inside_is_attached(images: Tensor) -> None:
    class Compiled(torch.nn.Module):
        """As torch.compile wraps a module."""

        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self._orig_mod = module

    network = networks.small()
    for wrapped in (torch.nn.DataParallel(network), Compiled(network), Compiled(torch.nn.DataParallel(network))):
        clf = xattn.attach(wrapped, input_size=32, resize=36)
        assert clf.network is network
        assert [stage.name for stage in clf.stages] == ["1", "2", "3"]


class Embedded(torch.nn.Module):
    """A network for one size alone, which it states."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.image_size = size
        self.network = networks.small()
        self.position = torch.nn.Parameter(torch.zeros(1, 3, size, size))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images + self.position)


def test_a_network_for_one_size_is_given_it_or_says_which(tmp_path: Path) -> None:
    assert xattn.attach(Embedded(48)).input_size == (48, 48)
    assert xattn.attach(networks.small()).input_size == (224, 224)
    with pytest.raises(UnsupportedError, match=r"made for images of 48 × 48: give that as input_size"):
        xattn.attach(Embedded(48), input_size=64)
    (tmp_path / "mine.py").write_text("from tests.models.test_loading import Embedded\n\n\ndef build():\n    return Embedded(48)\n")
    assert xattn.load(f"{tmp_path}/mine.py:build", device="cpu").input_size == (48, 48)


def test_networks_with_lambdas_load(tmp_path: Path, images: Tensor) -> None:
    code = """
    from functools import partial
    from torch import nn
    from tests import networks

    class Lambda(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, images):
            return self.function(images)

    layers = [nn.Conv2d(3, 8, 3), Lambda(lambda x: x.relu()), nn.Conv2d(8, 8, 3), Lambda(lambda x: x.mean((2, 3))), nn.Linear(8, 5)]
    sequence = lambda: nn.Sequential(*layers)
    partially = partial(networks.small, classes=5)
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(code))
    for factory in ("sequence", "partially"):
        clf = xattn.load(f"{tmp_path}/mine.py:{factory}", **SMALL)
        torch.save({f"module.{key}": value for key, value in clf.network.state_dict().items()}, tmp_path / "weights.pth")
        again = xattn.load(f"{tmp_path}/mine.py:{factory}", weights=tmp_path / "weights.pth", **SMALL)
        assert torch.equal(again.predict(images), clf.predict(images))
        assert len(xattn.explain(clf, images, ["grad-cam"])["grad-cam"]) == len(images)


def test_a_module_of_network_and_loss_is_attached_and_its_checkpoint_loads(
    tmp_path: Path, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    class Lit(torch.nn.Module):  # as a LightningModule is written
        def __init__(self) -> None:
            super().__init__()
            self.backbone = networks.small()
            self.loss = torch.nn.CrossEntropyLoss(weight=torch.ones(5))

        def forward(self, images: Tensor) -> Tensor:
            return self.backbone(images)

    module = Lit()
    clf = xattn.attach(module, input_size=32, resize=36)
    assert clf.stages[-1].name == "backbone.3"
    torch.save({"state_dict": module.state_dict(), "pytorch-lightning_version": "2"}, tmp_path / "lit.ckpt")
    again = xattn.load(FACTORY, weights=tmp_path / "lit.ckpt", **SMALL)
    assert torch.allclose(again.predict(images), clf.predict(images), atol=1e-6)
    assert "loss.weight" in caplog.text


@pytest.mark.parametrize("place", ["hf_hub:nobody/nothing", "hf-hub:nobody/nothing"])
def test_a_timm_network_of_the_hub_that_is_out_of_reach_says_so(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")

    def create_model(name: str, **_options: object) -> None:
        raise OSError(f"no connection for {name}")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(WeightsError, match=f"timm:{place} is not in the cache and could not be downloaded .*no connection for {place}"):
        xattn.load(f"timm:{place}")
