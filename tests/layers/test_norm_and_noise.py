"""Minibatch standard deviation against its definition; noise maps as functions of seeds."""

import pytest
import torch

from pipeline.layers.noise import noise_maps
from pipeline.layers.norm import minibatch_std, pixel_norm


def test_minibatch_std_is_the_mean_deviation_of_each_group():
    x = torch.randn(6, 4, 3, 5)
    out = minibatch_std(x, 3)
    for g in range(2):
        part = x[3 * g : 3 * g + 3]
        expected = ((part - part.mean(dim=0)).square().mean(dim=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(out[3 * g : 3 * g + 3, 4], expected.expand(3, 3, 5))


def test_minibatch_std_does_not_depend_on_how_groups_share_a_forward():
    x = torch.randn(6, 4, 3, 5)
    torch.testing.assert_close(minibatch_std(x, 3), torch.cat([minibatch_std(x[:3], 3), minibatch_std(x[3:], 3)]))


def test_minibatch_std_refuses_an_unfinished_group():
    with pytest.raises(ValueError, match="groups of 4"):
        minibatch_std(torch.randn(6, 4, 3, 5), 4)


def test_pixel_norm_gives_unit_mean_square():
    torch.testing.assert_close(pixel_norm(torch.randn(5, 64)).square().mean(dim=1), torch.ones(5), rtol=1e-5, atol=0)


def test_noise_depends_on_the_seed_alone():
    shapes = [(1, 4, 4), (1, 8, 6)]
    together = noise_maps((5, 6, 7), shapes, torch.device("cpu"))
    alone = noise_maps((6,), shapes, torch.device("cpu"))
    assert all(torch.equal(a[1], b[0]) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(together[0][0], together[0][1])
    assert [m.shape for m in together] == [(3, 1, 4, 4), (3, 1, 8, 6)]
    assert abs(noise_maps((1,), [(100, 100)], torch.device("cpu"))[0].std().item() - 1) < 0.03
