"""RunConfig, ExecConfig and check(): the one place where the shape of a run is declared.

RunConfig is what changes results; it is hashed into the run's name, so the same recipe again resumes the same
run. ExecConfig is how it is executed and may differ from one attempt to the next.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config import Config, by_kind, fingerprint, override
from pipeline.data.feed import check_copy, check_sets, identity_of
from pipeline.data.manifest import Manifest
from pipeline.data.order import LONGEST_CYCLE
from pipeline.families import KINDS
from pipeline.phases import FamilyConfig
from pipeline.spec import UserError
from pipeline.training.ds_config import check_ds_config, read_ds_config, stage_in

Stage = Literal[0, 1, 2, 3]


class DataConfig(Config):
    """Which images, and how they are presented."""

    size_px: int = Field(ge=4)  # stored side of the prepared set
    mirror: bool = True  # flip each presentation with probability 0.5
    shuffle_block: int = Field(default=1, ge=1, le=10**6)  # neighbours on disk read together; 1: none
    shuffle_window: int = Field(default=1, ge=1, le=10**6)  # blocks that are mixed at a time
    weights: tuple[int, ...] = ()  # several sets: images of each in every sum(weights) consecutive ones
    dataset_id: str = ""  # filled in from the manifest when the run is made; "+" between those of several sets

    @model_validator(mode="after")
    def _every_value_has_an_effect(self) -> "DataConfig":
        if (self.shuffle_block > 1) != (self.shuffle_window > 1):
            raise ValueError(
                f"shuffle_block={self.shuffle_block} and shuffle_window={self.shuffle_window} need each other: "
                "set both above 1 (for example 64 and 4096), or leave both out"
            )
        weights = list(self.weights)
        if weights and (len(weights) < 2 or min(weights) < 1 or sum(weights) > LONGEST_CYCLE):
            raise ValueError(
                f"weights={weights} must be a positive number for each of two or more sets, {LONGEST_CYCLE} in sum"
            )
        return self


class RunConfig(Config):
    """What changes results."""

    recipe: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")  # names the run's folder
    family: Annotated[FamilyConfig, *by_kind(KINDS)]
    data: DataConfig
    batch_size: int = Field(ge=1)  # images of one iteration over all ranks
    total_kimg: float = Field(gt=0)  # thousands of real images that D sees
    seed: int = Field(default=0, ge=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of forward passes; weights, Adam and fp16's R1 stay fp32

    @model_validator(mode="after")
    def _stored_size_covers_training(self) -> "RunConfig":
        least = self.family.stored_px()
        if self.data.size_px < least:
            raise ValueError(
                f"data.size_px={self.data.size_px} is smaller than the {least} px that training takes; "
                f"prepare the set with --size {least}"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_reduced_precision(self) -> "RunConfig":
        for net in self.family.passes():
            blocks = getattr(getattr(self.family, net, None), "fp16_blocks", 0)
            if blocks and self.precision != "fp32":
                raise ValueError(
                    f"family.{net}.fp16_blocks={blocks} needs precision='fp32', not {self.precision!r}, which reduces "
                    "every block already; set one of the two"
                )
        return self

    def tiny(self) -> "RunConfig":
        """The same recipe, small enough for two CPU cores: narrow nets, few pixels, few images."""
        family = self.family.tiny()
        data = self.data.replace(size_px=family.stored_px())
        return self.replace(family=family, data=data, batch_size=4 * family.group, total_kimg=4)


class ExecConfig(Config):
    """How a run is executed. Nothing here changes results beyond float reduction order."""

    nodes: int = Field(default=1, ge=1)
    gpus: int = Field(default=1, ge=1)  # ranks on each node: one a GPU, or one a process where there is none
    batch_gpu: int | None = Field(default=None, ge=1)  # images of one forward; None: one mbstd_group, as published
    reader: Literal["tar", "beton"] = "tar"  # beton: the set's FFCV copy (`graticule beton`), same images and order
    workers: int = Field(default=2, ge=0)  # threads of a rank that read and decode; 0: the training thread does
    status_kimg: float = Field(default=4, gt=0)  # a line of metrics
    sample_kimg: float = Field(default=200, gt=0)  # a grid of fixed latents at every trained size
    validate_kimg: float = Field(default=100, gt=0)  # measures on the set of --validation, where there is one
    checkpoint_kimg: float = Field(default=100, gt=0)
    keep: int = Field(default=2, ge=2)  # newest checkpoints to keep
    milestone_kimg: float | None = Field(default=None, gt=0)  # checkpoints at its multiples are kept for good
    zero: Stage | dict[str, Stage] = 0  # ZeRO stage of all networks, or of each: {G: 3, D: 1}; 0: that of ds_config
    ds_config: dict[str, Any] | None = None  # further words to DeepSpeed; a path of a JSON file is read
    not_finite_limit: int = Field(default=5, ge=1)  # iterations in a row with NaN or Inf that end, or take back, a run
    on_not_finite: Literal["stop", "rollback"] = "stop"  # rollback: to the newest healthy checkpoint, with other draws
    recompute: bool = False  # keep less of G for the backward pass, compute its blocks again there; CIPS
    hang_sec: int = Field(default=900, ge=0)  # a rank that does not move for so long ends the job; 0: nobody watches
    track: bool = True  # mirror metrics to MLflow

    @field_validator("zero", mode="before")
    @classmethod
    def _of_all_or_of_each(cls, value: Any) -> Any:
        stages = value.values() if isinstance(value, dict) else [value]
        if not all(type(stage) is int and 0 <= stage <= 3 for stage in stages):
            raise ValueError("input should be stage 0, 1, 2 or 3, or one for each network, as in '{G: 3, D: 1}'")
        return value

    @field_validator("ds_config", mode="before")
    @classmethod
    def _of_a_file(cls, value: Any) -> Any:
        return read_ds_config(value) if isinstance(value, str) else value

    def world(self) -> int:
        return self.nodes * self.gpus

    def stages(self, nets: Iterable[str]) -> dict[str, int]:
        """Network -> its ZeRO stage; those that are replicated are left out."""
        if isinstance(self.zero, dict):
            return {name: stage for name, stage in self.zero.items() if stage}
        stage = self.zero or stage_in(self.ds_config) or 0
        return {name: stage for name in nets if stage}

    def microbatch(self, run: RunConfig) -> int:
        """Images of one forward on one rank. The default does not depend on the ranks, so neither do the bits."""
        return self.batch_gpu or run.family.group

    def slices(self, run: RunConfig, rank: int) -> tuple[range, ...]:
        """This rank's microbatches as ranges of positions in the global batch."""
        local, micro = run.batch_size // self.world(), self.microbatch(run)
        return tuple(range(i, i + micro) for i in range(rank * local, (rank + 1) * local, micro))


