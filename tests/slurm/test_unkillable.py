"""Training on two nodes of a real Slurm, stopped in every way that Slurm, its users and its nodes have.

Every run is the same recipe and must end as the undisturbed run of as many ranks, in the very bits of G, D, G_ema
and both optimizers, with the events that one expects.
"""

import contextlib
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from jobs import ledger
from jobs.cluster import Cluster, load_cluster
from jobs.status import cancel, logs, run_status
from jobs.submit import submit as submit_job
from pipeline.errors import UserError
from tests.runs import GRATICULE
from tests.slurm.drive import SETS, LabRun, lab_cluster, node, slurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
ONCE = ["start", "preempt: preemption", "resume", "done"]


def outrank() -> None:
    """A job of the higher partition that wants all of both nodes for a second."""
    slurm("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")


def hold(process: psutil.Process) -> None:
    """It stands still, and signals to it wait."""
    process.suspend()
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)


def ranks(run: LabRun, count: int = 2) -> list[psutil.Process]:
    found = [run.process(rank) for rank in range(count)]
    assert all(found), run.papers()
    return [process for process in found if process]


# --- the time limit, and who may have the nodes first


def test_time_limit_requeues_the_run_until_it_is_done(new_run, undisturbed):
    """Held so that it does not end before the limit; Slurm's warning comes with a SIGCONT."""
    run, wanted = new_run(), undisturbed()
    run.submit(cluster=lab_cluster(timeout_min=1, signal_delay_s=10))
    run.wait_under_way()
    hold(ranks(run)[0])
    run.wait_for("preempt")
    run.assert_ends_like(wanted)
    times = run.story().count("preempt: time limit")
    assert times >= 1  # more than once on a busy machine
    assert run.story() == ["start", *["preempt: time limit", "resume"] * times, "done"]
    row = run_status(run.folder)
    assert (row.time_limits, row.preempted) == (times, 0)


def test_a_job_of_a_higher_partition_preempts_four_ranks(new_run, undisturbed):
    run, wanted = new_run(), undisturbed(2, 2)
    job_id = run.submit(2, 2, lab_cluster(max_num_timeout=0))
    run.wait_under_way()
    outrank()
    run.wait_for("preempt")
    run.wait_under_way(attempt=2)
    with pytest.raises(UserError, match=f"has job {job_id} already"):
        submit_job(run.folder, load_cluster("lab"), nodes=2, gpus=2, name="again")
    run.assert_ends_like(wanted)
    assert run.story() == ONCE
    row = run_status(run.folder)
    assert (row.attempts, row.preempted, row.time_limits) == (2, 1, 0)
    assert row.job_ids == (job_id,), "the same job, requeued"


# --- signals


@pytest.mark.parametrize("way", ["USR2 to the job", "USR2 to one rank", "TERM to the step"])
def test_a_signal_saves_and_requeues(way, new_run, undisturbed):
    run, wanted = new_run("exec.checkpoint_kimg=100"), undisturbed()
    job_id = run.submit()
    run.wait_under_way()
    if way == "USR2 to one rank":
        ranks(run)[1].send_signal(signal.SIGUSR2)
    else:  # not TERM to the batch script, which Slurm takes for its end
        run.signal(way[:4], *(["--full"] if way == "USR2 to the job" else []))
    run.assert_ends_like(wanted)
    assert run.story() == ONCE
    assert [e["nimg"] for e in run.events("resume")] == [e["nimg"] for e in run.events("preempt")]
    assert run_status(run.folder).job_ids == (job_id,)


@pytest.mark.parametrize("pair", ["USR2 USR2", "USR2 TERM", "TERM USR2"])
def test_two_signals_within_milliseconds_requeue_once(pair, new_run, undisturbed):
    run, wanted = new_run(), undisturbed()
    run.submit()
    run.wait_under_way()
    both = ranks(run)
    for name in pair.split():
        for process in both:
            process.send_signal(getattr(signal, f"SIG{name}"))
        time.sleep(0.002)
    run.assert_ends_like(wanted)
    assert run.story() == ONCE


def test_signals_that_keep_coming_while_it_saves_and_requeues_do_no_harm(new_run, undisturbed):
    run, wanted = new_run(), undisturbed()
    run.submit()
    run.wait_under_way()
    both, deadline = ranks(run), time.monotonic() + 60
    while any(process.is_running() for process in both) and time.monotonic() < deadline:
        for process in both:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGUSR2)
                process.send_signal(signal.SIGTERM)
        time.sleep(0.003)
    run.assert_ends_like(wanted)
    assert run.story() == ONCE


