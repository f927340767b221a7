"""CIPS' ways to train: what D is shown in each, that it is what G made at those places, what the draws hang on."""

import pytest
import torch
from torch import nn

from pipeline.attempt import schedule_of
from pipeline.chance import Chance
from pipeline.cost import parameters
from pipeline.families.cips import CIPSConfig
from pipeline.families.cips_views import cropped, gathered, panorama, patches, whole, with_coordinates
from pipeline.models.cips import CIPSGenerator
from pipeline.models.cips_discriminator import CIPSDiscriminatorConfig
from pipeline.models.stylegan2 import DiscriminatorConfig
from pipeline.phases import Step
from pipeline.plan import DataConfig, ExecConfig, RunConfig
from pipeline.recipes import find
from pipeline.spec import Batch, to_float
from pipeline.training.engine import Engine
from pipeline.training.health import Health
from pipeline.training.loop import Outlets, Training, train
from pipeline.training.runner import to_device
from tests.training.zero_ranks import unlike

CPU = torch.device("cpu")
FULL, PATCH, SMALL_PATCH = "cips.table1_ffhq", "cips.table5_ffhq_128", "cips.table5_ffhq_64"
CROP, PANORAMA, GROWING = "cips.table1_sat_buildings", "cips.landscapes_panorama", "cips.ffhq_1024"


def tiny(recipe: str, *, coords: bool = False, **changes) -> CIPSConfig:
    """Narrower still."""
    config = find(recipe).make().family.tiny()
    small = config.replace(
        G=config.G.replace(width=8, z_dim=8, w_dim=8, mapping_layers=1),
        D=config.D.replace(channel_max=8, coords=coords),
    )
    return small.replace(**changes)


def chance(*ids: int, nimg: int = 0, scope: str = "D", seed: int = 0) -> Chance:
    return Chance(seed, scope, nimg, ids, CPU)


def make_step(ids=range(8), size=(32, 32), due=frozenset(), scope="D", real=None, nimg=0) -> Step:
    noise = torch.rand(64, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Step(
        noise[list(ids)] if real is None else real,
        size,
        chance(*ids, scope=scope, nimg=nimg),
        due,
        {},
        torch.zeros(len(ids), dtype=torch.int64),
    )


class Places(CIPSGenerator):
    """A generator whose picture is where it was asked: row, column and 0 of every pixel."""

    def at(self, ws, rows, cols, noise=None):
        n, h, w = len(ws), rows.shape[1], cols.shape[1]
        y, x = rows[:, :, None].expand(n, h, w).float(), cols[:, None, :].expand(n, h, w).float()
        return torch.stack([y, x, torch.zeros(n, h, w)], dim=1)

    def synthesis(self, ws, size, noise):
        return self.at(ws, *whole(size, CPU))


class Eye(nn.Module):
    """A linear D, which remembers what it saw."""

    def __init__(self, *shape: int):
        super().__init__()
        self.a, self.seen = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(3))), []

    def forward(self, img):
        self.seen.append(img.detach())
        return (img * self.a).sum(dim=(1, 2, 3))


# Patches


@pytest.mark.parametrize("coords", [False, True])
@pytest.mark.parametrize(("recipe", "side"), [(FULL, 32), (PATCH, 16), (SMALL_PATCH, 8)])
def test_d_sees_reals_and_fakes_at_the_same_places_in_both_phases(recipe, side, coords):
    config = tiny(recipe, coords=coords)
    nets = {"G": Places(config.G), "D": Eye(5 if coords else 3, side, side)}
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    real = torch.stack([y, x, torch.zeros(32, 32)]).expand(8, 3, 32, 32)
    D_phase, G_phase = config.build(0).phases
    for nimg in range(0, 64, 8):
        nets["D"].seen.clear()
        ids = range(nimg, nimg + 8)
        D_phase.loss(nets, make_step(ids, real=real, nimg=nimg))
        G_phase.loss(nets, make_step(ids, real=real, nimg=nimg, scope="G"))
        reals, fakes, again = nets["D"].seen
        assert reals.shape == (8, 5 if coords else 3, side, side)
        assert torch.equal(reals, fakes)
        assert torch.equal(fakes, again)
        if coords:
            torch.testing.assert_close(reals[:, 3], 2 * reals[:, 1] / 31 - 1)  # x, then y, in [-1, 1]
            torch.testing.assert_close(reals[:, 4], 2 * reals[:, 0] / 31 - 1)


