"""A real HTTP server on this machine that cuts, stalls, refuses and damages as it is told; what a stream gives."""

import contextlib
import http.server
import io
import itertools
import tarfile
import threading
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.data.stream import batches

SHARD = "shard-00001.tar"  # the one that is tampered with


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; each fault is used up by one request."""

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.url = root, f"http://127.0.0.1:{self.server_port}/set"
        self.ranges = True  # honours Range
        self.lengths = True  # tells Content-Length
        self.cuts: dict[str, list[int]] = {}  # name -> bytes after which a connection is cut
        self.statuses: dict[str, list[int]] = {}  # name -> HTTP statuses to answer with
        self.silent = range(0)  # requests, counted from 0, that get no answer
        self.asked: list[tuple[str, int]] = []  # name and first byte of all requests
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        server, name = self.server, self.path.partition("/set/")[2]
        first = int(self.headers.get("Range", "bytes=0-")[6:-1]) if server.ranges else 0
        server.asked.append((name, first))
        if len(server.asked) - 1 in server.silent:
            server.over.wait(20)
            return None
        if statuses := server.statuses.get(name):
            return self.send_error(statuses.pop(0))
        file = server.root / name.partition("?")[0]
        if not file.is_file():
            return self.send_error(404)
        data = file.read_bytes()
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        if server.lengths:
            self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        cuts = server.cuts.get(name)
        with contextlib.suppress(OSError):
            self.wfile.write(data[first : first + cuts.pop(0)] if cuts else data[first:])


def by_hand(root: Path) -> list[bytes]:
    """The pixels of every image, in the order of the set."""
    images = []
    for shard in sorted(root.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for name in tar.getnames():
                if not name.endswith(".json"):
                    data = io.BytesIO(tar.extractfile(name).read())  # type: ignore[union-attr]
                    image = np.load(data) if name.endswith(".npy") else np.asarray(Image.open(data))
                    images.append(image.tobytes())
    return images


def taken(url: str, n: int, **changes) -> tuple[list[bytes], list[int]]:
    """Pixels (h w c) and labels of the first n images of a stream in batches of two."""
    words = {"seed": 1, "mirror": False, "nimg": 0, "batch_size": 2, "slices": [range(2)], "workers": 2}
    with contextlib.closing(batches(url, **{**words, "rank": 0, "world": 1, **changes})) as stream:
        got = list(itertools.islice(stream, n // 2))
    img, label = torch.cat([b.img for b in got]), torch.cat([b.label for b in got])
    return [i.permute(1, 2, 0).numpy().tobytes() for i in img], label.tolist()
