"""Reference tensors of prepared photographs: the pixels that `prep` would store, once, whoever fills them and dies."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataprep.sources import open_source
from dataprep.sources.folder import Folder
from dataprep.transform import Transform
from dataprep.verify import verify
from dataprep.writer import prepare
from pipeline.data.filters import FILTERS
from pipeline.data.manifest import load_manifest, read_index
from pipeline.data.reader import DataError, ShardReader
from pipeline.errors import UserError, WorkError
from pipeline.metrics import store
from pipeline.metrics.extract import Extractor
from pipeline.metrics.reference import CHUNK, Reference, View, check_view
from tests.families.motorcycle import write_pairs

COUNT, SIDE_PX = 45, 64
HALF = View(size_px=32, filter="lanczos", mirror=False, stored_order=False)


def pixels(
    key: dict[str, str | int] | None = None,
    label: str = "pixels",
    seen: Callable[[Sequence[int]], None] = lambda numbers: None,
) -> Extractor:
    """All pixels of an image, and its number."""

    def make(img: torch.Tensor, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        seen(numbers)
        return {"pixels": img.flatten(1), "number": torch.tensor(list(numbers))[:, None]}

    return Extractor(label, key or {"of": "pixels"}, make)


@pytest.fixture(scope="module")
def windows(tmp_path_factory) -> Path:
    """Two classes of windows of a photograph, as files."""
    root = tmp_path_factory.mktemp("windows")
    source = open_source("photos")
    picture = np.asarray(source.read(next(iter(source.entries(SIDE_PX)))).convert("RGB"))
    rows, columns = (np.linspace(0, side - SIDE_PX, 7).astype(int) for side in picture.shape[:2])
    for i in range(COUNT):
        y, x = rows[i // 7], columns[i % 7]
        file = root / "ab"[i // 30] / f"{i:02d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(picture[y : y + SIDE_PX, x : x + SIDE_PX]).save(file, compress_level=1)
    return root


@pytest.fixture(scope="module")
def photographs(windows, tmp_path_factory) -> Path:
    """They as a prepared set, of which nothing is written."""
    out = tmp_path_factory.mktemp("sets") / "set"
    prepare(Folder(windows), out, Transform(size_px=SIDE_PX), shard_size=20)
    return out


@pytest.fixture
def root(photographs, tmp_path) -> Path:
    return Path(shutil.copytree(photographs, tmp_path / "set"))


@pytest.fixture
def blocks_of_eight(monkeypatch) -> None:
    monkeypatch.setattr(store, "BLOCK", 8)


def stored(root: Path) -> np.ndarray:
    """uint8 [n, 3, h, w]"""
    reader = ShardReader(root)
    return np.stack([reader.read(i)[0] for i in range(len(reader))])


def seen(reference: Reference, numbers: Sequence[int] | None = None) -> np.ndarray:
    """uint8 [n, 3, h, w] as the extractor gets them."""
    numbers = range(reference.store.count) if numbers is None else numbers
    return np.concatenate([img.numpy() for img, _ in reference.pixels(numbers)])


def refused(*words) -> str:
    with pytest.raises(UserError) as e:
        Reference(*words)
    assert "\n" not in str(e.value)
    return str(e.value)


def files(folder: Path) -> dict[str, bytes]:
    """All of a folder but what killed processes left under temporary names."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("size_px", [32, 24])
def test_a_set_looked_at_smaller_is_what_prep_makes_of_the_stored_pixels(filter, size_px, photographs, tmp_path):
    for i, img in enumerate(stored(photographs)[:5]):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(img.transpose(1, 2, 0)).save(tmp_path / "images" / f"{i:02d}.png", compress_level=1)
    transform = Transform(size_px=size_px, crop="none", filter=filter)
    prepare(Folder(tmp_path / "images"), tmp_path / "small", transform)
    reference = Reference(photographs, View(size_px, filter, mirror=False, stored_order=True), pixels())
    assert np.array_equal(seen(reference, range(5)), stored(tmp_path / "small"))


def test_a_set_of_the_size_that_is_measured_goes_in_as_it_is_stored(photographs):
    reference = Reference(photographs, View(SIDE_PX, "", mirror=False, stored_order=True), pixels())
    assert np.array_equal(seen(reference), stored(photographs))


def test_drawn_images_are_another_order_of_the_whole_set_and_the_first_ones_a_draw_without_replacement(photographs):
    reference = Reference(photographs, HALF, pixels())
    samples = reference.samples(range(COUNT))
    assert sorted(samples) == list(range(COUNT)) != samples
    assert reference.samples([7, 3]) == [samples[7], samples[3]]
    in_order = Reference(photographs, replace(HALF, stored_order=True), pixels())
    assert np.array_equal(seen(reference), seen(in_order)[samples])


