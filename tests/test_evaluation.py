"""Evaluation against itself: any number of workers, any batch, kills and stops give the same numbers.

One tiny run of MS-PIE (three sizes, three checkpoints) and a detector of a few weights serve all tests; what they
write goes to copies of the run's folder. Reference statistics are made once.
"""

import json
import os
import shutil
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError, WorkError
from pipeline.evaluation import Question, check, evaluate, lacking, numbers_of
from pipeline.evaluation.fakes import SEEDS, Fakes
from pipeline.evaluation.ledger import FOLDER, chosen, measured, place_of
from pipeline.evaluation.question import Size
from pipeline.synthesis.sample import generate, load_generator
from pipeline.tracking import jsonl
from pipeline.training import checkpoint
from tests.runs import MSPIE, Runner

FID, PR, SWD, SPECTRA = "fid300_300.tiny", "pr300n3_300.tiny", "swd20", "spectra20"


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = torch.nn.Conv2d(3, 8, 3, 2), torch.nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors")
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's, of TorchScript
        torch.jit.script(Tiny()).save(str(folder / "tiny.pt"))
    return folder


@pytest.fixture(autouse=True)
def _quick(detectors, monkeypatch, unchecked):
    monkeypatch.setenv("GRATICULE_DETECTORS", str(detectors))


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """The folder of a run with checkpoints at 24, 48 and 72 images, of 16, 24 and 32 px."""
    run = Runner(photos(32), tmp_path_factory.mktemp("runs"), MSPIE)
    few = ["family.G.num_upblocks=2", "family.D.resolution_px=16", "data.size_px=32", "total_kimg=0.072"]
    return run.train_here(*few, "exec.checkpoint_kimg=0.024", "exec.keep=5")


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return str(tmp_path_factory.mktemp("references"))


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / trained.name))


@pytest.fixture
def ask(references):
    """A question; of FID at 16 px if nothing else is said."""

    def get(*metrics: str, **words) -> Question:
        return Question(metrics=metrics or (FID,), references=references, **{"sizes": ("16",), **words})

    return get


def values_of(folder: Path) -> dict[tuple[int, str], dict[str, float]]:
    return {key: record["metrics"] for key, record in measured(folder).items()}


def forked(workers: int, folder: Path, question: Question) -> list[int]:
    """Exit codes of so many workers, each a process."""
    children = []
    for worker in range(workers):
        child = os.fork()
        if not child:
            code = 1
            try:
                code = 0 if evaluate(folder, question, worker=worker, workers=workers) == "done" else 3
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_one_two_and_four_workers_give_the_same_numbers_to_the_bit(run, tmp_path, ask):
    question = ask(FID, PR, SWD, SPECTRA, sizes=("16", "16of24"), checkpoints="0.048,0.072")
    others = [Path(shutil.copytree(run, tmp_path / str(workers))) for workers in (2, 4)]
    assert evaluate(run, question) == "done"
    alone = values_of(run)
    assert len(alone) == 2 * 2 * 4
    for other in others:
        workers = int(other.name)
        with_own_references = question.replace(references=str(tmp_path / f"references{workers}"))
        assert forked(workers, other, with_own_references) == [0] * workers
        assert values_of(other) == alone
        assert not list((other / FOLDER).glob("0*"))  # fakes are gone, whoever made them last


def test_the_batch_is_no_part_of_a_number(run, tmp_path, ask):
    for batch in (16, 7):
        folder = Path(shutil.copytree(run, tmp_path / str(batch)))
        evaluate(folder, ask(batch=batch))
        found = values_of(folder)
        first = found if batch == 16 else first
        for key, values in found.items():
            assert values == pytest.approx(first[key], rel=1e-6)


def test_fakes_are_those_that_sampling_makes(run):
    G = load_generator(run / "config.json", chosen(run, Question(metrics=(FID,)))[-1].file)
    fakes = Fakes(G, Size(24), "", 2, 4, lambda numbers: None)
    made = torch.cat([img for img, _ in fakes.images(range(3, 9))])
    wanted = generate(G, [2 * SEEDS + i for i in range(3, 9)], (24, 24))
    assert torch.equal(made.permute(0, 2, 3, 1), torch.from_numpy(wanted))


