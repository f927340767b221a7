"""Spectra, components and neighbours of things whose answer is known."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.models.cips import CIPSGeneratorConfig
from pipeline.spec import UserError
from pipeline.synthesis.codes import codes, components, magnitude_db
from pipeline.synthesis.neighbours import load_embedding, nearest, stacked
from pipeline.synthesis.pictures import GAP_PX, LINE_PX, sheet
from pipeline.synthesis.spectra import LEAST, as_picture, azimuthal, power, spectrum
from tests.runs import CIPS


def grey(images: np.ndarray) -> np.ndarray:
    """[-1, 1] to uint8 [n, h, w, 3]."""
    return np.rint((images + 1) * 127.5).astype(np.uint8)[..., None].repeat(3, axis=-1)


@pytest.mark.parametrize("cycles", [(3, 0), (0, 5), (6, 8)])
def test_a_sinusoid_peaks_at_its_radius(cycles):
    y, x = np.mgrid[:32, :32] / 32
    wave = np.cos(2 * np.pi * (cycles[0] * y + cycles[1] * x))
    found = spectrum([grey(wave[None])])
    radius = round(np.hypot(*cycles))
    assert found.power.argmax() == radius
    assert found.power[radius] > 100 * np.delete(found.power, radius).max()
    top, left = np.unravel_index(found.magnitude_db.argmax(), (32, 32))
    assert {top - 16, left - 16} <= {cycles[0], cycles[1], -cycles[0], -cycles[1]}


def test_a_radial_sinusoid_peaks_at_its_radius():
    y, x = np.mgrid[-32:32, -32:32] / 64
    wave = np.cos(2 * np.pi * 12 * np.hypot(y, x))
    assert abs(int(azimuthal(power(wave[None])[0]).argmax()) - 12) <= 1


def test_white_noise_is_flat_and_as_high_as_its_variance():
    noise = np.random.default_rng(0).standard_normal((200, 32, 32)) * 0.2
    found = spectrum([grey(noise[:150].clip(-1, 1)), grey(noise[150:].clip(-1, 1))])
    assert found.count == 200
    np.testing.assert_allclose(found.power[:-1], 0.04, rtol=0.1)  # the last ring is the corner alone
    np.testing.assert_allclose(found.profile_db()[1:-1], 10 * np.log10(0.04), atol=0.5)
    assert np.ptp(found.magnitude_db[1:, 1:]) < 6


def test_a_flat_picture_has_its_brightness_at_0_and_nothing_else():
    found = spectrum([np.full((1, 16, 16, 3), 255, np.uint8)])
    assert found.power[0] == pytest.approx(256)  # (16 * 16)^2 over 16 * 16
    assert found.power[1:].max() < LEAST
    assert found.profile_db().min() == -120


def test_a_known_field_of_two_dimensions_has_two_components_with_its_shares():
    y, x = np.mgrid[:16, :16] / 15 - 0.5
    directions = np.linalg.qr(np.random.default_rng(1).standard_normal((9, 2)))[0]
    field = 3 * x[..., None] * directions[:, 0] + y[..., None] * directions[:, 1] + 7
    found = components(field)
    np.testing.assert_allclose(found.explained, [0.9, 0.1, 0], atol=1e-9)
    for m, want in zip(found.maps, (3 * x, y), strict=False):
        assert abs(np.corrcoef(m.ravel(), want.ravel())[0, 1]) == pytest.approx(1)
    np.testing.assert_allclose(np.abs(found.maps[0]).max(), 1.5)
    picture = found.rgb()
    assert (picture[..., 0].min(), picture[..., 0].max()) == (0, 255)
    assert components(field[..., :2], k=3).maps.shape == (2, 16, 16)


def test_codes_are_what_the_generator_reads_and_embeddings_at_the_start_are_white(generator):
    G = generator(CIPS)
    found = codes(G)
    assert {name: c.shape for name, c in found.items()} == {"fourier": (16, 16, 8), "embedding": (16, 16, 8)}
    np.testing.assert_array_equal(found["embedding"].reshape(256, 8), G.embedding.weight.detach().double().numpy())
    white, smooth = (magnitude_db(found[name]) for name in ("embedding", "fourier"))
    assert white.mean() == pytest.approx(0, abs=1)
    assert smooth[8, 8] - np.median(smooth) > 20
    maps = as_picture({"a": white, "b": smooth}, side_px=64)
    assert maps["a"].shape == (64, 64, 3)
    assert max(m.max() for m in maps.values()) == 255
    assert min(m.min() for m in maps.values()) == 0
    assert list(codes(CIPSGeneratorConfig(variant="ne", size_px=8, width=4).build())) == ["fourier"]
    assert codes(G, (8, 24))["fourier"].shape == (8, 24, 8)


def saved(path: Path, net: torch.nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(net, torch.zeros(2, 3, 4, 4)).save(path)
    return path


def test_the_nearest_of_a_set_that_holds_the_query_is_the_query_itself(tmp_path):
    embed = load_embedding(saved(tmp_path / "flat.ts", torch.nn.Flatten()))
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
    bank = [embed(stacked(images[i : i + 7])) for i in range(0, 20, 7)]
    numbers, distances = nearest(embed(stacked(images[[3, 15]])), bank, 4)
    assert numbers[:, 0].tolist() == [3, 15]
    assert distances[:, 0].tolist() == [0, 0]
    rows = torch.cat(bank).double()
    want, order = torch.cdist(rows[[3, 15]], rows).topk(4, largest=False)
    torch.testing.assert_close(distances.double(), want, atol=1e-4, rtol=1e-4)
    assert torch.equal(numbers, order)
    assert nearest(bank[0], bank, 50)[0].shape == (7, 20)


def test_what_is_no_embedding_is_refused_in_one_line(tmp_path):
    (tmp_path / "words.pt").write_text("not a network")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "state.pt")
    for name in ("words.pt", "state.pt"):
        with pytest.raises(UserError, match=rf"embedding='.*{name}' is no TorchScript file") as e:
            load_embedding(tmp_path / name)
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="no such file"):
        load_embedding(tmp_path / "absent")
    with pytest.raises(UserError, match=r"gives \[2, 3, 4, 4\] of 2 pictures"):
        load_embedding(saved(tmp_path / "same.ts", torch.nn.Identity()))(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    narrow = load_embedding(
        saved(tmp_path / "narrow.ts", torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2)))
    )
    with pytest.raises(UserError, match=r"fails on \[n, 3, h, w\] pictures of 8x8 px"):
        narrow(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_a_sheet_shows_each_picture_below_its_text():
    a, b = np.full((4, 6, 3), 9, np.uint8), np.full((2, 3, 3), 200, np.uint8)
    made = sheet([("one", [a, b]), ("two", [b])])
    np.testing.assert_array_equal(made[LINE_PX : LINE_PX + 4, GAP_PX : GAP_PX + 6], 9)
    np.testing.assert_array_equal(made[LINE_PX : LINE_PX + 2, 2 * GAP_PX + 6 : 2 * GAP_PX + 9], 200)
    second = LINE_PX + 4 + GAP_PX + LINE_PX
    np.testing.assert_array_equal(made[second : second + 2, GAP_PX : GAP_PX + 3], 200)
    assert made.shape[0] == second + 2 + GAP_PX
    assert (made[:LINE_PX] < 255).any()
