"""The doctor never raises and gives a mend for everything that is wrong."""

import http.server
import threading

import pytest

from jobs.doctor import Check, checks


def found(name: str, **kwargs) -> Check:
    return next(check for check in checks(**kwargs) if check.name == name)


def test_whole_check_up_has_a_mend_for_every_failure(tmp_path):
    out = checks("lab", tmp_path)
    assert {c.name for c in out} >= {
        "python",
        "torch",
        "bf16",
        "runs folder",
        "shared memory",
        "sbatch",
        "cluster file",
    }
    assert [c for c in out if c.ok is False and not c.mend] == []
    assert all("\n" not in c.found + c.mend for c in out)
    assert not list(tmp_path.iterdir())


def test_missing_slurm_matters_only_for_a_slurm_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found("sbatch", cluster="lab").ok is False
    assert found("sbatch", cluster="local").ok is None
    assert found("sbatch").ok is None


def test_bad_cluster_file_is_named(tmp_path):
    (tmp_path / "bad.toml").write_text("executor = 'pbs'")
    check = found("cluster file", cluster=str(tmp_path / "bad.toml"))
    assert check.ok is False
    assert "executor='pbs'" in check.found


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield httpd.server_address[1]
        httpd.shutdown()
        thread.join()


def test_mlflow_server_is_asked(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server}/")
    assert found("mlflow store").ok is True


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "file:///tmp/mlruns", "sqlite:////nowhere/x.db", "http://["])
def test_mlflow_store_out_of_reach(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    check = found("mlflow store")
    assert check.ok is False
    assert check.mend


def test_runs_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    assert found("runs folder", runs=tmp_path / "new" / "runs").ok is True
    assert found("runs folder", runs=tmp_path / "file").ok is False


def test_interrupted_deepspeed_build_is_found(tmp_path, monkeypatch):
    from jobs import doctor

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0")
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    check = found("deepspeed")
    assert check.ok is False
    assert str(lock) in check.mend
