"""Closed-form factorisation: its algebra, what an edit leaves alone, what is refused."""

import numpy as np
import pytest
import torch

from pipeline.models.stylegan2 import broadcast_w
from pipeline.recipes import find
from pipeline.spec import UserError
from pipeline.synthesis.edit import edit, factorise, moved, parse_alphas, style_matrix
from pipeline.synthesis.sample import generate, map_z, noise_seed, render, sample_z
from tests.runs import CIPS, MSPIE


@pytest.mark.parametrize("recipe", [MSPIE, CIPS])
@pytest.mark.parametrize("normalize", [False, True])
def test_directions_are_orthonormal_and_the_matrix_stretches_each_by_its_sigma(generator, recipe, normalize):
    G = generator(recipe)
    W, found = style_matrix(G, normalize=normalize), factorise(G, normalize=normalize)
    assert found.vectors.dtype == torch.float64
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(16).double())
    torch.testing.assert_close((W @ found.vectors.T).norm(dim=0), found.sigma)
    assert (found.sigma.diff() <= 0).all()
    if normalize:  # unit rows; eigenvectors of A^T A, as SeFa computes them
        torch.testing.assert_close(W.norm(dim=1), torch.ones(len(W)).double())
        torch.testing.assert_close(torch.linalg.eigvalsh(W.T @ W).flip(0), found.sigma.square())


@pytest.mark.parametrize(("head", "rows"), [("spe", 5760), ("csg", 5250)])
def test_the_full_size_stacks_as_many_rows_as_published(head, rows):
    """C2-256 without toRGB, whose 14 styles SeFa would add; sizes alone, so no memory is taken."""
    with torch.device("meta"):
        G = find(MSPIE).make().family.G.replace(head=head).build()
        assert style_matrix(G).shape == (rows, 512)
        assert style_matrix(G, normalize=True).shape == (rows + sum(c.conv.weight.shape[1] for c in G.to_rgbs), 512)


def test_the_run_time_scale_of_equalised_layers_changes_sigma_alone(generator):
    """Raw weights are stacked: scaled as they run, they give the same directions."""
    G = generator()
    scaled = torch.cat([c.conv.affine.weight.double() * c.conv.affine.scale for c in G.convs])
    _, sigma, v = torch.linalg.svd(scaled, full_matrices=False)
    found = factorise(G)
    torch.testing.assert_close(sigma, found.sigma * G.convs[0].conv.affine.scale)
    torch.testing.assert_close((v * found.vectors).sum(dim=1).abs(), torch.ones(16).double())


@pytest.mark.parametrize("recipe", [MSPIE, CIPS])
def test_alpha_0_is_sample_bit_for_bit_and_others_are_not(generator, recipe):
    G, seeds = generator(recipe), [0, 7, 5]
    images = edit(G, seeds, 1, [-2.0, 0.0, 2.0], size=(16, 24), truncation_psi=0.7)
    assert images.shape == (3, 3, 16, 24, 3)
    np.testing.assert_array_equal(images[:, 1], generate(G, seeds, (16, 24), 0.7))
    assert (images[:, 0] != images[:, 1]).any(axis=(1, 2, 3)).all()
    assert (images[:, 0] != images[:, 2]).any(axis=(1, 2, 3)).all()


def test_layers_that_are_not_listed_keep_their_w(generator):
    G = generator()
    ws, v = broadcast_w(map_z(G, sample_z(G, [0, 1])), G.num_ws), factorise(G).vector(2)
    some = moved(ws, v, -1.5, [2, 4])
    for i in range(G.num_ws):
        if i in (2, 4):
            torch.testing.assert_close(some[:, i], ws[:, i] - 1.5 * v.float())
        else:
            assert torch.equal(some[:, i], ws[:, i])
    want = render(G, some, None, [noise_seed(0), noise_seed(1)])
    np.testing.assert_array_equal(edit(G, [0, 1], 2, [-1.5], [2, 4])[:, 0], want)
    assert (edit(G, [0, 1], 2, [-1.5]) != edit(G, [0, 1], 2, [-1.5], [2, 4])).any()
    assert torch.equal(moved(ws, v, 1.0), moved(ws, v, 1.0, range(G.num_ws)))


def test_what_is_not_there_is_refused_in_one_line(generator):
    G = generator()
    for direction in (-1, 16):
        with pytest.raises(UserError, match=rf"direction={direction}: .* 0 to 15"):
            edit(G, [0], direction, [0.0])
    with pytest.raises(UserError, match=rf"layers=99: .* 0 to {G.num_ws - 1}"):
        edit(G, [0], 0, [0.0], [0, 99])
    with pytest.raises(UserError, match=r"Linear has no styles .*'mspie' or 'cips'"):
        factorise(torch.nn.Linear(2, 2))


def test_ranges_of_alpha():
    assert parse_alphas("-3..3") == [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    assert parse_alphas("-0.3..0.3:0.1") == [-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3]
    assert parse_alphas("2.5") == [2.5]
    for text in ("3..-3", "1..2:0", "1..2:-1", "a", "1..inf", "nan", "", "0..1:0.0001", "1:2:3"):
        with pytest.raises(UserError, match="alpha="):
            parse_alphas(text)
