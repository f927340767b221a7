"""A user's DeepSpeed JSON: what is taken, each refusal with its reason, the batch triangle; DeepSpeed is not needed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.plan import ExecConfig, check, override_all
from pipeline.recipes import find
from pipeline.training import ds_config
from pipeline.training.ds_config import REFUSED, TAKEN, ZERO_REFUSED, ZERO_TAKEN, full_ds_config, is_told
from tests.runs import CIPS

# the recipe made tiny: a batch of 16, microbatches of 4
ON_TWO_RANKS = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2}


@pytest.fixture
def checked(tmp_path):
    """Check a run with this content of a file: "" or the one line of the refusal."""

    def run(content: object, *sets: str) -> str:
        path, said = tmp_path / "ds.json", ""
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        try:
            words = [f"exec.ds_config={path}", *(sets or ["exec.zero=1", "exec.gpus=2"])]
            check(*override_all(find(CIPS).make().tiny(), ExecConfig(), words))
        except UserError as e:
            said = f"{e}"
        assert "\n" not in said
        return said

    return run


def zero(**words: object) -> dict:
    return {"zero_optimization": words}


@pytest.mark.parametrize("word", REFUSED)
def test_each_refused_word_is_named_with_its_reason_unless_it_is_off(checked, word):
    assert f"{word} ({REFUSED[word]})" in checked({word: 3.5})
    for off in (False, 0, None, "auto", {"enabled": False}):
        assert checked({word: off}) == ""


@pytest.mark.parametrize("word", ZERO_REFUSED)
def test_each_refused_word_of_zero_is_named_with_its_reason_unless_it_is_off(checked, word):
    assert f"zero_optimization.{word} ({ZERO_REFUSED[word]})" in checked(zero(**{word: 3.5}))
    for off in (False, 0, None, "auto", {"device": "none"}):
        assert checked(zero(**{word: off})) == ""


def test_all_that_is_wrong_is_said_at_once(checked):
    said = checked(
        {"optimizer": {"type": "Adam"}, "fp16": {"enabled": True}, **zero(offload_optimizer={"device": "cpu"})}
    )
    assert "optimizer (changes results: the recipe decides)" in said
    assert "fp16 (changes results: precision of the run decides)" in said
    assert "zero_optimization.offload_optimizer (offload loses gradients" in said


def test_every_known_word_stands_in_one_table():
    assert not set(TAKEN) & set(REFUSED)
    assert not set(ZERO_TAKEN) & set(ZERO_REFUSED)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"zero_optimisation": {}}, "zero_optimisation is not a known key, did you mean 'zero_optimization'?"),
        (zero(reduce_bucket_sise=1), "zero_optimization.reduce_bucket_sise is not a known key, did you mean 'reduce_b"),
        ({"xyzxyzxyz": 1}, "xyzxyzxyz is not a known key, known: activation_checkpointing, "),
        (zero(reduce_bucket_size="big"), "zero_optimization.reduce_bucket_size='big' is not a whole number above 0"),
        (zero(reduce_bucket_size=0.5), "reduce_bucket_size=0.5 is not a whole number above 0"),
        (zero(contiguous_gradients=1), "contiguous_gradients=1 is not true or false"),
        ({"zero_optimization": 2}, "zero_optimization=2 is not a group {...}"),
        ({"train_batch_size": True}, "train_batch_size=True is not a whole number above 0"),
        (zero(overlap_comm=True), "zero_optimization.overlap_comm has no effect below stage 2"),
        (zero(stage3_param_persistence_threshold=0), "has no effect below stage 3, and exec.zero is {'G': 1, 'D': 1}"),
        (zero(stage=2), "exec.zero=1 contradicts zero_optimization.stage=2 of exec.ds_config; drop one of them"),
    ],
)
def test_a_word_that_is_off_is_refused_with_what_is_allowed(checked, content, said):
    assert said in checked(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"train_batch_size": 16', "not valid JSON ("),
        ("", "not valid JSON ("),
        ("[1]", "holds no JSON object; DeepSpeed wants {...} at the top"),
        ("[" * 100_000, "not valid JSON ("),
    ],
)
def test_a_file_that_is_no_json_object_is_refused(checked, content, said):
    assert said in checked(content)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for path, why in ((tmp_path / "absent.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=f"ds_config=.*cannot be read \\({why}"):
            override_all(find(CIPS).make().tiny(), ExecConfig(), [f"exec.ds_config={path}"])


def test_the_batch_triangle_of_the_run_passes_and_so_does_auto_for_any_of_it(checked):
    assert checked(ON_TWO_RANKS) == ""
    for word in ON_TWO_RANKS:
        assert checked({**ON_TWO_RANKS, word: "auto"}) == ""
        assert checked({word: ON_TWO_RANKS[word]}) == ""
    assert checked({"train_batch_size": 16.0}) == ""  # as Python writes 1.6e1


@pytest.mark.parametrize("word", ON_TWO_RANKS)
def test_another_batch_triangle_is_refused_with_the_numbers_of_the_run(checked, word):
    said = checked({**ON_TWO_RANKS, word: 7})
    assert f"{word}=7" in said
    assert "on exec.nodes*exec.gpus=2 ranks is not this run, where 16 = 4 * 2 * 2" in said
    assert "train_batch_size=16 (batch_size), train_micro_batch_size_per_gpu=4 (exec.batch_gpu)" in said
    assert "gradient_accumulation_steps=2" in said


def test_the_triangle_follows_ranks_and_microbatches(checked):
    assert "16 = 4 * 4 * 1" in checked(ON_TWO_RANKS, "exec.zero=1", "exec.gpus=1")
    assert "16 = 8 * 1 * 2" in checked(ON_TWO_RANKS, "exec.zero=1", "exec.gpus=2", "exec.batch_gpu=8")


def test_a_file_has_no_effect_without_a_stage_which_it_may_name_itself(checked):
    assert "exec.ds_config has no effect without a ZeRO stage" in checked({}, "exec.gpus=2")
    assert "exec.ds_config has no effect without a ZeRO stage" in checked(zero(stage=0), "exec.gpus=2")
    assert checked(zero(stage=2), "exec.gpus=2") == ""
    assert "weights of D (stage 3)" in checked(zero(stage=3), "exec.gpus=2")
    assert "zero_optimization.stage=4 is not 0, 1, 2 or 3" in checked(zero(stage=4), "exec.gpus=2")
    assert checked(zero(stage=2), "exec.zero=2", "exec.gpus=2") == ""


def test_the_file_in_the_documentation_passes(checked):
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    (block,) = re.findall(r"```json\n(.*?)```", page, flags=re.S)
    assert checked(block, "exec.gpus=2") == ""


def test_what_deepspeed_is_told_is_the_run_and_what_the_file_adds():
    given = {"train_batch_size": "auto", "steps_per_print": 5, "fp16": {"enabled": False}}
    given |= zero(reduce_bucket_size=5e2, overlap_comm=True, stage="auto", offload_param={"device": "none"})
    told = full_ds_config(given, 2, microbatches=2, batch_size=16, world=2, numel=99)
    assert {word: told[word] for word in ON_TWO_RANKS} == ON_TWO_RANKS
    assert told["zero_optimization"] == {"reduce_bucket_size": 500, "overlap_comm": True, "stage": 2}
    assert type(told["zero_optimization"]["reduce_bucket_size"]) is int
    assert told["gradient_clipping"] == 0.0
    assert "fp16" not in told
    assert full_ds_config({}, 1, 1, 8, 1, numel=99)["zero_optimization"]["reduce_bucket_size"] == 99
    assert is_told(told)
    assert not is_told({**told, "steps_per_print": None})


def test_every_word_that_the_installed_deepspeed_has_for_zero_stands_in_a_table():
    """A release that adds one shows here. In a process of its own, as DeepSpeed changes the one that imports it."""
    code = (
        "from deepspeed.runtime.zero.config import DeepSpeedZeroConfig as Z\n"
        "print(*(field.alias or name for name, field in Z.model_fields.items()))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    words = set(done.stdout.splitlines()[-1].split())
    assert len(words) > 30
    assert words - {*ZERO_TAKEN, *ZERO_REFUSED} == set()


@pytest.mark.parametrize("content", ['{"train_batch_size": 7}', '{"optimiser": {}}', "{", None])
def test_by_the_command_line_it_is_one_line_and_exit_code_2_and_nothing_is_written(
    graticule, photos, tmp_path, monkeypatch, content
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "ds.json").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    words = ["train", CIPS, "--tiny", "--data", photos(32), "--set", "exec.ds_config=ds.json", "--set", "exec.zero=2"]
    code, out, err = graticule(*words)
    assert (code, out) == (2, "")
    assert "ds_config" in err
    assert len(err.strip().splitlines()) == 1, err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_is_read_when_the_run_is_planned_and_kept_with_it(tmp_path):
    """A queued job must not see what the file has become."""
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(zero(stage=1)))
    _, exec_ = override_all(find(CIPS).make().tiny(), ExecConfig(), [f"exec.ds_config={path}"])
    path.unlink()
    again = ExecConfig.model_validate_json(exec_.model_dump_json())
    assert again.ds_config == zero(stage=1)
    assert ds_config.stage_in(again.ds_config) == 1