def override_all(run: RunConfig, exec_: ExecConfig, assignments: Iterable[str]) -> tuple[RunConfig, ExecConfig]:
    """Apply --set assignments: `exec.key=value` to the ExecConfig, all others to the RunConfig."""
    texts = list(assignments)
    exec_ = override(exec_, [t.removeprefix("exec.") for t in texts if t.startswith("exec.")], prefix="exec.")
    return override(run, [t for t in texts if not t.startswith("exec.")]), exec_


def check(run: RunConfig, exec_: ExecConfig) -> None:
    """Refuse, in one line, a run whose shape cannot work. Cheap: called at submission and again at start."""
    world, group, batch_size = exec_.world(), run.family.group, run.batch_size
    if batch_size % (world * group):
        fits = [str(n) for n in range(1, batch_size + 1) if batch_size % (n * group) == 0]
        raise UserError(
            f"batch_size={batch_size} over nodes*gpus={exec_.nodes}*{exec_.gpus}={world} ranks does not give each a "
            f"multiple of {run.family.group_field}={group}, whose statistics are taken inside one forward; "
            + (f"use one of {', '.join(fits)} ranks" if fits else f"use a multiple of {group} as batch_size")
        )
    local, micro = batch_size // world, exec_.microbatch(run)
    if local % micro or micro % group:
        fits = [str(m) for m in range(group, local + 1, group) if local % m == 0]
        raise UserError(
            f"exec.batch_gpu={micro} must be a multiple of {run.family.group_field}={group} and divide the {local} "
            f"images of a rank; use one of {', '.join(fits)}"
        )
    if exec_.recompute and not run.family.recomputes:
        raise UserError(
            f"exec.recompute=true: the generator of family.kind={run.family.kind!r} has no such switch; leave it out"
        )
    _check_zero(run, exec_)