def test_with_mirror_the_second_half_is_the_first_one_mirrored(photographs):
    plain, both = (Reference(photographs, replace(HALF, mirror=mirror), pixels()) for mirror in (False, True))
    assert (plain.n(None), both.n(None), both.n(50)) == (COUNT, 2 * COUNT, 50)
    assert np.array_equal(seen(both), np.concatenate([seen(plain), seen(plain)[..., ::-1]]))


@pytest.mark.parametrize("threads", [0, 3])
def test_pixels_depend_on_no_batch_and_no_number_of_threads(threads, photographs):
    view = replace(HALF, mirror=True)
    reference = Reference(photographs, view, pixels(), None, threads)
    one_by_one = np.concatenate([seen(reference, [j]) for j in range(2 * COUNT)])
    assert 2 * COUNT > CHUNK
    assert np.array_equal(seen(reference), one_by_one)


def test_labels_are_those_of_the_same_images(photographs, tmp_path):
    reference = Reference(photographs, replace(HALF, mirror=True), pixels())
    of = read_index(photographs)["label"]
    assert reference.labels([3, COUNT + 3]) == [of[reference.samples([3])[0]]] * 2
    assert set(reference.labels(range(COUNT)) or ()) == {0, 1}
    (tmp_path / "flat").mkdir()
    Image.fromarray(stored(photographs)[0].transpose(1, 2, 0)).save(tmp_path / "flat" / "0.png")
    prepare(Folder(tmp_path / "flat"), tmp_path / "out", Transform(size_px=32))
    assert Reference(tmp_path / "out", replace(HALF, filter=""), pixels()).labels([0]) is None


def test_whatever_changes_a_tensor_has_a_folder_of_its_own_and_says_so_there(root, tmp_path):
    other = Path(shutil.copytree(root, tmp_path / "other"))
    manifest = load_manifest(other)
    changed = manifest.replace(classes=("c", "d"))
    (other / "manifest.json").write_text(changed.replace(dataset_id=changed.identity()).to_json())
    views = [
        HALF,
        *(
            replace(HALF, **change)
            for change in (
                {"size_px": 24},
                {"filter": "box"},
                {"mirror": True},
                {"stored_order": True},
                {"share": 0.75},
                {"rotate": True},
            )
        ),
    ]
    all_of_them = [Reference(root, view, pixels(), tmp_path / "place") for view in views]
    all_of_them.append(Reference(other, HALF, pixels(), tmp_path / "place"))
    for key, label in (({"of": "pixels", "sha256": "1"}, "pixels"), ({"of": "pixels", "sha256": "2"}, "a/b")):
        all_of_them.append(Reference(root, HALF, pixels(key, label), tmp_path / "place"))
    folders = {reference.store.folder for reference in all_of_them}
    assert len(folders) == len(all_of_them) == 10
    assert {folder.parent for folder in folders} == {tmp_path / "place"}
    assert Reference(root, replace(HALF, share=1.0), pixels(), tmp_path / "place").store.folder in folders
    first, of_other = all_of_them[0], all_of_them[7]
    assert of_other.samples(range(COUNT)) != first.samples(range(COUNT))
    first.fill(0)
    assert not first.store.folder.exists()
    first.fill(3)
    assert json.loads((first.store.folder / "reference.json").read_text()) == first.key
    assert {
        "dataset_id": first.dataset_id,
        "size_px": 32,
        "filter": "lanczos",
        "order": "drawn",
    }.items() <= first.key.items()
    assert first.key["extractor"] == {"of": "pixels"}


