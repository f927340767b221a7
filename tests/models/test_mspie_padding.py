"""The paper's padding probe (Appendix B.2): a head of one value tells where a generator takes positions from.

Untrained networks, no noise: without padding the image is one colour everywhere, with padding it is not.
"""

import pytest
import torch

from pipeline.models.mspie import MSPIEGeneratorConfig

CONST = MSPIEGeneratorConfig(
    head="const", resize="interp", num_upblocks=3, channel_max=16, z_dim=8, w_dim=8, mapping_layers=2
)
UNPADDED = CONST.replace(block="up_conv", padding="none")
VALUES = (-1.0, -0.5, 0.0, 0.5, 1.0)
SIZES = ((32, 32), (48, 48), (32, 56), (64, 40))
BORDER_PX = 8


def probe(config: MSPIEGeneratorConfig, value: float, size: tuple[int, int]) -> torch.Tensor:
    """Two images of a head filled with one value; biases are drawn, as zeros would hide much."""
    torch.manual_seed(3)
    G = config.build()
    with torch.no_grad():
        G.const.fill_(value)
        for layer in (*G.convs, *G.to_rgbs):
            layer.bias.normal_()
        return G.synthesis(torch.randn(2, G.num_ws, 8), size, None)


def spread(img: torch.Tensor) -> float:
    """Largest variance over pixels of a channel, relative to its mean square."""
    img = img.double().flatten(2)
    return (img.var(dim=2) / img.square().mean(dim=2)).max().item()


def inside(img: torch.Tensor) -> torch.Tensor:
    return img[:, :, BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", VALUES)
def test_without_padding_one_value_gives_one_colour_at_the_border_and_inside(value, size):
    img = probe(UNPADDED, value, size)
    assert img.square().mean() > 1e-3
    assert spread(img) <= 1e-10
    border = img[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (border - img.mean(dim=(2, 3))[:, :, None]).abs().max() < 1e-5 * img.abs().max()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block", ["conv_up", "up_conv", "deconv"])
def test_with_padding_it_does_not(block, size):
    assert all(spread(probe(CONST.replace(block=block), value, size)) > 1e-3 for value in VALUES)


@pytest.mark.parametrize("size", SIZES)
def test_nor_with_the_released_skip_path_though_only_its_border_differs(size):
    img = probe(UNPADDED.replace(padded_skip=True), 1.0, size)
    assert spread(img) > 1e-3
    assert spread(inside(img)) <= 1e-10


def test_a_code_is_seen_by_a_generator_without_padding():
    """The probe itself is sharp: positions that come from the head do show."""
    with torch.no_grad():
        for head in ("csg", "spe"):
            G = UNPADDED.replace(head=head, resize="expand").build()
            assert spread(inside(G.synthesis(torch.randn(2, G.num_ws, 8), (48, 32), None))) > 1e-3
