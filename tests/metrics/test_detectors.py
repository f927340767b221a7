"""Detectors are read from real TorchScript and exported programs and a real state dict, made here; nothing is faked
but the hashes of the published files, which are not at hand."""

import dataclasses
import hashlib
import json
import math
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jobs import doctor
from pipeline.errors import UserError
from pipeline.metrics.detectors import KNOWN, Options, find, load_detector, prepare, tf1_bilinear
from pipeline.metrics.inception import FIDInception, from_state_dict


def images(n: int, h: int = 16, w: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, h, w), generator=generator).to(torch.uint8)


class Small(nn.Module):
    """[n, 3, h, w] in [-1, 1] -> [n, 5]; other features in training mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.drop, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.norm(self.conv(x))).mean([2, 3]))


class Export(nn.Module):
    """Called as the field's exports are: bytes of any size in, probabilities out unless features are asked for."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        if img.dtype != torch.uint8:
            raise ValueError("bytes are wanted")
        x = img.to(torch.float32).mean([2, 3])
        return x if return_features else x.softmax(1)


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean([2, 3])


def script(net: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as such
        torch.jit.script(net).save(str(path))
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Path]:
    """Programs as torch.export writes them; made once, as its first use takes seconds."""
    folder, out = tmp_path_factory.mktemp("exported"), {}

    def export(name: str, net: nn.Module, shape: tuple[int, ...], *dynamic: int) -> None:
        dims = {axis: torch.export.Dim.AUTO for axis in dynamic}
        program = torch.export.export(net, (torch.zeros(shape),), dynamic_shapes=(dims,))
        torch.export.save(program, out.setdefault(name, folder / f"{name}.pt2"))

    export("any", Small().eval(), (2, 3, 16, 16), 0, 2, 3)
    export("fixed", Small().eval(), (3, 3, 12, 12))
    return out


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GRATICULE_DETECTORS", str(tmp_path))
    return tmp_path


def recognise(monkeypatch, name: str, path: Path, **changes) -> None:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(KNOWN, name, dataclasses.replace(KNOWN[name], sha256=sha256, **changes))


# FID's Inception


def random_weights() -> dict[str, torch.Tensor]:
    """He-scaled weights under the published names, so that features neither die nor explode."""
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in FIDInception().state_dict().items() if not k.endswith("num_batches_tracked")}
    generator, out = torch.Generator().manual_seed(0), {}
    for key, shape in shapes.items():
        if key.endswith(("conv.weight", "fc.weight")):
            out[key] = torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
        elif key.endswith(("running_var", "bn.weight")):
            out[key] = torch.rand(shape, generator=generator) + 0.5
        else:
            out[key] = torch.randn(shape, generator=generator) * 0.1
    return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights-inception.pth"
    torch.save(random_weights(), path)
    return path


