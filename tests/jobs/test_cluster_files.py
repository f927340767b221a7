"""Cluster files: looked up where users put them, refused in one line, and every field has an effect."""

import os
from pathlib import Path

import pytest

from jobs.cluster import LOCAL, Cluster, load_cluster
from jobs.executors import executor_for
from jobs.submit import sbatch_text, submit
from pipeline.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]

GOLDEN = """#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=8
#SBATCH --error=RUN/jobs/001/%j_0_log.err
#SBATCH --gpus-per-node=8
#SBATCH --job-name=table5_f-0a1b2c3d
#SBATCH --mem=491520M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=RUN/jobs/001/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
trap : USR2
export GRATICULE_SIGNAL_DELAY_S=120
module load cuda
export OMP_NUM_THREADS=8
export NCCL_SOCKET_IFNAME='ib0 bond'
export PYTHONSAFEPATH=1 PYTHONPATH=RUN/jobs/001/code${PYTHONPATH:+:$PYTHONPATH}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output RUN/jobs/001/%j_%t_log.out --error RUN/jobs/001/%j_%t_log.err """ + (
    """--kill-on-bad-exit=1 --cpus-per-task=8 --cpu-bind=cores """
    """bash -c 'trap "" USR2 TERM; python "$@"; code=$?; case $code in 0|2|70|75|143|144) ;; 1) sleep 10 ;; """
    """*) sleep 30 ;; esac; exit $code' table5_f-0a1b2c3d -u -m submitit.core._submit RUN/jobs/001
"""
)


def text(cluster: Cluster, run: Path) -> str:
    return sbatch_text(run, cluster, nodes=2, gpus=8, name="table5_f-0a1b2c3d").replace(str(run), "RUN")


def test_sbatch_file_is_the_golden_one_without_slurm_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    cluster = Cluster(
        executor="slurm",
        partition="gpu",
        gpu_request="gpus_per_node",
        cpus_per_task=8,
        mem_gb=480,
        timeout_min=1440,
        setup=("module load cuda",),
        env={"NCCL_SOCKET_IFNAME": "ib0 bond"},
        srun_args=("--cpu-bind=cores",),
        python="python",
    )
    assert text(cluster, tmp_path) == GOLDEN
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


EFFECTS = {
    "partition": ("long", "--partition=long"),
    "account": ("vision", "--account=vision"),
    "qos": ("high", "--qos=high"),
    "constraint": ("a100|h100", "--constraint='a100|h100'"),
    "gpu_request": ("gres", "--gres=gpu:8"),
    "cpus_per_task": (3, "#SBATCH --cpus-per-task=3"),
    "mem_gb": (1.5, "--mem=1536M"),
    "timeout_min": (77, "--time=77"),
    "signal_delay_s": (33, "--signal=USR2@33"),
    "setup": (("module load a",), "\nmodule load a\n"),
    "env": ({"A_B": "it's"}, "export A_B='it'\"'\"'s'"),
    "srun_args": (("--label",), " --label "),
    "additional_parameters": (
        {"exclude": "n[1-2]", "exclusive": True},
        "--exclude='n[1-2]'\n#SBATCH --exclusive\n",
    ),
    "python": ("apptainer exec X python", '; apptainer exec X python "$@"; '),
    "successors": (2, "# and 2 successors of it, with --dependency=afternotok on all before them"),
}


@pytest.mark.parametrize("field", EFFECTS)
def test_field_has_an_effect_on_the_sbatch_file(field, tmp_path):
    value, snippet = EFFECTS[field]
    plain = Cluster(executor="slurm", timeout_min=60)
    assert snippet in text(plain.replace(**{field: value}), tmp_path)
    assert snippet not in text(plain, tmp_path)


def test_no_field_is_left_without_an_effect(tmp_path):
    # name: see test_submit; executor: everywhere; evaluate: see test_evaluate_job
    assert set(Cluster.model_fields) == {*EFFECTS, "executor", "name", "max_num_timeout", "evaluate"}
    for executor in ("slurm", "local"):
        cluster = Cluster(executor=executor, timeout_min=9, max_num_timeout=7, signal_delay_s=5)
        made = executor_for(tmp_path / "jobs" / "001", cluster, 1, 2, "x", code=tmp_path)
        assert made.max_num_timeout == 7
    assert made.parameters == {"tasks_per_node": 2, "timeout_min": 9, "signal_delay_s": 5}


