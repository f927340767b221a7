"""Jobs of this machine: submitit's local executor with a controller that does not give up.

Differs from submitit: a job lives as often as the time-outs left allow (there: six times), a rank that fails takes
the others along, a signal that comes between two lives is not lost, a job may wait for others to end, the
controller's own words go to a file. Deliberately knows nothing of what the jobs do, and keeps no queue.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE, Controller, LocalJob

from jobs.ledger import is_controller
from jobs.preempt import LOCAL_END

POLL_SEC = 0.05
AGAIN_SEC = 2.0  # until a signal is repeated, as one that meets a rank before its handler is there is lost
FAILED_SEC = 30.0  # for the other ranks to say what they know of a failed one


class LocalExecutor(submitit.LocalExecutor):
    """`code`: a folder to import this project from; `after`: ids of jobs in the same folder to wait for."""

    def __init__(self, folder: Path, *, code: Path, after: Sequence[str] = (), **options: Any):
        super().__init__(folder, **options)
        self.code, self.after = code, after

    def _submit_command(self, command: str) -> LocalJob[Any]:
        ranks = self._num_tasks()
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(self.code), os.environ.get("PYTHONPATH")])),
            "PYTHONSAFEPATH": "1",
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_NTASKS": str(ranks),
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * self.parameters["timeout_min"]),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(self.parameters["signal_delay_s"]),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "",
        }
        words = [sys.executable, "-m", "jobs.local", str(self.folder), *self.after]
        with open(self.folder / "controller.log", "a") as log:
            process = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return LocalJob(self.folder, str(process.pid), tasks=range(ranks), process=process)


class PatientController(Controller):
    """Starts the ranks, warns them before the time limit, and starts them again as long as one asks for it."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.cancelled = self.warned = False
        self.forwarded = float("-inf")
        for signum in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(signum, self._asked)

    def _asked(self, signum: int, frame: Any = None) -> None:
        self.cancelled |= signum == signal.SIGTERM
        self.warned |= signum == signal.SIGUSR2
        self.forwarded = float("-inf")

    def wait_for(self, jobs: Sequence[str]) -> None:
        while not self.cancelled and any(is_controller(job, self.folder) for job in jobs):
            time.sleep(1)

    def start_tasks(self) -> None:
        if self.cancelled:
            raise SystemExit(128 + signal.SIGTERM)
        self.warned, self.forwarded = False, float("-inf")
        os.environ[LOCAL_END] = str(time.time() + self.timeout_s)
        super().start_tasks()

    def wait(self, freq: int = 0) -> list[int | None]:
        """Exit codes of the ranks; None for those that have overstayed, which are killed next."""
        start, failed = time.monotonic(), float("inf")
        while None in (codes := [task.poll() for task in self.tasks]):
            now = time.monotonic()
            if any(code not in (None, 0, LOCAL_REQUEUE_RETURN_CODE) for code in codes):
                failed = min(failed, now)
            if now - start > self.timeout_s or now - failed > FAILED_SEC:
                return codes
            self.warned |= now - start > self.timeout_s - self.signal_delay_s
            if (self.warned or self.cancelled) and now - self.forwarded > AGAIN_SEC:
                self.forwarded = now
                self._forward_signal(signal.SIGTERM if self.cancelled else signal.SIGUSR2)
            time.sleep(POLL_SEC)
        return codes


if __name__ == "__main__":
    controller = PatientController(Path(sys.argv[1]))
    controller.wait_for(sys.argv[2:])
    controller.run(max_retry=sys.maxsize)