def test_fid_inception_has_the_published_size_and_shapes():
    with torch.device("meta"):
        net = FIDInception().eval()
        shapes = {}
        for name, module in net.named_children():
            module.register_forward_hook(lambda _m, _x, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
        assert net(torch.zeros(1, 3, 299, 299)).shape == (1, 2048)
    assert sum(p.numel() for p in net.parameters()) == 23_850_960
    widths_35, widths_17 = {"5b": 256, "5c": 288, "5d": 288}, dict.fromkeys(("6a", "6b", "6c", "6d", "6e"), 768)
    assert shapes == {
        "Conv2d_1a_3x3": (32, 149, 149),
        "Conv2d_2a_3x3": (32, 147, 147),
        "Conv2d_2b_3x3": (64, 147, 147),
        "Conv2d_3b_1x1": (80, 73, 73),
        "Conv2d_4a_3x3": (192, 71, 71),
        **{f"Mixed_{k}": (c, 35, 35) for k, c in widths_35.items()},
        **{f"Mixed_{k}": (c, 17, 17) for k, c in widths_17.items()},
        **{f"Mixed_{k}": (c, 8, 8) for k, c in {"7a": 1280, "7b": 2048, "7c": 2048}.items()},
    }


@pytest.mark.parametrize(
    ("name", "some", "mean", "norm"),
    [
        ("inception_fidelity", (0.0, 0.0, 0.03721377, 8.55411243, 0.0, 0.39472499), 2.19702297, 171.13443805),
        ("inception_mseitzer", (0.00550848, 0.0, 0.03438628, 8.58532333, 0.0, 0.39802742), 2.22165226, 172.99453529),
    ],
)
def test_features_are_those_of_torch_fidelity_and_of_pytorch_fid(folder, monkeypatch, weights, name, some, mean, norm):
    """The figures: torch-fidelity 0.4.0 and pytorch-fid 0.3.0 on the same weights and image, from its bytes on."""
    recognise(monkeypatch, name, weights)
    (folder / weights.name).symlink_to(weights)
    detector = load_detector(name, batch=1)
    features = detector(images(1, 40, 50))
    assert (detector.label, detector.dim, tuple(features.shape)) == (name, 2048, (1, 2048))
    torch.testing.assert_close(features[0, [0, 1, 2, 3, 500, 1000]], torch.tensor(some), rtol=1e-5, atol=1e-5)
    assert features.double().mean().item() == pytest.approx(mean, rel=1e-6)
    assert features.double().norm().item() == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("Mixed_6b.branch7x7_2.conv.weight", None, "no tensor 'Mixed_6b.branch7x7_2.conv.weight'"),
        ("fc.weight", torch.zeros(1000, 2048), r"'fc.weight' has shape \(1000, 2048\), .* \(1008, 2048\)"),
        ("AuxLogits.fc.bias", torch.zeros(1), "it has 'AuxLogits.fc.bias' too"),
        ("fc.bias", [0.0], "no tensor 'fc.bias'"),
    ],
)
def test_other_weights_are_refused_by_the_first_name_that_differs(key, value, says):
    with torch.device("meta"):
        state = {**FIDInception().state_dict(), key: value}
    with pytest.raises(UserError, match=f"^here: no weights of FID's Inception: .*{says}$"):
        from_state_dict({k: v for k, v in state.items() if v is not None}, "here")


# How images go in


def test_resize_of_tensorflow_1_has_no_half_pixel_centres():
    x = torch.tensor([[0.0, 3.0], [6.0, 9.0]]).expand(1, 1, 2, 2)
    rows = [[0.0, 1.5, 3.0, 3.0], [3.0, 4.5, 6.0, 6.0], [6.0, 7.5, 9.0, 9.0], [6.0, 7.5, 9.0, 9.0]]
    torch.testing.assert_close(tf1_bilinear(x, 4)[0, 0], torch.tensor(rows))
    torch.testing.assert_close(tf1_bilinear(images(1, 8, 8).float(), 8), images(1, 8, 8).float())
    torch.testing.assert_close(tf1_bilinear(images(1, 8, 8).float(), 4), images(1, 8, 8).float()[:, :, ::2, ::2])


