"""A user's DeepSpeed JSON: which of its words are taken, whether they agree with the run, what DeepSpeed is told.

Its vocabulary is divided in two tables: what passes through, and what is refused with the reason. A refused word
that is off passes, and "auto" means that the run decides. Knows DeepSpeed's vocabulary, not DeepSpeed.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import nearest
from pipeline.errors import UserError

TRIANGLE = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")

Kind = tuple[str, Callable[[Any], bool]]
SWITCH: Kind = ("true or false", lambda v: isinstance(v, bool))
WHOLE: Kind = ("a whole number above 0", lambda v: _is_whole(v) and v > 0)
COUNT: Kind = ("a whole number", lambda v: _is_whole(v) and v >= 0)
STAGE: Kind = ("0, 1, 2 or 3", lambda v: _is_whole(v) and 0 <= v <= 3)
BLOCK: Kind = ("a group {...}", lambda v: isinstance(v, Mapping))

TAKEN: dict[str, Kind] = {
    **dict.fromkeys(TRIANGLE, WHOLE),
    "zero_optimization": BLOCK,
    "zero_allow_untested_optimizer": SWITCH,
    "steps_per_print": WHOLE,
    "dump_state": SWITCH,
    "memory_breakdown": SWITCH,
}
TELLS = ("steps_per_print", "dump_state", "memory_breakdown")
ZERO_TAKEN: dict[str, Kind] = {
    "stage": STAGE,
    "contiguous_gradients": SWITCH,
    "reduce_scatter": SWITCH,
    "reduce_bucket_size": WHOLE,
    "use_multi_rank_bucket_allreduce": SWITCH,
    "allgather_partitions": SWITCH,
    "allgather_bucket_size": WHOLE,
    "overlap_comm": SWITCH,
    "sub_group_size": WHOLE,
    "stage3_param_persistence_threshold": COUNT,
    "stage3_model_persistence_threshold": COUNT,
}
FROM_STAGE = {"overlap_comm": 2, "sub_group_size": 3}  # and stage3_*: 3; below it they would have no effect

RECIPE = "changes results: the recipe decides"
PRECISION = "changes results: precision of the run decides"
FORWARD = "works only in DeepSpeed's own forward, which is not used"
OWN = "this project has its own"
METHOD = "changes the method"
REFUSED = {
    **dict.fromkeys(("optimizer", "scheduler", "gradient_clipping", "zero_force_ds_cpu_optimizer"), RECIPE),
    **dict.fromkeys(("fp16", "bf16", "bfloat16", "amp", "torch_autocast", "data_types"), PRECISION),
    **dict.fromkeys(("communication_data_type", "seq_parallel_communication_data_type"), PRECISION),
    **dict.fromkeys(("flops_profiler", "wall_clock_breakdown", "activation_checkpointing", "compile"), FORWARD),
    **dict.fromkeys(("tensorboard", "wandb", "csv_monitor", "comet", "checkpoint", "nebula", "datastates"), OWN),
    **dict.fromkeys(
        ("dataloader_drop_last", "elasticity", "autotuning", "load_universal_checkpoint", "log_level"), OWN
    ),
    **dict.fromkeys(("managed_gradient_accumulation", "disable_allgather", "disable_python_gc"), OWN),
    **dict.fromkeys(("prescale_gradients", "gradient_predivide_factor", "gradient_allreduce_op"), METHOD),
    **dict.fromkeys(("sparse_gradients", "sparse_attention", "compression_training", "weight_quantization"), METHOD),
    **dict.fromkeys(("quantize_training", "curriculum_learning", "data_efficiency", "progressive_layer_drop"), METHOD),
    **dict.fromkeys(("eigenvalue", "hybrid_engine", "pipeline", "tensor_parallel", "expert_parallel"), METHOD),
    **dict.fromkeys(("sequence_parallel_size", "data_parallel_size", "vocabulary_size"), METHOD),
    "comms_logger": "nothing here prints what it gathers",
    "aio": "belongs to offload, which is refused",
}
OFFLOAD = "offload loses gradients where several backward passes make one step"
AS_CALLED = "has no effect: weights are fetched as a module is called"
UNTESTED = "not tested here"
ZERO_REFUSED = {
    **dict.fromkeys(("offload_optimizer", "offload_param", "cpu_offload", "cpu_offload_param", "zenflow"), OFFLOAD),
    **dict.fromkeys(("cpu_offload_use_pin_memory", "round_robin_gradients"), OFFLOAD),
    **dict.fromkeys(("zero_quantized_weights", "zero_quantized_gradients"), METHOD),
    **dict.fromkeys(("zero_quantized_nontrainable_weights",), METHOD),
    **dict.fromkeys(("stage3_prefetch_bucket_size", "stage3_max_live_parameters"), AS_CALLED),
    **dict.fromkeys(("stage3_max_reuse_distance", "log_trace_cache_warnings"), AS_CALLED),
    **dict.fromkeys(
        ("stage3_gather_16bit_weights_on_model_save", "elastic_checkpoint"), "checkpoints are whole anyway"
    ),
    **dict.fromkeys(("stage3_gather_fp16_weights_on_model_save",), "checkpoints are whole anyway"),
    **dict.fromkeys(("load_from_fp32_weights", "pipeline_loading_checkpoint"), OWN),
    **dict.fromkeys(("zero_hpz_partition_size", "legacy_stage1", "parameter_alignment", "leaf_module"), UNTESTED),
    **dict.fromkeys(("stage3_module_granularity_threshold", "stage3_use_all_reduce_for_fetch_params"), UNTESTED),
    **dict.fromkeys(("stage3_allgather_sequential", "ignore_unused_parameters", "enable_sanity_checks"), UNTESTED),
    "save_muon_momentum_buffer_in_memory": RECIPE,
    "compute_grad_norm": "without it fp16 misses an overflow",
    "memory_efficient_linear": "replaces torch's linear layer by one without a second derivative",
    "override_module_apply": "replaces a method of all networks",
}


def read_ds_config(path: str) -> dict[str, Any]:
    """The content of a JSON file; ValueError in one line when it is none."""
    try:
        content = json.loads(Path(path).read_text())
    except OSError as e:
        raise ValueError(f"cannot be read ({e.strerror}); give the path of a DeepSpeed JSON file") from e
    except (ValueError, RecursionError) as e:
        raise ValueError(f"not valid JSON ({e}); correct the file") from e
    if not isinstance(content, dict):
        raise ValueError("holds no JSON object; DeepSpeed wants {...} at the top")
    return content


def stage_in(given: Mapping[str, Any] | None) -> int | None:
    """The ZeRO stage that a file asks for."""
    stage: Any = _zero(given or {}).get("stage")
    return int(stage) if _is_whole(stage) else None


def check_ds_config(
    given: Mapping[str, Any], *, stages: Mapping[str, int], batch_size: int, microbatch: int, world: int
) -> None:
    """Refuse, in one line, words that DeepSpeed must not have, and a batch triangle that is not the run's.

    `stages` are those of exec.zero, or of the file where exec.zero says nothing; without any the file is refused.
    """
    wrong = [*_wrong_words(given, TAKEN, REFUSED, ""), *_wrong_words(_zero(given), ZERO_TAKEN, ZERO_REFUSED, ZERO)]
    if wrong:
        raise UserError(f"exec.ds_config: {'; '.join(wrong)}: remove or correct each")
    if not stages:
        raise UserError(
            "exec.ds_config has no effect without a ZeRO stage; set exec.zero=1 or 2, "
            'or "zero_optimization": {"stage": 1} in the file'
        )
    highest = max(stages.values())
    for word in _auto_left_out(_zero(given)).keys() & ZERO_TAKEN.keys():
        needed = FROM_STAGE.get(word, 3 if word.startswith("stage3_") else 1)
        if highest < needed:
            raise UserError(
                f"exec.ds_config: {ZERO}{word} has no effect below stage {needed}, and exec.zero is "
                f"{dict(stages)}; remove it"
            )
    _check_triangle(given, batch_size, microbatch, world)


ZERO = "zero_optimization."


def _zero(given: Mapping[str, Any]) -> Mapping[str, Any]:
    block = given.get("zero_optimization", {})
    return block if isinstance(block, Mapping) else {}


def _auto_left_out(words: Mapping[str, Any]) -> dict[str, Any]:
    return {word: value for word, value in words.items() if value != "auto"}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1 and abs(value) < 2**63


def _is_off(value: Any) -> bool:
    if isinstance(value, Mapping):
        decisive = [value[word] for word in ("enabled", "device") if word in value]
        return all(map(_is_off, decisive or value.values()))
    return value in (False, 0, None, "auto", "none", "fp32")


def _wrong_words(
    given: Mapping[str, Any], taken: Mapping[str, Kind], refused: Mapping[str, str], prefix: str
) -> Iterator[str]:
    for word, value in given.items():
        if word in taken:
            kind, fits = taken[word]
            if value != "auto" and not fits(value):
                yield f"{prefix}{word}={value!r:.80} is not {kind}"
        elif word not in refused:
            yield f"{prefix}{word} is not a known key, {nearest(word, [*taken, *refused])}"
        elif not _is_off(value):
            yield f"{prefix}{word} ({refused[word]})"


def _check_triangle(given: Mapping[str, Any], batch_size: int, microbatch: int, world: int) -> None:
    """train_batch_size = train_micro_batch_size_per_gpu * gradient_accumulation_steps * ranks."""
    run = dict(zip(TRIANGLE, (batch_size, microbatch, batch_size // (microbatch * world)), strict=True))
    said = {word: given.get(word, "auto") for word in TRIANGLE}
    if all(said[word] in ("auto", run[word]) for word in TRIANGLE):
        return
    names = ("batch_size", "exec.batch_gpu", "what remains")
    raise UserError(
        "exec.ds_config: "
        + ", ".join(f"{word}={value}" for word, value in said.items())
        + f" on exec.nodes*exec.gpus={world} ranks is not this run, where {batch_size} = "
        + f"{run[TRIANGLE[1]]} * {run[TRIANGLE[2]]} * {world}; write "
        + ", ".join(f"{word}={run[word]} ({name})" for word, name in zip(TRIANGLE, names, strict=True))
        + ' or "auto" for each, or change batch_size, exec.batch_gpu or the ranks'
    )


def full_ds_config(
    given: Mapping[str, Any], stage: int, microbatches: int, batch_size: int, world: int, numel: int
) -> dict[str, Any]:
    """What DeepSpeed is told of one network of `numel` parameters. `given` has passed check_ds_config."""
    words = {word: value for word, value in _auto_left_out(given).items() if word in TAKEN}
    zero = {word: value for word, value in _auto_left_out(_zero(given)).items() if word in ZERO_TAKEN}
    for table, part in ((TAKEN, words), (ZERO_TAKEN, zero)):
        part.update({w: int(v) for w, v in part.items() if table[w] in (WHOLE, COUNT)})  # 5e8 is a float in JSON
    zero = {"reduce_bucket_size": numel, **zero, "stage": stage}  # its default takes 2 GB, however small the network
    if stage == 1:
        zero["overlap_comm"] = False  # gradients are added up before any of them is sent
    if stage == 3:
        zero |= {"memory_efficient_linear": False, "override_module_apply": False}
    return {
        **words,
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": batch_size // (microbatches * world),
        "gradient_accumulation_steps": microbatches,
        "gradient_clipping": 0.0,  # its default clips to 1
        "zero_optimization": zero,
    }


def is_told(words: Mapping[str, Any]) -> bool:
    """Whether the user asked DeepSpeed to write to the log."""
    return any(words.get(word) for word in TELLS)