def test_a_signal_during_sampling_abandons_the_grid_and_the_next_attempt_makes_it(new_run, undisturbed):
    run, wanted = new_run("exec.sample_kimg=0.012", "exec.checkpoint_kimg=100"), undisturbed()
    run.submit()
    run.wait_under_way()
    nimg = hold_within_a_grid(run, ranks(run)[0])
    run.signal("USR2", "--full")
    ranks(run)[0].resume()
    run.wait_for("preempt")
    assert run.events("preempt")[0]["nimg"] == nimg
    assert len(grids(run)[nimg]) < 3, "not abandoned"
    run.assert_ends_like(wanted)
    assert run.story() == ONCE
    assert {nimg: len(sizes) for nimg, sizes in grids(run).items()} == {n: 3 for n in range(0, 361, 12)}


def grids(run: LabRun) -> dict[int, list[str]]:
    """nimg -> sizes of the sample grids that are there."""
    found: dict[int, list[str]] = {}
    for name in sorted(p.stem for p in (run.folder / "samples").glob("[0-9]*.png")):
        nimg, size = name.split("-")
        found.setdefault(int(nimg), []).append(size)
    return found


def hold_within_a_grid(run: LabRun, rank_0: psutil.Process) -> int:
    """Stop rank 0 when the first of three sizes is on disk, and the second is being made; the nimg."""

    def caught() -> bool:
        if len(max(grids(run).items())[1]) != 1:
            return False
        hold(rank_0)
        if len(max(grids(run).items())[1]) == 1:
            return True
        rank_0.resume()
        return False

    run.wait(caught, "a grid is begun", pause_sec=0.001)
    return max(grids(run))


@pytest.mark.parametrize("stage", ["at its start", "while it imports torch"])
def test_a_signal_during_start_up_loses_no_run(stage, new_run, undisturbed):
    run, wanted = new_run(), undisturbed()
    run.submit()
    run.wait(lambda: run.process(0) and run.process(1), "its processes are there")
    if stage == "while it imports torch":
        both = ranks(run)
        run.wait(lambda: all(map(imports_torch, both)), "torch is being imported", pause_sec=0.005)
        assert not run.events()
    run.signal("USR2")
    run.assert_ends_like(wanted)
    if stage == "while it imports torch":
        assert run.story() == ONCE
        assert [e["nimg"] for e in run.events("preempt", "resume")] == [0, 0]
    else:  # ignored, or requeued by submitit before the run has begun
        assert run.story() == ["start", "done"]


def imports_torch(process: psutil.Process) -> bool:
    return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


# --- requeued by others at the same time


def test_someone_else_requeues_the_job_just_before_it_requeues_itself(new_run, undisturbed, tmp_path):
    """The job's scontrol says everything twice."""
    run, wanted, twice = new_run(), undisturbed(), tmp_path / "twice" / "scontrol"
    twice.parent.mkdir()
    twice.write_text('#!/bin/sh\n/usr/bin/scontrol "$@"\nexec /usr/bin/scontrol "$@"\n')
    twice.chmod(0o755)
    run.submit(cluster=with_setup(f"export PATH={twice.parent}:$PATH"))
    run.wait_under_way()
    run.signal("USR2", "--full")
    run.assert_ends_like(wanted)
    assert run.story() == ONCE
    assert run.restarts() == 1


@pytest.mark.parametrize("way", ["scontrol requeue", "preempted without grace"])
def test_slurm_requeues_while_the_run_saves(way, new_run, undisturbed):
    """Whether the save is done before the processes are killed is a matter of seconds; the run continues either way."""
    run, wanted = new_run(), undisturbed()
    job_id = run.submit(cluster=lab_cluster(partition="nograce"))
    run.wait_under_way()
    if way == "scontrol requeue":
        run.signal("USR2", "--full")
        slurm("scontrol", "requeue", job_id)
    else:
        outrank()
    run.assert_ends_like(wanted)
    assert run.story() in (ONCE, ["start", "resume", "done"])
    assert run.restarts() == 1
    assert run_status(run.folder).job_ids == (job_id,)


def with_setup(*lines: str, **changes: object) -> Cluster:
    return lab_cluster(setup=[*load_cluster("lab").setup, *lines], **changes)


# --- nodes and ranks


@pytest.mark.parametrize(("nodes", "gpus", "victim"), [(2, 1, 0), (2, 1, 1), (1, 2, 0)])
def test_a_lost_node_sends_the_run_back_to_its_last_checkpoint(
    nodes, gpus, victim, new_run, undisturbed, all_nodes_back
):
    """Of two nodes, one comes back; of one, the run moves to the other."""
    run, wanted = new_run(), undisturbed()
    job_id = run.submit(nodes, gpus)
    run.wait_for("checkpoint")
    hold(ranks(run)[0])  # or it might be done too early
    name = slurm("scontrol", "show", "hostnames", run.hosts()).split()[victim]
    node("kill-node", name)
    slurm("scontrol", "update", f"nodename={name}", "state=down", "reason=killed")  # Slurm would see it in 20 s
    run.wait(lambda: run.restarts() == 1, "Slurm requeues it")
    if nodes == 2:
        node("start-node", name)
    run.assert_ends_like(wanted)
    assert [name for name in run.story() if name not in ("failed", "watchdog")] == ["start", "resume", "done"]
    assert run.events("resume")[0]["nimg"] >= 120
    assert (name in run.events("resume")[0]["host"]) == (nodes == 2)
    assert run_status(run.folder).job_ids == (job_id,)


