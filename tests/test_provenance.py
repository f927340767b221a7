"""What ran can be said afterwards, and a job runs what was submitted. Real copies, real git, real processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import provenance
from pipeline.errors import WorkError
from pipeline.provenance import environment, keep_code, record_attempt, snapshot_code
from tests.tracking.small_disk import small_disk

REAL = provenance.ROOT


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def copy_code(root: Path) -> Path:
    for name in ("pipeline", "jobs", "dataprep", "slurm"):
        shutil.copytree(REAL / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository with this code, which the tests may change."""
    root = copy_code(tmp_path / "repository")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "x")
    use(root, monkeypatch)
    return root


def use(root: Path, monkeypatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", root)
    monkeypatch.setattr(provenance, "__file__", str(root / "pipeline" / "provenance.py"))


def facts_of(**more) -> dict:
    return environment(device="cpu", hosts=["n1"], world=1, **more)


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def python(code: str, snapshot: Path, cwd: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(snapshot), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_snapshot_is_the_code_byte_for_byte_and_nothing_else(repository, tmp_path):
    (repository / "pipeline" / "data" / "table.csv").write_bytes(b"1,2")
    for litter in ("pipeline/__pycache__/x.pyc", "pipeline/.x.py.swp", "jobs/.cache/x", "slurm/x.log"):
        (repository / litter).parent.mkdir(exist_ok=True)
        (repository / litter).write_bytes(b"litter")
    code = snapshot_code(tmp_path / "place")
    found = contents(tmp_path / "place" / "code")
    facts = json.loads(found.pop("snapshot.json"))
    wanted = {n: c for n, c in contents(repository).items() if c != b"litter" and not n.startswith(".git/")}
    assert found == {n: c for n, c in wanted.items() if not n.startswith("slurm/") or n.endswith(".toml")}
    assert found["pipeline/data/table.csv"] == b"1,2"
    assert facts["sha256"].startswith(code)
    assert len(code) == 12
    assert [p.name for p in (tmp_path / "place").iterdir()] == ["code"]


def test_a_job_runs_the_code_that_was_submitted_wherever_it_starts(repository, tmp_path):
    snapshot_code(tmp_path / "place")
    code = tmp_path / "place" / "code"
    (repository / "pipeline" / "errors.py").write_text("raise SystemExit('the working tree has changed')")
    where = "import pipeline.errors, jobs, dataprep; print(pipeline.errors.__file__, jobs.__file__, dataprep.__file__)"
    found = python(where, code, cwd=repository).split()
    assert [Path(f).parents[1] for f in found] == [code] * 3
    loading = "from jobs.cluster import load_cluster; print(load_cluster('lab').name)"
    assert python(loading, code, cwd=tmp_path) == "lab"


def test_any_changed_byte_is_another_hash_and_no_change_is_the_same(repository, tmp_path):
    first = snapshot_code(tmp_path / "a")
    assert snapshot_code(tmp_path / "b") == first == facts_of()["code"]
    for path in (repository / "jobs" / "world.py", repository / "slurm" / "lab.toml"):
        kept = path.read_bytes()
        path.write_bytes(kept + b"\n")
        assert snapshot_code(tmp_path / path.name) != first
        path.write_bytes(kept)
    (repository / "pipeline" / "new.py").touch()
    assert facts_of()["code"] != first


def test_an_equal_snapshot_is_left_a_cut_or_another_one_is_replaced(repository, tmp_path):
    first = snapshot_code(tmp_path)
    made = (tmp_path / "code").stat().st_ino
    (repository / "pipeline" / "__pycache__").mkdir(exist_ok=True)
    assert snapshot_code(tmp_path) == first
    assert (tmp_path / "code").stat().st_ino == made
    (tmp_path / "code" / "pipeline" / "cli.py").unlink()
    assert snapshot_code(tmp_path) == first
    assert (tmp_path / "code" / "pipeline" / "cli.py").exists()
    (repository / "jobs" / "world.py").write_text("# new")
    assert snapshot_code(tmp_path) != first
    assert (tmp_path / "code" / "jobs" / "world.py").read_text() == "# new"
    assert not list(tmp_path.glob(".code.*"))


def test_a_disk_without_room_keeps_the_old_snapshot_and_leaves_no_half_one(repository, tmp_path):
    with small_disk(tmp_path / "disk", size_kb=2000) as disk:
        snapshot_code(disk.path)
        (repository / "jobs" / "big.py").write_text("#" * 1_400_000)
        with pytest.raises(WorkError, match=r"the code cannot be copied there \(No space left on device\)"):
            snapshot_code(disk.path)
        assert [p.name for p in disk.path.iterdir()] == ["code"]
        assert not (disk.path / "code" / "jobs" / "big.py").exists()
        (repository / "jobs" / "big.py").unlink()
        made = (disk.path / "code").stat().st_ino
        snapshot_code(disk.path)
        assert (disk.path / "code").stat().st_ino == made


def test_a_rename_that_fails_brings_the_old_snapshot_back(repository, tmp_path, monkeypatch):
    """A fake: the second of two renames is refused, as no file system does on command."""
    snapshot_code(tmp_path)
    (repository / "jobs" / "world.py").write_text("# new")
    real = Path.rename

    def refused(self, target):
        if self.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(WorkError, match="Input/output error"):
        snapshot_code(tmp_path)
    assert (tmp_path / "code" / "jobs" / "world.py").read_text() != "# new"
    assert not list(tmp_path.glob(".code.*"))


def test_a_run_that_no_job_started_keeps_its_code_and_clears_what_a_kill_left(repository, tmp_path, monkeypatch):
    run, other = tmp_path / "run", tmp_path / "other"
    (run / ".code.0.tmp" / "pipeline").mkdir(parents=True)
    other.mkdir()
    keep_code(run)
    assert os.listdir(run) == ["code"]
    assert facts_of()["code"] == json.loads((run / "code" / "snapshot.json").read_text())["sha256"][:12]
    use(run / "code", monkeypatch)
    keep_code(other)
    assert not os.listdir(other), "a job runs a copy, and needs no other"


def test_commit_diff_and_new_files_are_named_and_survive_a_snapshot_of_a_snapshot(repository, tmp_path):
    assert (
        facts_of() | {"git_diff": "", "git_untracked": [], "git_sha": git(repository, "rev-parse", "HEAD")}
        == facts_of()
    )
    (repository / "jobs" / "world.py").write_text("# changed\n")
    (repository / "pipeline" / "recipes" / "mine.py").write_text('"""Mine."""\n')
    first = snapshot_code(tmp_path / "one")
    code = tmp_path / "one" / "code"
    kept = json.loads((code / "snapshot.json").read_text())
    assert kept["git_sha"] == git(repository, "rev-parse", "HEAD")
    assert "+# changed" in kept["git_diff"]
    assert kept["git_untracked"] == ["pipeline/recipes/mine.py"]
    again = (
        "from pathlib import Path; from pipeline.provenance import snapshot_code, environment; import json\n"
        f"code = snapshot_code(Path({str(tmp_path / 'two')!r}))\n"
        "print(json.dumps([code, environment(device='', hosts=[], world=1)]))"
    )
    second, facts = json.loads(python(again, code, cwd=repository))
    assert second == facts["code"] == first
    later = json.loads((tmp_path / "two" / "code" / "snapshot.json").read_text())
    for name in ("git_sha", "git_diff", "git_untracked"):
        assert later[name] == facts[name] == kept[name]


def test_a_long_diff_is_cut(repository, monkeypatch):
    monkeypatch.setattr(provenance, "MAX_DIFF", 500)
    (repository / "jobs" / "world.py").write_text("# changed\n" * 100)
    assert len(facts_of()["git_diff"]) == 500


def test_an_installation_below_somebody_elses_repository_does_not_take_its_commit(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    (tmp_path / "theirs.py").touch()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "theirs")
    use(copy_code(tmp_path / "venv" / "site-packages"), monkeypatch)
    assert "git_sha" not in facts_of()
    assert snapshot_code(tmp_path / "place") == facts_of()["code"]


def test_git_is_asked_about_this_repository_whatever_the_environment_points_at(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert len(facts_of()["git_sha"]) == 40
    monkeypatch.setenv("PATH", str(tmp_path))  # no git here
    assert "git_sha" not in facts_of()


def test_the_environment_tells_what_matters_and_no_secret(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "71",
        "SLURM_JWT": "secret1",
        "NCCL_DEBUG": "INFO",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "OMP_NUM_THREADS": "4",
        "MLFLOW_TRACKING_URI": "http://me:secret2@host:5000",
        "MLFLOW_TRACKING_PASSWORD": "secret3",
        "GRATICULE_API_KEY": "secret4",
        "AWS_SECRET_ACCESS_KEY": "secret5",
        "HOME_OF_SOMETHING": "else",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["graticule", "train", "a b", "--store", "http://me:secret6@host"])
    facts = environment(device="NVIDIA H100", hosts=["n1", "n2"], world=16, engine="ddp", cuda="12.8")
    assert "secret" not in json.dumps({name: value for name, value in facts.items() if name != "git_diff"})
    variables = facts["variables"]
    assert variables["MLFLOW_TRACKING_URI"] == "http://host:5000"
    assert {"SLURM_JOB_ID", "NCCL_DEBUG", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"} <= set(variables)
    assert not {"HOME_OF_SOMETHING", "SLURM_JWT", "PATH"} & set(variables)
    assert facts["command"] == "graticule train 'a b' --store http://host"
    assert (facts["device"], facts["hosts"], facts["world"], facts["engine"], facts["cuda"], facts["job_id"]) == (
        "NVIDIA H100",
        ["n1", "n2"],
        16,
        "ddp",
        "12.8",
        "71",
    )
    assert {"torch", "numpy", "pydantic", "python", "platform", "code"} <= set(facts)


def test_each_attempt_keeps_its_environment_and_the_newest_is_at_hand(tmp_path):
    for attempt in (1, 2):
        record_attempt(tmp_path, attempt, {"world": 8 // attempt, "place": Path("x")})
    kept = [json.loads((tmp_path / "environment" / f"00{n}.json").read_text()) for n in (1, 2)]
    assert kept == [{"attempt": n, "world": 8 // n, "place": "x"} for n in (1, 2)]
    assert json.loads((tmp_path / "environment.json").read_text()) == kept[1]


def test_provenance_imports_neither_torch_nor_mlflow(tmp_path):
    code = "import sys, pipeline.provenance; print({'torch', 'mlflow', 'numpy'} & set(sys.modules))"
    assert python(code, REAL, cwd=tmp_path) == "set()"
