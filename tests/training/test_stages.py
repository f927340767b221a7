"""Networks that change on the way: a run over two changes of stage, taken up before, at and after each of them.

Small real runs on photographs: PGGAN from 4 to 16 px, iterations of 32, then 16, then 8 images; and DCGAN, whose G is
updated in every fifth iteration. Two ranks are one pair of processes for all cases. Each comparison of checkpoints
covers G, D, G_ema, both optimizers and progress.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.config import fingerprint
from pipeline.data.feed import batches
from pipeline.plan import ExecConfig, RunConfig, override_all
from pipeline.recipes import find
from pipeline.run import plan_run, train_folder
from pipeline.synthesis.sample import generate, load_generator
from pipeline.tracking import jsonl
from pipeline.training import checkpoint, loop
from pipeline.training.checkpoint import Snapshot
from tests.runs import ENV
from tests.training.stage_ranks import after
from tests.training.test_engine import free_ports
from tests.training.zero_ranks import unlike

PGGAN, DCGAN = "mspie.pggan_celeba_c", "mspie.dcgan_bedroom_c"
SMALL = {
    PGGAN: ["family.G.channel_max=8", "family.D.channel_max=8", "family.stage_kimg=0.05", "family.fade_kimg=0.05"],
    DCGAN: ["family.G.channel_base=2", "family.D.channel_base=2", "batch_size=8", "total_kimg=0.064"],
}
SMALL[PGGAN] += ["family.batch_factors=[4, 2, 1]", "batch_size=8", "total_kimg=0.2"]
SETTINGS = ["exec.checkpoint_kimg=0.001", "exec.keep=50", "exec.sample_kimg=100", "exec.status_kimg=0.05"]
SETTINGS += ["exec.track=false", "exec.workers=0"]
STARTS = [0, 32, *range(64, 160, 16), *range(160, 200, 8)]  # of the iterations: 50 and 150 are rounded up to whole ones
AROUND = [32, 64, 80, 144, 160, 168]  # just before, at and just after each change
ROOT = Path(__file__).resolve().parents[2]


def run_of(recipe: str, *sets: str) -> tuple[RunConfig, ExecConfig]:
    return override_all(find(recipe).make().tiny(), ExecConfig(), [*SMALL[recipe], *SETTINGS, *sets])


def planned(recipe: str, photos, runs: Path, *sets: str) -> Path:
    return plan_run(*run_of(recipe, *sets), photos(16), runs, [])


def taken_up(recipe: str, photos, whole: Path, nimg: int, runs: Path, *sets: str) -> Path:
    """A run whose newest checkpoint is this one of another run."""
    folder = planned(recipe, photos, runs, *sets)
    shutil.copytree(checkpoint.folder_of(whole / "checkpoints", nimg), folder / "checkpoints" / f"{nimg:012d}")
    return folder


def at(folder: Path, nimg: int) -> Snapshot:
    run = RunConfig.from_json((folder / "config.json").read_text())
    return checkpoint.load(checkpoint.folder_of(folder / "checkpoints", nimg), fingerprint(run))


def differences(a: Path, b: Path, nimg: int) -> list[str]:
    x, y = at(a, nimg), at(b, nimg)
    return unlike(x, y) + ([] if x.nets.keys() == y.nets.keys() == {"G", "D", "G_ema"} else ["networks"])


@pytest.fixture(scope="module")
def shown() -> list[tuple[list[int], torch.Tensor]]:
    """Numbers and pixels of each microbatch of `whole`."""
    return []


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory, shown) -> Path:
    """The undisturbed run of one rank; a checkpoint after each iteration, a grid now and then."""
    folder, real = planned(PGGAN, photos, tmp_path_factory.mktemp("whole"), "exec.sample_kimg=0.04"), loop.to_device
    with pytest.MonkeyPatch.context() as patch:

        def to_device(family, batch, ids, size, device):
            shown.append((list(ids), batch.img.clone()))
            return real(family, batch, ids, size, device)

        patch.setattr(loop, "to_device", to_device)
        assert train_folder(folder, should_stop=lambda: False) == "done"
    return folder


@pytest.fixture(scope="module")
def dcgan(photos, tmp_path_factory) -> Path:
    folder = planned(DCGAN, photos, tmp_path_factory.mktemp("dcgan"))
    assert train_folder(folder, should_stop=lambda: False) == "done"
    return folder


@pytest.fixture(scope="module")
def pair(photos, tmp_path_factory, whole, dcgan) -> dict[str, Path]:
    """Runs of two ranks: from the start, and from checkpoints of one."""
    out, two = tmp_path_factory.mktemp("pair"), "exec.gpus=2"
    folders = {"start": planned(PGGAN, photos, out / "start", two), "dcgan": planned(DCGAN, photos, out / "dcgan", two)}
    folders |= {f"{n}": taken_up(PGGAN, photos, whole, n, out / f"{n}", two) for n in (32, 160)}
    words = [word for name, folder in folders.items() for word in (str(folder), "3" if name.isdigit() else "100")]
    env = {**ENV, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "PORTS": " ".join(free_ports(len(folders)))}
    env |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command, ranks = [sys.executable, str(Path(__file__).with_name("stage_ranks.py")), *words], []
    try:
        for rank in ("0", "1"):
            with open(out / f"{rank}.log", "w") as log:
                place = {"RANK": rank, "LOCAL_RANK": rank}
                ranks.append(subprocess.Popen(command, env=env | place, stdout=log, stderr=subprocess.STDOUT))
        codes = [process.wait(timeout=240) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join((out / f"{rank}.log").read_text()[-3000:] for rank in "01")
    return folders


def test_the_iterations_of_a_stage_have_its_images_and_each_image_comes_once_in_the_order_of_the_data(
    whole, shown, photos
):
    assert sorted(int(p.name) for p in whole.glob("checkpoints/[0-9]*")) == [*STARTS[1:], 200]
    ids = [i for part, _ in shown for i in part]
    assert ids == list(range(200))
    run, _ = run_of(PGGAN)
    stream = batches(
        [str(photos(16))], run.data, reader="tar", seed=run.seed, nimg=0, batch_size=8, slices=[range(8)], rank=0,
        world=1, workers=0,
    )  # fmt: skip
    expected = torch.cat([next(stream).img for _ in range(25)])
    stream.close()
    assert torch.equal(torch.cat([img for _, img in shown]), expected)


@pytest.mark.parametrize("nimg", AROUND)
def test_a_run_taken_up_around_a_change_of_stage_is_the_undisturbed_one(nimg, whole, photos, tmp_path):
    folder = taken_up(PGGAN, photos, whole, nimg, tmp_path)
    assert train_folder(folder, should_stop=after(2)) == "stopped"
    later = STARTS[STARTS.index(nimg) + 1 : STARTS.index(nimg) + 3]
    assert [differences(whole, folder, n) for n in later] == [[], []]


def test_two_ranks_compute_the_bits_of_one_over_all_stages(whole, pair):
    assert [differences(whole, pair["start"], n) for n in (32, 64, 80, 144, 160, 168, 200)] == [[]] * 7


@pytest.mark.parametrize("nimg", [32, 160])
def test_a_run_of_one_rank_goes_over_a_change_of_stage_on_two(nimg, whole, pair):
    index = STARTS.index(nimg)
    assert [differences(whole, pair[str(nimg)], n) for n in STARTS[index + 1 : index + 4]] == [[]] * 3


def test_a_run_of_two_ranks_goes_over_a_change_of_stage_on_one(whole, pair, photos, tmp_path):
    folder = taken_up(PGGAN, photos, pair["start"], 144, tmp_path)
    assert train_folder(folder, should_stop=after(2)) == "stopped"
    assert differences(whole, folder, 168) == []


def test_optimizers_start_anew_with_a_stage_and_only_then(whole):
    for nimg, steps in ((32, 1), (64, 2), (80, 1), (96, 2), (160, 6), (168, 1), (200, 5)):
        for optimizer in at(whole, nimg).optimizers.values():
            assert {int(entry["step"]) for entry in optimizer["state"].values()} == {steps}, nimg
    # of Adam that started anew the second moment is this one gradient's: a parameter without one has none
    second = at(whole, 80).optimizers["D"]["state"]
    assert any(not entry["exp_avg_sq"].any() for entry in second.values())


def test_a_level_moves_from_its_stage_on_in_g_and_in_its_average(whole):
    def moved(name: str, prefix: str, a: int, b: int) -> bool:
        old, new = at(whole, a).nets[name], at(whole, b).nets[name]
        return any(not torch.equal(old[k], new[k]) for k in old if k.startswith(prefix))

    for name in ("G", "G_ema", "D"):
        assert not moved(name, "blocks.0", 32, 64), name
        assert moved(name, "blocks.0", 80, 96), name
        assert not moved(name, "blocks.1", 32, 160), name
        assert moved(name, "blocks.1", 168, 176), name


def test_a_checkpoint_knows_its_level_and_samples_there_and_at_sizes_never_trained(whole, tmp_path):
    levels = {n: at(whole, n).nets["G_ema"]["grown"].tolist() for n in (64, 80, 96, 168, 200)}
    assert levels == {
        64: [0, 1],
        80: [1, pytest.approx((64 - 50) / 50)],
        96: [1, pytest.approx((80 - 50) / 50)],
        168: [2, pytest.approx((160 - 150) / 50)],
        200: [2, pytest.approx((192 - 150) / 50)],
    }
    for nimg, side in ((64, 4), (96, 8), (200, 16)):
        G = load_generator(whole / "config.json", whole / "checkpoints" / f"{nimg:012d}" / "G_ema.safetensors")
        assert G.native_size == (side, side)
        assert generate(G, [1, 2]).shape == (2, side, side, 3)
        assert generate(G, [1, 2], (2 * side, 3 * side)).shape == (2, 2 * side, 3 * side, 3)


def test_grids_show_the_level_of_their_time(whole):
    names = sorted(p.name.removeprefix("0" * 9).removesuffix(".png") for p in whole.glob("samples/*"))
    assert names == ["000-4x4", "064-4x4", "080-8x8", "128-8x8", "160-8x8", "200-16x16"]


def test_a_run_that_was_stopped_and_one_that_ended_tell_the_same_curve(whole, photos, tmp_path):
    folder = taken_up(PGGAN, photos, whole, 144, tmp_path)
    assert train_folder(folder, should_stop=lambda: False) == "done"
    a, b = ({m["nimg"]: m["metrics"] for m in jsonl.metrics(f / "metrics.jsonl")} for f in (whole, folder))
    losses = {k for k in a[200] if k.startswith("Loss")}
    assert {k.rpartition("/")[2] for k in losses} >= {"adv", "gp", "drift"}
    assert {k: a[200][k] for k in losses} == {k: b[200][k] for k in losses}
    assert differences(whole, folder, 200) == []


def test_g_of_dcgan_moves_in_every_fifth_iteration_on_two_ranks_as_on_one(dcgan, pair):
    steps = {n: int(at(dcgan, n).optimizers["G"]["state"][0]["step"]) for n in (8, 40, 48, 64)}
    assert steps == {8: 1, 40: 1, 48: 2, 64: 2}
    assert int(at(dcgan, 64).optimizers["D"]["state"][0]["step"]) == 8
    assert [differences(dcgan, pair["dcgan"], n) for n in (8, 48, 64)] == [[]] * 3


@pytest.mark.parametrize("nimg", [32, 40])
def test_dcgan_taken_up_before_g_is_due_is_the_undisturbed_one(nimg, dcgan, photos, tmp_path):
    folder = taken_up(DCGAN, photos, dcgan, nimg, tmp_path)
    assert train_folder(folder, should_stop=after(2)) == "stopped"
    assert differences(dcgan, folder, nimg + 16) == []


def test_the_average_of_dcgan_is_its_g(dcgan):
    nets = at(dcgan, 64).nets
    assert nets["G"].keys() == nets["G_ema"].keys()
    assert all(torch.equal(nets["G"][name], value) for name, value in nets["G_ema"].items())
