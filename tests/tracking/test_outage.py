"""A real MLflow server that is late, is killed, comes back, or comes back empty; and a door before it that fails.

What is compared: the points in MLflow, each exactly once, with the lines of metrics.jsonl.
"""

import os
import socket
import subprocess
import sys

import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.tracking import jsonl, mirror, upload
from pipeline.tracking.best import publish_best
from pipeline.tracking.mirror import Mirror, sync
from pipeline.tracking.registry import SHA_TAG, fetch, register
from pipeline.tracking.upload import OutOfTimeError, catch_up, cursor_of
from tests.tracking.records import (
    assert_exactly_once,
    attempt,
    event,
    history,
    on_disk,
    only_run,
    wait_until,
    write,
)
from tests.tracking.small_disk import small_disk
from tests.tracking.test_best import ALIAS, FID, MODEL, measure, weights_of
from tests.tracking.test_registry import save_checkpoint

# MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def events(folder):
    return [e["event"] for e in jsonl.read(folder / jsonl.EVENTS) if e["event"].startswith("tracking")]


def test_a_server_that_is_late_and_killed_and_comes_back_and_comes_back_empty_has_every_point_once(
    remote, server, monkeypatch
):
    monkeypatch.setattr(mirror, "LONGEST_WAIT_SEC", 0.5)
    m = Mirror(remote, every_sec=0.2)
    m.start()
    write(remote, range(0, 20))  # training does not wait for a server that is down
    wait_until(lambda: events(remote) == ["tracking down"])
    server.start()
    write(remote, range(20, 40))
    wait_until(lambda: (c := cursor_of(remote)) is not None and c.nimg == 39)
    wait_until(lambda: events(remote) == ["tracking down", "tracking back"])
    server.kill()
    write(remote, range(40, 60))
    wait_until(lambda: len(events(remote)) == 3)
    server.start()
    wait_until(lambda: cursor_of(remote).nimg == 59)
    assert history(remote) == on_disk(remote)
    assert_exactly_once(remote)
    server.kill()
    server.empty()
    server.start()
    write(remote, range(60, 80))
    event(remote, "done", nimg=79)
    assert m.close(final=True)
    assert history(remote) == on_disk(remote)
    assert_exactly_once(remote)
    _, run = only_run(remote)
    assert (run.info.status, run.data.params["recipe"]) == ("FINISHED", "mspie")
    assert events(remote)[:4] == ["tracking down", "tracking back"] * 2


def test_the_status_in_mlflow_follows_the_events(remote, server):
    server.start()
    for number, (cause, status) in enumerate(
        [("time limit", "SCHEDULED"), ("preemption", "SCHEDULED"), ("cancelled", "KILLED"), (None, "SCHEDULED")], 1
    ):
        catch_up(remote)
        assert only_run(remote)[1].info.status == "RUNNING"
        event(remote, "preempt", nimg=number, attempt=number, **({"cause": cause} if cause else {}))
        sync(remote)
        assert only_run(remote)[1].info.status == status
        attempt(remote, number + 1, nimg=number)
    for number, how in enumerate(["failed", "watchdog"], 5):
        event(remote, how, nimg=number, attempt=number, error="NaN")
        catch_up(remote)
        assert only_run(remote)[1].info.status == "FAILED"
        attempt(remote, number + 1, nimg=number)
        catch_up(remote)
        assert only_run(remote)[1].info.status == "RUNNING"
    event(remote, "done", nimg=7, attempt=7)
    sync(remote)
    run = only_run(remote)[1]
    done = jsonl.read(remote / jsonl.EVENTS)[-1]
    assert (run.info.status, run.info.end_time) == ("FINISHED", int(done["time"] * 1000))
    assert (run.data.tags["graticule.time_limits"], run.data.tags["graticule.preemptions"]) == ("1", "1")


@pytest.mark.parametrize("mode", ["500", "507", "lost"])
def test_a_server_that_fails_or_is_full_or_whose_answers_are_lost_has_every_point_once_in_the_end(remote, door, mode):
    write(remote, range(10))
    m = Mirror(remote, every_sec=0.02)
    m.start()
    wait_until(lambda: (c := cursor_of(remote)) is not None and c.nimg == 9)
    door.set(mode)
    write(remote, range(10, 30))
    wait_until(lambda: door.hits >= 3)
    door.set("pass")
    write(remote, range(30, 40))
    assert m.close(final=True)
    assert events(remote) == ["tracking down", "tracking back"]
    assert_exactly_once(remote)


