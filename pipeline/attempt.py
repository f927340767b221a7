"""One attempt at a run: from its newest valid checkpoint to its end, to a stop, or to a failure that has a name.

Every rank calls `attempt`. Wires data, loop, checkpoints, watchdog and records together; what each of them does
is defined elsewhere.
"""

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline import runlog
from pipeline.chance import key
from pipeline.config import fingerprint
from pipeline.data.feed import batches, manifest_of
from pipeline.data.order import image_at
from pipeline.errors import UserError, WorkError
from pipeline.lock import locked
from pipeline.plan import ExecConfig, RunConfig, check_data, check_validation
from pipeline.spec import Batch
from pipeline.tracking.inbox import LOCK
from pipeline.training import checkpoint
from pipeline.training.engine import Engine
from pipeline.training.health import Health, report
from pipeline.training.loop import Outcome, Outlets, Schedule, Training, train
from pipeline.training.saver import Saver
from pipeline.training.validation import Validation
from pipeline.training.watchdog import Watchdog

RELEASE_SEC = 120.0  # a network file system may hold the lock of a dead node for its lease
ROLLBACKS = 3  # of one run; values that are not finite after so many have a cause that other draws do not mend


def attempt(
    folder: Path,
    run: RunConfig,
    exec_: ExecConfig,
    sets: Sequence[str],
    should_stop: Callable[[], bool],
    validation: Sequence[str] = (),
) -> Outcome:
    """Train the run in `folder` on these sets. "stopped": all ranks saved, as one of them was asked to stop.

    `validation`: prepared folders that are measured and not trained on.
    """
    # torch's own time-out names nobody, so the watchdog must be the first to give up
    engine = Engine(run.precision, exec_.world(), timeout_sec=exec_.hang_sec and max(1800, 2 * exec_.hang_sec))
    watchdog = Watchdog(
        engine.progress,
        rank=engine.rank,
        world=engine.world,
        hang_sec=exec_.hang_sec,
        beat_sec=min(5.0, exec_.hang_sec / 10),
        tell=partial(runlog.tell, folder, engine),
    )
    failed: BaseException | None = None
    alone = contextlib.ExitStack()
    try:
        if exec_.hang_sec:
            watchdog.start()
        engine.progress.at("waiting for an earlier attempt to end")
        engine.on_main(lambda: _hold(alone, folder, exec_.hang_sec))
        return _Attempt(folder, run, exec_, sets, engine, should_stop, validation).go()
    except BaseException as e:
        failed = e
        raise
    finally:
        alone.close()
        watchdog.close(failed)
        engine.close(failed=failed is not None)


def _hold(alone: contextlib.ExitStack, folder: Path, hang_sec: int) -> None:
    """No other attempt writes into this run meanwhile: ranks outlive a launcher that was killed.

    A disk that is full or read-only refuses the lock, but, as everywhere, does not stop training.
    """
    busy = (
        f"run={str(folder)!r}: {{holder}} is training it; wait until that has ended, or end it (ranks outlive a "
        "launcher that was killed), and start again"
    )
    wait_sec = min(RELEASE_SEC, hang_sec / 2) if hang_sec else RELEASE_SEC
    with contextlib.suppress(OSError):
        alone.enter_context(locked(folder / LOCK, busy, wait_sec=wait_sec))


def schedule_of(run: RunConfig, exec_: ExecConfig, rank: int) -> Schedule:
    """What the loop must know of a run, on this rank."""
    return Schedule(
        seed=run.seed,
        batch_size=run.batch_size,
        total_kimg=run.total_kimg,
        status_kimg=exec_.status_kimg,
        sample_kimg=exec_.sample_kimg,
        validate_kimg=exec_.validate_kimg,
        checkpoint_kimg=exec_.checkpoint_kimg,
        milestone_kimg=exec_.milestone_kimg,
        slices=exec_.slices(run, rank),
        fingerprint=fingerprint(run),
        zero=exec_.stages(run.family.passes()),
        ds_config=exec_.ds_config,
    )


