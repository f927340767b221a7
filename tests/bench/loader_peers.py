"""One loader over one folder of JPEG files, timed: `python loader_peers.py NAME IMAGES WORK`; loaders.py calls it.

Each peer is used as its documentation shows, shuffled, two workers, batches of 64 uint8 images, in the process of
its own environment. The peer's own format is written to WORK once. Prints one line of JSON: seconds from the start
of the process to the first batch, and images/s of each later pass.
"""

import argparse
import io
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

BATCH, WORKERS, PASSES = 64, 2, 3
Passes = Callable[[], Iterable[int]]  # one pass over the data; yields the images in each batch


def files(images: Path) -> list[Path]:
    return sorted(images.glob("*.jpg"))


def jpeg(image, subsampling: str) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95, subsampling=subsampling)
    return out.getvalue()


def with_pillow(data: bytes):
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def with_simplejpeg(data: bytes):
    import simplejpeg

    return simplejpeg.decode_jpeg(data)


def chw(image):
    """As torchvision's ToTensor lays an image out, without its floats."""
    import torch

    return torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous()


class FileSet:
    """A torch Dataset over files; a class of the module, so that it can be sent to a worker."""

    def __init__(self, images: Path, decode: Callable):
        self.files, self.decode = files(images), decode

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int):
        return chw(self.decode(self.files[i].read_bytes()))


def torch_files(decode: Callable):
    def peer(images: Path, work: Path) -> Passes:
        from torch.utils.data import DataLoader

        loader = DataLoader(
            FileSet(images, decode), batch_size=BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
        )
        return lambda: (len(batch) for batch in loader)

    return peer


def webdataset(decode: str | None):
    def peer(images: Path, work: Path) -> Passes:
        import webdataset as wds

        if not list(work.glob("*.tar")):
            with wds.ShardWriter(str(work / "%05d.tar"), maxcount=250, verbose=0) as out:
                for i, file in enumerate(files(images)):
                    out.write({"__key__": f"{i:09d}", "jpg": file.read_bytes()})
        shards = sorted(str(p) for p in work.glob("*.tar"))
        data = wds.WebDataset(shards, shardshuffle=100).shuffle(1000)
        decoded = data.decode(decode) if decode else data.map_dict(jpg=with_simplejpeg)
        batched = decoded.to_tuple("jpg").batched(BATCH)
        loader = wds.WebLoader(batched, batch_size=None, num_workers=WORKERS, persistent_workers=True)
        return lambda: (len(batch[0]) for batch in loader)

    return peer


def litdata(images: Path, work: Path) -> Passes:
    import litdata as ld

    if not (work / "index.json").exists():
        ld.optimize(read_sample, [str(f) for f in files(images)], str(work), num_workers=1, chunk_bytes="16MB")
        multiprocessing.set_start_method("fork", force=True)  # optimize leaves "spawn" behind

    class Decoded(ld.StreamingDataset):
        def __getitem__(self, index):
            return chw(with_simplejpeg(super().__getitem__(index)["image"]))

    loader = ld.StreamingDataLoader(Decoded(str(work), shuffle=True), batch_size=BATCH, num_workers=WORKERS)
    return lambda: (len(batch) for batch in loader)


def read_sample(path: str) -> dict:
    return {"image": Path(path).read_bytes()}


def mosaic(images: Path, work: Path) -> Passes:
    import torch

    library = torch.library.Library("torchvision", "DEF")  # its CPU wheel misses these two, and dies on import
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    if not (work / "index.json").exists():
        with MDSWriter(out=str(work), columns={"image": "bytes"}, size_limit="16mb") as out:
            for file in files(images):
                out.write({"image": file.read_bytes()})

    class Decoded(StreamingDataset):
        def __getitem__(self, index):
            return chw(with_simplejpeg(super().__getitem__(index)["image"]))

    data = Decoded(local=str(work), shuffle=True, batch_size=BATCH)
    loader = DataLoader(data, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)
    return lambda: (len(batch) for batch in loader)