@pytest.mark.parametrize(
    "field", ["partition", "mem_gb", "gpu_request", "additional_parameters", "srun_args", "successors"]
)
def test_local_refuses_what_only_a_scheduler_can_do(field):
    with pytest.raises(ValueError, match=f"(?s){field}.*has no effect with executor = 'local'"):
        LOCAL.replace(**{field: EFFECTS[field][0]})


def test_local_runs_setup_and_env_in_each_process(tmp_path):
    cluster = LOCAL.replace(setup=("cd /",), env={"A": "b c"}, cpus_per_task=5, python="python")
    shown = sbatch_text(tmp_path, cluster, nodes=1, gpus=2, name="x")
    wanted = [
        "cd /",
        "export OMP_NUM_THREADS=5",
        "export A=",
        'exec python "$@"',
    ]
    assert [line for line in wanted if line not in shown] == []
    assert shown.startswith("# 2 processes on this machine")


def test_local_refuses_two_nodes(tmp_path):
    with pytest.raises(UserError, match="nodes=2: cluster 'local' is this one machine"):
        submit(tmp_path, LOCAL, nodes=2, gpus=1, name="x")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GRATICULE_CLUSTERS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_name_is_found_in_each_folder_nearest_first(home, monkeypatch):
    slurm = 'executor = "slurm"\ntimeout_min = 5\n'
    put(home / "home/.config/graticule/mine.toml", slurm + 'partition = "config"')
    assert load_cluster("mine").partition == "config"
    put(home / "extra/mine.toml", slurm + 'partition = "extra"')
    monkeypatch.setenv("GRATICULE_CLUSTERS", os.pathsep.join(["nowhere", str(home / "extra")]))
    assert load_cluster("mine").partition == "extra"
    path = put(home / "slurm/mine.toml", slurm + 'partition = "here"')
    assert load_cluster("mine").partition == "here"
    assert load_cluster(str(path)).name == "mine"
    assert load_cluster("lab").executor == "slurm", "the repository's own"


def test_local_is_built_in_and_a_file_overrides_it(home):
    assert load_cluster("local") == LOCAL
    assert LOCAL.timeout_min == 7 * 24 * 60, "short limits make every preemption a time-out"
    put(home / "slurm/local.toml", 'executor = "local"\ncpus_per_task = 3')
    assert load_cluster("local").threads(4) == 3


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            "executor = 'slurm'\ntimeout_min = 5\npartitoin = 'x'",
            "partitoin is not a known key; did you mean 'partition'",
        ),
        ("executor = 'slurm'", "timeout_min=None: a time limit in minutes is needed"),
        ("executor = 'slurm'\ntimeout_min = 'long'", "timeout_min='long': input should be a valid integer"),
        ("executor = 'pbs'", "executor='pbs': input should be 'local' or 'slurm'"),
        ("executor = 'local'\n[evaluate]\nqos = 'x'", "evaluate: has no effect with executor = 'local'"),
        (
            "executor = 'slurm'\ntimeout_min = 5\n[evaluate]\nmem_gb = 3",
            "evaluate.mem_gb is not a known key; known: additional_parameters, partition, qos",
        ),
        ("executor = 'local'\nqos = 'x'", "qos='x': has no effect with executor = 'local'"),
        ("executor = 'local'\n[env]\n'A-B' = 'x'", "env: 'A-B' is not a name that a shell can export"),
        ("executor = ", "not valid TOML"),
    ],
)
def test_bad_file_is_one_line_with_file_and_field(content, complaint, home):
    path = put(home / "bad.toml", content)
    with pytest.raises(UserError) as e:
        load_cluster(str(path))
    assert str(e.value).startswith(f"{path}: {complaint}")
    assert "\n" not in str(e.value)


def test_unknown_name_offers_the_nearest(home):
    with pytest.raises(UserError, match="cluster='lba' is unknown; did you mean 'lab'"):
        load_cluster("lba")
    with pytest.raises(UserError, match="No such file"):
        load_cluster("missing.toml")


def test_shipped_files_parse():
    for path in sorted((REPOSITORY / "slurm").glob("*.toml")):
        assert load_cluster(str(path)).name == path.stem
