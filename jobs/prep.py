"""Shards of one data set made by an array of jobs, each with its part of them, then published from here.

The disk tells how far they are: progress comes from the commit marks, and the same command again waits for jobs
that are still at work, or submits those parts that lack shards. Deliberately knows nothing of what is in a shard,
and asks for no GPU.
"""

import json
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dataprep.hold import HIDDEN
from dataprep.plan import make_plan
from dataprep.shard import OnError
from dataprep.sources import Source, open_source
from dataprep.transform import Transform
from dataprep.writer import Progress, committed, prepare_all, uncommitted
from jobs import ledger
from jobs.cluster import Cluster, load_cluster
from jobs.executors import asking, executor_for
from jobs.ledger import Submission
from jobs.preempt import requeue_at_once
from jobs.submit import check_cluster, snapshot
from pipeline.config import write_atomic
from pipeline.data.manifest import Manifest
from pipeline.errors import UserError, WorkError

WORK = "work.json"  # in the folder of a submission: what it makes
POLL_SEC = 1.0
ASK_SEC = (2.0, 30.0)  # between questions to Slurm: at first, and in the long run
GRACE_SEC = 15.0  # from a job's end until its result shows on a network file system


@dataclass(frozen=True)
class PrepJob:
    """What one job runs: a part of the shards, of all sizes."""

    source: str
    path: str | None
    split: str | None
    transforms: dict[str, dict[str, Any]]  # folder -> Transform
    shard_size: int
    on_error: OnError
    workers: int = 1
    part: tuple[int, int] = (0, 1)

    def __call__(self) -> str:
        """Empty, or what went wrong in one line."""
        requeue_at_once()
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":  # submitit ignores TERM; Slurm follows it with KILL
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            prepare_all(
                open_source(self.source, Path(self.path) if self.path else None, self.split),
                {Path(out): Transform.model_validate(words) for out, words in self.transforms.items()},
                split=self.split,
                workers=self.workers,
                shard_size=self.shard_size,
                on_error=self.on_error,
                part=self.part,
            )
        except (UserError, WorkError) as e:
            print(f"graticule: {e}", file=sys.stderr, flush=True)
            return str(e)
        return ""

    def checkpoint(self) -> Any:
        """Called by submitit when it requeues; the folders are all there is to know."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run_on(
    cluster: str,
    origin: Source,
    path: Path | None,
    transforms: Mapping[Path, Transform],
    *,
    jobs: int,
    split: str | None = None,
    shard_size: int = 1000,
    on_error: OnError = "stop",
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> list[Manifest]:
    """prepare_all in `jobs` jobs of a cluster; waits for them. A job has as many workers as it has CPUs.

    Called again with the same words it continues, also while jobs of an earlier call are at work. WorkError names
    the first job that fails, with its log; the others go on.
    """
    if jobs < 1:
        raise UserError(f"jobs={jobs}: must be 1 or more")
    place = load_cluster(cluster)
    check_cluster(place, nodes=1)
    transforms = {Path(os.path.abspath(out)): transform for out, transform in transforms.items()}
    words = {"split": split, "shard_size": shard_size, "on_error": on_error}
    plan = make_plan(origin, transforms, **words)  # type: ignore[arg-type]
    work = PrepJob(
        origin.name,
        os.path.abspath(path) if path else None,
        transforms={str(out): t.model_dump(mode="json") for out, t in transforms.items()},
        workers=place.threads(jobs),
        **words,  # type: ignore[arg-type]
    )
    book = plan.targets[0].out / HIDDEN

    def show() -> None:
        if progress:
            progress(committed(plan), len(plan.entries))

    if busy := _at_work(book, work):
        say(f"{len(busy)} jobs are at work on it already ({_ids(busy)}); waiting for them")
        _wait(book, busy, show, say, strict=False)  # what they leave undone is submitted anew
    if missing := uncommitted(plan):
        parts = sorted({number % jobs for number in missing})
        busy = _submit(book, place, [replace(work, part=(i, jobs)) for i in parts])
        say(f"{len(busy)} jobs on {place.name} ({_ids(busy)}); logs in {busy[0].folder(book)}")
        _wait(book, busy, show, say)
    return prepare_all(origin, transforms, progress=progress, **words)  # type: ignore[arg-type]


def _at_work(book: Path, work: PrepJob) -> list[Submission]:
    """Jobs of an earlier call that are queued or running; UserError if they make something else."""
    entries = ledger.submissions(book)
    slurm = ledger.queue() if any(e.executor == "slurm" for e in entries) else {}
    if slurm is None:
        raise WorkError(f"out={str(book.parent)!r}: has jobs, and squeue does not answer; run the command again later")
    busy = [entry for entry, _ in reversed(ledger.live(book, slurm))]
    if busy and (busy[0].folder(book) / WORK).read_text() != _words(work):
        raise UserError(
            f"out={str(book.parent)!r}: jobs are at work there with other words ({_ids(busy)}); wait for them, or "
            "cancel them, or give another --out"
        )
    return busy


def _words(work: PrepJob) -> str:
    """What two calls must have in common to make the same."""
    words = asdict(replace(work, workers=1, part=(0, 1), on_error="stop"))
    return json.dumps(words, sort_keys=True, indent=1) + "\n"


def _submit(book: Path, cluster: Cluster, parts: Sequence[PrepJob]) -> list[Submission]:
    number = ledger.claim(book)
    folder = ledger.number_folder(book, number)
    write_atomic(folder / WORK, _words(parts[0]))
    code = snapshot(folder)
    executor = executor_for(folder, cluster, nodes=1, gpus=0, name=f"prep-{parts[0].source}", code=code)
    if cluster.executor == "slurm":
        executor.update_parameters(array_parallelism=len(parts))
    with asking(cluster):
        submitted = executor.submit_array(parts)
    host, now = socket.gethostname(), time.time()
    out = [Submission(number, j.job_id, cluster.executor, cluster.name, host, now, 1, 0) for j in submitted]
    for entry in out:
        ledger.record(book, entry)
    return out


def _ids(entries: Sequence[Submission]) -> str:
    """Job ids for scancel or kill; the tasks of an array by their array."""
    return ", ".join(dict.fromkeys(e.job_id.partition("_")[0] for e in entries))


def _wait(
    book: Path, tasks: Sequence[Submission], show: Callable[[], None], say: Callable[[str], None], strict: bool = True
) -> None:
    """Until all have ended; WorkError at the first that has not ended well, if `strict`."""
    waiting, gone = {t.job_id: t for t in tasks}, {}
    asked, pause = float("-inf"), ASK_SEC[0]
    try:
        while waiting:
            show()
            now = time.monotonic()
            if now - asked >= pause:
                asked, pause = now, min(pause * 1.2, ASK_SEC[1])
                gone = _gone(book, waiting, gone, now)
            for task in list(waiting.values()):
                said = _result(book, task)
                if said is None and now - gone.get(task.job_id, now) > GRACE_SEC:
                    said = _last_line(_log(book, task)) or "ended without a word (killed? out of memory?)"
                if said is not None:
                    del waiting[task.job_id]
                if said and strict:
                    raise _failure(book, task, said, len(waiting))
            if waiting:
                time.sleep(POLL_SEC)
        show()
    except KeyboardInterrupt:
        stop = "scancel" if tasks[0].executor == "slurm" else "kill"
        say(
            f"the jobs go on; the same command again waits for them and finishes; to stop them: {stop} "
            + _ids(list(waiting.values())).replace(",", "")
        )
        raise


def _gone(book: Path, waiting: Mapping[str, Submission], gone: dict[str, float], now: float) -> dict[str, float]:
    """Which of the jobs have left the queue, and since when; as before if the queue does not answer."""
    slurm = ledger.queue() if any(t.executor == "slurm" for t in waiting.values()) else {}
    if slurm is None:
        return gone
    live = {entry.job_id for entry, _ in ledger.live(book, slurm)}
    return {job_id: gone.get(job_id, now) for job_id in waiting if job_id not in live}


def _result(book: Path, task: Submission) -> str | None:
    """What PrepJob returned, or the last line of its error; None: nothing yet."""
    from submitit.core.utils import JobPaths, pickle_load

    try:
        outcome, value = pickle_load(JobPaths(task.folder(book), task.job_id).result_pickle)
    except (OSError, EOFError, pickle.UnpicklingError):
        return None
    return value if outcome == "success" else value.strip().splitlines()[-1]


def _log(book: Path, task: Submission) -> Path:
    from submitit.core.utils import JobPaths

    return JobPaths(task.folder(book), task.job_id).stderr


def _last_line(log: Path) -> str:
    """The last of what Slurm says of an end (time limit, memory, scancel), or else of all."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return ([line for line in lines if line.startswith("slurmstepd: error")] or lines or [""])[-1]


def _failure(book: Path, task: Submission, said: str, others: int) -> WorkError:
    rest = f"{others} others go on; " if others else ""
    return WorkError(
        f"job {task.job_id} on {task.cluster} failed: {said}; log: {_log(book, task)}; {rest}run the same command "
        "again to continue"
    )