def ffcv(mode: str):
    def peer(images: Path, work: Path) -> Passes:
        from ffcv.fields import RGBImageField
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import ToTensor, ToTorchImage
        from ffcv.writer import DatasetWriter

        file = work / f"{mode}.beton"
        if not file.exists():
            field = RGBImageField(write_mode=mode, jpeg_quality=95)
            DatasetWriter(str(file), {"image": field}, num_workers=WORKERS).from_indexed_dataset(ArrayTuples(images))
        loader = Loader(
            str(file),
            batch_size=BATCH,
            num_workers=WORKERS,
            order=OrderOption.RANDOM,
            os_cache=True,
            drop_last=False,
            pipelines={"image": [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage()]},
        )
        return lambda: (len(batch[0]) for batch in loader)

    return peer


class ArrayTuples(FileSet):
    def __init__(self, images: Path):
        super().__init__(images, with_pillow)

    def __getitem__(self, i: int):
        return (self.decode(self.files[i].read_bytes()),)


def graticule(encoding: str):
    def peer(images: Path, work: Path) -> Passes:
        import simplejpeg

        from dataprep.sources import open_source
        from dataprep.transform import ENCODINGS, Transform
        from dataprep.writer import prepare
        from pipeline.data.reader import batches

        size_px, _, _, subsampling = simplejpeg.decode_jpeg_header(files(images)[0].read_bytes())
        if subsampling == "420":  # `prep` stores 4:4:4
            ENCODINGS["jpg"] = ENCODINGS["jpg"]._replace(encode=lambda image, _: jpeg(image, "4:2:0"))
        root = work / encoding
        source, transform = open_source("folder", images), Transform(size_px=size_px, crop="none", encoding=encoding)
        count = prepare(source, root, transform).count
        stream = batches(root, seed=0, mirror=False, nimg=0, batch_size=BATCH, slices=[range(BATCH)], workers=WORKERS)

        def one_pass() -> Iterator[int]:
            for _ in range(count // BATCH):
                yield len(next(stream).img)

        return one_pass

    return peer


def decode_alone(images: Path, work: Path) -> Passes:
    """The bound: two threads decode into one array each, nothing else."""
    import numpy as np
    import simplejpeg

    data = [f.read_bytes() for f in files(images)]
    shape = with_simplejpeg(data[0]).shape

    def decode(share: list[bytes]) -> None:
        out = np.empty(shape, np.uint8)
        for each in share:
            simplejpeg.decode_jpeg(each, "RGB", buffer=out)

    def one_pass() -> Iterator[int]:
        threads = [threading.Thread(target=decode, args=(data[i::WORKERS],)) for i in range(WORKERS)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        yield len(data)

    return one_pass


PEERS: dict[str, tuple[str, Callable[[Path, Path], Passes]]] = {  # name -> environment, what it does
    "graticule jpg": ("graticule", graticule("jpg")),
    "graticule raw": ("graticule", graticule("raw")),
    "decoding alone (simplejpeg)": ("graticule", decode_alone),
    "webdataset": ("webdataset", webdataset("rgb8")),
    "webdataset + simplejpeg": ("webdataset", webdataset(None)),
    "torch DataLoader, files + Pillow": ("webdataset", torch_files(with_pillow)),
    "torch DataLoader, files + simplejpeg": ("webdataset", torch_files(with_simplejpeg)),
    "litData + simplejpeg": ("litdata", litdata),
    "MosaicML streaming + simplejpeg": ("streaming", mosaic),
    "FFCV jpg": ("ffcv", ffcv("jpg")),
    "FFCV raw": ("ffcv", ffcv("raw")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    born = float(os.environ.get("BENCH_BORN", time.time()))
    passes = PEERS[args.name][1](args.images, args.work)
    speeds, first = [], 0.0
    for _ in range(1 + PASSES):  # the first pass warms up
        count, start = 0, time.perf_counter()
        for n in passes():
            first = first or time.time() - born
            count += n
        speeds.append(count / (time.perf_counter() - start))
    print(json.dumps({"first_batch_sec": first, "img_per_sec": speeds[1:]}), flush=True)
    os._exit(0)  # some peers' threads outlive their loaders


if __name__ == "__main__":
    main()