def test_every_stride_is_drawn_alike_and_corners_are_uniform_wherever_the_patch_fits():
    strides, corners = [], {1: [], 2: [], 4: []}
    for nimg in range(0, 3000, 4):
        rows, cols = patches(chance(*range(nimg, nimg + 4), nimg=nimg), 32, 8)
        assert rows.shape == cols.shape == (4, 8)
        (stride,) = {*(rows.diff().flatten().tolist()), *(cols.diff().flatten().tolist())}
        strides.append(stride)
        corners[stride] += [*zip(rows[:, 0].tolist(), cols[:, 0].tolist(), strict=True)]
    assert all(200 < strides.count(stride) < 300 for stride in (1, 2, 4))  # of 750: 4 deviations
    for stride, found in corners.items():
        room = 32 - 7 * stride
        for axis in zip(*found, strict=True):
            counts = torch.bincount(torch.tensor(axis), minlength=room)
            assert counts.shape == (room,)
            assert counts.sum() == len(found)
            expected = len(found) / room
            chi2 = ((counts - expected).square() / expected).sum().item()
            assert chi2 < room + 4 * (2 * room) ** 0.5
        assert len(set(found)) > 0.6 * min(len(found), room**2)  # rows and columns apart


def test_one_iteration_has_one_stride_and_each_sample_its_own_corner():
    parts = [patches(chance(i, nimg=16), 64, 8) for i in range(16, 32)]
    rows, cols = patches(chance(*range(16, 32), nimg=16), 64, 8)
    assert torch.equal(torch.cat([r for r, _ in parts]), rows)
    assert torch.equal(torch.cat([c for _, c in parts]), cols)
    assert len(rows.diff().unique()) == 1
    assert len(set(rows[:, 0].tolist())) > 4
    assert torch.equal(rows, patches(chance(*range(16, 32), nimg=16, scope="G"), 64, 8)[0])
    assert not torch.equal(rows, patches(chance(*range(16, 32), nimg=16, seed=1), 64, 8)[0])


def test_pixels_are_gathered_from_their_own_image():
    img, (rows, cols) = (
        torch.rand(3, 2, 9, 7),
        (torch.tensor([[0, 8]]), torch.tensor([[1, 2, 6], [0, 0, 5], [3, 1, 1]])),
    )
    out = gathered(img, (rows, cols))
    assert out.shape == (3, 2, 2, 3)
    for n in range(3):
        assert torch.equal(out[n], img[n][:, rows[0]][:, :, cols[n]])


# Panoramas


def test_crops_of_a_cylinder_begin_at_every_column_and_cross_the_seam():
    firsts = []
    for nimg in range(0, 2000, 8):
        rows, cols = panorama(chance(*range(nimg, nimg + 8)), (4, 6), 20)
        assert rows.tolist() == [[0, 1, 2, 3]]
        assert torch.equal(cols, (cols[:, :1] + torch.arange(6)) % 20)
        firsts += cols[:, 0].tolist()
    counts = torch.bincount(torch.tensor(firsts), minlength=20)
    assert counts.shape == (20,)
    assert counts.min() > 60  # of 100: 4 deviations
    assert counts.max() < 140


def test_a_panorama_is_judged_by_its_crops_against_whole_photographs():
    config = tiny(PANORAMA)
    width, eye, step = config.G.cylinder_px, Eye(3, 32, 32), make_step()
    config.build(0).phases[0].loss({"G": Places(config.G), "D": eye}, step)
    reals, fakes = eye.seen
    assert torch.equal(reals, step.real)
    assert width == 96
    assert fakes[:, 1].amax() < width
    assert len(fakes[:, 1, 0, 0].unique()) > 4
    assert config.build(0).sizes == ((32, 96),)  # of grids of samples


