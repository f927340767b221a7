"""world.join under each launcher, by real processes where the launcher is at hand, else by its variables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.world import PORTS, World, join
from pipeline.errors import UserError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAUNCHERS = ("SLURM_", "SUBMITIT_", "ACCELERATE_", "TORCHELASTIC_", *NAMES)
SCRIPT = """
import json, os, sys
from pathlib import Path
from jobs.world import join
from pipeline.errors import UserError
out = Path(sys.argv[1])
try:
    world = join(*map(int, sys.argv[2:]))
except UserError as e:
    out.with_name("error").write_text(str(e))
    raise SystemExit(2)
env = {n: os.environ.get(n) for n in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES")}
out.with_name(f"rank{world.rank}").write_text(json.dumps({**vars(world), **env}))
"""


@pytest.fixture
def bare(monkeypatch):
    """An environment that no launcher has touched; what join writes is undone."""
    monkeypatch.setattr(os, "environ", os.environ)
    before = dict(os.environ)
    for name in before:
        if name.startswith(LAUNCHERS):
            del os.environ[name]
    yield os.environ
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def script(tmp_path, bare):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    bare["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    bare["CUDA_VISIBLE_DEVICES"] = "4,5"
    return path


def run(*command: str | Path) -> int:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=100)
    return done.returncode


def test_torchrun_is_taken_as_it_is(script, tmp_path):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert run(*launcher, script, tmp_path / "x", 1, 2) == 0
    for rank in (0, 1):
        seen = json.loads((tmp_path / f"rank{rank}").read_text())
        assert seen["launcher"] == "torchrun"
        assert (seen["size"], seen["local_rank"], seen["local_size"]) == (2, rank, 2)
        assert (seen["RANK"], seen["WORLD_SIZE"]) == (str(rank), "2")
        assert seen["CUDA_VISIBLE_DEVICES"] == "4,5", "not narrowed"


def test_accelerate_launch_that_silently_starts_one_process_is_an_error(script, tmp_path):
    launch = Path(sys.executable).with_name("accelerate")
    assert run(launch, "launch", "--cpu", "--num_processes", "2", script, tmp_path / "x") != 0
    assert not (tmp_path / "rank0").exists()
    assert "start with torchrun --nproc-per-node=N" in (tmp_path / "error").read_text()


def test_accelerate_launch_of_one_process_is_a_world_of_one(script, tmp_path):
    launch = Path(sys.executable).with_name("accelerate")
    assert run(launch, "launch", "--cpu", "--num_processes", "1", script, tmp_path / "x") == 0
    assert json.loads((tmp_path / "rank0").read_text())["size"] == 1


def test_plain_python_is_a_world_of_one_and_leaves_the_environment_alone(bare):
    before = dict(bare)
    assert join(1, 1) == World(0, 1, 0, 1, "none")
    assert dict(bare) == before


def test_another_world_than_asked_for_names_all_there_is_to_know(bare):
    with pytest.raises(UserError) as e:
        join(1, 2)
    assert str(e.value) == (
        "nodes=1 * gpus=2 asks for 2 ranks, 1 came up (launcher: none); "
        "start with torchrun --nproc-per-node=2, or graticule submit --gpus 2"
    )
    with pytest.raises(UserError, match="start with srun --nodes=2 --ntasks-per-node=4"):
        join(2, 4)


STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "gpu[08-12]",
    "SLURM_NTASKS": "20",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NODELIST": "gpu[09-11]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1(x2)",
}


def test_srun_step_counts_its_own_tasks_and_nodes(bare):
    bare.update(STEP)
    assert join() == World(3, 4, 0, 1, "srun")
    assert bare["MASTER_ADDR"] == "gpu09"
    assert PORTS[0] <= int(bare["MASTER_PORT"]) <= PORTS[1]
    bare["SLURM_NODEID"] = "0"
    del bare["RANK"], bare["WORLD_SIZE"]
    assert join().local_size == 2, "uneven spread"


def test_port_is_the_same_on_all_ranks_and_another_after_a_requeue(bare):
    ports = {}
    for rank, restart in (("0", "0"), ("3", "0"), ("0", "1")):
        for name in NAMES:
            bare.pop(name, None)
        bare.update(STEP, SLURM_PROCID=rank, SLURM_RESTART_COUNT=restart)
        join()
        ports[rank, restart] = bare["MASTER_PORT"]
    assert ports["0", "0"] == ports["3", "0"] != ports["0", "1"]


def test_master_from_the_cluster_file_is_kept(bare):
    bare.update(STEP, MASTER_ADDR="10.0.0.1")
    join()
    assert bare["MASTER_ADDR"] == "10.0.0.1"


def test_submitit_on_this_machine_meets_on_loopback_whatever_was_inherited(bare):
    bare.update(SUBMITIT_EXECUTOR="local", SUBMITIT_FOLDER="x", RANK="7", WORLD_SIZE="9")
    bare.update(SUBMITIT_LOCAL_JOB_ID="5", SUBMITIT_LOCAL_NTASKS="2", SUBMITIT_LOCAL_GLOBALID="1")
    bare.update(SUBMITIT_LOCAL_LOCALID="1")
    assert join(1, 2) == World(1, 2, 1, 2, "submitit")
    assert (bare["MASTER_ADDR"], bare["RANK"], bare["WORLD_SIZE"]) == ("127.0.0.1", "1", "2")


def test_batch_script_without_srun_is_an_error(bare):
    bare.update(SLURM_JOB_ID="77", SLURM_NTASKS="4", SLURM_PROCID="0")
    with pytest.raises(UserError, match="SLURM_NTASKS=4, but this process was not started by srun"):
        join()


def test_half_an_environment_is_an_error(bare):
    bare.update(RANK="0", WORLD_SIZE="2")
    with pytest.raises(UserError, match="LOCAL_RANK not set while others"):
        join()
