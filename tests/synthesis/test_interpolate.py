"""Interpolation: ends are the samples', ways are straight in w and round in z; and what `generate` is made of."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.models.stylegan2 import broadcast_w
from pipeline.spec import UserError, to_uint8
from pipeline.synthesis import sample
from pipeline.synthesis.interpolate import interpolate, slerp
from pipeline.synthesis.pictures import save_animation
from pipeline.synthesis.sample import generate, map_z, noise_seed, render, sample_z
from tests.runs import CIPS, MSPIE


@pytest.mark.parametrize("recipe", [MSPIE, CIPS])
@pytest.mark.parametrize("space", ["w", "z"])
def test_legs_begin_and_end_at_their_seeds_with_the_noise_of_the_first(generator, recipe, space):
    G = generator(recipe)
    legs = interpolate(G, [4, 0, 9], 3, space, (16, 24), 0.8)
    assert legs.shape == (2, 3, 16, 24, 3)
    ends = render(G, broadcast_w(map_z(G, sample_z(G, [4, 0, 9]), 0.8), G.num_ws), (16, 24), [noise_seed(4)] * 3)
    within_rounding(legs[:, 0], ends[:2])
    within_rounding(legs[:, -1], ends[1:])
    within_rounding(legs[0, :1], generate(G, [4], (16, 24), 0.8))
    assert (legs[:, 1] != legs[:, 0]).any()


def within_rounding(a: np.ndarray, b: np.ndarray) -> None:
    assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_w_is_halfway_in_w_and_z_halfway_on_the_sphere(generator):
    G = generator()
    z = sample_z(G, [1, 2])
    w = map_z(G, z)
    middles = {"w": w.mean(dim=0, keepdim=True), "z": map_z(G, slerp(z[0], z[1], torch.tensor([0.5])))}
    for space, middle in middles.items():
        want = render(G, broadcast_w(middle, G.num_ws), None, [noise_seed(1)])
        within_rounding(interpolate(G, [1, 2], 3, space)[0, 1:2], want)
    assert (interpolate(G, [1, 2], 3, "w") != interpolate(G, [1, 2], 3, "z")).any()


def test_slerp_turns_evenly_and_changes_length_evenly():
    a, b, t = torch.randn(64), 3 * torch.randn(64), torch.linspace(0, 1, 9)
    way = slerp(a, b, t)
    torch.testing.assert_close(way[[0, -1]], torch.stack([a, b]))
    torch.testing.assert_close(way.norm(dim=1), torch.lerp(a.norm(), b.norm(), t))
    u = way / way.norm(dim=1, keepdim=True)
    cosines = (u[1:] * u[:-1]).sum(dim=1)
    torch.testing.assert_close(cosines, cosines[:1].expand(8))
    torch.testing.assert_close(slerp(a, a, t), a.expand(9, -1))


def test_one_seed_or_one_frame_is_refused(generator):
    for seeds, frames in (([1], 3), ([1, 2], 1)):
        with pytest.raises(UserError, match="at least two"):
            interpolate(generator(), seeds, frames)


@pytest.mark.parametrize("recipe", [MSPIE, CIPS])
def test_generate_is_one_forward_of_latents_and_noise_keyed_by_the_seed(generator, recipe, monkeypatch):
    """Against the calls written out; in chunks, too, whose bounds no image may show."""
    G, seeds = generator(recipe), [3, 2**40, 1]
    z = np.stack([sample.rng("sample", s).standard_normal(G.z_dim, dtype=np.float32) for s in seeds])
    with torch.no_grad():
        w = torch.lerp(sample.mean_w(G, torch.device("cpu")), G.mapping(torch.from_numpy(z)), 0.5)
        noise = tuple(sample.key("sample noise", s) >> 65 for s in seeds)
        img = G.synthesis(w[:, None].expand(-1, G.num_ws, -1), (16, 24), noise)
    np.testing.assert_array_equal(generate(G, seeds, (16, 24), 0.5), to_uint8(img).permute(0, 2, 3, 1).numpy())
    monkeypatch.setattr(sample, "PIXELS_AT_ONCE", 16 * 24 * 2)
    within_rounding(generate(G, seeds, (16, 24), 0.5), to_uint8(img).permute(0, 2, 3, 1).numpy())


def test_an_animation_has_every_frame(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    save_animation(tmp_path / "a.png", frames)
    with Image.open(tmp_path / "a.png") as picture:
        assert (picture.n_frames, picture.size) == (4, (8, 6))
        for i, frame in enumerate(frames):
            picture.seek(i)
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), frame)