def test_a_full_artifact_store_holds_up_no_metric(remote, door):
    door.set("507", where="/mlflow-artifacts/")
    write(remote, range(10))
    event(remote, "done", nimg=9)
    with pytest.raises(UserError, match="507"):
        sync(remote)
    assert_exactly_once(remote)
    client, run = only_run(remote)
    assert run.info.status == "FINISHED"
    door.set("pass")
    sync(remote)
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {"config.json", "environment.json"}


SENDING = """
import sys
from pathlib import Path
from pipeline.tracking.upload import catch_up
catch_up(Path(sys.argv[1]))
"""


def test_a_kill_between_a_post_and_its_answer_doubles_nothing(remote, door):
    write(remote, range(10))
    catch_up(remote)
    write(remote, range(10, 30))
    door.set("hold", where="log-batch")
    with subprocess.Popen([sys.executable, "-c", SENDING, str(remote)]) as process:
        try:
            wait_until(lambda: door.hits == 1)  # the server has the points, the client does not know
        finally:
            process.kill()
    door.set("pass")
    assert len(history(remote)) == 30
    assert cursor_of(remote).nimg == 9
    attempt(remote, 2, nimg=20)
    write(remote, range(21, 35), attempt=2)
    assert sync(remote) == 25
    assert_exactly_once(remote)


EXITING = """
import sys, time
from pathlib import Path
from pipeline.tracking.mirror import Mirror
mirror = Mirror(Path(sys.argv[1]), every_sec=0.01)
mirror.start()
sys.stdin.readline()
print(mirror.close(final=False, timeout_sec=0.1))
"""


def test_a_server_that_accepts_and_never_answers_holds_up_neither_training_nor_the_end_of_the_process(remote, door):
    door.set("silent")
    env = {**os.environ, "MLFLOW_HTTP_REQUEST_TIMEOUT": "600"}  # what a wait for the answer would take
    command = [sys.executable, "-c", EXITING, str(remote)]
    with subprocess.Popen(command, env=env, stdin=-1, stdout=-1, text=True) as process:
        try:
            wait_until(lambda: door.hits == 1)
            write(remote, range(10))
            out, _ = process.communicate("\n", timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "False\n")
    door.set("pass")
    assert sync(remote) == 10
    assert_exactly_once(remote)


class Clock:
    """A fake: waits are noted instead of waited for, then training ends."""

    def __init__(self, tries: int):
        self.tries, self.waits = tries, []

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        return len(self.waits) >= self.tries

    def set(self) -> None:
        pass


@pytest.mark.parametrize("how", ["dead", "silent"])
def test_waits_double_while_a_server_is_dead_or_silent_and_the_disk_gets_one_line(folder, monkeypatch, how):
    write(folder, range(10))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    tries = {"dead": 12, "silent": 4}[how]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if how == "silent":
            listening.listen(100)  # the kernel accepts, and nobody answers
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening.getsockname()[1]}")
        before = {p.name: p.stat().st_size for p in folder.rglob("*")}
        m, clock = Mirror(folder), Clock(tries)
        m._stop = clock
        m.start()
        m._thread.join(60)
        assert not m.close(final=False)
    expected = [5.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0, 300.0, 300.0]
    assert clock.waits == expected[:tries]
    assert events(folder) == ["tracking down"]
    after = {p.name: p.stat().st_size for p in folder.rglob("*")}
    assert {name for name in after if after[name] != before.get(name)} == {jsonl.EVENTS}


def test_a_slow_server_is_no_dead_one_and_each_try_ends_in_time(folder, monkeypatch):
    """A fake: time passes with each request, which takes half of what a try may take."""
    write(folder, range(100))
    monkeypatch.setattr(upload, "MAX_BATCH", 20)
    now, tries = [0.0], []

    def slow_catch_up(*args, give_up, **more):
        began = now[0]

        def later():
            now[0] += mirror.LONGEST_TRY_SEC / 2
            return give_up()

        try:
            return catch_up(*args, give_up=later, **more)
        finally:
            tries.append(now[0] - began)

    monkeypatch.setattr(mirror, "catch_up", slow_catch_up)
    monkeypatch.setattr(mirror.time, "monotonic", lambda: now[0])
    m, clock = Mirror(folder), Clock(40)
    m._stop = clock
    m.start()
    m._thread.join(60)
    assert max(tries) <= 2 * mirror.LONGEST_TRY_SEC
    assert set(clock.waits) == {5.0}
    assert events(folder) == []
    assert_exactly_once(folder)


def test_giving_up_anywhere_and_going_on_sends_each_point_once(folder, monkeypatch):
    write(folder, range(100))
    Image.new("RGB", (8, 8)).save(folder / "samples" / "000000000100-8x8.png")
    monkeypatch.setattr(upload, "MAX_BATCH", 20)
    given_up = 0
    for _ in range(100):
        asked = iter(range(100))
        try:
            catch_up(folder, give_up=lambda asked=asked: next(asked) == 2)
        except OutOfTimeError:
            given_up += 1
        else:
            break
    assert given_up > 5
    assert_exactly_once(folder)


