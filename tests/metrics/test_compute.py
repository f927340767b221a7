"""From images through extractors and stores to numbers: equal to the functions on whole arrays, with real programs."""

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import UserError, WorkError
from pipeline.metrics.compute import compute
from pipeline.metrics.detectors import KNOWN
from pipeline.metrics.extract import Extractor, extractor_of
from pipeline.metrics.frechet import fid
from pipeline.metrics.kernel import kid_of_subsets
from pipeline.metrics.manifold import density_coverage, precision_recall
from pipeline.metrics.moments import moments
from pipeline.metrics.protocols import label_of, metric_name, parse
from pipeline.metrics.sliced import PatchSet, SlicedConfig, patches, sliced
from pipeline.metrics.spectra import SpectraConfig, profiles, spectra_distance
from pipeline.metrics.store import Store, fill

N_REAL, N_FAKE, SIDE = 520, 510, 32  # three blocks of each


class Tiny(nn.Module):
    """[n, 3, h, w] in [-1, 1] -> [n, 6]; nan for a picture that is white all over."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 6, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        white = (x.amin([1, 2, 3]) - 1).abs() < 1e-6
        return self.conv(x).relu().mean([2, 3]).masked_fill(white[:, None], torch.nan)


class Export(nn.Module):
    """Called as the field's exports are."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        x = img.to(torch.float32).mean([2, 3])
        return x if return_features else x.softmax(1)


def script(net: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as such
        torch.jit.script(net).save(str(path))
    return path


def images(n: int, seed: int) -> Tensor:
    """Smooth ones, so that features and spectra differ from picture to picture and from set to set."""
    draws = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) ** (1 + seed / 4)
    return (nn.functional.interpolate(draws, (SIDE, SIDE), mode="bilinear") * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return script(Tiny().eval(), tmp_path_factory.mktemp("detectors") / "tiny.pt")


@pytest.fixture(scope="module")
def sets() -> dict[str, Tensor]:
    return {"real": images(N_REAL, 0), "fake": images(N_FAKE, 1)}


def filled(folder: Path, img: Tensor, extractors: Mapping[str, Extractor], at_once: int = 1000) -> Store:
    """A store of what extractors make of images, handed to them `at_once` at a time; names are prefixed."""

    def make(block: range) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {}
        for first in range(block.start, block.stop, at_once):
            numbers = range(first, min(first + at_once, block.stop))
            for prefix, extractor in extractors.items():
                for name, rows in extractor(img[numbers.start : numbers.stop], numbers).items():
                    parts.setdefault(prefix + name, []).append(rows)
        return {name: torch.cat(rows) for name, rows in parts.items()}

    store = Store(folder, len(img))
    fill(store, make)
    return store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, tiny: Path, sets: dict[str, Tensor]) -> dict[str, Store]:
    extractor = extractor_of(parse(f"fid64_full.{tiny}"), SIDE)
    return {whose: filled(tmp_path_factory.mktemp(whose), img, {"": extractor}) for whose, img in sets.items()}


@pytest.fixture(scope="module")
def features(tiny: Path, sets: dict[str, Tensor]) -> dict[str, Tensor]:
    extractor = extractor_of(parse(f"fid64_full.{tiny}"), SIDE)
    return {whose: extractor(img, range(len(img)))["features"] for whose, img in sets.items()}


@pytest.mark.parametrize(
    ("parity", "variant"),
    [("", "nvlabs"), ("_mseitzer", "mseitzer"), ("_mmgeneration", "mseitzer"), ("_fidelity", "unbiased")],
)
def test_fid_is_that_of_all_features_in_the_variant_of_the_name(stores, features, parity, variant) -> None:
    for text, n_real, n_fake in ((f"fid510_full{parity}", N_REAL, N_FAKE), (f"fid300_400{parity}", 400, 300)):
        found = compute(parse(text), stores["real"], n_real, stores["fake"])
        real, fake = moments([features["real"][:n_real]]), moments([features["fake"][:n_fake]])
        assert found.values == {"": fid(real, fake, variant).distance}
        assert found.values != {"": fid(real, fake, "nvlabs" if variant == "unbiased" else "unbiased").distance} or (
            variant == "mseitzer"
        )
        assert found.notes == ()


def test_the_size_of_blocks_on_disk_does_not_matter(tmp_path, stores, features, monkeypatch) -> None:
    usual = compute(parse("fid510_full"), stores["real"], N_REAL, stores["fake"])
    monkeypatch.setattr("pipeline.metrics.store.BLOCK", 64)
    small = {}
    for whose, rows in features.items():
        small[whose] = Store(tmp_path / whose, len(rows))
        fill(small[whose], lambda block, rows=rows: {"features": rows[block.start : block.stop]})
    assert compute(parse("fid510_full"), small["real"], N_REAL, small["fake"]) == usual


def test_fid_notes_what_is_singular(stores) -> None:
    notes = compute(parse("fid5_full"), stores["real"], N_REAL, stores["fake"]).notes
    assert "the second covariance is singular in float64: rank 4 of 6" in notes
    assert any(note.startswith("5 fake images are too few for 6 features") for note in notes)


