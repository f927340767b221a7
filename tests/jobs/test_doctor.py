"""The doctor never raises and gives a mend for everything that is wrong."""

import http.server
import threading
from pathlib import Path

import pytest

from jobs import doctor
from jobs.doctor import Check, checks


def found(name: str, **kwargs) -> Check:
    return next(check for check in checks(**kwargs) if check.name == name)


def test_whole_check_up_has_a_mend_for_every_failure(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = checks("lab", tmp_path)
    assert {c.name for c in out} >= {
        "python",
        "torch",
        "bf16",
        "runs folder",
        "shared memory",
        "mlflow store's disk",
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


MOUNTINFO = r"""
22 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw
28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 28 0:35 / /home rw shared:2 - autofs systemd-1 rw
41 40 0:36 / /home rw,relatime shared:3 - nfs4 server:/home rw,vers=4.2
42 28 0:37 / /scratch rw - lustre 10.0.0.1@o2ib:/scratch rw
43 42 8:2 / /scratch/local rw - xfs /dev/sdb1 rw
44 28 0:38 / /my\040share rw - cifs //server/share rw
45 28 0:39 / /gpfs/work rw - gpfs work rw
46 28 0:40 / /beegfs rw - beegfs beegfs_nodev rw
47 28 0:41 / /ceph rw - ceph mon:/ rw
48 28 0:42 / /sshfs rw - fuse.sshfs me@host: rw
49 28 8:3 / /stick rw - fuseblk /dev/sdc1 rw
50 28 0:43 / /smb rw - smb3 //server/share rw
"""  # a fake: no test machine has all of these


@pytest.mark.parametrize(
    ("store", "kind"),
    [
        ("/home/me/runs", "nfs4"),
        ("/scratch/me/runs", "lustre"),
        ("/my share/runs", "cifs"),
        ("/gpfs/work/runs", "gpfs"),
        ("/beegfs/runs", "beegfs"),
        ("/ceph/runs", "ceph"),
        ("/sshfs/runs", "fuse.sshfs"),
        ("/smb/runs", "smb3"),
    ],
)
@pytest.mark.parametrize("by", ["runs", "MLFLOW_TRACKING_URI"])
def test_sqlite_on_a_network_file_system_is_warned_about_with_the_mend(tmp_path, monkeypatch, store, kind, by):
    check = store_disk(tmp_path, monkeypatch, store, by)
    assert check.ok is None
    assert check.found == f"{store}/mlflow.db is SQLite on a network file system ({kind})"
    assert "MLFLOW_TRACKING_URI" in check.mend


@pytest.mark.parametrize("store", ["/data/runs", "/scratch/local/runs", "/homer/runs", "/stick/runs"])
@pytest.mark.parametrize("by", ["runs", "MLFLOW_TRACKING_URI"])
def test_sqlite_on_a_disk_of_this_machine_is_fine(tmp_path, monkeypatch, store, by):
    check = store_disk(tmp_path, monkeypatch, store, by)
    assert (check.ok, check.mend) == (True, "")


def test_a_server_needs_no_disk_of_ours_and_the_real_mounts_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert not list(doctor._store_disk(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [c.found for c in doctor._store_disk(tmp_path)] != ["unknown"]
    monkeypatch.setattr(doctor, "MOUNTS", tmp_path / "none")
    assert not list(doctor._store_disk(tmp_path))


def store_disk(tmp_path, monkeypatch, store: str, by: str) -> Check:
    (tmp_path / "mountinfo").write_text(MOUNTINFO)
    monkeypatch.setattr(doctor, "MOUNTS", tmp_path / "mountinfo")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if by != "runs":
        monkeypatch.setenv(by, f"sqlite:///{store}/mlflow.db")
    return next(doctor._store_disk(Path(store if by == "runs" else "/data/runs")))
