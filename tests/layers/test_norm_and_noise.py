"""Statistics over samples against their definitions; noise maps as functions of seeds."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.layers.noise import noise_maps
from pipeline.layers.norm import GroupBatchNorm2d, minibatch_std, pixel_norm


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


def test_batch_norm_of_a_group_is_torchs_on_those_samples_alone():
    norm, x = GroupBatchNorm2d(3, 2), torch.randn(6, 3, 4, 5)
    for p in norm.parameters():
        torch.nn.init.normal_(p)
    expected = [F.batch_norm(part, None, None, norm.weight, norm.bias, training=True) for part in x.split(2)]
    torch.testing.assert_close(norm(x), torch.cat(expected))
    assert torch.equal(norm(x)[2:4], norm(x[2:4]))
    assert not norm.state_dict().keys() - {"weight", "bias"}  # no running statistics
    with pytest.raises(ValueError, match="5 samples do not form groups of 2"):
        norm(x[:5])


def test_the_leading_group_can_normalise_all_samples():
    norm, x = GroupBatchNorm2d(3, 2), torch.randn(5, 3, 4, 4)
    y = norm(x, leading=True)
    torch.testing.assert_close(y[:2], norm(x[:2]))
    mean, std = x[:2].mean(dim=(0, 2, 3)), (x[:2].var(dim=(0, 2, 3), correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(y[4], (x[4] - mean[:, None, None]) / std[:, None, None])


def test_batch_norm_of_single_samples_is_instance_norm():
    x = torch.randn(3, 2, 5, 5)
    torch.testing.assert_close(GroupBatchNorm2d(2, 1)(x), F.instance_norm(x))
