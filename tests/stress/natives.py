"""Small data sets in every native layout, and prepared sets in every encoding, to be damaged by fuzz.py.

Each native set is a folder with a hidden .fuzz.json: which source reads it, from which path, at which size, how many
images it holds, whether that number stands in nothing that can be damaged (file names alone), and whether the folder
holds more files, of which each case takes so many.
"""

import csv
import hashlib
import io
import json
import os
import struct
import zipfile
from pathlib import Path

import lmdb
import numpy as np
from PIL import Image

from dataprep.sources.folder import Folder
from dataprep.sources.tfrecord import masked_crc
from dataprep.sources.tree import is_image_name
from dataprep.transform import Transform
from dataprep.writer import prepare

ENCODINGS = ("png", "jpg", "webp", "raw")


def picture(i: int, width: int = 24, height: int = 20, mode: str = "RGB") -> Image.Image:
    """A gradient with noise: compresses neither to nothing nor not at all."""
    rng = np.random.default_rng(i)
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[..., None]
    return Image.fromarray(((ramp + rng.integers(0, 60, (height, width, 3))) % 256).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, format: str, **words: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **words)
    return out.getvalue()


def build(bases: Path) -> None:
    """Fill `bases` with one folder a target."""
    for make in (folder, nasty, nvlabs_zip, lsun, lsun_zip, ffhq, tfrecord, celeba, asl_zip, asl_folders):
        root = bases / make.__name__.replace("_", "-")
        root.mkdir(parents=True)
        (root / ".fuzz.json").write_text(json.dumps(make(root)))
    for encoding in ENCODINGS:
        source = bases / "folder" / "images"
        try:
            transform = Transform(size_px=12, encoding=encoding)
        except ValueError:
            continue
        prepare(Folder(source), bases / f"set-{encoding}", transform, shard_size=4, on_error="skip")


def _about(source: str, path: str, size_px: int, images: int, fixed: bool = False, some: bool = False) -> dict:
    return {"source": source, "path": path, "size_px": size_px, "images": images, "fixed": fixed, "some": some}


def nasty(root: Path) -> dict:
    """Pillow's own test files where they are at hand, else those of `folder` once more."""
    default = Path(__file__).parents[2].parent / "shared" / "data" / "real_images"
    nasty = Path(os.environ.get("GRATICULE_REAL_IMAGES", default)) / "originals" / "nasty"
    if not nasty.is_dir():
        folder(root)
        nasty = root / "images" / "a"
    (root / "pool").mkdir()
    for file in nasty.iterdir():
        if is_image_name(os.fsencode(file.name)):
            (root / "pool" / file.name).write_bytes(file.read_bytes())
    return _about("folder", "pool", 8, 4, fixed=True, some=True)


def folder(root: Path) -> dict:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    exif.get_ifd(0x8825)[1] = "N"
    deep = Image.fromarray((np.arange(480, dtype=np.uint16) * 130).reshape(20, 24))
    frames = [picture(i, mode="P") for i in range(3)]
    files = {
        "a/0.png": encoded(picture(0), "PNG", exif=exif),
        "a/1.jpg": encoded(picture(1), "JPEG", exif=exif, icc_profile=b"x" * 200, comment=b"y"),
        "a/2.jpg": encoded(picture(2, 40, 40), "JPEG", progressive=True),
        "a/3.webp": encoded(picture(3), "WEBP", exif=exif),
        "a/4.webp": encoded(picture(4), "WEBP", lossless=True),
        "a/5.tif": encoded(picture(5), "TIFF", compression="tiff_lzw"),
        "a/6.tif": encoded(picture(6), "TIFF", compression="tiff_adobe_deflate"),
        "b/7.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "b/8.bmp": encoded(picture(8), "BMP"),
        "b/9.png": encoded(deep, "PNG"),
        "b/10.png": encoded(picture(10, mode="P"), "PNG", transparency=3),
        "b/11.png": encoded(picture(11, mode="LA"), "PNG"),
        "b/12.jpg": encoded(picture(12, mode="CMYK"), "JPEG"),
        "b/13.tif": encoded(picture(13, mode="RGBA"), "TIFF"),
    }
    for name, data in files.items():
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / name).write_bytes(data)
    return _about("folder", "images", 8, len(files), fixed=True)


def nvlabs_zip(root: Path) -> dict:
    names = [f"00000/img{i:08d}.png" for i in range(8)]
    with zipfile.ZipFile(root / "set.zip", "w") as archive:
        for i, name in enumerate(names):
            how = zipfile.ZIP_DEFLATED if i % 2 else zipfile.ZIP_STORED
            archive.writestr(name, encoded(picture(i, 16, 16), "PNG"), how)
        archive.writestr("dataset.json", json.dumps({"labels": [[n, i % 3] for i, n in enumerate(names)]}))
    return _about("folder", "set.zip", 8, len(names))