def test_every_range_maps_black_and_white_to_its_ends():
    img = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    for value, ends in {"0..1": (0, 1), "-1..1": (-1, 1), "tf": (-1, 127 / 128), "uint8": (0, 255)}.items():
        x = prepare(img, Options(range=value))
        assert x.dtype == (torch.uint8 if value == "uint8" else torch.float32)
        assert x[:, 0, 0, 0].tolist() == pytest.approx(list(ends))
    x = prepare(img, Options(range="imagenet"))
    assert x[1, :, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


def test_antialias_is_what_the_resize_says():
    """Every other column white: without antialias a quarter of the side sees only some of them."""
    img = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    img[..., ::4] = 255
    for mode in ("bilinear", "bicubic"):
        plain = prepare(img, Options(size_px=8, resize=mode, range="0..1"))
        smooth = prepare(img, Options(size_px=8, resize=f"{mode}_antialias", range="0..1"))
        wanted = F.interpolate(img / 255, (8, 8), mode=mode, antialias=True)
        torch.testing.assert_close(smooth, wanted)
        assert (plain.mean() - 0.25).abs() > 0.1 > (smooth.mean() - 0.25).abs()
    assert prepare(img, Options(size_px=8, resize="bicubic", range="uint8")).dtype == torch.uint8


# Recognised files


def test_a_recognised_export_is_fed_bytes_and_asked_for_features(folder, monkeypatch):
    path = script(Export(), folder / "renamed.pt")
    recognise(monkeypatch, "inception", path, dim=3)
    for name in ("inception", "renamed", "renamed.pt", str(path)):
        detector = load_detector(name)
        assert (detector.label, detector.dim) == ("inception", 3)
    torch.testing.assert_close(detector(images(2)), images(2).float().mean((2, 3)))


def test_a_published_name_on_another_file_is_refused(folder):
    script(Mean(), folder / "vgg16.pt")
    with pytest.raises(UserError, match=r"^detector='vgg16': \S+/vgg16.pt has sha256 [0-9a-f]{64}; .* has b437eb095fe"):
        load_detector("vgg16")


def test_both_ways_of_feeding_the_published_weights_come_from_one_file(folder, monkeypatch):
    path = script(Mean(), folder / "any.pth")
    for name in ("inception_mseitzer", "inception_fidelity"):
        recognise(monkeypatch, name, path)
    assert find("any")[0] == "inception_mseitzer"
    assert find("inception_fidelity")[1].path == path


def test_options_beside_a_recognised_file_are_refused_as_they_would_be_ignored(folder, monkeypatch):
    recognise(monkeypatch, "inception", script(Export(), folder / "mine.pt"))
    (folder / "mine.json").write_text("{}")
    with pytest.raises(UserError, match=r"mine.json would be ignored"):
        load_detector("inception")


# Files of the user's own


def test_a_program_of_ones_own_carries_its_hash_and_its_options(folder):
    path = script(Mean(), folder / "mine.pt")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    plain = load_detector("mine")
    assert (plain.label, plain.sha256, plain.dim) == (f"mine-{sha256[:8]}", sha256, 3)
    torch.testing.assert_close(plain(images(2)), images(2).float().mean((2, 3)) / 127.5 - 1)
    options = json.dumps({"size_px": 8, "resize": "bilinear", "range": "0..1"})
    (folder / "mine.json").write_text(options)
    other = load_detector("mine")
    assert other.sha256 == hashlib.sha256(path.read_bytes() + options.encode()).hexdigest()
    wanted = F.interpolate(images(2) / 255, (8, 8), mode="bilinear").mean((2, 3))
    torch.testing.assert_close(other(images(2)), wanted)


def test_exported_programs_and_torchscript_give_what_the_network_gives(folder, exported):
    net = Small().eval()
    script(Small().train(), folder / "trained.pt")  # read in eval mode, so dropout is off
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(net, torch.zeros(1, 3, 16, 16))
        traced.save(str(folder / "traced.pt"))
        torch.jit.freeze(traced).save(str(folder / "frozen.pt"))
    for path in (exported["any"], *(folder / f"{how}.pt" for how in ("trained", "traced", "frozen"))):
        for n, side in ((1, 16), (5, 20)):
            with torch.no_grad():
                wanted = net(images(n, side, side) / 127.5 - 1)
            torch.testing.assert_close(load_detector(str(path), batch=4)(images(n, side, side)), wanted)


def test_an_export_of_one_batch_and_size_gets_just_that(folder, exported):
    path = folder / "fixed.pt2"
    path.symlink_to(exported["fixed"])
    with pytest.raises(UserError, match=r"takes images of 12 px only, size_px=None; set size_px=12 .* fixed.json$"):
        load_detector("fixed")
    (folder / "fixed.json").write_text('{"size_px": 12, "resize": "bicubic_antialias"}')
    detector = load_detector("fixed")
    assert (detector.batch, detector.dim, len(detector(images(5)))) == (3, 5, 5)


class Wide(nn.Module):
    """A product of matrices, of which a row alone takes another kernel than many."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 24 * 20, 300)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


def test_features_do_not_depend_on_neighbours_or_batches(folder, monkeypatch):
    recognise(monkeypatch, "inception", script(Wide(), folder / "wide.pt"), dim=300, options=Options())
    detector, img = load_detector("inception", batch=4), images(9, 24, 20)
    whole = detector(img)
    assert torch.equal(whole, torch.cat([detector(one) for one in img.split(1)]))
    assert torch.equal(whole.flip(0), detector(img.flip(0)))
    assert detector(img[:0]).shape == (0, 300)
    assert not whole.requires_grad


def test_a_program_sees_one_shape_and_one_memory_format(folder):
    script(Mean(), folder / "mine.pt")
    seen = []

    def spy(x: torch.Tensor) -> torch.Tensor:
        seen.append((tuple(x.shape), x.is_contiguous()))
        return x.mean((2, 3))

    detector = dataclasses.replace(load_detector("mine", batch=4), program=spy)
    img = images(6)
    wanted = detector(img)
    assert torch.equal(wanted, detector(img.contiguous(memory_format=torch.channels_last)))
    assert seen == [((4, 3, 16, 16), True)] * 4


def test_settings_of_the_training_do_not_reach_the_features_and_come_back(folder):
    script(Small().eval(), folder / "mine.pt")
    detector = load_detector("mine")
    wanted = detector(images(2))
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.backends.cudnn.flags(enabled=True, benchmark=True):
            assert torch.equal(detector(images(2)), wanted)
            assert torch.backends.cudnn.benchmark
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


# Refusals


class Flat(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean([2, 3], keepdim=True)


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean([2, 3]) + torch.rand_like(x[:, :, 0, 0])


class Centred(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean([2, 3]) - x.mean([0, 2, 3])


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean([2, 3]) / 0


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (Flat, r"gives \[16, 3, 1, 1\], wanted \[16, features\] for 16 images \[3, 256, 256\]"),
        (Noisy, "features change from call to call; export it in eval mode"),
        (Centred, "features depend on the other images of a batch; export it in eval mode"),
        (Broken, "features of noise are not finite"),
        (Pair, r"gives a tuple, wanted one tensor of \[n, features\]"),
        (Export, r"fails on images of 256 x 256 px, range -1..1 \(.*bytes are wanted.*; see docs/metrics.md"),
    ],
)
def test_programs_that_are_no_detectors_are_refused(folder, net, says):
    script(net(), folder / "mine.pt")
    with pytest.raises(UserError, match=f"^detector='mine': .*{says}") as e:
        load_detector("mine")
    assert "\n" not in str(e.value)


def test_a_detector_that_is_not_there_is_answered_with_what_is(folder):
    with pytest.raises(UserError, match=r"not in \S+ \(there is none yet\); did you mean 'vgg16'\?"):
        find("vgg17")
    wants = r"put vgg16.pt \(sha256 b437eb095feaeb0b\.\.\.\) there or set GRATICULE_DETECTORS; nothing is downloaded"
    with pytest.raises(UserError, match=wants):
        find("vgg16")
    script(Mean(), folder / "dinov2.pt")
    with pytest.raises(UserError, match=r"\(there: dinov2.pt\); did you mean 'dinov2'\?"):
        find("dinov")
    script(Mean(), folder / "dinov2.pt2")
    with pytest.raises(UserError, match=r"dinov2.pt and dinov2.pt2 lie in \S+; say which"):
        find("dinov2")
    with pytest.raises(UserError, match=r"detector='\S+/none.pt': no such file"):
        find(str(folder / "none.pt"))
    with pytest.raises(UserError, match=r"detector='dino v2': .* rename the file"):
        find(str(script(Mean(), folder / "dino v2.pt")))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"sizepx": 224}', "sizepx is not a known key; did you mean 'size_px'?"),
        ('{"size_px": 224}', "size_px=224, resize=None: set both, or neither"),
        ('{"range": "0..2"}', "range='0..2'"),
        ("{", "not valid JSON"),
    ],
)
def test_options_that_are_off_are_refused_in_one_line(folder, text, says):
    script(Mean(), folder / "mine.pt")
    (folder / "mine.json").write_text(text)
    with pytest.raises(UserError) as e:
        load_detector("mine")
    assert str(folder / "mine.json") in str(e.value)
    assert says in str(e.value)
    assert "\n" not in str(e.value)


class Trap:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def swap(source: Path, target: Path, change) -> Path:
    """A zip archive with some entries replaced by `change(name, bytes)`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_pickles_are_never_run(folder, exported):
    mark = folder / "run"
    torch.save({"fc.weight": Trap(mark)}, folder / "torch.pt")
    (folder / "plain.pth").write_bytes(pickle.dumps(Trap(mark)))
    torch.save(Trap(mark), folder / "inner.bin")
    inner = (folder / "inner.bin").read_bytes()

    def inputs(name: str, data: bytes) -> bytes:
        return inner if "sample_inputs" in name else data

    def weights(name: str, data: bytes) -> bytes:
        if name.endswith("/weight_0"):
            return inner
        return data.replace(b'"use_pickle": false', b'"use_pickle": true') if "weights_config" in name else data

    def constants(name: str, data: bytes) -> bytes:
        entry = {"path_name": "custom_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
        return json.dumps({"config": {"x": entry}}).encode() if "constants_config" in name else data

    swap(exported["any"], folder / "inputs.pt2", inputs)
    swap(exported["any"], folder / "constants.pt2", constants)
    swap(exported["any"], folder / "weights.pt2", weights)
    for name in ("torch", "plain", "inputs", "weights", "constants"):
        with pytest.raises(UserError, match=r"pickle .*; it is not run; save TorchScript") as e:
            load_detector(name)
        assert "\n" not in str(e.value)
    assert not mark.exists()
    torch.load(folder / "inner.bin", weights_only=False)
    assert mark.exists()  # the trap works


@pytest.mark.parametrize("name", ["mine.pt", "mine.pth", "mine.pt2"])
def test_damaged_files_are_refused_in_one_line(folder, exported, name):
    whole = exported["any"] if name.endswith("2") else script(Small(), folder / "whole.pt")
    (folder / name).write_bytes(whole.read_bytes()[: 4000 if name.endswith("pth") else -900])
    with pytest.raises(UserError, match=r"^detector='mine': .*(damaged|no detector)") as e:
        load_detector("mine")
    assert "\n" not in str(e.value)


def test_a_state_dict_of_another_network_is_refused(folder):
    torch.save(Small().state_dict(), folder / "mine.pth")
    torch.save(torch.zeros(3), folder / "one.pth")
    with pytest.raises(UserError, match=r"no weights of FID's Inception: it has no tensor 'Conv2d_1a_3x3.conv.weight'"):
        load_detector("mine")
    with pytest.raises(UserError, match=r"holds one Tensor, no state dict"):
        load_detector("one")


# graticule doctor


def test_the_doctor_says_what_is_there_and_where_to_put_what_is_not(folder, monkeypatch):
    def lines() -> dict[str, doctor.Check]:
        return {c.name: c for c in doctor.checks() if c.name.startswith("detector")}

    monkeypatch.setenv("GRATICULE_DETECTORS", str(folder / "none"))
    absent = lines()
    assert {name: c.ok for name, c in absent.items()} == {f"detector {name}": None for name in KNOWN}
    assert absent["detector vgg16"].mend.startswith(f"put vgg16.pt (sha256 {KNOWN['vgg16'].sha256}) into {folder}/none")
    assert not (folder / "none").exists()
    monkeypatch.setenv("GRATICULE_DETECTORS", str(folder))
    recognise(monkeypatch, "inception", script(Export(), folder / "renamed.pt"))
    script(Mean(), folder / "vgg16.pt")
    script(Mean(), folder / "mine.pt")
    there = lines()
    assert (there["detector inception"].ok, there["detector inception"].found) == (True, str(folder / "renamed.pt"))
    assert there["detector vgg16"].ok is False
    assert "fetch it again" in there["detector vgg16"].mend
    assert there["detectors, others"].found == find("mine")[1].label
