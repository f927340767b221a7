"""Mutated tars, indexes, manifests, LMDBs, zips, TFRecords, lists and images, each fed to all that reads it.

    python tests/stress/fuzz.py --count 10000 --seed 0

Allowed: success, one line of UserError, WorkError or DataError, images rejected and counted. Not allowed: any other
exception, more than LIMIT_SEC, the death of the interpreter, memory without bound, an image that is neither taken
nor rejected, a changed byte that verify does not see. Each case follows from its number alone, so a failure is
repeated with --count 1 --seed NUMBER. Exit status 1 on any failure.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from dataprep.inspect import as_json, as_tables, contact_sheet, report
from dataprep.sources import open_source
from dataprep.transform import Transform
from dataprep.verify import verify
from dataprep.writer import REJECTED, prepare
from pipeline.data import stream
from pipeline.data.manifest import INDEX, MANIFEST, Manifest, load_manifest
from pipeline.data.reader import DataError, ShardReader
from pipeline.errors import UserError, WorkError
from tests.stress.natives import build

LIMIT_SEC = 20
MEMORY_GB = 2.0  # of one worker; what a damaged length makes a reader take at once
ALLOWED = (UserError, WorkError, DataError)
TEXT = (".json", ".jsonl", ".txt", ".csv")
ODD = (0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 1.5, 1e308, True, None, "", "x\ny", "../x", "\ud800", [], {}, [[]])


class Failure(Exception):  # noqa: N818
    """What must not happen, though nothing was raised."""


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Between one and four small or large changes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, length = rng.randrange(len(out) + 1), rng.choice((1, 2, 4, 8, 16, 64, 512, 4096))
        piece = out[at : at + length]
        match rng.randrange(9):
            case 0 | 1 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 2:
                del out[at:]
            case 3:
                del out[at : at + length]
            case 4:
                out[at:at] = rng.randbytes(length)
            case 5:
                out[at : at + length] = bytes(len(piece))
            case 6:
                out[at : at + length] = rng.randbytes(len(piece))
            case 7:
                to = rng.randrange(len(out) + 1)
                out[at : at + length], out[to : to + length] = out[to : to + length], piece
            case 8:
                out[at : at + length] = rng.choice((b"\xff", b"\x7f", b"\x80", b"9")) * len(piece)
    return bytes(out)


def mutate_text(rng: random.Random, data: bytes) -> bytes:
    """Lines dropped, doubled or moved, words replaced, JSON with another value somewhere."""
    try:
        tree = json.loads(data)
    except ValueError:
        lines = data.split(b"\n")
        at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
        words = lines[at].split(b" ")
        match rng.randrange(4):
            case 0:
                del lines[at]
            case 1:
                lines.insert(to, lines[at])
            case 2:
                lines[at], lines[to] = lines[to], lines[at]
            case 3:
                words[rng.randrange(len(words))] = rng.choice((b"", b"-1", b"9" * 30, b"x", b"\xff", b"1.5"))
                lines[at] = b" ".join(words)
        return b"\n".join(lines)
    return json.dumps(_with_odd_value(rng, tree)).encode()


def _with_odd_value(rng: random.Random, tree: Any) -> Any:
    if isinstance(tree, dict | list) and tree and rng.random() < 0.8:
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        key = rng.choice(keys)
        match rng.randrange(6):
            case 0:
                del tree[key]
            case 1 if isinstance(tree, dict):
                tree[rng.choice(("x", "a\nb", ""))] = tree.pop(key)
            case _:
                tree[key] = _with_odd_value(rng, tree[key])
        return tree
    if isinstance(tree, int) and rng.random() < 0.3:
        return tree + rng.choice((-1, 1, 256))
    return rng.choice(ODD)


def damage(rng: random.Random, root: Path) -> Path:
    """Change one file below `root`; returns it."""
    files = sorted((f for f in root.rglob("*") if f.is_file()), key=lambda f: str(f))
    kind = rng.choice(sorted({f.suffix for f in files}))
    file = rng.choice([f for f in files if f.suffix == kind])
    data = file.read_bytes()
    while (new := (mutate_text if file.suffix in TEXT and rng.random() < 0.7 else mutate)(rng, data)) == data:
        pass
    file.unlink()  # a hard link to the one that is not changed
    file.write_bytes(new)
    return file


def sign(root: Path, file: Path) -> None:
    """Make the manifest agree with the changed file, as an attacker or a faulty program would."""
    try:
        tree = json.loads((root / MANIFEST).read_bytes())
        if file.name == INDEX:
            tree["index_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        for shard in tree["shards"]:
            if shard["name"] == file.name:
                shard["bytes"] = file.stat().st_size
                shard["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        manifest = Manifest.model_validate(tree)
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    (root / MANIFEST).unlink()
    (root / MANIFEST).write_text(manifest.replace(dataset_id=manifest.identity()).to_json())


def read_set(rng: random.Random, root: Path) -> str:
    """A prepared set through everything that reads one."""
    file = damage(rng, root)
    if signed := rng.random() < 0.5:
        sign(root, file)
    outcomes = {}
    for reader in (_verify, _inspect, _read_all, _stream):
        try:
            outcomes[reader.__name__] = reader(root)
        except ALLOWED as e:
            one_line(e)
            outcomes[reader.__name__] = type(e).__name__
    found = outcomes["_verify"] != "success"
    if not signed and not found and (file.suffix in (".tar", ".bin") or outcomes["_read_all"] != "success"):
        raise Failure(f"verify does not see that {file.name} was changed: {outcomes}")
    return outcomes["_verify"] + (", signed anew" if signed else "")


def _verify(root: Path) -> str:
    problems = verify(root, workers=2)
    if not all(p.isprintable() and len(p) < 1000 for p in problems):
        raise Failure(f"a problem is not one short line: {problems}")
    return "named by verify" if problems else "success"


def _inspect(root: Path) -> str:
    facts = report(root)
    as_json(facts), as_tables(facts), contact_sheet(root, 9)
    return "success"


def _read_all(root: Path) -> str:
    load_manifest(root)
    reader = ShardReader(root)
    for i in range(len(reader)):
        reader.read(i)
    return "success"


def _stream(root: Path) -> str:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url, words = f"http://127.0.0.1:{server.server_port}", {"seed": 0, "mirror": False, "nimg": 0, "batch_size": 4}
    try:
        count = stream.load_manifest(url).count
        batches = stream.batches(url, slices=[range(4)], rank=0, world=1, workers=0, **words)
        with contextlib.closing(batches):
            for _ in range(min(count, 100) // 4):
                next(batches)
    finally:
        server.shutdown()
        server.server_close()
    return "success"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def prepare_source(rng: random.Random, root: Path) -> str:
    """A native data set through its source and the writer."""
    about = json.loads((root / ".fuzz.json").read_bytes())
    (root / ".fuzz.json").unlink()
    pool = sorted((root / about["path"]).iterdir()) if about["some"] else []
    for file in rng.sample(pool, len(pool) - about["images"]) if pool else ():
        file.unlink()
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        damage(rng, root)
    out = root.parent / "out"
    source = open_source(about["source"], root / about["path"], None)
    transform = Transform(size_px=about["size_px"], crop=source.crop)
    try:
        manifest = prepare(source, out, transform, on_error="skip", shard_size=5)
    finally:
        [one_line(note) for note in source.notes]
    rejected = sum(manifest.rejected.values())
    named = (out / REJECTED).read_text().count("\n") if rejected else 0
    if not manifest.count_in == len(source.entries(about["size_px"])) == manifest.count + rejected:
        raise Failure(f"in {manifest.count_in}, out {manifest.count}, rejected {rejected}")
    if named != rejected:
        raise Failure(f"{rejected} rejected, {named} named")
    if about["fixed"] and manifest.count_in != about["images"]:
        raise Failure(f"{about['images']} images, {manifest.count_in} came in")
    if problems := verify(out):
        raise Failure(f"verify: {problems}")
    return "success, some rejected" if rejected else "success"


def one_line(said: object) -> None:
    if len(str(said).splitlines()) != 1:
        raise Failure(f"not one line: {said!r}")


def run_case(number: int, bases: Path, place: Path) -> tuple[str, str, str]:
    """Target, outcome, and the traceback of a failure."""
    rng = random.Random(number)
    name = rng.choice(sorted(os.listdir(bases)))
    root = place / name
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(bases / name, root, copy_function=os.link)
    try:
        outcome = (read_set if name.startswith("set-") else prepare_source)(rng, root)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MEMORY_GB * 2**20:
            return name, "FAILURE", f"more than {MEMORY_GB} GB of memory"
        return name, outcome, ""
    except ALLOWED as e:
        try:
            one_line(e)
        except Failure:
            return name, "FAILURE", traceback.format_exc()
        return name, type(e).__name__, ""
    except Exception:
        return name, "FAILURE", traceback.format_exc()


def serve(connection: Connection, bases: Path, place: Path) -> None:
    """A worker process: numbers in, outcomes out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff's remarks
    warnings.simplefilter("error")  # a warning is a line to the user that says nothing
    while (number := connection.recv()) is not None:
        connection.send(run_case(number, bases, place))


