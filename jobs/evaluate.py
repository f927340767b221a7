"""A run measured by a job of its own: of low priority, beside training, on any number of ranks; stopped, it goes on.

What was submitted stands below RUN/evaluation, so that no job of the run's training is taken for one of these or the
other way round. Knows nothing of metrics beyond `evaluate(folder, question) -> "done" | "stopped"`.
"""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import ledger
from jobs.cluster import Cluster
from jobs.ledger import EVALUATION
from jobs.preempt import StopFlag, install, requeue
from jobs.status import FRESH_SEC, is_done, run_status, written
from jobs.submit import TrainJob, check_cluster, shown, submit_chain
from jobs.world import World, join
from pipeline.errors import UserError
from pipeline.lock import locked
from pipeline.tracking.jsonl import UNMEASURED

if TYPE_CHECKING:
    import submitit

    from pipeline.evaluation import Question

FOLLOWED = ("newest", "all")
POLL_SEC = (1.0, 30.0)  # between looks at a run for its next checkpoint: at first, and in the long run
SLICE_SEC = 0.2  # how late a stop is noticed between two looks


class EvaluateJob(TrainJob):
    """What an evaluation's job runs on every rank; each is a worker that meets the others in files alone.

    `follow`: until the run has ended, and then once more. Asked to stop, it goes back into the queue.
    """

    def __init__(
        self,
        folder: Path,
        question: "Question",
        nodes: int,
        gpus: int,
        follow: bool = False,
        place: int = 0,
        successors: int = 0,
    ):
        super().__init__(folder, nodes, gpus, place, successors)
        self.question = question.to_json()  # text: nothing is imported before the job hears signals
        self.follow = follow

    def __call__(self) -> str:
        flag = install(self.successors - self.place)
        world = join(self.nodes, self.gpus)
        outcome = self._until_the_run_ends(flag, world) if self.follow else self.measure(flag, world)
        if outcome == "stopped":
            requeue(flag, world.rank)
        return outcome

    def measure(self, should_stop: StopFlag, world: World) -> str:
        try:
            return measure(Path(self.folder), self.question, should_stop, world)
        except Exception as e:
            tell_unmeasured(Path(self.folder), f"{type(e).__name__}: {e}"[:500])
            raise

    def lacks(self) -> bool:
        """Is there a checkpoint that is not measured?"""
        return lacks(Path(self.folder), self.question)

    def _until_the_run_ends(self, flag: StopFlag, world: World) -> str:
        """Ranks need not agree on what they see: who finds nothing left to do looks again."""
        folder, pause = Path(self.folder), POLL_SEC[0]
        while not flag():
            over = has_ended(folder)  # asked first: what it leaves is measured
            if _has_checkpoint(folder) and self.lacks():
                pause = POLL_SEC[0]
                if self.measure(flag, world) == "stopped":
                    break
            if over:
                return "done"
            _sleep(pause, flag)
            pause = min(pause * 1.5, POLL_SEC[1])
        return "stopped"


def measure(folder: Path, question: str, should_stop: StopFlag, world: World) -> str:
    """The part of this rank. `question`: its JSON."""
    from pipeline.evaluation import device_of, evaluate

    return evaluate(
        folder,
        question_in(question),
        worker=world.rank,
        workers=world.size,
        device=device_of(world.local_rank),
        should_stop=should_stop,
    )


def lacks(folder: Path, question: str) -> bool:
    """Is something of what is asked not measured? `question`: its JSON."""
    from pipeline.evaluation import lacking

    return bool(lacking(folder, question_in(question)))


def question_in(text: str) -> "Question":
    from pipeline.evaluation import Question

    return Question.from_json(text, where="question")


def tell_unmeasured(folder: Path, error: str) -> None:
    """In events.jsonl; through the inbox, as somebody may be training the run."""
    from pipeline.tracking import inbox, jsonl

    last = next(reversed(jsonl.read(folder / jsonl.EVENTS)), {})
    record = {"time": time.time(), "nimg": last.get("nimg", 0), "attempt": last.get("attempt", 0)}
    inbox.leave(folder, {**record, "event": UNMEASURED, "error": error})


def has_ended(run: Path) -> bool:
    """Is it done, or is nobody at work on it? Where the queue cannot be asked, once it has been silent for long."""
    if is_done(run):
        return True
    entries = ledger.submissions(run)
    slurm = ledger.queue() if any(e.executor == "slurm" for e in entries) else {}
    if slurm is None or any(e.executor == "local" and not ledger.is_here(e) for e in entries):
        return time.time() - written(run) > FRESH_SEC
    return run_status(run, slurm).state not in ("queued", "running")


def _has_checkpoint(run: Path) -> bool:
    return any((run / "checkpoints").glob("[0-9]*"))


def _sleep(seconds: float, flag: StopFlag) -> None:
    until = time.monotonic() + seconds
    while not flag() and time.monotonic() < until:
        time.sleep(SLICE_SEC)


# --- submission


def check_asked(folder: Path, question: "Question", *, follow: bool) -> None:
    """UserError, one line, for what the job would refuse; of a run without a checkpoint only what can be known."""
    from pipeline.evaluation import check
    from pipeline.run import read_run

    if not follow:
        return check(folder, question)
    if question.checkpoints not in FOLLOWED:
        raise UserError(
            f"checkpoint={question.checkpoints!r}: one that follows a run measures what appears; say newest or all, "
            "or leave --follow out"
        )
    read_run(folder)
    check(folder, question) if _has_checkpoint(folder) else check_metrics(question)


def check_metrics(question: "Question") -> None:
    """UserError for a metric that there is not, or whose detector is not there."""
    from pipeline.metrics import detectors
    from pipeline.metrics.protocols import parse

    for name in {parse(metric).detector for metric in question.metrics} - {""}:
        detectors.find(name)


def check_alone(folder: Path) -> None:
    """Refuse a run that another job is measuring."""
    if found := ledger.alive(folder / EVALUATION):
        entry, state = found
        raise UserError(
            f"run={str(folder)!r} is being measured by job {entry.job_id} already ({state.lower()} on "
            f"{entry.cluster}); wait for it, or graticule cancel {folder / EVALUATION} first"
        )


def submit_evaluation(
    folder: Path, question: "Question", cluster: Cluster, *, nodes: int, gpus: int, follow: bool = False
) -> "submitit.Job[str]":
    """Queue the evaluation of a run, or start it on this machine in the background; a training job may be at work.

    UserError when that cannot work.
    """
    folder = folder.resolve()
    check_cluster(cluster, nodes)
    busy = f"run={str(folder)!r}: {{holder}} is submitting its evaluation; wait for that"
    with locked(folder / EVALUATION / ".submitting", busy):
        check_alone(folder)
        work = partial(EvaluateJob, folder, question, nodes, gpus, follow)
        wanted = cluster.for_evaluation()
        return submit_chain(folder / EVALUATION, wanted, work, nodes=nodes, gpus=gpus, name=_name(folder))


def evaluation_text(folder: Path, cluster: Cluster, *, nodes: int, gpus: int) -> str:
    """What `submit_evaluation` would give to sbatch, or start here. Changes nothing."""
    place = folder.resolve() / EVALUATION
    where = ledger.number_folder(place, ledger.next_number(place))
    return shown(where, cluster.for_evaluation(), nodes, gpus, _name(folder.resolve()))


def _name(folder: Path) -> str:
    return f"evaluate.{folder.name}"