def test_a_run_that_stops_while_its_server_is_down_does_not_wait_for_it(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    m = Mirror(folder, every_sec=0.01)
    m.start()
    wait_until(lambda: m._down)
    asked = []
    m._thread.join = asked.append
    assert not m.close(final=False, timeout_sec=20.0)
    assert not m.close(final=True, timeout_sec=20.0)
    assert asked == [mirror.PARTING_SEC, 20.0]


def test_an_sqlite_store_on_a_full_disk_gets_every_point_once_when_there_is_room(folder, tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", size_kb=4096) as disk:
        (disk.path / "mlflow.db").write_bytes((folder.parent / "mlflow.db").read_bytes())
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk.path / 'mlflow.db'}")
        m = Mirror(folder, every_sec=0.02)
        m.start()
        write(folder, range(10))
        wait_until(lambda: (c := cursor_of(folder)) is not None and c.nimg == 9)
        disk.fill(but_bytes=16_384)
        write(folder, range(10, 1000))
        wait_until(lambda: events(folder) == ["tracking down"])
        disk.make_room()
        assert m.close(final=True)
        told = [e["detail"] for e in jsonl.read(folder / jsonl.EVENTS) if e["event"] == "tracking down"]
        assert "full" in told[0] or "disk I/O" in told[0]
        assert_exactly_once(folder)


def test_a_run_folder_on_a_full_disk_has_every_point_once_though_what_was_sent_could_not_be_noted(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent / 'mlflow.db'}")
    with small_disk(tmp_path / "disk", size_kb=256) as disk:
        run = disk.path / folder.name
        folder.rename(tmp_path / "aside")
        subprocess.run(["cp", "-r", tmp_path / "aside", run], check=True)
        write(run, range(10))
        catch_up(run)
        write(run, range(10, 20))
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            catch_up(run)
        assert (len(history(run)), cursor_of(run).nimg) == (20, 9)
        disk.make_room()
        catch_up(run)
        assert_exactly_once(run)


def test_a_server_takes_grids_files_and_models_and_gives_them_back(remote, server):
    server.start()
    Image.new("RGB", (32, 32), (0, 255, 0)).save(remote / "samples" / "000000000100-16x16.png")
    checkpoint = save_checkpoint(remote)
    version = register(remote, name="served", alias="best", checkpoint=checkpoint)
    client, run = only_run(remote)
    images = [a.path for a in client.list_artifacts(run.info.run_id, "images")]
    assert sum(path.startswith("images/samples_16x16+step+100+") for path in images) == 2  # full and thumbnail
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"config.json", "environment.json"}
    got = fetch("models:/served@best", remote.parent)
    assert got.parent == remote.parent / "models" / "served"
    assert got.name.startswith(f"{version}-")
    assert (got / "G_ema.safetensors").read_bytes() == (checkpoint / "G_ema.safetensors").read_bytes()
    assert (got / "config.json").read_bytes() == (remote / "config.json").read_bytes()


def test_a_server_that_fails_costs_sync_one_line_and_one_request(remote, door):
    door.set("500")
    write(remote, [1])
    with pytest.raises(UserError, match=rf"MLFLOW_TRACKING_URI='{door.uri}' fails") as e:
        sync(remote)
    assert "\n" not in str(e.value)
    assert door.hits == 1


def test_a_dead_server_costs_sync_one_line(remote, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI='http://127\.0\.0\.1:1' fails") as e:
        sync(remote)
    assert "\n" not in str(e.value)


def test_a_best_checkpoint_that_the_server_refuses_costs_an_event_and_sync_makes_it_good(remote, door):
    checkpoint = save_checkpoint(remote)
    sync(remote)
    measure(checkpoint, 7.0)
    for where in ("runs/log-batch", "model-versions/create", "model-versions/set-tag", "registered-models/alias"):
        door.set("503", where)
        assert publish_best(remote) == []
        assert door.hits == 1, where
    assert [e["event"] for e in jsonl.read(remote / jsonl.EVENTS)].count("not registered") == 4
    door.set("pass")
    sync(remote)
    client, run = only_run(remote)
    version = client.get_model_version_by_alias(MODEL, ALIAS)
    assert (version.version, version.tags["metric.fid50k_full/16px"]) == ("1", "7.0")
    (model,) = client.search_logged_models([run.info.experiment_id], f"metrics.`{FID}` = 7")
    assert model.tags[SHA_TAG] == weights_of(checkpoint)
    assert history(remote, FID) == [(4000, 7.0)]
