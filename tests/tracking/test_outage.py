"""A real MLflow server that is late, dies half-way and comes back; and one that accepts and never answers.

What is compared: the points in MLflow, in the order they were sent, with the lines of metrics.jsonl.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from PIL import Image

from pipeline.spec import UserError
from pipeline.tracking import jsonl
from pipeline.tracking.mirror import Mirror, catch_up, cursor_of, sync
from pipeline.tracking.registry import fetch, register
from tests.tracking.records import history, make_run, on_disk, only_run, wait_until, write
from tests.tracking.test_registry import save_checkpoint


class Server:
    """`mlflow server` on a port that stays the same over restarts."""

    def __init__(self, folder, store):
        shutil.copy(store, folder / "server.db")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        self.folder, self.process = folder, None
        self.command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        self.command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
        self.command += ["--artifacts-destination", str(folder / "artifacts")]

    def start(self):
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                self.command, env=env, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        wait_until(self.answers, seconds=120)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False

    def kill(self):
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_store):
    server = Server(tmp_path_factory.mktemp("server"), empty_store)
    yield server
    server.kill()


@pytest.fixture
def folder(tmp_path, server, monkeypatch):
    """A run whose server is not up yet, unless the test before started it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    return make_run(tmp_path / "runs" / "mspie-12345678")


def events(folder):
    return [e["event"] for e in jsonl.read(folder / jsonl.EVENTS) if e["event"].startswith("tracking")]


def test_every_record_arrives_once_and_in_order_over_a_server_that_is_late_and_dies_half_way(folder, server):
    mirror = Mirror(folder, every_sec=0.2)
    began = time.monotonic()
    mirror.start()
    assert time.monotonic() - began < 0.1  # training does not wait for a server that is down
    write(folder, range(0, 20))
    wait_until(lambda: events(folder) == ["tracking down"])
    server.start()
    write(folder, range(20, 40))
    wait_until(lambda: (c := cursor_of(folder)) is not None and c.nimg == 39)
    server.kill()
    write(folder, range(40, 60))
    wait_until(lambda: events(folder)[-1] == "tracking down")
    server.start()
    write(folder, range(60, 80), nan=float("nan"))
    assert mirror.close(final=True)
    assert history(folder) == on_disk(folder)
    assert history(folder, "Loss/D/adv") == on_disk(folder, "Loss/D/adv")
    assert len(history(folder, "nan")) == 20
    assert only_run(folder)[1].info.status == "FINISHED"
    assert events(folder) == ["tracking down", "tracking back"] * 2


def test_a_server_takes_grids_files_and_models_and_gives_them_back(folder, server):
    if not server.answers():
        server.start()
    Image.new("RGB", (32, 32), (0, 255, 0)).save(folder / "samples" / "000000000100-16x16.png")
    checkpoint = save_checkpoint(folder)
    version = register(folder, name="served", alias="best", checkpoint=checkpoint)
    client, run = only_run(folder)
    images = [a.path for a in client.list_artifacts(run.info.run_id, "images")]
    assert sum(path.startswith("images/samples_16x16+step+100+") for path in images) == 2  # full and thumbnail
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"config.json", "environment.json"}
    got = fetch("models:/served@best", folder.parent)
    assert got.parent == folder.parent / "models" / "served"
    assert got.name.startswith(f"{version}-")
    assert (got / "G_ema.safetensors").read_bytes() == (checkpoint / "G_ema.safetensors").read_bytes()
    assert (got / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_a_dead_server_costs_sync_one_line_and_no_waiting(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    write(folder, [1])
    began = time.monotonic()
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI='http://127\.0\.0\.1:1' fails") as e:
        sync(folder)
    assert "\n" not in str(e.value)
    assert time.monotonic() - began < 5


def test_a_server_that_accepts_and_never_answers_blocks_neither_training_nor_its_end(folder, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        mirror = Mirror(folder, every_sec=0.01)
        mirror.start()
        with silent.accept()[0]:  # the mirror is waiting for an answer now
            began = time.monotonic()
            write(folder, range(10))
            assert not mirror.close(final=True, timeout_sec=1.0)
            assert time.monotonic() - began < 3
    assert not mirror.close(final=True, timeout_sec=30.0)  # the connection was reset
    assert events(folder) == ["tracking down"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert catch_up(folder) == 10
    assert history(folder) == on_disk(folder)
