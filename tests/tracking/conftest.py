"""A run folder to write into, and an SQLite store beside it; making the store is slow, so it is copied.

And one real server for the session, which tests may kill and start again.
"""

import os
import shutil
from pathlib import Path

import pytest

from pipeline.tracking.client import ENVIRONMENT, connect, tracking_uri
from tests.tracking.records import make_run
from tests.tracking.server import Door, Server

USERS_OWN = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID")


@pytest.fixture(autouse=True)
def _mlflow_environment(monkeypatch):
    for name in USERS_OWN:
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """An mlflow.db with its tables and nothing in them."""
    before = dict(os.environ)
    runs = tmp_path_factory.mktemp("store")
    connect(tracking_uri(runs)).search_experiments()
    os.environ.clear()
    os.environ.update(before)
    return runs / "mlflow.db"


@pytest.fixture
def runs(tmp_path, empty_store) -> Path:
    """A folder of runs whose store exists."""
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture
def folder(runs) -> Path:
    return make_run(runs / "mspie-12345678")


@pytest.fixture(scope="session")
def server(tmp_path_factory, empty_store):
    """Not started: late servers are what some tests are about."""
    server = Server(tmp_path_factory.mktemp("server"), empty_store)
    yield server
    server.kill()


@pytest.fixture
def remote(tmp_path, server, monkeypatch) -> Path:
    """A run whose store is the server, in an experiment of its own. Ask for `server.start()` if it is to be up."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    return make_run(tmp_path / "remote" / "mspie-12345678")


@pytest.fixture
def door(remote, server, monkeypatch):
    """A door that may misbehave, between the run and the server, which is up."""
    server.start()
    door = Door(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
    yield door
    door.close()
