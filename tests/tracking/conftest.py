"""A run folder to write into, and an SQLite store beside it; making the store is slow, so it is copied."""

import os
import shutil
from pathlib import Path

import pytest

from pipeline.tracking.client import ENVIRONMENT, connect, tracking_uri
from tests.tracking.records import make_run

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