def test_crops_are_a_square_of_each_image_at_its_own_place_and_turned(photographs):
    view = View(48, "", mirror=False, stored_order=True, share=0.75, rotate=True)
    whole, crops = stored(photographs), seen(Reference(photographs, view, pixels()))
    found = []
    for img, crop in zip(whole, crops, strict=True):
        places = np.lib.stride_tricks.sliding_window_view(img, (48, 48), axis=(1, 2))
        for turns in range(4):
            equal = (places == np.rot90(crop, -turns, (1, 2))[:, None, None]).all(axis=(0, 3, 4))
            found += [(turns, *place) for place in np.argwhere(equal).tolist()]
    assert len(found) == COUNT
    for values, most in zip(zip(*found, strict=True), (3, 16, 16), strict=True):
        assert max(values) - min(values) >= 0.75 * most
    drawn = Reference(photographs, replace(view, stored_order=False), pixels())
    assert np.array_equal(seen(drawn), crops[drawn.samples(range(COUNT))])
    small = View(24, "area", mirror=False, stored_order=True, share=0.75, rotate=True)
    halves = crops.reshape(COUNT, 3, 24, 2, 24, 2).astype(int).sum((3, 5))
    assert np.array_equal(seen(Reference(photographs, small, pixels())), (halves + 2) // 4)


def _fills(root: Path, worker: int) -> None:
    """Worker 0 dies as it publishes its third block, whose bytes lie there under a temporary name; 1 stops soon."""
    published, rename = [], os.replace

    def publish(source: Path, target: Path) -> None:
        published.append(target)
        if worker == 0 and len(published) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    reference = Reference(root, replace(HALF, mirror=True), pixels())
    store.os.replace = publish
    reference.fill(2 * COUNT, worker=worker, workers=2, stop=lambda: worker == 1 and len(published) > 3)


@pytest.mark.usefixtures("blocks_of_eight")
def test_two_processes_of_which_one_is_killed_leave_the_files_of_one(root, tmp_path):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_fills, args=(root, worker)) for worker in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [-signal.SIGKILL, 0]
    reference = Reference(root, replace(HALF, mirror=True), pixels())
    alone = Reference(root, replace(HALF, mirror=True), pixels(), tmp_path / "alone")
    assert 3 <= len(reference.store.missing()) < 12 == len(reference.store.blocks())
    assert reference.fill(2 * COUNT)
    assert alone.fill(2 * COUNT)
    assert files(reference.store.folder) == files(alone.store.folder)
    assert reference.store.rows("number")[:, 0].tolist() == list(range(2 * COUNT))


@pytest.mark.usefixtures("blocks_of_eight")
def test_what_was_stopped_goes_on_and_nothing_is_made_twice_or_beyond_what_is_wanted(root):
    made: list[int] = []
    reference = Reference(root, HALF, pixels(seen=made.extend))
    assert not reference.fill(20, stop=lambda: len(made) >= 8)
    assert made == list(range(8))
    again = Reference(root, HALF, pixels(seen=made.extend))
    told = []
    assert again.fill(20, told=lambda done, total: told.append((done, total)))
    assert made == list(range(24))
    assert told == [(8, 24), (16, 24), (24, 24)]
    assert again.fill(20)
    assert made == list(range(24))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9],
        lambda data: b"",
        lambda data: data[:9] + b"x" + data[10:],
        lambda data: data[:-9] + bytes(9),
    ],
)
def test_a_damaged_block_is_named_with_the_mend_and_deleting_it_is_one(damage, root):
    reference = Reference(root, HALF, pixels())
    reference.fill(COUNT)
    (block,) = reference.store.folder.glob("*.safetensors")
    sound = block.read_bytes()
    block.write_bytes(damage(sound))
    with pytest.raises(WorkError, match=rf"^{block}: .*; delete it and run the command again"):
        reference.store.rows("pixels")
    block.unlink()
    reference.fill(COUNT)
    assert block.read_bytes() == sound


def test_a_damaged_image_is_named_and_nothing_is_kept_of_its_block(root):
    shard = root / "shard-00001.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    reference = Reference(root, HALF, pixels())
    with pytest.raises(DataError, match=r"shard-00001\.tar: sample \d+ .* run `graticule verify`"):
        reference.fill(COUNT)
    assert list(files(reference.store.folder)) == ["reference.json"]


def test_an_image_with_nan_features_is_named_as_it_is_stored_and_nothing_is_kept_of_its_block(root):
    def make(img: torch.Tensor, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([[torch.nan if j == COUNT + 7 else 0.0] for j in numbers])}

    reference = Reference(root, replace(HALF, mirror=True), Extractor("broken", {}, make))
    sample = reference.samples([7])[0]
    with pytest.raises(
        WorkError, match=rf"^{root}: sample {sample}, mirrored \(image {COUNT + 7} of the reference\): "
    ):
        reference.fill(2 * COUNT)
    assert list(files(reference.store.folder)) == ["reference.json"]


def test_a_folder_that_was_made_otherwise_or_is_damaged_is_refused(root):
    reference = Reference(root, HALF, pixels())
    reference.fill(COUNT)
    said = reference.store.folder / "reference.json"
    said.write_text(json.dumps({**reference.key, "size_px": 16}))
    assert "made otherwise (size_px 16, not 32); delete the folder" in refused(root, HALF, pixels())
    next(reference.store.folder.glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match="made otherwise"):
        reference.fill(COUNT)
    for text in ("[1]", "{", "\x00"):
        said.write_text(text)
        assert "reference.json: " in refused(root, HALF, pixels())
        assert "delete the folder" in refused(root, HALF, pixels())