# Discriminators


@pytest.mark.parametrize(("recipe", "coords", "shape"), [(FULL, False, (3, 32, 32)), (PATCH, True, (5, 16, 16))])
def test_r1_of_a_linear_discriminator_is_the_square_of_its_weights_over_all_that_it_sees(recipe, coords, shape):
    config = tiny(recipe, coords=coords, r1_gamma=7)
    nets = {"G": Places(config.G), "D": Eye(*shape)}
    terms = config.build(0).phases[0].loss(nets, make_step(due=frozenset(["r1"])))
    torch.testing.assert_close(terms["r1"], (3.5 * nets["D"].a.square().sum()).expand(8))


def test_discriminators_have_the_published_numbers_of_parameters():
    plain, at256 = CIPSConfig(), {}
    for coords in (False, True):
        at256[coords] = parameters(plain.replace(D=plain.D.replace(coords=coords)))["D"]
    assert at256 == {False: 28_864_129, True: 28_864_385}


def test_at_a_smaller_side_d_is_the_discriminator_of_that_side():
    """Same logits as one built for it, given the entry's and the shared blocks' weights."""
    torch.manual_seed(0)
    for blocks in (0, 1, 2):
        grown = CIPSDiscriminatorConfig(resolution_px=32, channel_max=8, fp16_blocks=blocks).build(2)
        for skipped, side in enumerate((32, 16, 8)):
            half = max(0, blocks - skipped)
            alone = DiscriminatorConfig(resolution_px=side, channel_max=8, fp16_blocks=min(half, 3 - skipped)).build()
            own = grown.state_dict()
            weights = {
                name: own[
                    name.replace("from_rgb", f"entries.{side}")
                    if skipped and name.startswith("from_rgb")
                    else _block(name, skipped)
                ]
                for name in alone.state_dict()
            }
            alone.load_state_dict(weights)
            img = torch.randn(4, 3, side, side)
            assert torch.equal(grown(img), alone(img))


def _block(name: str, skipped: int) -> str:
    first, *rest = name.split(".")
    return ".".join([first, str(int(rest[0]) + skipped), *rest[1:]]) if first == "blocks" else name


# Growth


def test_stages_follow_their_lengths():
    family = find(GROWING).make().family
    assert family.sizes() == ((256, 256), (512, 512), (1024, 1024))
    assert family.starts() == (0, 3_200_000, 4_000_000)
    assert family.size_probs(4_800.0) == pytest.approx((2 / 3, 1 / 6, 1 / 6))
    assert family.size_probs(1_600.0) == pytest.approx((1, 0, 0))
    assert family.size_probs() == (0, 0, 1)
    assert family.staged()
    small = tiny(GROWING, grow_kimg=(0.008, 0.016)).build(0)
    assert [small.knobs(nimg).size[0] for nimg in (0, 7, 8, 23, 24, 999)] == [8, 8, 16, 16, 32, 32]


class Life:
    """A tiny growing run in this process: two iterations at 8 px, two at 16, two at 32."""

    def __init__(self):
        config = tiny(GROWING, grow_kimg=(0.008, 0.008), r1_interval=2)
        run = RunConfig(recipe="x", family=config, data=DataConfig(size_px=32), batch_size=4, total_kimg=0.024)
        self.engine = Engine("fp32", 1)
        self.schedule = schedule_of(run, ExecConfig(status_kimg=1e6, sample_kimg=1e6, checkpoint_kimg=1e6), 0)
        torch.manual_seed(0)
        self.training = Training(config.build(0), self.engine, self.schedule)

    def images(self):
        nimg = self.training.nimg
        while True:
            generator = torch.Generator().manual_seed(nimg)
            yield Batch(
                torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8), torch.zeros(4).long()
            )
            nimg += 4

    def go_on(self, iterations: int):
        end = self.training.nimg + 4 * iterations
        train(
            self.training,
            self.images(),
            self.engine,
            self.schedule,
            should_stop=lambda: self.training.nimg >= end,
            health=Health(1, self.engine.device),
            saver=None,
            outlets=Outlets(lambda *a: None, lambda *a, **k: None),
        )
        return self.snapshot()

    def snapshot(self):
        return self.training.snapshot(self.engine, self.schedule.fingerprint, 0.0)


