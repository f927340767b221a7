"""Photographs with depth maps: how halves are paired, what is stored, and that no pair is lost without a reason."""

import io
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from dataprep.inspect import contact_sheet
from dataprep.sources import open_source
from dataprep.sources.depth import code, half_of
from dataprep.transform import Transform
from dataprep.verify import verify
from dataprep.writer import prepare
from pipeline.data import reader, stream
from pipeline.data.beton import write_beton
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.errors import UserError
from tests.dataprep.outcomes import TAKEN, lay


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def npy(depth: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, depth)
    return out.getvalue()


def photo(h: int = 12, w: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def depths(h: int = 12, w: int = 16, seed: int = 0) -> np.ndarray:
    """Metres, some of them none."""
    z = np.random.default_rng(seed).uniform(-1, 9, (h, w)).astype(np.float32)
    z[0, 5], z[1, 5] = np.nan, np.inf
    return z


def millimetres(z: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(z) & (z > 0), np.rint(np.float64(z) * 1000), 0).astype(np.uint16)


def decoded(stored: np.ndarray) -> np.ndarray:
    lower = stored[len(stored) // 2 :].astype(np.uint16)
    assert not lower[..., 2].any()
    return lower[..., 0] * 256 + lower[..., 1]


def test_the_bits_of_every_kind_of_map_come_back_below_their_photograph(tmp_path, take):
    z, rgb = depths(), photo()
    tiff = io.BytesIO()
    Image.fromarray(z).save(tiff, "TIFF")
    files = {"a/rgb/1.png": png(rgb), "a/depth/1.png": png(millimetres(z)), "Images/2.png": png(rgb)}
    files |= {"depths/2.npy": npy(z[..., None]), "b/3.png": png(rgb), "b/3_depth.tiff": tiff.getvalue()}
    found = take(lay(tmp_path / "in", files), "depth", size=12)
    assert set(found.of.values()) == {TAKEN}
    assert len(found.of) == 3
    assert found.manifest.planes == 2
    for name, image in found.images.items():
        assert image.shape == (24, 12, 3)
        np.testing.assert_array_equal(image[:12], rgb[:, 2:14], err_msg=name)
        np.testing.assert_array_equal(decoded(image), millimetres(z)[:, 2:14], err_msg=name)


def test_depth_json_says_the_unit_of_integers_alone(tmp_path, take):
    rgb, z = png(photo()), np.full((12, 16), 512, np.uint16)
    files = {"1.png": rgb, "1_depth.png": png(z), "2.png": rgb, "2_depth.npy": npy(np.full((12, 16), 2.5))}
    root = lay(tmp_path / "in", files | {"depth.json": json.dumps({"unit_m": 1 / 256}).encode()})
    images = list(take(root, "depth", size=12).images.values())
    assert (decoded(images[0]) == 2000).all()
    assert (decoded(images[1]) == 2500).all()
    for wrong in ("{}", '{"unit_m": 0}', '{"unit_m": true}', "[", '{"unit_m": 0.001, "unit": 1}'):
        (root / "depth.json").write_text(wrong)
        with pytest.raises(UserError, match=r"depth\.json"):
            open_source("depth", root).entries(12)


def test_reducing_never_makes_a_depth_that_was_not_measured(tmp_path, take):
    z = np.where(np.arange(64)[None] // 8 % 2, 1000, 9000).astype(np.uint16).repeat(64, 0)
    z[::3] = 0
    found = take(lay(tmp_path / "in", {"1.png": png(photo(64, 64)), "1_depth.png": png(z)}), "depth", size=20)
    (image,) = found.images.values()
    assert set(np.unique(decoded(image))) == {0, 1000, 9000}
    reduced = Image.fromarray(photo(64, 64)).resize((20, 20), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(image[:20], np.asarray(reduced))


def test_every_pair_that_is_not_taken_has_its_reason(tmp_path, take):
    rgb, z = png(photo()), npy(depths())
    files = {f"rgb/{i}.png": rgb for i in (1, 2, 4, 5, 6, 7, 8)} | {f"depth/{i}.npy": z for i in (1, 3)}
    files |= {"depth/4.npy": npy(depths(12, 12)), "depth/5.npy": npy(np.zeros((12, 16))), "depth/6.npy": z[:99]}
    files |= {"depth/7.png": png(np.full((12, 16), 9, np.uint8)), "depth/8.npy": npy(np.zeros((12, 16, 3)))}
    files |= {"depth/1.png": png(millimetres(depths())), "mask/1.npy": z, "list.txt": b"1"}
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(photo()).save(turned, "JPEG", exif=exif)
    files |= {"rgb/9.jpg": turned.getvalue(), "depth/9.npy": z}
    found = take(lay(tmp_path / "in", files), "depth", size=8)
    reasons = {name.partition(" + ")[0]: reason for name, reason in found.of.items()}
    assert reasons == {
        "rgb/1.png": TAKEN,
        "depth/1.png": "missing",
        "rgb/2.png": "missing",
        "depth/3.npy": "missing",
        "rgb/4.png": "wrong size",
        "rgb/5.png": "no depth",
        "rgb/6.png": "unreadable",
        "rgb/7.png": "unsupported mode",
        "rgb/8.png": "unsupported mode",
        "rgb/9.jpg": "unsupported mode",
    }
    assert found.notes == ("passed over: 2 other files, the first is 'list.txt'",)


@pytest.mark.parametrize(
    ("key", "pair", "is_map"),
    [
        (b"s/rgb/a.JPG", b"s/a", False),
        (b"s/depth/a.npy", b"s/a", True),
        (b"s/depth/x/a.png", b"s/x/a", True),
        (b"rgb/a_depth.png", b"a_depth", False),
        (b"a + b.png", b"a + b", False),
        (b"a + b_depth.png", b"a + b", True),
    ],
)
def test_halves_are_told_by_folder_before_suffix(key, pair, is_map):
    assert half_of(key) == (pair, is_map)


def test_names_may_hold_what_stands_between_the_halves(tmp_path, take):
    files = {"a + b.png": png(photo()), "a + b_depth.npy": npy(depths())}
    assert list(take(lay(tmp_path / "in", files), "depth", size=8).of.values()) == [TAKEN]


def test_depth_beyond_sixteen_bits_counts_as_none():
    stored = code(np.array([[65.535, 65.536, 0.0004, 0.001]]))
    assert stored.tolist() == [[[255, 255, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0]]]


def test_what_holds_no_pairs_or_would_lose_bits_is_refused_in_one_line(tmp_path):
    root = lay(tmp_path / "in", {"1.png": png(photo())})
    with pytest.raises(UserError, match="no pair of photograph and depth map"):
        prepare(open_source("depth", root), tmp_path / "out", Transform(size_px=8))
    lay(root, {"1_depth.npy": npy(depths())})
    for encoding in ("jpg", "webp"):
        with pytest.raises(UserError, match=f"encoding='{encoding}'"):
            prepare(open_source("depth", root), tmp_path / "out", Transform(size_px=8, encoding=encoding))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    files = {f"{i}.png": png(photo(seed=i)) for i in range(5)} | {
        f"{i}_depth.npy": npy(depths(seed=i)) for i in range(5)
    }
    lay(root / "in", files)
    for encoding in ("png", "raw"):
        transform = Transform(size_px=12, encoding=encoding)
        prepare(open_source("depth", root / "in"), root / encoding, transform, shard_size=2)
    return root


def ways(root, mirror):
    """Batches of the folder, the raw folder, and of the folder behind a URL."""
    words = {"seed": 1, "mirror": mirror, "nimg": 0, "batch_size": 5, "slices": [range(5)], "workers": 0}
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *a: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(root / "png")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield next(reader.batches(root / "png", **words)).img
        yield next(reader.batches(root / "raw", **words)).img
        yield next(stream.batches(f"http://127.0.0.1:{server.server_port}", **words, rank=0, world=1)).img
    finally:
        server.shutdown()
        server.server_close()


def test_every_reader_gives_whole_pairs_and_a_mirrored_pair_is_mirrored_in_both_halves(pairs):
    stored = {i: np.concatenate([photo(seed=i)[:, 2:14], code(depths(seed=i)[:, 2:14])]) for i in range(5)}
    both = {x.tobytes() for image in stored.values() for x in (image, image[:, ::-1])}
    for found in ways(pairs, mirror=True):
        assert tuple(found.shape) == (5, 3, 24, 12)
        images = [np.ascontiguousarray(x.permute(1, 2, 0).numpy()).tobytes() for x in found]
        assert len(set(images)) == 5
        assert set(images) <= both
        assert not set(images) <= {image.tobytes() for image in stored.values()}


def test_pairs_are_verified_and_shown_and_have_no_ffcv_copy(pairs):
    for encoding in ("png", "raw"):
        assert verify(pairs / encoding) == []
        sheet = Image.open(io.BytesIO(contact_sheet(pairs / encoding)))
        assert sheet.size == (3 * 12, 2 * 24)
    with pytest.raises(UserError, match="no FFCV copy"):
        write_beton(pairs / "png", workers=1)
    damaged = bytearray((pairs / "raw" / "shard-00000.tar").read_bytes())
    damaged[2000] ^= 1
    (pairs / "raw" / "shard-00000.tar").write_bytes(damaged)
    assert "shard-00000.tar: damaged" in verify(pairs / "raw")[0]


def test_planes_are_part_of_the_identity_only_where_there_are_several(pairs):
    one = Manifest.model_validate(load_manifest(pairs / "png").model_dump() | {"planes": 1, "dataset_id": ""})
    assert one.identity() != one.replace(planes=2).identity() == load_manifest(pairs / "png").dataset_id
    before = Manifest(
        source="x",
        size_px=4,
        crop="center",
        filter="box",
        encoding="png",
        count_in=0,
        count=0,
        shards=(),
        index_sha256="",
    )
    assert before.identity() == "f775415f304af8c2"
    assert "planes" not in Transform().named()