@pytest.fixture
def all_nodes_back():
    yield
    for name in slurm("sinfo", "--noheader", "--Node", "--partition=main", "--states=down", "--format=%N").split():
        node("start-node", name)
    while slurm("sinfo", "--noheader", "--Node", "--partition=main", "--states=down", "--format=%N").split():
        time.sleep(0.1)


@pytest.mark.parametrize("way", ["killed", "stopped"])
def test_a_rank_that_is_gone_or_hangs_ends_the_job_by_name_and_the_next_submission_resumes(way, new_run, undisturbed):
    run, wanted = new_run("exec.hang_sec=20"), undisturbed()
    run.submit()
    run.wait_for("checkpoint")
    rank = ranks(run)[1]
    rank.kill() if way == "killed" else hold(rank)
    assert run.end() == "failed"
    host = run.events("start")[0]["host"].split(", ")[1]
    (told,) = {e["error"] for e in run.events("watchdog")} or {run.papers()}
    assert told.startswith(f"rank 1 on {host} ")
    first = run.job_id
    run.submit()
    run.assert_ends_like(wanted)
    assert run.events("resume")[0]["job_id"] == run.job_id != first


# --- no scontrol on the compute nodes


@pytest.fixture
def no_scontrol(tmp_path) -> str:
    """A setup line."""
    folder = tmp_path / "usr-bin"
    folder.mkdir()
    for tool in Path("/usr/bin").iterdir():
        if tool.name != "scontrol":
            (folder / tool.name).symlink_to(tool)
    return f"export PATH={folder}"


def test_without_scontrol_on_the_nodes_a_successor_goes_on(new_run, undisturbed, no_scontrol):
    run, wanted = new_run(), undisturbed()
    run.submit(cluster=with_setup(no_scontrol, successors=2))
    run.wait_under_way()
    chain = [entry.job_id for entry in ledger.submissions(run.folder)]
    slurm("scancel", "--full", "--signal=USR2", chain[0])
    run.assert_ends_like(wanted)
    assert run.story() == ONCE
    assert len(chain) == 3
    assert [e["job_id"] for e in run.events("start", "resume")] == chain[:2]


def test_without_scontrol_and_successors_the_run_is_saved_and_says_what_to_do(new_run, undisturbed, no_scontrol):
    run, wanted = new_run("exec.checkpoint_kimg=100"), undisturbed()
    run.submit(cluster=with_setup(no_scontrol))
    run.wait_under_way()
    run.signal("USR2", "--full")
    assert run.end() == "stopped"
    said = "".join(path.read_text() for path in logs(run.folder))
    assert "saved; scontrol is not on this node: submit again, or set successors in the cluster file" in said
    run.submit()
    run.assert_ends_like(wanted)
    assert run.story() == ONCE


# --- several runs, other nodes


def test_one_run_of_an_array_is_preempted_and_the_other_does_not_notice(tmp_path, data, undisturbed):
    sets = [word for text in SETS for word in ("--set", text)]
    command = [GRATICULE, "submit", "mspie.table5_f", "--tiny", "--data", data, "--runs", tmp_path / "runs", *sets]
    command += ["--cluster", "lab", "--nodes", 1, "--gpus", 2, "--seeds", "0-1", "--parallel", 2]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    runs = [LabRun.of(path.parent) for path in (tmp_path / "runs").glob("*/config.json")]
    runs.sort(key=lambda run: run.job_id)
    try:
        for run in runs:
            run.wait_under_way()
        runs[1].signal("USR2", "--full")
        for seed, run in enumerate(runs):
            run.assert_ends_like(undisturbed(seed=seed))
        assert [run.story() for run in runs] == [["start", "done"], ONCE]
        assert len({run.job_id.partition("_")[0] for run in runs}) == 1
    finally:
        for run in runs:
            run.clear()


def test_a_run_moves_from_four_ranks_to_two_to_one(new_run, undisturbed):
    run = new_run()
    for nodes, gpus in ((2, 2), (1, 2)):
        run.submit(nodes, gpus)
        run.wait_under_way(len(run.events("start", "resume")) + 1)
        cancel(run.folder)
        assert run.end() == "stopped"
    with pytest.raises(UserError, match=r"nodes\*gpus=1\*3=3 ranks .* use one of 1, 2, 4 ranks"):
        run.submit(1, 3)
    run.submit(1, 1)
    assert run.end() == "done"
    assert [e["world"] for e in run.events("start", "resume")] == [4, 2, 1]
    assert run.story() == ["start", *["preempt: cancelled", "resume"] * 2, "done"]
    run.compare(undisturbed())
