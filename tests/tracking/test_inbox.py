"""What others leave for a run stands in its records once, in order, whoever trains or dies meanwhile."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import WorkError
from pipeline.lock import locked
from pipeline.plan import ExecConfig
from pipeline.recipes import find
from pipeline.runlog import RunLog
from pipeline.tracking import inbox, jsonl
from pipeline.training.engine import Engine

NAME = "Metrics/fid50k_full/16px"


def measured(nimg: int, value: float, weights: str = "a") -> dict:
    return {
        "nimg": nimg,
        "time": 1.5,
        "attempt": 1,
        "kind": NAME,
        "metrics": {NAME: value},
        "of": {"weights": weights, "better": {NAME: "lower"}},
    }


def values(folder: Path) -> list[float]:
    return [record["metrics"][NAME] for record in jsonl.read(folder / jsonl.METRICS)]


def waiting(folder: Path) -> list[str]:
    return [p.name for p in (folder / inbox.FOLDER).iterdir()]


def test_where_nobody_trains_a_record_is_in_the_metrics_at_once(tmp_path):
    inbox.leave(tmp_path, measured(4, 7.25))
    assert jsonl.read(tmp_path / jsonl.METRICS) == [measured(4, 7.25)]
    assert not waiting(tmp_path)
    assert not (tmp_path / inbox.LOCK).exists()


def test_beside_training_it_waits_for_the_trainer_and_readers_see_it_already(tmp_path):
    with locked(tmp_path / inbox.LOCK, ""):
        inbox.leave(tmp_path, measured(4, 7.25))
        inbox.leave(tmp_path, measured(8, 6.5))
        assert not (tmp_path / jsonl.METRICS).exists()
        assert [r["nimg"] for r in inbox.pending(tmp_path)] == [4, 8]
        assert inbox.drain(tmp_path) == 2
    assert values(tmp_path) == [7.25, 6.5]
    assert not inbox.pending(tmp_path)


def test_the_trainer_takes_it_over_at_the_next_status_line_and_at_the_end(tmp_path, capsys):
    run = find("cips.table3_main").make().tiny()
    engine = Engine(run.precision, ExecConfig().world(), timeout_sec=60)
    log = RunLog(tmp_path, run, ExecConfig(track=False), engine, lambda: False)
    with locked(tmp_path / inbox.LOCK, ""):
        inbox.leave(tmp_path, measured(4, 7.25))
        log.metrics(8, {"Loss/G": 1.0}, 0)
        assert [r.get("kind", "train") for r in jsonl.read(tmp_path / jsonl.METRICS)] == ["train", NAME]
        inbox.leave(tmp_path, measured(8, 6.5))
        log.close(final=True)
    assert [r["nimg"] for r in jsonl.read(tmp_path / jsonl.METRICS)] == [8, 4, 8]
    engine.close(failed=False)


@pytest.mark.parametrize("value", [7.25, math.nan])
def test_a_kill_between_adding_and_removing_doubles_nothing(tmp_path, value):
    with locked(tmp_path / inbox.LOCK, ""):
        inbox.leave(tmp_path, measured(4, value))
        inbox.leave(tmp_path, measured(4, 1.0))
    if os.fork() == 0:
        Path.unlink = lambda *args, **kwargs: os._exit(9)  # type: ignore[assignment]
        inbox.drain(tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 9
    assert (len(values(tmp_path)), len(waiting(tmp_path))) == (1, 2)
    assert inbox.settle(tmp_path) == 1
    assert [str(v) for v in values(tmp_path)] == [str(value), "1.0"]


def test_equal_numbers_of_other_weights_are_another_record(tmp_path):
    inbox.leave(tmp_path, measured(4, 7.25))
    inbox.leave(tmp_path, {**measured(4, 7.25), "time": 9.0})
    inbox.leave(tmp_path, measured(4, 7.25, weights="b"))
    assert [r["of"]["weights"] for r in jsonl.read(tmp_path / jsonl.METRICS)] == ["a", "b"]


def test_events_go_to_the_events(tmp_path):
    event = {"time": 1.0, "nimg": 4, "attempt": 1, "event": "tracking down", "detail": "x"}
    inbox.leave(tmp_path, event)
    inbox.leave(tmp_path, {**event, "time": 2.0})
    assert [e["time"] for e in jsonl.read(tmp_path / jsonl.EVENTS)] == [1.0, 2.0]
    assert not (tmp_path / jsonl.METRICS).exists()


def test_what_is_damaged_is_set_aside_and_holds_up_nothing(tmp_path, capsys):
    (tmp_path / inbox.FOLDER).mkdir()
    (tmp_path / inbox.FOLDER / "01.json").write_bytes(b"\0" * 40)
    (tmp_path / inbox.FOLDER / "02.json").write_text('{"nimg": } 4')
    inbox.leave(tmp_path, measured(4, 7.25))
    assert values(tmp_path) == [7.25]
    assert sorted(waiting(tmp_path)) == ["01.damaged", "02.damaged"]
    assert inbox.settle(tmp_path) == 0
    assert capsys.readouterr().err.count("is damaged and set aside") == 2


def test_a_disk_that_refuses_is_an_error_in_one_line(tmp_path):
    (tmp_path / inbox.FOLDER).write_text("in the way")
    with pytest.raises(WorkError, match=r"inbox/.*cannot be written"):
        inbox.leave(tmp_path, measured(4, 7.25))


WRITER = """
import sys
from pathlib import Path
from pipeline.tracking import inbox
for i in range(20):
    n = 100 * int(sys.argv[2]) + i
    inbox.leave(Path(sys.argv[1]), {"nimg": n, "time": 0.0, "kind": "k", "metrics": {"k": 1.0}})
"""


def test_several_that_leave_records_at_a_time_lose_none(tmp_path):
    several = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(i)]) for i in range(3)]
    assert [one.wait(timeout=60) for one in several] == [0, 0, 0]
    inbox.settle(tmp_path)
    wanted = sorted(100 * i + k for i in range(3) for k in range(20))
    assert sorted(r["nimg"] for r in jsonl.read(tmp_path / jsonl.METRICS)) == wanted