def test_kid_and_pairs_are_those_of_all_features(stores, features) -> None:
    real, fake = features["real"], features["fake"][:300]

    def found(text: str) -> dict[str, float]:
        return compute(parse(text), stores["real"], N_REAL, stores["fake"]).values

    assert found("kid300_full") == {"": kid_of_subsets(real, fake, seed=0).mean}
    exact, half = precision_recall(real, fake), precision_recall(real, fake, variant="nvlabs")
    assert found("pr300n3_full") == {"/precision": exact.precision, "/recall": exact.recall}
    assert found("pr300n3_full_nvlabs") == {"/precision": half.precision, "/recall": half.recall}
    assert found("pr300n3_full") != found("pr300n3_full_nvlabs") != found("pr300n7_full_nvlabs")
    rounded = precision_recall(real, fake, 3, "mmgeneration")
    assert found("pr300n3_full_mmgeneration") == {"/precision": rounded.precision, "/recall": rounded.recall}
    dc = density_coverage(real, fake, 5)
    assert found("dc300n5_full") == {"/density": dc.density, "/coverage": dc.coverage}
    assert 0 < dc.coverage < 1
    notes = compute(parse("kid300_full"), stores["real"], N_REAL, stores["fake"]).notes
    assert "subsets of 300 images, not 1000: there are no more" in notes


@pytest.mark.parametrize("parity", ["", "_mmgeneration"])
def test_swd_is_that_of_whole_sets_of_patches_by_level(tmp_path, sets, parity) -> None:
    protocol = parse(f"swd6{parity}")
    extractor = extractor_of(protocol, SIDE)
    stores = [filled(tmp_path / whose, img[:30], {"": extractor}, 7) for whose, img in sets.items()]
    config = SlicedConfig(images=6, parity=parity[1:] or "tkarras")
    whole = []
    for img in sets.values():
        of = PatchSet(SIDE, config)
        of.add(patches(img[:6], range(6), config), range(6))
        whole.append(of)
    by_side = sliced(*whole)
    found = compute(protocol, stores[0], 30, stores[1]).values
    assert found == {"": (by_side[32] + by_side[16]) / 2, "/32": by_side[32], "/16": by_side[16], "/avg32": by_side[32]}


@pytest.mark.parametrize(("parity", "profile"), [("", "ring1"), ("_power", "power"), ("_durall", "durall")])
def test_spectra_are_those_of_whole_sets(tmp_path, sets, parity, profile) -> None:
    protocol = parse(f"spectra260{parity}")
    stores = [filled(tmp_path / of, img[:280], {"": extractor_of(protocol, SIDE)}, 9) for of, img in sets.items()]
    config = SpectraConfig(images=260, profile=profile)
    real, fake = (profiles(img[:260], config) for img in sets.values())
    assert compute(protocol, stores[0], 280, stores[1]).values == {"": spectra_distance(real, fake, config)}


def test_images_may_be_handed_over_in_any_batches(tmp_path, tiny, sets) -> None:
    fakes = {text: extractor_of(parse(text), SIDE) for text in (f"fid64_full.{tiny}", "swd6", "spectra6")}
    block = range(250, 270)
    img = sets["fake"][250:270]
    for extractor in fakes.values():
        whole = extractor(img, block)
        for size in (1, 7):
            parts = [extractor(img[i : i + size], block[i : i + size]) for i in range(0, len(img), size)]
            assert all(torch.equal(torch.cat([p[name] for p in parts]), rows) for name, rows in whole.items())


def test_one_store_holds_the_fakes_of_several_extractors(tmp_path, tiny, sets) -> None:
    texts = {"a/": f"fid260_full.{tiny}", "b/": "swd6", "c/": "spectra40"}
    extractors = {prefix: extractor_of(parse(text), 16) for prefix, text in texts.items()}
    reals, fakes = (sets[whose][:260, :, :16, :16] for whose in ("real", "fake"))
    fake = filled(tmp_path / "fake", fakes, extractors)
    for prefix, text in texts.items():
        real = filled(tmp_path / prefix, reals, {"": extractors[prefix]})
        alone = filled(tmp_path / f"{prefix}alone", fakes, {"": extractors[prefix]})
        assert compute(parse(text), real, 260, fake, name=prefix) == compute(parse(text), real, 260, alone)


def test_extractors_with_equal_keys_are_those_that_make_equal_tensors(tiny, tmp_path) -> None:
    other = script(Tiny(seed=1).eval(), tmp_path / "tiny.pt")
    texts = (
        f"fid64_full.{tiny}", f"pr600n3_full.{tiny}", f"fid64_full.{other}",
        "swd16k", "swd6", "swd16k_mmgeneration", "spectra5k", "spectra64_power", "spectra5k_durall",
    )  # fmt: skip
    extractors = {text: extractor_of(parse(text), SIDE) for text in texts}
    same = [{a for a in texts if extractors[a].key == extractors[b].key} for b in texts]
    assert [sorted(map(texts.index, group)) for group in same] == [
        [0, 1], [0, 1], [2], [3, 4], [3, 4], [5], [6, 7], [6, 7], [8]
    ]  # fmt: skip
    for text, extractor in extractors.items():
        assert label_of(parse(text)) == extractor.label