def _check_zero(run: RunConfig, exec_: ExecConfig) -> None:
    """Refuse stages that contradict each other, the networks there are or their penalties, and a foreign ds_config."""
    nets, zero, in_file = run.family.passes(), exec_.zero, stage_in(exec_.ds_config)
    if run.family.staged() and exec_.stages(nets):
        raise UserError(
            f"exec.zero={zero}: the networks of family.kind={run.family.kind!r} change on the way and are replicated; "
            "leave exec.zero and exec.ds_config out"
        )
    for name in zero if isinstance(zero, dict) else ():
        if name not in nets:
            raise UserError(f"exec.zero={zero} names network {name!r}; this family has {', '.join(nets)}")
    stages = exec_.stages(nets)
    if in_file is not None and zero and set(stages.values()) != {in_file}:
        raise UserError(
            f"exec.zero={zero} contradicts zero_optimization.stage={in_file} of exec.ds_config; drop one of them"
        )
    if exec_.ds_config is not None:
        check_ds_config(
            exec_.ds_config,
            stages=stages,
            batch_size=run.batch_size,
            microbatch=exec_.microbatch(run),
            world=exec_.world(),
        )
    if exec_.recompute and stages.get("G") == 3:
        raise UserError(
            "exec.recompute=true: G's weights are sharded (stage 3) and would be gathered again; use exec.zero of 2 "
            "or less for G, or leave exec.recompute out"
        )
    penalties = run.family.exact_penalties()
    for name, field in penalties.items():
        if stages.get(name) == 3:
            fits = {net: 2 if net in penalties else 3 for net in nets}
            raise UserError(
                f"exec.zero shards the weights of {name} (stage 3), but the exact penalty of family.{field} "
                f"differentiates through them twice, when they are released already; use exec.zero="
                f"{{{', '.join(f'{net}: {stage}' for net, stage in fits.items())}}}, or family.{field}=0"
            )


def check_data(run: RunConfig, exec_: ExecConfig, sets: Sequence[str], manifests: Sequence[Manifest]) -> None:
    """Refuse sets of another size, other sets than those this run began with, and what does not go with them."""
    check_sets(sets, run.data, exec_.reader)
    for one, manifest in zip(sets, manifests, strict=True):
        if not manifest.count:
            raise UserError(f"data={one!r} holds no image; prepare another")
        if manifest.size_px != run.data.size_px:
            raise UserError(
                f"data={one!r} holds {manifest.size_px} px images, the recipe wants data.size_px={run.data.size_px}; "
                f"prepare it with --size {run.data.size_px}, or --set data.size_px={manifest.size_px}"
            )
        check_classes(run, one, manifest)
        check_planes(run, one, manifest)
    check_copy(sets[0], manifests[0], exec_.reader)
    begun = run.data.dataset_id.split("+") if run.data.dataset_id else []
    if begun and len(begun) != len(sets):
        raise UserError(
            f"data: {len(sets)} sets, this run was made with {len(begun)}; give those again, in their order"
        )
    for one, manifest, known in zip(sets, manifests, begun, strict=False):
        if identity_of(one, manifest) != known:
            raise UserError(
                f"data={one!r} is data set {identity_of(one, manifest)}, this run was made with {known}; "
                "point --data at that set, or start another run"
            )


def check_classes(run: RunConfig, one: str, manifest: Manifest) -> None:
    """Refuse a set without the classes that the family is made for."""
    wanted, there = run.family.num_classes(), len(manifest.classes)
    if wanted and wanted != there:
        raise UserError(
            f"data={one!r} has {there} classes, the recipe is for {wanted}; prepare a set with labels, or set the "
            f"number that it has: {' '.join(f'--set {f}={max(1, there)}' for f in run.family.classes_fields)}"
        )


def check_validation(run: RunConfig, one: str, manifest: Manifest) -> None:
    """Refuse a held-out set that this run cannot be measured on, or is trained on."""
    if not run.family.validates:
        raise UserError(f"validation={one!r}: family.kind={run.family.kind!r} measures nothing on it; leave it out")
    if manifest.size_px != run.data.size_px or not manifest.count:
        raise UserError(
            f"validation={one!r} holds {manifest.count} images of {manifest.size_px} px, the run trains on "
            f"data.size_px={run.data.size_px}; prepare it with --size {run.data.size_px}"
        )
    if manifest.dataset_id in (known.removeprefix("streamed:") for known in run.data.dataset_id.split("+")):
        raise UserError(f"validation={one!r} is the set that the run is trained on; give another")
    check_classes(run, one, manifest)
    check_planes(run, one, manifest)


def check_planes(run: RunConfig, one: str, manifest: Manifest) -> None:
    """Refuse pictures where pairs of photograph and depth are wanted, and pairs where pictures are."""
    if manifest.planes != run.family.planes:
        kinds = {1: "pictures", 2: "photographs with depth (graticule prep depth)"}
        raise UserError(
            f"data={one!r} holds {kinds[manifest.planes]}, family.kind={run.family.kind!r} is for "
            f"{kinds[run.family.planes]}; give a set of those"
        )


def dataset_id(sets: Sequence[str], manifests: Sequence[Manifest]) -> str:
    """What a run remembers of its sets, in their order."""
    return "+".join(map(identity_of, sets, manifests))


def run_name(run: RunConfig) -> str:
    """`<recipe>-<hash8>`: the folder of the run; equal configurations share it."""
    return f"{run.recipe}-{fingerprint(run)}"
