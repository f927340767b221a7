"""Some pixels alone, denser grids, blends and mixed layers, each against the whole picture."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from pipeline.models.cips import CIPSGenerator, CIPSGeneratorConfig
from pipeline.spec import UserError, to_uint8
from pipeline.synthesis import mixing
from pipeline.synthesis.dense import dense, detail, lanczos
from pipeline.synthesis.foveated import fill, foveated, parse_percent, positions
from pipeline.synthesis.panorama import blend, panorama
from pipeline.synthesis.pixels import by_column, per_pixel, some_pixels, styles
from pipeline.synthesis.sample import generate, mean_w
from tests.runs import CIPS


@pytest.fixture(name="G")
def small(generator) -> CIPSGenerator:
    return generator(CIPS)


def whole(G: CIPSGenerator, ws: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return G.synthesis(ws, G.native_size, None)


def test_every_second_pixel_of_a_dense_grid_and_of_lanczos_is_the_native_one(G):
    found = dense(G, [0, 3], 2)
    assert (found.native.shape, found.dense.shape) == ((2, 16, 16, 3), (2, 31, 31, 3))
    for other in (found.dense, found.lanczos):
        np.testing.assert_array_equal(other[:, ::2, ::2], found.native)
    assert (found.dense != found.lanczos).mean() > 0.3
    assert dense(G, [0], 3).dense.shape == (1, 46, 46, 3)
    with pytest.raises(UserError, match="factor=1"):
        dense(G, [0], 1)


def test_lanczos_is_aligned_by_pixel_centres():
    ramp = np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], 16, axis=0).repeat(3, axis=2)
    inside = lanczos(ramp, 2)[0, 8:-8, 0].astype(int)
    np.testing.assert_array_equal(inside, np.arange(40, 40 + 5 * len(inside), 5))


def test_a_detail_is_the_middle_pixel_by_pixel():
    image = np.arange(32 * 32 * 3, dtype=np.uint16).reshape(32, 32, 3).astype(np.uint8)
    np.testing.assert_array_equal(detail(image, 4)[::4, ::4], image[12:20, 12:20])
    assert detail(image, 4).shape == (32, 32, 3)


def test_some_pixels_are_those_of_the_whole_and_no_other_is_computed(G, monkeypatch):
    ws, index = styles(G, [0, 1]), torch.tensor([0, 17, 200, 255])
    seen = []
    monkeypatch.setattr(G, "pixels", lambda ws, coords: seen.append(len(coords)) or CIPSGenerator.pixels(G, ws, coords))
    torch.testing.assert_close(some_pixels(G, ws, (16, 16), index), whole(G, ws).flatten(2).mT[:, index])
    assert seen == [4]


def test_all_pixels_foveated_are_the_whole_picture(G):
    ws = styles(G, [5])
    image, computed = foveated(G, ws, (16, 16), 100)
    assert computed.all()
    assert torch.equal(to_uint8(image[None]), to_uint8(whole(G, ws)))


def test_computed_pixels_stay_and_holes_are_interpolated(G):
    ws = styles(G, [5])
    image, computed = foveated(G, ws, (16, 16), 25)
    assert computed.sum() == 64
    torch.testing.assert_close(image[:, computed], whole(G, ws)[0][:, computed])
    assert image.isfinite().all()


def test_filling_gives_back_a_plane_between_pixels_and_the_nearest_outside():
    y, x = np.mgrid[:16, :16].astype(float)
    plane = np.stack([x, y, 2 * x - y], axis=2)
    index = positions((16, 16), 30)
    filled = fill((16, 16), index, plane.reshape(-1, 3)[index])
    np.testing.assert_allclose(filled.reshape(-1, 3)[index], plane.reshape(-1, 3)[index])
    np.testing.assert_allclose(filled[4:12, 4:12], plane[4:12, 4:12], atol=1e-6)
    inner = np.array([y * 16 + x for y in range(4, 8) for x in range(4, 8)])
    filled = fill((16, 16), inner, plane.reshape(-1, 3)[inner])
    np.testing.assert_allclose(filled[0, 0], plane[4, 4])


def test_positions_follow_a_gaussian_of_40_percent_without_replacement():
    size = (200, 100)
    few, many = positions(size, 1, seed=3), positions(size, 25, seed=3)
    assert len(np.unique(many)) == len(many) == 5000
    assert set(few) <= set(many)
    assert set(few) != set(positions(size, 1, seed=4))
    drawn = np.concatenate([positions(size, 0.5, seed) for seed in range(200)])
    for place, n in zip(np.divmod(drawn, size[1]), size, strict=True):
        u = (place - (n - 1) / 2) / n  # a Gaussian of 0.4, cut off at 0.5
        grid = np.linspace(-0.5, 0.5, 2001)
        want = np.average(grid**2, weights=np.exp(-((grid / 0.4) ** 2) / 2)) ** 0.5
        assert abs(u.mean()) < 0.008
        assert u.std() == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize("percent", [0, -5, 101, float("nan"), 1])
def test_a_percentage_that_makes_no_picture_is_refused(percent):
    with pytest.raises(UserError, match=r"percent=.*up to 100"):
        positions((16, 16), percent)


def test_percentages_are_read_with_commas():
    assert parse_percent("5,12.5") == [5, 12.5]
    with pytest.raises(UserError, match="percent='5;6'"):
        parse_percent("5;6")


def test_a_blend_of_constant_halves_is_the_halves_of_both_pictures(G):
    ws = styles(G, [0, 1])
    columns = torch.cat([ws[:1].expand(8, -1, -1), ws[1:].expand(8, -1, -1)])
    a, b = whole(G, ws)
    torch.testing.assert_close(by_column(G, columns, 16), torch.cat([a[..., :8], b[..., 8:]], dim=2))


def test_a_blend_is_linear_and_closes_on_a_ring():
    ws = torch.randn(3, 2, 4)
    flat = blend(ws, 5, ring=False)
    torch.testing.assert_close(flat[[0, 2, 4]], ws)
    torch.testing.assert_close(flat[1], (ws[0] + ws[1]) / 2)
    ring = blend(ws, 6, ring=True)
    torch.testing.assert_close(ring[[0, 2, 4]], ws)
    torch.testing.assert_close(ring[5], (ws[2] + ws[0]) / 2)
    torch.testing.assert_close(blend(ws[:1], 7, ring=True), ws[:1].expand(7, -1, -1))


def test_a_panorama_of_one_style_is_its_picture(G):
    ws = styles(G, [4])
    torch.testing.assert_close(panorama(G, ws), whole(G, ws)[0])


def test_groups_hold_every_style_once_and_are_eight_at_256_px(G):
    assert sorted(i for group in mixing.groups(G) for i in group) == list(range(G.num_ws))
    with torch.device("meta"):
        full = CIPSGeneratorConfig().build()
    assert [len(g) for g in mixing.groups(full)] == [1] + [3] * 7
    assert mixing.groups(full)[0] == [0]
    assert mixing.groups(full)[7] == [13, 14, 21]
    assert mixing.thirds(full) == [(1, 2), (3, 5), (6, 8)]
    spans = mixing.thirds(G)
    assert (spans[0][0], spans[-1][1]) == (1, len(mixing.groups(G)))
    assert all(a[1] + 1 == b[0] <= b[1] for a, b in pairwise(spans))


def test_mixing_all_groups_is_the_source_and_some_are_neither(G):
    n = len(mixing.groups(G))
    images = mixing.mix(G, [0, 1], [2], [(1, n), (1, 1)])
    assert images.shape == (2, 2, 1, 16, 16, 3)
    ws = styles(G, [0, 2])
    np.testing.assert_array_equal(mixing.mixed(G, ws[:1], ws[1:], (1, n)), ws[1:])
    part = mixing.mixed(G, ws[:1], ws[1:], (2, 2))
    assert [i for i in range(G.num_ws) if not torch.equal(part[0, i], ws[0, i])] == sorted(mixing.groups(G)[1])
    for other in (0, 2):
        assert (images[1, 0, 0] != generate(G, [other])[0]).any()
    for span in ((0, 1), (2, 1), (1, n + 1)):
        with pytest.raises(UserError, match=rf"layers={span[0]}-{span[1]}: .* 1 to {n}"):
            mixing.mix(G, [0], [1], [span])
    assert mixing.parse_spans("1-2,4") == [(1, 2), (4, 4)]
    with pytest.raises(UserError, match="layers='a-2'"):
        mixing.parse_spans("a-2")


@pytest.mark.parametrize("variant", ["base", "ne", "no_fourier", "residual", "sine"])
def test_every_variant_has_its_blocks_as_groups(variant):
    G = CIPSGeneratorConfig(variant=variant, size_px=16, width=4, z_dim=4, w_dim=4).build()
    assert sorted(i for group in mixing.groups(G) for i in group) == list(range(G.num_ws))
    assert len(mixing.groups(G)) == 3 + (variant == "residual")
    assert mixing.groups(G)[-1] == [G.num_ws - 3, G.num_ws - 2, G.num_ws - 1]


@pytest.fixture(scope="module")
def ring() -> CIPSGenerator:
    torch.manual_seed(0)
    G = CIPSGeneratorConfig(size_px=8, cylinder_px=12, width=8, z_dim=8, w_dim=8, mapping_layers=1).build()
    return G.eval().requires_grad_(False)


def test_a_panorama_of_a_cylinder_closes_and_its_columns_are_those_of_their_styles(ring):
    ws = styles(ring, [0, 1, 2])
    image = panorama(ring, ws)
    assert image.shape == (3, 8, 12)
    for style, column in ((0, 0), (1, 4), (2, 8)):
        torch.testing.assert_close(image[:, :, column], whole(ring, ws)[style, :, :, column])
    halfway = whole(ring, ((ws[2] + ws[0]) / 2)[None])[0]
    torch.testing.assert_close(image[:, :, 10], halfway[:, :, 10])
    torch.testing.assert_close(panorama(ring, ws, (15, 24))[:, ::2, ::2], image)


def test_a_dense_cylinder_keeps_every_second_column_and_lanczos_knows_the_seam(ring):
    found = dense(ring, [1], 2)
    assert found.dense.shape == found.lanczos.shape == (1, 15, 24, 3)
    np.testing.assert_array_equal(found.dense[:, ::2, ::2], found.native)
    np.testing.assert_array_equal(found.lanczos[:, ::2, ::2], found.native)
    rolled = lanczos(np.roll(found.native[0], 5, axis=1), 2, ring=True)
    np.testing.assert_array_equal(np.roll(found.lanczos[0], 10, axis=1), rolled)


def test_psi_0_is_the_picture_of_the_mean_style(G):
    ws = mean_w(G, torch.device("cpu")).expand(1, G.num_ws, -1)
    torch.testing.assert_close(styles(G, [0, 9], 0.0), ws.expand(2, -1, -1))


def test_another_kind_of_generator_is_refused(generator):
    with pytest.raises(UserError, match=r"MSPIEGenerator makes no pixel alone.*kind='cips'"):
        per_pixel(generator())


def test_the_demo_draws_samples_a_dense_grid_and_parts_of_the_pixels_on_one_sheet():
    from pipeline.demo import _per_pixel

    G = CIPSGeneratorConfig(size_px=32, width=4, z_dim=8, w_dim=8, mapping_layers=1).build().eval()
    picture = _per_pixel(G)
    assert picture.shape[1] < 1000
    np.testing.assert_array_equal(picture[20:84:2, 4:68:2], generate(G, [0])[0])