def test_the_label_of_a_detector_that_is_not_recognised_carries_its_hash(tiny, tmp_path, monkeypatch) -> None:
    digest = hashlib.sha256(tiny.read_bytes()).hexdigest()
    other = parse(f"fid64_full.{tiny}")
    assert label_of(other) == extractor_of(other, SIDE).label == f"tiny-{digest[:8]}"
    assert metric_name(other, label_of(other), SIDE) == f"Metrics/fid64_full.tiny-{digest[:8]}/32px"

    path = script(Export(), tmp_path / "inception-2015-12-05.pt")
    monkeypatch.setenv("GRATICULE_DETECTORS", str(tmp_path))
    own = parse("fid64_full")
    with pytest.raises(UserError, match=r"detector='inception': .* has sha256"):
        extractor_of(own, SIDE)
    recognised = dataclasses.replace(KNOWN["inception"], sha256=hashlib.sha256(path.read_bytes()).hexdigest(), dim=3)
    monkeypatch.setitem(KNOWN, "inception", recognised)
    extractor = extractor_of(own, SIDE)
    assert extractor(images(3, 0), range(3))["features"].shape == (3, 3)
    assert metric_name(own, extractor.label, SIDE) == "Metrics/fid64_full/32px"
    path.unlink()
    with pytest.raises(UserError, match=r"detector='inception': not in .*; put inception-2015-12-05\.pt"):
        extractor_of(own, SIDE)


def test_one_file_that_is_fed_in_two_ways_makes_two_extractors(tmp_path, monkeypatch) -> None:
    path = script(Tiny().eval(), tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    monkeypatch.setenv("GRATICULE_DETECTORS", str(tmp_path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for name in ("inception_mseitzer", "inception_fidelity"):
        monkeypatch.setitem(KNOWN, name, dataclasses.replace(KNOWN[name], sha256=digest, dim=6))
    names = ("fid64_full_mseitzer", "fid64_full_mmgeneration", "fid64_full_fidelity")
    mseitzer, mmgeneration, fidelity = (extractor_of(parse(name), SIDE) for name in names)
    assert mseitzer.key == mmgeneration.key != fidelity.key
    img = images(2, 0)
    assert not torch.equal(mseitzer(img, range(2))["features"], fidelity(img, range(2))["features"])


def test_a_size_without_levels_is_refused_before_anything_is_made() -> None:
    with pytest.raises(UserError, match="pictures of 48x48 px; it takes squares of 16, 32, 64, 128"):
        extractor_of(parse("swd16k"), 48)


def test_the_first_image_with_a_nan_feature_is_named_when_it_is_made(tiny, sets) -> None:
    img = sets["fake"][250:300].clone()
    img[[7, 30]] = 255
    extractor = extractor_of(parse(f"fid64_full.{tiny}"), SIDE)
    said = r"257: tiny-\w{8} makes features of it that are not finite \(2 of these 50 images\)"
    with pytest.raises(WorkError, match=f"^image {said}"):
        extractor(img, range(250, 300))
    with pytest.raises(WorkError, match=f"^fake {said}"):
        extractor(img, range(250, 300), lambda number: f"fake {number}")


@pytest.mark.parametrize("text", ["fid510_full", "kid510_full", "pr510n3_full", "dc510n5_full"])
@pytest.mark.parametrize("whose", ["real", "fake"])
def test_the_first_image_with_a_nan_feature_in_a_store_is_named(tmp_path, features, text, whose) -> None:
    stores = {}
    for of, rows in features.items():
        rows = rows.clone()
        if of == whose:
            rows[[303, 505], 2] = torch.inf
        stores[of] = Store(tmp_path / of, len(rows))
        fill(stores[of], lambda block, rows=rows: {"features": rows[block.start : block.stop]})
    with pytest.raises(WorkError, match=f"{whose} image 303: feature 2 of 6 is inf"):
        compute(parse(text), stores["real"], N_REAL, stores["fake"])


@pytest.mark.parametrize(
    ("text", "n_real", "message"),
    [
        ("fid50k_full", N_REAL, "fid50k_full needs 50,000 fake images, there are 510"),
        ("fid64_full", 1, "fid64_full needs 2 real images, there are 1;"),
        ("fid64_600", N_REAL, "fid64_600 needs 600 real images, there are 520"),
        ("pr64n3_full", 3, "pr64n3_full needs 4 real images, there are 3"),
        ("swd500", 499, "swd500 needs 500 real images, there are 499"),
    ],
)
def test_too_few_images_are_named(stores, text, n_real, message) -> None:
    with pytest.raises(UserError, match=message):
        compute(parse(text), stores["real"], n_real, stores["fake"])
