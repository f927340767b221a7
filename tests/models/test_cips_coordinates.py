"""CIPS as a function of coordinates: subsets, parts, integer positions, other grids, cylinders, codes."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from pipeline.layers.posenc import pixel_coordinates
from pipeline.models.cips_input import CoordinateEmbedding, FourierFeatures, cylinder_coordinates
from pipeline.spec import UserError
from tests.models.test_cips import VARIANTS, made

NOISE = (7, 8)


def styles(G, n=2):
    return torch.randn(n, G.num_ws, 8)


def grids(*size):
    """Rows and columns of a whole grid."""
    return torch.arange(size[0])[None], torch.arange(size[1])[None]


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_and_training_make_the_same_native_image(variant):
    G = made(variant=variant)
    ws = styles(G)
    trained = G.train().synthesis(ws, (16, 16), NOISE)
    with torch.no_grad():
        assert torch.equal(G.eval().synthesis(ws, (16, 16), NOISE), trained)
        by_coordinates = G.pixels(ws, pixel_coordinates((16, 16)))
    torch.testing.assert_close(by_coordinates.mT.unflatten(2, (16, 16)), G.synthesis(ws, (16, 16), None))


@pytest.mark.parametrize("size", [(16, 16), (31, 20)])
@pytest.mark.parametrize("changes", [{}, {"lookup": "half_pixel"}, {"embedding_px": 8}, {"cylinder_px": 24}])
def test_parts_make_the_whole_image_with_its_noise(changes, size, monkeypatch):
    G = made(**changes).eval()
    ws = styles(G)
    with torch.no_grad():
        whole = G.synthesis(ws, size, NOISE)
        contributions = G.contributions(ws, size, NOISE)
        G.pixels_at_once = 2 * 37
        seen, colours = [], G._colours
        monkeypatch.setattr(G, "_colours", lambda ws, x, noise: seen.append(x.shape[1]) or colours(ws, x, noise))
        parts = G.synthesis(ws, size, NOISE)
        assert max(seen) == 37
        assert sum(seen) == size[0] * size[1]
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
        for a, b in zip(G.contributions(ws, size, NOISE), contributions, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("training", "grad"), [(True, True), (True, False), (False, True)])
def test_what_trains_or_is_differentiated_is_never_cut_into_parts(training, grad, monkeypatch):
    G, seen = made().train(training), []
    G.pixels_at_once = 1
    colours = G._colours
    monkeypatch.setattr(G, "_colours", lambda ws, x, noise: seen.append(x.shape[1]) or colours(ws, x, noise))
    with torch.set_grad_enabled(grad):
        G.synthesis(styles(G), (16, 16), None)
    assert seen == [256]


PEAK = """
import resource, sys, torch
from pipeline.models.cips import CIPSGeneratorConfig
torch.set_num_threads(1)
G = CIPSGeneratorConfig(size_px=16, width=64, z_dim=8, w_dim=8, mapping_layers=1).build().eval().requires_grad_(False)
ws = torch.zeros(1, G.num_ws, 8)
with torch.no_grad():
    G.synthesis(ws, (256, 256), None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    G.synthesis(ws, (512, 512), None)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_of_a_large_image_is_that_of_its_parts():
    """512 px, four parts of 2^16 pixels: whole it would take 250 MB more."""
    words = [sys.executable, "-c", PEAK]
    more_mb = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert more_mb < 128  # coordinates, colours and the allocator's slack


@pytest.mark.parametrize("changes", [{}, {"variant": "ne"}, {"embedding_px": 8}, {"cylinder_px": 24}])
def test_whole_positions_are_pixels_of_the_trained_grid_and_keep_their_noise(changes):
    G = made(**changes)
    ws, (h, w) = styles(G), G.native_size
    whole = G.synthesis(ws, (h, w), NOISE)
    torch.testing.assert_close(G.at(ws, *grids(h, w), NOISE), whole, rtol=1e-5, atol=1e-5)
    rows, cols = torch.tensor([[3, 5, 7]]), torch.tensor([[0, 4], [9, 2]])  # strides; other columns for each sample
    picked = G.at(ws, rows, cols, NOISE)
    for n in range(2):
        torch.testing.assert_close(picked[n], whole[n][:, rows[0]][:, :, cols[n]], rtol=1e-5, atol=1e-5)
    alone = G.at(ws[1:], rows, cols[1:], NOISE[1:])
    torch.testing.assert_close(alone[0], picked[1], rtol=1e-5, atol=1e-5)


def test_patches_train_the_embeddings_they_show_and_no_others():
    G = made()
    G.at(styles(G), torch.tensor([[2, 4]]), torch.tensor([[1, 3, 5]])).sum().backward()
    touched = G.embedding.weight.grad.abs().sum(1).reshape(16, 16).nonzero().tolist()
    assert touched == [[r, c] for r in (2, 4) for c in (1, 3, 5)]


def test_styles_that_differ_by_column_blend_two_images_exactly():
    """Columns as samples: where w is constant on a half, that half is the image of that w."""
    G = made(cylinder_px=24)
    ws = styles(G)
    images = G.synthesis(ws, (16, 24), (5, 5))
    t = (torch.arange(24) >= 12).float()[:, None, None]
    rows, cols = torch.arange(16)[None], torch.arange(24)[:, None]
    blended = G.at(torch.lerp(ws[:1], ws[1:], t), rows, cols, (5,) * 24)
    assert blended.shape == (24, 3, 16, 1)
    panorama = blended.squeeze(3).permute(1, 2, 0)
    torch.testing.assert_close(panorama[:, :, :12], images[0, :, :, :12], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(panorama[:, :, 12:], images[1, :, :, 12:], rtol=1e-4, atol=1e-4)


def test_a_full_turn_of_a_cylinder_is_the_same_place():
    G = made(cylinder_px=24)
    ws, coords = styles(G), torch.rand(50, 2) * 2 - 1
    turned = coords + torch.tensor([2.0, 0.0])
    torch.testing.assert_close(G.pixels(ws, turned), G.pixels(ws, coords), rtol=1e-4, atol=1e-4)
    rows, cols = grids(16, 16)
    assert torch.equal(G.at(ws, rows, cols + 15, NOISE)[..., 9:], G.at(ws, rows, cols + 15 - 24, NOISE)[..., 9:])
    near = G.pixels(ws, torch.tensor([[-1.0, 0.2], [1 - 1e-6, 0.2]]))
    torch.testing.assert_close(near[:, 0], near[:, 1], rtol=1e-3, atol=1e-3)  # no seam


def test_columns_of_a_plane_do_not_wrap():
    G = made()
    with pytest.raises(IndexError):
        G.at(styles(G), torch.tensor([[15]]), torch.tensor([[16]]))


def test_a_cylinder_has_evenly_spaced_angles_and_both_poles():
    coords = cylinder_coordinates((3, 8)).reshape(3, 8, 2)
    assert coords[0, :, 0].tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75]
    assert coords[:, 0, 1].tolist() == [-1, 0, 1]
    fourier = FourierFeatures(6, cylinder=True)
    y, theta = torch.tensor(0.3), torch.tensor(0.25) * torch.pi
    expected = torch.sin(fourier.weight @ torch.stack([y, theta.cos(), theta.sin()]) + fourier.bias)
    torch.testing.assert_close(fourier(torch.tensor([0.25, 0.3])), expected)


def test_embeddings_of_a_cylinder_are_exact_on_columns_and_join_the_ends():
    embedding = CoordinateEmbedding((4, 8), 5, cylinder=True)
    assert torch.equal(embedding(cylinder_coordinates((4, 8))), embedding.weight)
    table = embedding.weight.reshape(4, 8, 5)
    between = embedding(torch.tensor([[1 - 1 / 8, -1.0]]))[0]  # half a column beyond the last
    torch.testing.assert_close(between, (table[0, 7] + table[0, 0]) / 2)


def test_half_pixel_is_the_releases_grid_sample_except_in_training_on_the_native_grid():
    G = made(lookup="half_pixel", embedding_px=16)
    ws, table = styles(G), G.embedding.weight.T.reshape(1, 12, 16, 16)
    for size in ((16, 16), (23, 9)):
        coords = pixel_coordinates(size)
        expected = F.grid_sample(table, coords[None, None], padding_mode="border", align_corners=False)[0, :, 0].T
        torch.testing.assert_close(G.embedding(coords), expected, rtol=1e-4, atol=1e-4)
    exact = made()
    exact.load_state_dict(G.state_dict())
    native = exact.synthesis(ws, (16, 16), None)
    assert torch.equal(G.train().synthesis(ws, (16, 16), None), native)
    assert torch.equal(G.eval().codes((16, 16))[1], G.embedding(pixel_coordinates((16, 16))))
    with torch.no_grad():
        blurred = G.eval().synthesis(ws, (16, 16), None)
        assert not torch.allclose(blurred, native, atol=0.1)
        patch = G.train().at(ws, torch.arange(4, 8)[None], torch.arange(8)[None])
    torch.testing.assert_close(patch, blurred[:, :, 4:8, :8], rtol=1e-4, atol=1e-4)


def test_fewer_embeddings_than_pixels_nest_as_their_grids_do():
    """15 = 2 * 7 + 1 positions lie on 8 embeddings and half-way between them."""
    G = made(embedding_px=8)
    assert len(G.embedding.weight) == 64
    dense, own = G.codes((15, 15))[1].reshape(15, 15, 12), G.embedding.weight.reshape(8, 8, 12)
    assert torch.equal(dense[::2, ::2], own)
    torch.testing.assert_close(dense[0, 1], (own[0, 0] + own[0, 1]) / 2)
    assert G.synthesis(styles(G), (16, 16), None).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(("variant", "fourier", "embedding"), [("skips", 12, 12), ("ne", 24, 0), ("sine", 0, 12)])
def test_codes_are_what_enters_the_first_layer(variant, fourier, embedding):
    G = made(variant=variant)
    a, b = G.codes((16, 16))
    assert (a.shape, b.shape) == ((256, fourier), (256, embedding))
    seen = []
    G.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    G.synthesis(styles(G), (16, 16), None)
    assert torch.equal(seen[0][0], torch.cat([a, b], dim=1))
    if embedding:
        assert torch.equal(b, G.embedding.weight)


def test_either_code_can_be_zero_for_a_while():
    G = made()
    ws, other = styles(G), made()
    other.load_state_dict(G.state_dict())
    with torch.no_grad():
        other.embedding.weight.zero_()
        without_embedding = other.synthesis(ws, (16, 16), None)
        whole = G.synthesis(ws, (16, 16), None)
        with G.zeroed(embedding=True):
            assert torch.equal(G.synthesis(ws, (16, 16), None), without_embedding)
        with G.zeroed(fourier=True):
            without_fourier = G.synthesis(ws, (16, 16), None)
        assert torch.equal(G.synthesis(ws, (16, 16), None), whole)  # only for that while
        assert not torch.allclose(without_fourier, whole, atol=0.1)
        G.fourier.weight.zero_()
        G.fourier.bias.zero_()
        assert torch.equal(G.synthesis(ws, (16, 16), None), without_fourier)
    with pytest.raises(UserError, match="variant='ne' has no embedding"), made(variant="ne").zeroed(embedding=True):
        pass


def test_each_sample_may_have_coordinates_of_its_own():
    G = made()
    ws, coords = styles(G), torch.rand(2, 9, 2) * 2 - 1
    noise = [torch.randn(2, 9, 1) for _ in G.layers]
    both = G.pixels(ws, coords, noise)
    for n in range(2):
        alone = G.pixels(ws[n : n + 1], coords[n], [m[n : n + 1] for m in noise])
        torch.testing.assert_close(both[n : n + 1], alone, rtol=1e-5, atol=1e-5)
