"""Sliced Wasserstein distance against scipy, one picture at a time, and what must leave it as it is."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage
from scipy.stats import wasserstein_distance

from pipeline.errors import UserError, WorkError
from pipeline.metrics.sliced import (
    PatchSet,
    SlicedConfig,
    doubled,
    halved,
    level_distance,
    moments,
    patches,
    pyramid,
    rebuilt,
    sliced,
    unit_directions,
)

SMALL = SlicedConfig(images=12, patches=8, repeats=2, directions=5)
PARITIES = ("tkarras", "mmgeneration")
FILTER = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256


def photos(n: int = 12, px: int = 32, seed: int = 0, least: int = 0, most: int = 255) -> torch.Tensor:
    """Pictures with something in every band: random walks along both axes."""
    walk = np.random.default_rng(seed).standard_normal((n, 3, px, px)).cumsum(axis=2).cumsum(axis=3)
    low, high = walk.min(axis=(1, 2, 3), keepdims=True), walk.max(axis=(1, 2, 3), keepdims=True)
    return torch.from_numpy(np.rint(least + (walk - low) / (high - low) * (most - least)).astype(np.uint8))


def set_of(img: torch.Tensor, config: SlicedConfig = SMALL, seed: int = 0, batch: int = 5, **more) -> PatchSet:
    made = PatchSet(img.shape[-1], config, **more)
    for first in range(0, len(img), batch):
        numbers = range(first, min(first + batch, len(img)))
        made.add(patches(img[list(numbers)], numbers, config, seed), numbers)
    return made


@pytest.mark.parametrize("parity", PARITIES)
@pytest.mark.parametrize("px", [16, 64])
def test_the_pyramid_is_exactly_the_picture_again(px, parity):
    img = photos(2, px)
    levels = pyramid(img, 3, parity)
    assert [level.shape[-1] for level in levels] == [px, px // 2, px // 4]
    assert torch.equal(rebuilt(levels, parity), img.double())
    assert levels[0].abs().max() > 1


def test_the_filters_are_those_of_scipy_with_mirrored_borders():
    x = photos(1, 16)[0, 0].double()
    small = ndimage.convolve(x.numpy(), FILTER, mode="mirror")[::2, ::2]
    np.testing.assert_array_equal(halved(x[None, None])[0, 0], small)
    spread = np.zeros((32, 32))
    spread[::2, ::2] = x
    np.testing.assert_array_equal(doubled(x[None, None])[0, 0], 4 * ndimage.convolve(spread, FILTER, mode="mirror"))


def test_parity_with_mmgeneration_filters_with_zeros_and_repeats_pixels():
    x = photos(1, 16)[0, 0].double() - 127.5
    small = ndimage.convolve(x.numpy(), FILTER, mode="constant")[::2, ::2]
    np.testing.assert_array_equal(halved(x[None, None], "mmgeneration")[0, 0], small)
    large = ndimage.convolve(np.kron(x, np.ones((2, 2))), FILTER, mode="constant")
    np.testing.assert_array_equal(doubled(x[None, None], "mmgeneration")[0, 0], large)


def test_levels_halve_down_to_16_px():
    assert SlicedConfig().levels((128, 128)) == (128, 64, 32, 16)
    assert SlicedConfig().levels((1024, 1024)) == (1024, 512, 256, 128, 64, 32, 16)
    assert SlicedConfig().levels((16, 16)) == (16,)
    assert SlicedConfig(parity="mmgeneration").levels((1024, 1024)) == (1024, 512, 256, 128)


@pytest.mark.parametrize("size", [(96, 96), (100, 100), (8, 8), (64, 32)])
def test_other_sizes_are_refused_with_those_that_are_taken(size):
    with pytest.raises(UserError, match=f"of {size[0]}x{size[1]} px; it takes squares of 16, 32, 64, 128"):
        SlicedConfig().levels(size)


def test_patches_larger_than_the_last_level_are_refused():
    with pytest.raises(ValidationError, match="patch_px=17 must be at most least_px=16"):
        SlicedConfig(patch_px=17)


def test_patches_are_windows_of_the_level_at_the_draws_of_their_picture():
    img = photos(3)
    made = patches(img, (4, 0, 9), SMALL)
    assert {side: tuple(p.shape) for side, p in made.items()} == {32: (3, 8, 3, 7, 7), 16: (3, 8, 3, 7, 7)}
    fine = pyramid(img, 2)[0].float()
    windows = {tuple(fine[1, :, y : y + 7, x : x + 7].flatten().tolist()) for y in range(26) for x in range(26)}
    found = {tuple(p.flatten().tolist()) for p in made[32][1]}
    assert found <= windows
    assert len(found) == 8
    assert not torch.equal(patches(img, (4, 1, 9), SMALL)[32][1], made[32][1])
    assert not torch.equal(patches(img, (4, 0, 9), SMALL, seed=1)[32][1], made[32][1])


def test_every_place_wholly_inside_is_drawn_and_no_other():
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    corners = patches(ramp, (0,), SMALL.replace(patches=4000))[16][0, :, 0, 0, 0]
    assert set(corners.tolist()) == {16.0 * y + x for y in range(10) for x in range(10)}


def test_batches_and_ranks_and_order_do_not_matter(tmp_path):
    img = photos()
    whole = set_of(img, batch=12)
    ranks = PatchSet(32, SMALL, folder=tmp_path)
    for rank in (2, 0, 1):
        numbers = range(rank, 12, 3)
        ranks.add(patches(img[list(numbers)], numbers, SMALL), numbers)
    other = set_of(photos(seed=1))
    for side, level in whole.levels.items():
        np.testing.assert_array_equal(ranks.levels[side], level)
    assert sliced(ranks, other) == sliced(whole, other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["swd-px16.f32", "swd-px32.f32"]
    assert (tmp_path / "swd-px32.f32").stat().st_size == 4 * 12 * 8 * 147


@pytest.mark.parametrize("parity", PARITIES)
def test_the_distance_of_a_level_is_the_mean_of_scipys_in_one_dimension(parity, monkeypatch):
    monkeypatch.setattr("pipeline.metrics.sliced.IMAGES_AT_ONCE", 5)
    monkeypatch.setattr("pipeline.metrics.sliced.DIRECTIONS_AT_ONCE", 2)
    config = SMALL.replace(parity=parity)
    real, fake = (set_of(photos(seed=s), config).levels[32] for s in (0, 1))
    flat = []
    for level in (real, fake):
        rows = level.reshape(-1, 3, 49).astype(np.float64)
        rows = rows - rows.mean(axis=(0, 2), keepdims=True)
        flat.append((rows / rows.std(axis=(0, 2), keepdims=True, ddof=parity == "mmgeneration")).reshape(-1, 147))
    directions = np.concatenate([unit_directions(config, 147, 0, repeat) for repeat in range(2)])
    want = np.mean([wasserstein_distance(flat[0] @ d, flat[1] @ d) for d in directions])
    assert level_distance(real, fake, config) == pytest.approx(want, rel=1e-9)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    assert len({tuple(d) for d in directions}) == 10


def test_moments_are_those_of_all_patches_of_a_channel(monkeypatch):
    monkeypatch.setattr("pipeline.metrics.sliced.IMAGES_AT_ONCE", 5)
    level = (np.random.default_rng(0).standard_normal((12, 8, 3, 7, 7)) * 3 + 120).astype(np.float32)
    double = level.astype(np.float64)
    for unbiased in (False, True):
        mean, deviation = moments(level, unbiased)
        np.testing.assert_allclose(mean, double.mean(axis=(0, 1, 3, 4)), rtol=1e-12)
        np.testing.assert_allclose(deviation, double.std(axis=(0, 1, 3, 4), ddof=int(unbiased)), rtol=1e-11)


def test_a_set_is_0_from_itself_and_not_from_another():
    one, other = set_of(photos()), set_of(photos(seed=1))
    assert sliced(one, set_of(photos())) == {32: 0.0, 16: 0.0}
    assert all(d > 10 for d in sliced(one, other).values())
    assert sliced(one, other) == sliced(other, one)
    assert sliced(one, other, seed=1) != sliced(one, other)


def test_gain_and_offset_of_a_channel_do_not_matter():
    img = photos(most=60)
    gain, offset = (torch.tensor(v, dtype=torch.uint8)[:, None, None] for v in ((1, 2, 4), (50, 0, 10)))
    for d in sliced(set_of(img), set_of(img * gain + offset)).values():
        assert d < 1e-4
    by_pixel = img.clone()
    by_pixel[..., ::2] *= 2
    assert sliced(set_of(img), set_of(by_pixel))[32] > 10


def test_two_sets_of_a_few_values_are_as_far_apart_as_by_hand():
    """One pixel: the direction is 1 or -1, the distance the mean difference of sorted, normalised values."""
    config = SlicedConfig(images=4, patches=1, patch_px=1, repeats=1, directions=1)
    real, fake = (np.array(v, np.float32).reshape(4, 1, 1, 1, 1) for v in ([-1, -1, 1, 1], [0, 0, 0, 1]))
    low, high = -1 / 3**0.5, 3**0.5  # what 0 and 1 of the fakes become; the reals stay
    want = (2 * abs(-1 - low) + abs(1 - low) + abs(1 - high)) / 4
    assert level_distance(real, fake, config) == pytest.approx(want, rel=1e-7)
    assert level_distance(real, real * 3 + 7, config) == pytest.approx(0, abs=1e-12)


def test_a_collapsed_set_has_a_finite_distance():
    flat = set_of(torch.full((12, 3, 32, 32), 77, dtype=torch.uint8))
    assert moments(flat.levels[32])[1].tolist() == [0, 0, 0]
    found = sliced(set_of(photos()), flat)
    assert all(100 < d < 2000 for d in found.values())
    assert sliced(flat, flat) == {32: 0.0, 16: 0.0}


def test_too_few_pictures_are_counted():
    few, enough = set_of(photos(7)), set_of(photos())
    with pytest.raises(UserError, match="the real set holds 7 pictures, the protocol compares 12 of each set"):
        sliced(few, enough)
    with pytest.raises(UserError, match="the generated set holds 7 pictures"):
        sliced(enough, few)


def test_numbers_outside_the_set_and_unlike_sets_are_refused():
    made = patches(photos(2), (0, 1), SMALL)
    for numbers in ((11, 12), (-1, 0)):
        with pytest.raises(ValueError, match=f"picture numbers {numbers[0]} to {numbers[1]}, not in 0 to 11"):
            PatchSet(32, SMALL).add(made, numbers)
    for other in (patches(photos(2, 16), (0, 1), SMALL), patches(photos(2)[:, :1], (0, 1), SMALL)):
        with pytest.raises(ValueError, match=r"for 2 pictures; this set holds \{32: "):
            PatchSet(32, SMALL).add(other, (0, 1))
    with pytest.raises(ValueError, match="for 3 pictures; this set holds"):
        PatchSet(32, SMALL).add(patches(photos(1), (0,), SMALL), (0, 1, 2))
    with pytest.raises(ValueError, match=r"at 32 px, not .* 16 px"):
        sliced(PatchSet(32, SMALL), PatchSet(16, SMALL))


def test_a_folder_that_cannot_hold_the_patches_is_said_at_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(WorkError, match=r"px32\.f32: no room for 1\.23 GB of patches \(No space left"):
        PatchSet(32, SlicedConfig(), folder=tmp_path)
    assert not list(tmp_path.iterdir())