def test_a_growing_run_resumes_to_the_same_bits_around_every_change_of_stage():
    whole_run = Life().go_on(6)
    assert whole_run.state.nimg == 24
    for cut in (1, 2, 3, 4, 5):
        before, after = Life(), Life()
        after.training.restore(before.go_on(cut))
        assert not unlike(after.go_on(6 - cut), whole_run), cut


def test_blocks_that_training_has_not_reached_do_not_move():
    life = Life()
    fresh = life.snapshot().nets["D"]
    at8 = life.go_on(2).nets["D"]
    still = {name for name in fresh if torch.equal(fresh[name], at8[name])}
    grown = {name for name in fresh if name.startswith(("from_rgb", "entries.16", "blocks.0", "blocks.1."))}
    assert still - {name for name in fresh if "bias" in name} == {name for name in grown if "bias" not in name}


# Presentation


def stored(n: int, side: int) -> torch.Tensor:
    """Pictures whose colours tell the image, the row and the column."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([torch.stack([torch.full_like(x, i), y, x]) for i in range(n)]).to(torch.uint8)


def test_a_crop_is_a_window_turned_by_quarters_and_every_place_and_turn_comes():
    img, corners, turned = stored(1, 12), set(), set()
    windows = {(y, x): to_float(img[:, :, y : y + 8, x : x + 8]) for y in range(5) for x in range(5)}
    known = {torch.rot90(one, k, (2, 3)).numpy().tobytes(): (at, k) for at, one in windows.items() for k in range(4)}
    for number in range(300):
        out = cropped(img, [number], (8, 8), share=8 / 12, rotate=True, seed=0)
        at, turns = known[out.numpy().tobytes()]
        corners.add(at)
        turned.add(turns)
    assert len(corners) == 25
    assert turned == {0, 1, 2, 3}


def test_a_crop_hangs_on_the_images_number_alone_and_on_the_seed():
    img, ids = stored(6, 12), [40, 41, 42, 43, 44, 45]

    def show(part: slice, seed=0, rotate=True):
        return cropped(img[part], ids[part], (8, 8), share=2 / 3, rotate=rotate, seed=seed)

    every = show(slice(0, 6))
    assert torch.equal(torch.cat([show(slice(0, 2)), show(slice(2, 3)), show(slice(3, 6))]), every)
    assert not torch.equal(show(slice(0, 6), seed=1), every)
    assert not torch.equal(show(slice(0, 6), rotate=False), every)
    assert len({tuple(one[1:].flatten().tolist()) for one in every}) > 4  # neighbours differ


def test_larger_stored_images_are_cropped_in_proportion_and_resized():
    img = stored(2, 24)
    out = cropped(img, [0, 1], (8, 8), share=8 / 12, rotate=False, seed=0)
    assert out.shape == (2, 3, 8, 8)
    spans = out[:, 2].amax(dim=(1, 2)) - out[:, 2].amin(dim=(1, 2))
    torch.testing.assert_close(spans * 127.5, torch.full((2,), 14.0), atol=0.7, rtol=0)  # of a window of 16


def test_reals_of_a_run_are_the_crops_of_their_numbers():
    """Through the door that the loop uses; other families are resized as ever."""
    config = tiny(CROP)
    assert (config.crop_of_px, config.stored_px(), config.rotate) == (38, 38, True)
    family, img = config.build(5), stored(4, 38)
    micro = to_device(family, Batch(img, torch.zeros(4).long()), [8, 9, 10, 11], (32, 32), CPU)
    expected = cropped(img, [8, 9, 10, 11], (32, 32), share=32 / 38, rotate=True, seed=5)
    assert torch.equal(micro.real, expected)
    assert tiny(FULL).build(0).present is None
    turning, plain = tiny(FULL, rotate=True).build(0), to_float(img[:, :, :32, :32])
    turned = to_device(turning, Batch(img[:, :, :32, :32], torch.zeros(4).long()), range(4), (32, 32), CPU).real
    assert not torch.equal(turned, plain)
    assert sorted(turned.flatten().tolist()) == sorted(plain.flatten().tolist())


def test_a_set_that_is_stored_too_small_for_the_crop_is_refused():
    with pytest.raises(ValueError, match=r"data.size_px=256 is smaller than the 300 px that training takes"):
        find(CROP).make().replace(data=DataConfig(size_px=256))
    tiny_run = find(CROP).make().tiny()
    assert tiny_run.data.size_px == 38


# All of them


@pytest.mark.parametrize("recipe", [PATCH, PANORAMA, CROP, GROWING])
def test_terms_of_a_microbatch_are_those_of_its_samples_in_the_whole_batch(recipe):
    config = tiny(recipe, coords=recipe == PATCH)
    family, size, side = config.build(0), config.sizes()[0], config.stored_px()
    img = torch.randint(0, 256, (8, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def terms(which: range) -> list[dict[str, torch.Tensor]]:
        ids = [80 + i for i in which]
        real = to_device(family, Batch(img[list(which)], torch.zeros(len(ids)).long()), ids, size, CPU).real
        steps = [make_step(ids, size, frozenset(["r1"]), phase.name, real, nimg=80) for phase in family.phases]
        return [phase.loss(family.nets, step) for phase, step in zip(family.phases, steps, strict=True)]

    for every, a, b in zip(terms(range(8)), terms(range(4)), terms(range(4, 8)), strict=True):
        for name, values in every.items():
            torch.testing.assert_close(torch.cat([a[name], b[name]]), values, rtol=1e-4, atol=1e-6)
            assert len(values.unique()) == 8, name


def test_ways_to_train_that_exclude_each_other_are_refused():
    full, patch = CIPSConfig(), find(PATCH).make().family
    D64, round_g = full.D.replace(resolution_px=64), full.G.replace(cylinder_px=512)
    for config, changes, message in [
        (patch, {"grow_kimg": (1.0,)}, "patch_px and grow_kimg are different ways"),
        (patch, {"G": round_g}, "patch_px and G.cylinder_px are different ways"),
        (full, {"G": round_g, "D": full.D.replace(coords=True)}, "no place on the cylinder"),
        (full, {"D": D64}, "D.resolution_px=64 must equal G.size_px=256"),
        (full, {"patch_px": 128, "D": D64}, "D.resolution_px=64 must equal patch_px=128"),
        (full, {"patch_px": 256}, "patch_px=256 must be smaller than G.size_px=256"),
        (full, {"patch_px": 96}, "power of two"),
        (full, {"crop_of_px": 256}, "crop_of_px=256 must be larger"),
        (full, {"grow_kimg": (1.0, -1.0)}, "must be positive"),
        (full, {"grow_kimg": (1.0,) * 6}, "would be at 4 px"),
    ]:
        with pytest.raises(ValueError, match=message):
            config.replace(**changes)


def test_coordinates_of_a_patch_are_those_of_its_pixels_in_the_full_image():
    full = with_coordinates(torch.zeros(4, 3, 32, 32), whole((32, 32), CPU), (32, 32))
    assert full[0, 3, 5].tolist() == pytest.approx(torch.linspace(-1, 1, 32).tolist(), abs=1e-6)
    assert torch.equal(full[:, 3], full[:, 4].mT)
    at = patches(chance(1, 2, 3, 4), 32, 8)
    assert torch.equal(with_coordinates(torch.zeros(4, 3, 8, 8), at, (32, 32)), gathered(full, at))


def test_a_full_image_is_shown_as_it_is():
    """The plain mode costs no copy."""
    config, step = tiny(FULL), make_step()
    assert config._as_seen(step).real is step.real