def test_a_kill_costs_a_block_and_no_number(run, tmp_path, ask):
    question = ask(FID, PR, checkpoints="newest")
    whole = Path(shutil.copytree(run, tmp_path / "whole"))
    evaluate(whole, question)
    child = os.fork()
    if not child:
        evaluate(run, question)
        os._exit(0)
    place = place_of(run, chosen(run, question)[-1], question)
    deadline = time.monotonic() + 60
    while not list(place.glob("*/0*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kept = {file: file.stat().st_mtime_ns for file in place.glob("*/0*.safetensors")}
    assert kept
    assert not measured(run)
    assert checkpoint.kept(run / "checkpoints", "evaluating") == [72]
    asked = []
    assert evaluate(run, question, told=lambda what, done, total: asked.append((what, done))) == "done"
    assert asked[0][1] or asked[1][1]  # it does not begin at 0
    assert values_of(run) == values_of(whole)
    assert checkpoint.kept(run / "checkpoints", "evaluating") == []


def test_a_stop_between_blocks_is_resumed_and_finished_before_newer_checkpoints(run, tmp_path, ask):
    question = ask(checkpoints="newest")
    newest = run / "checkpoints" / f"{72:012d}"
    newest.rename(tmp_path / "newest")
    calls = iter(range(100))
    assert evaluate(run, question, should_stop=lambda: next(calls) >= 1) == "stopped"
    assert not measured(run)
    (tmp_path / "newest").rename(newest)
    assert lacking(run, question) == [f"kimg 0.048: {FID} at 16", f"kimg 0.072: {FID} at 16"]
    assert evaluate(run, question) == "done"
    assert [nimg for nimg, _ in measured(run)] == [48, 72]


def test_what_is_measured_is_not_measured_again_and_said_so(run, ask):
    question, said = ask(FID, SPECTRA), []
    assert lacking(run, question) == [f"kimg 0.072: {FID} at 16", f"kimg 0.072: {SPECTRA} at 16"]
    evaluate(run, question, say=said.append)
    assert lacking(run, question) == []
    before = (run / jsonl.METRICS).read_bytes()
    evaluate(run, question, say=said.append, told=lambda *_: pytest.fail("something was made"))
    assert (run / jsonl.METRICS).read_bytes() == before
    assert [line for line in said if "measured already" in line] == said[-2:]


@pytest.mark.parametrize("change", [{"seed": 1}, {"filter": "box"}, {"data": "other"}])
def test_another_seed_filter_or_set_is_another_number(run, photos, tmp_path, ask, change):
    evaluate(run, ask())
    first = values_of(run)
    if "data" in change:
        change = {"data": str(photos(64))}  # which other tests use as well
    question = ask(**change)
    assert lacking(run, question)
    evaluate(run, question)
    assert lacking(run, question) == []
    assert values_of(run).keys() == first.keys()
    assert values_of(run) != first
    assert lacking(run, ask())  # what stands there now is another answer


def test_a_record_says_how_its_number_was_taken(run, ask):
    evaluate(run, ask(PR, sizes=("16of24",), seed=3))
    ((nimg, kind), record) = next(iter(measured(run).items()))
    of = record["of"]
    assert nimg == 72
    assert kind.startswith("Metrics/pr300n3_300.tiny-")
    assert kind.endswith("/16px_of_24px")
    assert set(record["metrics"]) == {f"{kind}/precision", f"{kind}/recall"} == set(of["better"])
    assert set(of["better"].values()) == {"higher"}
    assert (of["fakes"], of["reals"], of["filter"], of["seed"]) == (300, 300, "lanczos", 3)
    assert (
        of["weights"]
        == json.loads((run / f"checkpoints/{72:012d}/manifest.json").read_text())["files"]["G_ema.safetensors"][
            "sha256"
        ]
    )
    for part in ("300 fakes", "k = 3", "Reals resized by lanczos", "fakes made at 24 px and reduced by lanczos"):
        assert part in of["says"]
    report = (run / FOLDER / "report.md").read_text()
    assert of["says"] in report
    assert (
        f"| {kind.removeprefix('Metrics/')}/precision ↑ | **{record['metrics'][kind + '/precision']:.5g}** |" in report
    )


def test_all_trained_sizes_are_measured_where_none_is_asked_for(run, ask):
    evaluate(run, ask(SPECTRA, sizes=()))
    assert [kind for _, kind in measured(run)] == [f"Metrics/spectra20/{px}px" for px in (16, 24, 32)]
    assert lacking(run, ask(SPECTRA, sizes=())) == []
    assert lacking(run, ask(SPECTRA, sizes=("16of32",))) == [f"kimg 0.072: {SPECTRA} at 16of32"]


def test_the_best_checkpoint_is_spared_by_pruning_and_can_be_asked_for(run, ask):
    root = run / "checkpoints"
    evaluate(run, ask(SPECTRA, checkpoints="0.024"))
    assert checkpoint.kept(root, "Metrics/spectra20/16px") == [24]  # the only one
    evaluate(run, ask(SPECTRA, checkpoints="all"))
    found = {nimg: values["Metrics/spectra20/16px"] for (nimg, _), values in values_of(run).items()}
    best = min(found, key=found.__getitem__)
    assert checkpoint.kept(root, "Metrics/spectra20/16px") == [best]
    assert numbers_of(run, ask(SPECTRA, checkpoints="all"))["Metrics/spectra20/16px"] == (found[best], best)
    assert [one.nimg for one in chosen(run, ask(FID, checkpoints="best"))] == [best]
    checkpoint.prune(root, keep=2)
    assert (root / f"{best:012d}").is_dir()


def test_numbers_wait_in_the_inbox_while_somebody_trains(run, ask):
    from pipeline.lock import locked

    before = (run / jsonl.METRICS).read_bytes()
    with locked(run / ".attempt", "busy"):
        evaluate(run, ask(SPECTRA))
        assert (run / jsonl.METRICS).read_bytes() == before
        assert lacking(run, ask(SPECTRA)) == []
        assert "spectra20" in (run / FOLDER / "report.md").read_text()


def test_two_evaluations_of_one_run_do_not_meet(run, ask, monkeypatch):
    from pipeline.evaluation import work
    from pipeline.lock import locked

    monkeypatch.setattr(work, "HANDOVER_SEC", 0.0)
    with locked(run / FOLDER / work.LOCK, "busy"), pytest.raises(UserError, match="is measuring it"):
        evaluate(run, ask())


def test_ruined_weights_name_the_first_bad_fake(run):
    G = load_generator(run / "config.json", chosen(run, Question(metrics=(FID,)))[-1].file)
    next(G.parameters()).fill_(torch.nan)
    with pytest.raises(WorkError, match="fake 5: values that are not finite"):
        list(Fakes(G, Size(16), "", 0, 4, lambda numbers: None).images(range(5, 9)))


def test_a_damaged_newest_checkpoint_is_passed_over(run, ask):
    file = run / f"checkpoints/{72:012d}/G_ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert [one.nimg for one in chosen(run, ask())] == [48]
    with pytest.raises(UserError, match=r"checkpoint=0\.072: .* is damaged"):
        check(run, ask(checkpoints="0.072"))
