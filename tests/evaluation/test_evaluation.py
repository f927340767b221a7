"""Evaluation against itself: any number of workers, any batch, kills and stops give the same numbers.

One tiny run of MS-PIE (three sizes, three checkpoints) and a detector of a few weights serve all tests, which write
into copies of its folder. Others look at generators that were never trained.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import override
from pipeline.data.manifest import load_manifest
from pipeline.errors import UserError, WorkError
from pipeline.evaluation import Question, check, evaluate, lacking, numbers_of
from pipeline.evaluation.fakes import SEEDS, Fakes
from pipeline.evaluation.ledger import FOLDER, chosen, measured, place_of
from pipeline.evaluation.plan import plan
from pipeline.evaluation.question import Size
from pipeline.recipes import find
from pipeline.synthesis.sample import generate, load_generator
from pipeline.tracking import jsonl
from pipeline.training import checkpoint
from tests.evaluation.conftest import FID
from tests.runs import CIPS

PR, SWD, SPECTRA = "pr300n3_300.tiny", "swd20", "spectra20"


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
    question = ask(FID, PR, SWD, SPECTRA, sizes=("16of24",))
    others = [Path(shutil.copytree(run, tmp_path / str(workers))) for workers in (2, 4)]
    assert evaluate(run, question) == "done"
    alone = values_of(run)
    assert len(alone) == 4
    for other in others:
        workers = int(other.name)
        with_own_references = question.replace(references=str(tmp_path / f"references{workers}"))
        assert forked(workers, other, with_own_references) == [0] * workers
        assert values_of(other) == alone
        assert not list((other / FOLDER).glob("0*"))  # fakes are gone, whoever made them last


def test_the_batch_is_no_part_of_a_number(run, tmp_path, ask):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    evaluate(run, ask(batch=16))
    evaluate(other, ask(batch=7))
    (first,), (second,) = values_of(run).values(), values_of(other).values()
    assert second == pytest.approx(first, rel=1e-6)


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


@pytest.mark.parametrize(
    ("change", "said"), [({"seed": 1}, "seed1"), ({"filter": "box"}, "box"), ({"data": "other"}, "vs_")]
)
def test_another_seed_filter_or_set_is_another_number_under_another_name(run, photos, ask, change, said):
    """Of fakes that are reduced: a filter counts."""
    if "data" in change:
        change, said = {"data": str(photos(16))}, f"vs_{load_manifest(photos(16)).dataset_id[:8]}"
    question, other_question = ask(SPECTRA, sizes=("16of24",)), ask(SPECTRA, sizes=("16of24",), **change)
    evaluate(run, question)
    first = values_of(run)
    assert lacking(run, other_question)
    evaluate(run, other_question)
    assert lacking(run, other_question) == []
    (kind, values) = first.popitem()
    name = f"{kind[1]}_{said}"
    assert values_of(run).keys() == {kind, (72, name)}
    assert values_of(run)[kind] == values
    assert values_of(run)[72, name][name] != values[kind[1]]
    assert lacking(run, question) == []


def test_a_record_says_how_its_number_was_taken(run, ask):
    evaluate(run, ask(PR, sizes=("16of24",), seed=3))
    ((nimg, kind), record) = next(iter(measured(run).items()))
    of = record["of"]
    assert nimg == 72
    assert kind.startswith("Metrics/pr300n3_300.tiny-")
    assert kind.endswith("/16px_of_24px_seed3")
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


def untrained(folder: Path, recipe: str, *sets: str) -> Path:
    """A folder as `graticule import` makes it: a recipe's tiny G as it begins, without a run."""
    config = override(find(recipe).make().tiny(), sets)
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    save_file(config.family.G.build().state_dict(), folder / "G_ema.safetensors")
    return folder


def test_a_model_without_a_run_is_measured_against_a_set_that_is_named(tmp_path, photos, ask):
    folder = untrained(tmp_path / "model", CIPS, "family.G.size_px=16", "family.G.width=8", "family.D.resolution_px=16")
    with pytest.raises(UserError, match="has no data set of its own; say with --data"):
        check(folder, ask(SPECTRA))
    assert evaluate(folder, ask(SPECTRA, data=str(photos(32)))) == "done"
    assert [key for key in measured(folder)] == [(0, "Metrics/spectra20/16px")]
    assert f"# Evaluation of {folder.name}" in (folder / FOLDER / "report.md").read_text()


def test_what_grows_is_measured_at_the_size_of_its_stage(tmp_path, photos, ask):
    folder = untrained(tmp_path / "model", "mspie.pggan_celeba_a")
    state = load_file(folder / "G_ema.safetensors")
    save_file({**state, "grown": torch.tensor([1.0, 0.5], dtype=torch.float64)}, folder / "G_ema.safetensors")
    question = ask(SPECTRA, sizes=(), data=str(photos(32)))
    assert [str(part.size) for part in plan(folder, question).tasks[0].parts] == ["8"]
    with pytest.raises(UserError, match=r"size='16': model was not trained at 16 px; use 8"):
        check(folder, question.replace(sizes=("16",)))


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("cips.landscapes_panorama", r"makes 32x96 px; metrics compare squares"),
        ("geopos.asl_conv", r"has 10 classes, the generator has 36"),
        ("geopos.com_conv", r"makes no images from latents"),
    ],
)
def test_a_generator_that_cannot_be_measured_is_refused_in_one_line(tmp_path, photos, ask, recipe, said):
    folder = untrained(tmp_path / "model", recipe)
    with pytest.raises(UserError, match=said) as e:
        check(folder, ask(SPECTRA, sizes=(), data=str(photos(64))))
    assert len(str(e.value).splitlines()) == 1


def test_a_family_that_trains_on_crops_is_compared_with_crops(tmp_path, photos, ask):
    folder = untrained(tmp_path / "model", "cips.table1_sat_landscapes", "family.rotate=true")
    (part,) = plan(folder, ask(SPECTRA, sizes=(), data=str(photos(64)))).tasks[0].parts
    view = part.numbers[0].reference.view
    assert (view.share, view.rotate, view.filter) == (0.5, True, "")


def test_labels_of_fakes_are_those_of_the_set(tmp_path):
    folder = untrained(tmp_path / "model", "geopos.asl_conv")
    G = load_generator(folder / "config.json", folder / "G_ema.safetensors")
    side = G.native_size[0]
    fakes = Fakes(G, Size(side), "", 0, 2, lambda numbers: [35 - i for i in numbers])
    (made, _), *_ = fakes.images(range(2))
    wanted = generate(G, [0, 1], (side, side), labels=[35, 34])
    assert torch.equal(made.permute(0, 2, 3, 1), torch.from_numpy(wanted))


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