def test_nothing_that_looks_at_a_prepared_folder_minds_the_one_of_references(windows, root):
    before, contents = load_manifest(root), {p.name: p.read_bytes() for p in root.iterdir()}
    Reference(root, HALF, pixels()).fill(COUNT)
    assert load_manifest(root) == before
    assert verify(root) == []
    assert prepare(Folder(windows), root, Transform(size_px=SIDE_PX), shard_size=20) == before
    assert {p.name: p.read_bytes() for p in root.iterdir() if p.is_file()} == contents
    assert (root / "reference").is_dir()


def test_where_a_set_cannot_be_written_to_another_folder_is_asked_for(root, tmp_path):
    (root / "reference").write_text("in the way")
    reference = Reference(root, HALF, pixels())
    for attempt in (reference.check_writable, reference.fill):
        with pytest.raises(UserError, match="give a folder for them with --references DIR"):
            attempt(COUNT)
    elsewhere = Reference(root, HALF, pixels(), tmp_path / "deep" / "references")
    elsewhere.check_writable(COUNT)
    assert not (tmp_path / "deep").exists()
    assert elsewhere.fill(COUNT)


def test_a_set_on_a_disk_that_is_read_only_serves_what_is_there(photographs, disk, tmp_path):
    place = disk("size=4m")
    root = Path(shutil.copytree(photographs, place / "set"))
    there, begun, other = (Reference(root, replace(HALF, filter=f), pixels()) for f in ("lanczos", "box", "area"))
    for reference in (there, begun):
        reference.fill(COUNT)
    next(begun.store.folder.glob("*.safetensors")).unlink()
    disk("ro")
    there.check_writable(COUNT)
    assert there.fill(COUNT)
    for attempt in (other.check_writable, other.fill, begun.check_writable, begun.fill):
        with pytest.raises(UserError, match="--references DIR"):
            attempt(COUNT)


def test_a_full_disk_is_no_mistake_of_the_user(photographs, disk):
    place = disk("size=4m")
    root = Path(shutil.copytree(photographs, place / "set"))
    (place / "ballast").write_bytes(bytes(shutil.disk_usage(place).free))
    with pytest.raises(WorkError, match="free disk space"):
        Reference(root, HALF, pixels()).fill(COUNT)


def test_too_few_images_are_refused_by_their_numbers(photographs):
    reference = Reference(photographs, HALF, pixels())
    with pytest.raises(UserError, match=rf"^fid50k_50k needs 50000 real images, {photographs} holds {COUNT}; "):
        reference.n(50000, "fid50k_50k")
    mirrored = Reference(photographs, replace(HALF, mirror=True), pixels())
    with pytest.raises(UserError, match=f"holds {2 * COUNT} with the mirrored ones"):
        mirrored.n(2 * COUNT + 1)
    assert (reference.n(COUNT), mirrored.n(COUNT + 1)) == (COUNT, COUNT + 1)


@pytest.mark.parametrize(
    ("size_px", "filter", "share", "words"),
    [
        (128, "lanczos", 1, ["128 px", "stored at 64 px", "nothing is enlarged", "--size 128"]),
        (128, "", 1, ["128 px", "stored at 64 px", "nothing is enlarged"]),
        (64, "lanczos", 1, ["filter='lanczos'", "stored at 64 px", "leave the filter out"]),
        (32, "", 1, ["stored at 64 px", "measured at 32", "name the filter"]),
        (32, "lanczso", 1, ["filter='lanczso'", "did you mean 'lanczos'?"]),
        (64, "bx", 1, ["did you mean 'box'?"]),
        (56, "", 0.75, ["56 px", "stored at 64 px", "crops of 48 px", "--size 75"]),
        (48, "box", 0.75, ["filter='box'", "crops of 48 px", "leave the filter out"]),
        (48, "", 0.0, ["share=0.0"]),
    ],
)
def test_a_view_that_a_set_does_not_have_is_refused_in_one_line(size_px, filter, share, words, photographs):
    with pytest.raises(UserError) as e:
        check_view(load_manifest(photographs), size_px, filter, share)
    assert all(word in str(e.value) for word in words), e.value
    view = View(size_px, filter, mirror=False, stored_order=False, share=share)
    message = refused(photographs, view, pixels())
    assert all(word in message for word in words), message
    assert not (photographs / "reference").exists()


def test_urls_and_pairs_and_folders_that_hold_no_set_are_refused(tmp_path):
    for url in ("https://me:secret@host/set?key=secret", "s3://bucket/set"):
        for given in (url, Path(url)):
            message = refused(given, HALF, pixels())
            assert "copy the set there" in message
            assert "secret" not in message
    pairs = write_pairs(tmp_path, stride=160)["unseen"]
    prepare(open_source("depth", pairs), tmp_path / "pairs", Transform(size_px=32))
    assert "depth maps" in refused(tmp_path / "pairs", replace(HALF, filter=""), pixels())
    assert "no such folder" in refused(tmp_path / "none", HALF, pixels())