class Runner(threading.Thread):
    """Feeds one worker process, and starts another when it hangs or dies."""

    def __init__(self, numbers: Any, bases: Path, place: Path, results: list):
        super().__init__()
        self.numbers, self.bases, self.place, self.results = numbers, bases, place, results

    def run(self) -> None:
        worker = None
        for number in self.numbers:
            if worker is None:
                worker, connection = self._start()
            connection.send(number)
            try:
                done = connection.recv() if connection.poll(LIMIT_SEC) else ("?", "FAILURE", f"over {LIMIT_SEC} s")
            except (EOFError, ConnectionError):
                worker.join()
                done = ("?", "FAILURE", f"the interpreter died with exit code {worker.exitcode}")
            self.results.append((number, *done))
            if done[1] == "FAILURE":
                worker.kill()
                worker = None
        if worker is not None:
            connection.send(None)
            worker.join()

    def _start(self) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        worker = context.Process(target=serve, args=(theirs, self.bases, self.place))
        worker.start()
        theirs.close()
        return worker, ours


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    began, results = time.monotonic(), []
    with tempfile.TemporaryDirectory() as temp:
        bases = Path(temp) / "bases"
        build(bases)
        numbers = range(args.seed, args.seed + args.count)
        workers = min(args.workers, args.count)
        runners = [Runner(numbers[i::workers], bases, Path(temp) / f"case{i}", results) for i in range(workers)]
        [r.start() for r in runners]
        [r.join() for r in runners]
    seconds = time.monotonic() - began
    for (target, outcome), n in sorted(Counter((r[1], r[2]) for r in results).items()):
        print(f"{target:<12} {outcome:<24} {n}")
    failures = sorted(r for r in results if r[2] == "FAILURE")
    for number, target, _, why in failures:
        print(f"\n--count 1 --seed {number}: {target}\n{why.rstrip()}")
    print(f"{len(results)} cases, {len(failures)} failures, {seconds:.0f} s, {len(results) / seconds:.1f} a second")
    return 1 if failures or len(results) != args.count else 0


if __name__ == "__main__":
    sys.exit(main())
