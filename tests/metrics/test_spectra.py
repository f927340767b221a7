"""Distances of spectra where the answer is known, and the rings against those that `look spectra` draws."""

import math

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.metrics.spectra import SpectraConfig, durall_profile, grey, profiles, ring_power, spectra_distance
from pipeline.synthesis.spectra import spectrum

FEW = SpectraConfig(images=6)
AS_IS = FEW.replace(profile="power")
DURALL = FEW.replace(profile="durall")


def photos(n: int = 6, px: int = 32, seed: int = 0, most: int = 256) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, most, (n, 3, px, px), dtype=np.uint8))


def radial(images: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Each frequency times the gain of its ring."""
    cycles = torch.fft.fftfreq(images.shape[-1], dtype=torch.float64) * images.shape[-1]
    ring = torch.hypot(cycles[:, None], cycles[None, :]).round().long()
    return torch.fft.ifft2(torch.fft.fft2(images) * gain[ring]).real


@pytest.mark.parametrize("size", [(32, 32), (16, 48), (15, 21)])
def test_the_mean_profile_is_the_curve_that_look_spectra_draws(size):
    img = photos(px=48)[..., : size[0], : size[1]]
    drawn = spectrum([img.permute(0, 2, 3, 1).contiguous().numpy()]).power
    found = profiles(img, FEW)
    assert found.shape == (6, min(size) // 2 + 1)
    np.testing.assert_allclose(found.mean(dim=0), drawn[: found.shape[1]], rtol=1e-12)


def test_equal_sets_are_0_apart_whatever_the_batches():
    img = photos()
    apart = torch.cat([profiles(img[i : i + 1], FEW) for i in range(6)])
    torch.testing.assert_close(apart, profiles(img, FEW), rtol=1e-13, atol=0)
    for config in (FEW, AS_IS, DURALL):
        assert spectra_distance(profiles(img, config), profiles(img, config), config) == 0
        assert spectra_distance(profiles(img, config), profiles(photos(seed=1), config), config) > 0


def test_a_known_filter_has_its_own_distance():
    """Gain 1 to ring 4, 10 dB less power up to ring 8, 20 dB less above: rings 5 to 8 and 9 to 16 of 16."""
    gain = torch.ones(24, dtype=torch.float64)
    gain[5:9], gain[9:] = 0.1**0.5, 0.1
    images = grey(photos())
    want = math.sqrt((4 * 10**2 + 8 * 20**2) / 16)
    rows, fewer = ring_power(images), ring_power(radial(images, gain))
    assert spectra_distance(rows, fewer, FEW) == pytest.approx(want, rel=1e-9)
    assert spectra_distance(fewer, rows, AS_IS) == pytest.approx(want, rel=1e-9)
    gain[0] = 7
    gain[1] = 0.1**0.5  # all others are now 10 dB more above ring 1 than before
    other = ring_power(radial(images, gain))
    assert spectra_distance(rows, other, FEW) == pytest.approx(math.sqrt((3 * 10**2 + 8 * 10**2) / 16), rel=1e-9)
    assert spectra_distance(rows, other, AS_IS) == pytest.approx(math.sqrt(want**2 + 10**2 / 16), rel=1e-9)


def test_contrast_and_brightness_count_only_where_asked():
    img = photos(most=80)
    for other, apart_db in ((img * 3, 20 * math.log10(3)), (img + 50, 0.0), (255 - img, 0.0)):
        real, fake = profiles(img, FEW), profiles(other, FEW)
        assert spectra_distance(real, fake, FEW) == pytest.approx(0, abs=1e-9)
        assert spectra_distance(real, fake, AS_IS) == pytest.approx(apart_db, abs=1e-9)


def test_more_of_the_highest_frequency_is_seen():
    img = photos(most=200)
    speckled = img.clone()
    speckled[..., ::2, ::2] += 50
    assert spectra_distance(profiles(img, FEW), profiles(speckled, FEW), FEW) > 1


def test_parity_with_durall_is_the_profile_written_out():
    image = grey(photos(1))[0].numpy()
    decibels = 20 * np.log(np.abs(np.fft.fftshift(np.fft.fft2(image))))
    y, x = np.indices(image.shape)
    radius = np.hypot(x - 15.5, y - 15.5).astype(int)
    rows = np.array([decibels[radius == r].mean() for r in range(1, radius.max())])
    want = (rows - rows.min()) / (rows.max() - rows.min())
    np.testing.assert_allclose(durall_profile(torch.from_numpy(image)[None])[0], want, rtol=1e-9, atol=1e-12)
    scaled = durall_profile(torch.from_numpy(image)[None] * 9)
    np.testing.assert_allclose(scaled[0], want, rtol=1e-9, atol=1e-12)


def test_the_distance_by_durall_is_that_of_mean_profiles():
    real, fake = (profiles(photos(seed=s), DURALL) for s in (0, 1))
    want = math.sqrt(np.square(real.numpy().mean(axis=0) - fake.numpy().mean(axis=0)).mean())
    assert spectra_distance(real, fake, DURALL) == pytest.approx(want, rel=1e-12)


def test_flat_pictures_have_a_finite_distance():
    flat = torch.full((6, 3, 32, 32), 9, dtype=torch.uint8)
    for config in (FEW, AS_IS, DURALL):
        assert math.isfinite(spectra_distance(profiles(photos(), config), profiles(flat, config), config))
    assert profiles(flat, DURALL).abs().max() < 1e-3


def test_the_first_pictures_count_and_too_few_are_counted():
    rows = profiles(photos(9), FEW)
    assert spectra_distance(rows, rows[:6], FEW) == 0
    with pytest.raises(UserError, match="the generated set holds 5 pictures, the protocol compares 6 of each set"):
        spectra_distance(rows, rows[:5], FEW)