@dataclass
class _Attempt:
    folder: Path
    run: RunConfig
    exec_: ExecConfig
    sets: Sequence[str]
    engine: Engine
    should_stop: Callable[[], bool]
    validation: Sequence[str]

    def go(self) -> Outcome:
        run, exec_, engine = self.run, self.exec_, self.engine
        engine.progress.at("looking at the data")
        engine.on_main(self._check_sets)
        torch.manual_seed(key(run.seed, "init") >> 65)
        self.schedule = schedule_of(run, exec_, engine.rank)
        engine.progress.at("building the networks")
        self.training = Training(run.family.build(run.seed), engine, self.schedule)
        if exec_.recompute:
            self.training.nets["G"].recompute = True  # type: ignore[assignment]
        engine.progress.at("reading a checkpoint")
        _, passed = self._resume()
        self.log = runlog.RunLog(self.folder, run, exec_, engine, self.should_stop)
        for problem in passed:
            self.log.event("passed over", self.training.nimg, checkpoint=problem)
        self.saver = Saver(self._root, exec_.keep, self.log.event) if engine.is_main else None
        engine.progress.at("starting the records")
        self.log.start(self.training.nimg)
        for name, one in self._held_out.items():
            m = engine.on_main(lambda one=one: manifest_of(str(one), full=False))
            self.log.event("validation", self.training.nimg, set=name, dataset_id=m.dataset_id, images=m.count)
        outcome: Outcome | None = None
        try:
            outcome = self._until_it_ends()
            return outcome
        except Exception as e:
            self.log.event("failed", self.training.nimg, error=f"{type(e).__name__}: {e}"[:500])
            raise
        finally:
            if self.saver:
                self.saver.close()
            self.log.close(final=outcome == "done")

    def _check_sets(self) -> None:
        check_data(self.run, self.exec_, self.sets, [manifest_of(one) for one in self.sets])
        for one in self.validation:
            check_validation(self.run, one, manifest_of(one))

    @property
    def _root(self) -> Path:
        return self.folder / "checkpoints"

    def _resume(self, *, healthy: bool = False) -> tuple[Path | None, list[str]]:
        """Continue from the newest valid checkpoint, chosen by rank 0; and what was wrong with those passed over."""
        found, passed = self.engine.on_main(lambda: checkpoint.newest_valid(self._root, healthy=healthy))
        if found is not None:
            expected = self.schedule.fingerprint
            self.training.restore(self.engine.everywhere(lambda: checkpoint.load(found, expected)))
        elif passed and not healthy:
            raise UserError(f"{self._root} holds no valid checkpoint ({'; '.join(passed)}); move it away to start anew")
        return found, passed

    def _until_it_ends(self) -> Outcome:
        """The loop; and again from the newest healthy checkpoint, where that is asked for."""
        while True:
            health = Health(self.exec_.not_finite_limit, self.engine.device)
            outcome = self._train(health)
            self.engine.progress.at("last checkpoint", self.training.nimg)
            unsaved = self.engine.on_main(lambda: str(self.saver.drain() or "") if self.saver else "")
            if outcome == "diverged":
                self._take_back(health)
                continue
            if outcome == "done" and unsaved:
                raise WorkError(f"trained to the end, but the last checkpoint is not on disk: {unsaved}")
            self._tell_end(outcome)
            return outcome

    def _train(self, health: Health) -> Outcome:
        stream = self._batches()
        try:
            return train(
                self.training,
                stream,
                self.engine,
                self.schedule,
                should_stop=self.should_stop,
                health=health,
                saver=self.saver,
                outlets=Outlets(self.log.metrics, self.log.sample, self._validate()),
            )
        finally:
            stream.close()  # ends its threads

    @cached_property
    def _held_out(self) -> dict[str, Path]:
        """Held-out sets by name: the part that they are (`prep --split`) where that tells them apart, or the folder."""
        splits = [manifest_of(one, full=False).split for one in self.validation]
        folders = [Path(one).name for one in self.validation]
        names = splits if all(splits) and len(set(splits)) == len(splits) else folders
        return dict(zip(names, map(Path, self.validation), strict=True))

    def _validate(self) -> Callable[[Mapping[str, nn.Module]], dict[str, float]] | None:
        family, micro = self.training.family, self.exec_.microbatch(self.run)
        if not self._held_out or family.validate is None:
            return None
        return Validation(family, self._held_out, self.engine, self.run.seed, micro, self.exec_.workers)

    def _batches(self) -> Generator[Batch, None, None]:
        """This rank's microbatches from here on; opened anew where the images of an iteration change in number."""
        run, exec_, stages, nimg = self.run, self.exec_, self.training.family.stages, self.training.nimg
        factors, stage = (stages.factors, stages.of(nimg)) if stages else ((1,), 0)
        while True:
            factor, last = factors[stage], stage
            while last + 1 < len(factors) and factors[last + 1] == factor:
                last += 1
            slices = self.schedule.slices_of(factor)
            stream = batches(
                self.sets,
                run.data,
                reader=exec_.reader,
                seed=run.seed,
                nimg=nimg,
                batch_size=factor * run.batch_size,
                slices=slices,
                rank=self.engine.rank,
                world=self.engine.world,
                workers=exec_.workers,
            )
            with contextlib.closing(stream):
                if stages is None or last + 1 == len(factors):
                    yield from stream
                    return
                end = stages.first(last + 1, run.batch_size)
                yield from islice(stream, (end - nimg) // (factor * run.batch_size) * len(slices))
            nimg, stage = end, stages.of(end)

    def _tell_end(self, outcome: Outcome) -> None:
        nimg, why = self.training.nimg, getattr(self.should_stop, "why", str)
        causes = [cause for cause in self.engine.gather(why()) if cause]
        if outcome == "done":
            self.log.event("done", nimg)
        else:
            self.log.event("preempt", nimg, **({"cause": causes[0]} if causes else {}))

    def _take_back(self, health: Health) -> None:
        """Write down what was not finite; then go back to the newest healthy checkpoint, or raise WorkError."""
        t, exec_ = self.training, self.exec_
        came_from, rollbacks = t.nimg, t.rollbacks
        told = self.engine.gather(health.culprits)
        file = self.engine.on_main(lambda: self._report(came_from, told))
        what = f"losses or gradients were not finite in {exec_.not_finite_limit} iterations up to image {came_from}"
        if exec_.on_not_finite == "stop":
            raise WorkError(
                f"{what}; see {file}. Resume with exec.on_not_finite=rollback, which goes back to the newest healthy "
                "checkpoint, or start another run with a lower family.lr or precision=fp32"
            )
        if rollbacks >= ROLLBACKS:
            raise WorkError(f"{what}, after {rollbacks} rollbacks; see {file}")
        found, _ = self._resume(healthy=True)
        if found is None:
            raise WorkError(f"{what}, and there is no healthy checkpoint to go back to; see {file}")
        t.rollbacks = rollbacks + 1
        self.engine.on_main(lambda: checkpoint.discard_after(self._root, t.nimg))
        self.log.event("rollback", came_from, to=t.nimg, report=str(file), rollbacks=t.rollbacks)

    def _images_at(self, nimg: int) -> int:
        """Images of the iteration that starts at nimg."""
        stages = self.training.family.stages
        return self.run.batch_size * (stages.factors[stages.of(nimg)] if stages else 1)

    def _report(self, nimg: int, told: Sequence[dict[int, list[str]]]) -> Path:
        """`not-finite-<nimg>.json`: what was not finite on which rank, and the images of those iterations."""
        d, rows = self.run.data, {}
        counts = [manifest_of(one).count for one in self.sets]
        for start in sorted({n for of_rank in told for n in of_rank}):
            ks = np.arange(start, start + self._images_at(start))
            which, sample = image_at(self.run.seed, counts, d.weights, ks, d.shuffle_block, d.shuffle_window)
            rows[str(start)] = {
                "not finite": {str(rank): of_rank[start] for rank, of_rank in enumerate(told) if start in of_rank},
                "images": [f"{self.sets[w]}:{s:09d}" for w, s in zip(which.tolist(), sample.tolist(), strict=True)],
            }
        return report(self.folder, nimg, rows)
