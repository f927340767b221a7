"""`graticule prep` killed again and again, and on a disk that is full again and again; the bytes must not tell.

    python tests/stress/kill_prep.py [--kills 500] [--seed 0]     SIGKILL to the command, its group or one worker
    python tests/stress/kill_prep.py --disk-full                  a tmpfs that grows page by page (needs root)

Half of the kills come at a random moment of the length of an undisturbed run, a quarter while shards are made, a
quarter while the sets are published. The same command is started in the same folder until it ends; then the bytes are
compared and all begins anew. Prints one line; exits with 1 at the first difference.
"""

import argparse
import collections
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from dataprep.sources.photos import Photos
from dataprep.transform import Transform

SIZES = (48, 32)
COMMAND = (sys.executable, "-m", "pipeline.cli", "prep", "folder")
WORDS = ("--size", "48,32", "--encoding", "jpg", "--shard-size", "4", "--workers", "2", "--on-error", "skip")
STEP_KB = 96  # by which a full disk grows


class Different(Exception):  # noqa: N818 - an outcome
    """What must not happen; says what."""


def photographs(folder: Path, count: int) -> Path:
    """Windows of the bundled photographs as files, of which one is cut and one empty."""
    folder.mkdir()
    source, transform = Photos(), Transform(size_px=64, encoding="jpg")
    entries = source.entries(64)
    for i in range(count):
        data = transform(source.read(entries[i * len(entries) // count]))
        (folder / f"{i:04d}.jpg").write_bytes({7: data[:600], 11: b""}.get(i, data))
    return folder


def start(images: Path, out: Path) -> subprocess.Popen[str]:
    command = [*COMMAND, str(images), "--out", str(out), *WORDS]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def compare(out: Path, wanted: dict[str, bytes]) -> None:
    found = contents(out)
    if odd := [name for name in {*found, *wanted} if found.get(name) != wanted.get(name)]:
        raise Different(f"{len(odd)} files differ from an undisturbed run, such as {min(odd)}")


def state(process: subprocess.Popen[str], out: Path, shards: int) -> str:
    """What the command is at, judged by its lock and by what lies there."""
    sets = [out / str(size) for size in SIZES]
    try:
        if not any(file.path.endswith(".prep/lock") for file in psutil.Process(process.pid).open_files()):
            return "starting and listing"
    except psutil.Error:
        return "gone"
    if all((s / "index.bin").exists() for s in sets):
        return "tidying"
    marks = [len(list(s.glob("shard-*.done.json"))) for s in sets]
    if any((s / "manifest.json").exists() for s in sets) or min(marks) == shards:
        return "publishing"
    return "making shards"


def kill(process: subprocess.Popen[str], chance: random.Random) -> str:
    """Who was killed."""
    who = chance.choice(["command", "group", "worker"])
    if who == "worker":
        with contextlib.suppress(psutil.Error):
            workers = psutil.Process(process.pid).children()
            if workers := [w for w in workers if "spawn_main" in " ".join(w.cmdline())]:
                chance.choice(workers).kill()
                return who
        who = "command"
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if who == "group" else os.kill)(process.pid, signal.SIGKILL)
    return who


def wait_for(states: tuple[str, ...], process: subprocess.Popen[str], out: Path, shards: int) -> None:
    while process.poll() is None and state(process, out, shards) not in states:
        time.sleep(0.001)


def wait_for_the_moment(
    process: subprocess.Popen[str], out: Path, shards: int, length: float, chance: random.Random
) -> None:
    aim = chance.random()
    if aim < 0.25:
        wait_for(("publishing", "tidying"), process, out, shards)
        time.sleep(chance.uniform(0, 0.02))
    elif aim < 0.5:
        wait_for(("making shards", "publishing", "tidying"), process, out, shards)
        time.sleep(chance.uniform(0, length / 4))
    else:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, length))


def killed(images: Path, place: Path, kills: int, chance: random.Random) -> collections.Counter[str]:
    began = time.monotonic()
    if start(images, place / "undisturbed").wait():
        raise Different("the undisturbed run failed")
    length = time.monotonic() - began
    wanted = contents(place / "undisturbed")
    shards = sum(name.startswith("32/shard-") for name in wanted)
    out, counts = place / "out", collections.Counter()
    while counts["kills"] < kills:
        process = start(images, out)
        wait_for_the_moment(process, out, shards, length, chance)
        if process.poll() is None:
            counts[state(process, out, shards)] += 1
            counts["kills"] += 1
            who = kill(process, chance)
            counts[f"of a {who}"] += 1
            _, said = process.communicate(timeout=60)
            one_line = said.startswith("graticule: ") and said.count("\n") == 1 and "killed by SIGKILL" in said
            if process.returncode != -signal.SIGKILL and not (process.returncode == 1 and one_line):
                if process.returncode or said:  # it may have been done all the same
                    raise Different(f"a killed {who} gave exit code {process.returncode} and {said!r}")
        else:
            _, said = process.communicate()
            if process.returncode:
                raise Different(f"the same command again gave exit code {process.returncode}: {said}")
            compare(out, wanted)
            shutil.rmtree(out)
            counts["done"] += 1
    return counts


def disk_full(images: Path, place: Path) -> collections.Counter[str]:
    start(images, place / "undisturbed").wait()
    wanted, counts = contents(place / "undisturbed"), collections.Counter()
    disk = place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk], check=True)
    try:
        for size_kb in range(4, 1 << 20, STEP_KB):
            subprocess.run(["mount", "-o", f"remount,size={size_kb}k", disk], check=True)
            process = start(images, disk / "out")
            _, said = process.communicate(timeout=120)
            if process.returncode == 0:
                break
            if process.returncode != 1 or said.count("\n") != 1 or "no space left on device" not in said.lower():
                raise Different(f"on {size_kb} kB: exit code {process.returncode}: {said}")
            if left := [p.name for p in disk.rglob(".*.tmp")]:
                raise Different(f"on {size_kb} kB: left {left}")
            counts["full"] += 1
        compare(disk / "out", wanted)
        counts["done"] += 1
    finally:
        subprocess.run(["umount", disk], check=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--disk-full", action="store_true")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        images = photographs(place / "images", args.images)
        try:
            if args.disk_full:
                counts = disk_full(images, place)
            else:
                counts = killed(images, place, args.kills, random.Random(args.seed))
        except Different as e:
            print(f"kill_prep: DIFFERENT: {e}", flush=True)
            return 1
    shown = ", ".join(f"{name} {n}" for name, n in counts.items())
    print(f"kill_prep: all bytes equal; {shown}; {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