def lsun(root: Path) -> dict:
    folder, images = root / "tower_val_lmdb", 40
    environment = lmdb.open(str(folder), map_size=2**24)
    with environment.begin(write=True) as transaction:
        for i in range(images):
            large = 80 if i % 5 else 16
            value = encoded(picture(i, large, large), "JPEG" if i % 3 else "WEBP")
            transaction.put(hashlib.sha1(value).hexdigest().encode(), value)
    environment.copy(str(_made(root / "copy")), compact=True)
    environment.close()
    (root / "copy" / "data.mdb").replace(folder / "data.mdb")
    (root / "copy").rmdir()
    (folder / "lock.mdb").unlink()
    return _about("lsun", "tower_val_lmdb", 8, images)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def lsun_zip(root: Path) -> dict:
    about = lsun(root)
    with zipfile.ZipFile(root / "tower_val_lmdb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(root / "tower_val_lmdb" / "data.mdb", "tower_val_lmdb/data.mdb")
    (root / "tower_val_lmdb" / "data.mdb").unlink()
    (root / "tower_val_lmdb").rmdir()
    return {**about, "path": "tower_val_lmdb.zip"}


def ffhq(root: Path) -> dict:
    facts = {}
    for i in (0, 1, 2, 60000):
        data, name = encoded(picture(i, 128, 128), "PNG"), f"{i // 1000 * 1000:05d}/{i:05d}.png"
        file = root / "ffhq" / "thumbnails128x128" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        facts[str(i)] = {
            "category": "training" if i < 60000 else "validation",
            "metadata": {"photo_url": "x", "license": "y"},
            "thumbnail": {
                "file_path": f"thumbnails128x128/{name}",
                "file_size": len(data),
                "file_md5": hashlib.md5(data).hexdigest(),
                "pixel_size": [128, 128],
                "pixel_md5": hashlib.md5(picture(i, 128, 128).tobytes()).hexdigest(),
            },
        }
    (root / "ffhq" / "ffhq-dataset-v2.json").write_text(json.dumps(facts))
    return _about("ffhq", "ffhq", 32, len(facts))


def tfrecord(root: Path) -> dict:
    def field(number: int, data: bytes) -> bytes:
        length, head = len(data), bytes([number << 3 | 2])
        while length > 127:
            head, length = head + bytes([length & 127 | 128]), length >> 7
        return head + bytes([length]) + data

    images = 6
    with open(root / "ffhq-r04.tfrecords", "wb") as f:
        for i in range(images):
            pixels = np.asarray(picture(i, 16, 16)).transpose(2, 0, 1).tobytes()
            shape = field(1, b"shape") + field(2, field(3, field(1, bytes([3, 16, 16]))))
            data = field(1, b"data") + field(2, field(1, field(1, pixels)))
            example = field(1, field(1, shape) + field(1, data))
            length = struct.pack("<Q", len(example))
            f.write(length + struct.pack("<I", masked_crc(length)) + example + struct.pack("<I", masked_crc(example)))
    return _about("ffhq", "ffhq-r04.tfrecords", 16, images)


def celeba(root: Path) -> dict:
    names = [f"{i:06d}.jpg" for i in range(1, 9)]
    with zipfile.ZipFile(root / "img_align_celeba.zip", "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(f"img_align_celeba/{name}", encoded(picture(i, 178, 218), "JPEG"))
    attributes = "".join(
        f"{n} {' '.join('-1' if (i + j) % 3 else ' 1' for j in range(40))}\n" for i, n in enumerate(names)
    )
    header = " ".join(f"Attribute_{j}" for j in range(40)) + " \n"
    (root / "list_attr_celeba.txt").write_text(f"{len(names)}\n{header}{attributes}")
    (root / "list_eval_partition.txt").write_text("".join(f"{n} {i % 3}\r\n" for i, n in enumerate(names)))
    (root / "identity_CelebA.txt").write_text("".join(f"{n} {i + 100}\n" for i, n in enumerate(names)))
    with open(root / "list_landmarks_align_celeba.csv", "w", newline="") as f:
        parts = [f"{p}_{a}" for p in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for a in "xy"]
        csv.writer(f).writerows([["image_id", *parts], *([n, *range(60, 70)] for n in names)])
    return _about("celeba", "", 128, len(names))


def asl_zip(root: Path) -> dict:
    names = [f"hand{1 + i % 2}_{'0123456789ab'[i]}_bot_seg_1_cropped.png" for i in range(10)]
    with zipfile.ZipFile(root / "handgesturedataset_part1.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i, name in enumerate(names):
            archive.writestr(name, encoded(picture(i), "PNG"))
    return _about("asl", "handgesturedataset_part1.zip", 8, len(names))


def asl_folders(root: Path) -> dict:
    for i in range(10):
        folder = root / "asl_dataset" / str(i)
        folder.mkdir(parents=True)
        for hand in (1, 2):
            (folder / f"hand{hand}_{i}_bot_seg_1_cropped.jpeg").write_bytes(encoded(picture(10 * hand + i), "JPEG"))
    return _about("asl", "asl_dataset", 8, 20)
