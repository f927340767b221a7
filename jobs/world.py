"""Which rank of how many this process is, whatever started it, and whether that is what was asked for.

Knows the launchers (submitit, srun, torchrun, accelerate launch) by the variables they leave behind.
Deliberately does not touch torch, choose a device or narrow CUDA_VISIBLE_DEVICES: the device is LOCAL_RANK's.
"""

import os
import random
import re
from dataclasses import dataclass

from pipeline.errors import UserError

PORTS = (20000, 32767)  # below the range from which kernels hand out ports


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int
    size: int
    local_rank: int
    local_size: int  # ranks on this node
    launcher: str


def join(nodes: int | None = None, gpus: int | None = None) -> World:
    """Make RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT true.

    A process that nothing launched is a world of one, and its environment stays as it is. UserError when
    another number of ranks came up than nodes * gpus.
    """
    world = _launched()
    if nodes is not None and gpus is not None and nodes * gpus != world.size:
        raise UserError(
            f"nodes={nodes} * gpus={gpus} asks for {nodes * gpus} ranks, {world.size} came up (launcher: "
            f"{world.launcher}); {_advice(nodes, gpus)}"
        )
    if world.launcher != "none":
        os.environ.update(
            RANK=str(world.rank),
            WORLD_SIZE=str(world.size),
            LOCAL_RANK=str(world.local_rank),
            LOCAL_WORLD_SIZE=str(world.local_size),
        )
    return world


def _advice(nodes: int, gpus: int) -> str:
    if nodes * gpus == 1:
        return "start one process, or set --nodes and --gpus to what was started"
    if nodes == 1:
        return f"start with torchrun --nproc-per-node={gpus}, or graticule submit --gpus {gpus}"
    return f"start with srun --nodes={nodes} --ntasks-per-node={gpus}, or graticule submit"


def _launched() -> World:
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:  # also inside a submitit job: the innermost launcher is right
        return _from_environment("accelerate" if "ACCELERATE_MIXED_PRECISION" in env else "torchrun")
    if "SUBMITIT_FOLDER" in env and "SUBMITIT_EXECUTOR" in env:
        return _submitit_local() if env["SUBMITIT_EXECUTOR"] == "local" else _slurm_step("submitit")
    if "RANK" in env or "WORLD_SIZE" in env:
        return _from_environment("environment")
    if "SLURM_STEP_ID" in env:
        return _slurm_step("srun")
    if int(env.get("SLURM_NTASKS", 1)) > 1:
        raise UserError(
            f"SLURM_NTASKS={env['SLURM_NTASKS']}, but this process was not started by srun and would be "
            "the only rank; put srun before the command (srun --ntasks=1 for one rank on purpose)"
        )
    if "ACCELERATE_DYNAMO_BACKEND" in env and "MASTER_PORT" in env:
        # accelerate's simple launcher sets MASTER_PORT for num_processes > 1, then starts one process
        raise UserError(
            "accelerate launch was asked for several processes and started one, as it does with --cpu; "
            "start with torchrun --nproc-per-node=N, or accelerate launch --multi_gpu where there are GPUs"
        )
    return World(rank=0, size=1, local_rank=0, local_size=1, launcher="none")


def _from_environment(launcher: str) -> World:
    missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name not in os.environ]
    if missing:
        raise UserError(
            f"{', '.join(missing)} not set while others of RANK, WORLD_SIZE, LOCAL_RANK are; "
            "set all three, or none, or start with torchrun"
        )
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return World(rank, size, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", size)), launcher)


def _submitit_local() -> World:
    import submitit

    job = submitit.JobEnvironment()
    _meet("127.0.0.1", job.job_id)
    return World(job.global_rank, job.num_tasks, job.local_rank, job.num_tasks, "submitit")


def _slurm_step(launcher: str) -> World:
    """The step's own variables: a step may cover less than its job, and tasks may be spread unevenly."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    class Step(SlurmJobEnvironment):
        _env = {
            **SlurmJobEnvironment._env,
            "num_tasks": "SLURM_STEP_NUM_TASKS",
            "num_nodes": "SLURM_STEP_NUM_NODES",
            "nodes": "SLURM_STEP_NODELIST",
        }

    step = Step()
    # A requeued job keeps its id; ranks of an earlier life that Slurm lost sight of must not meet these.
    _meet(step.hostnames[0], f"{step.job_id}.{os.environ.get('SLURM_RESTART_COUNT', 0)}")
    per_node = _per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])
    return World(step.global_rank, step.num_tasks, step.local_rank, per_node[step.node], launcher)


def _meet(host: str, seed: str) -> None:
    """MASTER_ADDR and MASTER_PORT, equal on all ranks; what the cluster file exports is kept."""
    os.environ.setdefault("MASTER_ADDR", host)
    os.environ.setdefault("MASTER_PORT", str(random.Random(seed).randint(*PORTS)))


def _per_node(text: str) -> list[int]:
    """Slurm's '2(x3),1' as [2, 2, 2, 1]."""
    pairs = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in pairs for _ in range(int(times or 1))]
