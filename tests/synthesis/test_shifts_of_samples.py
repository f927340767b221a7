"""An image stays a function of its seed where a generator draws shifts in evaluation, too (coords.stochastic_eval)."""

import numpy as np
import pytest
import torch

from pipeline.layers.coords import CoordSpec
from pipeline.models.dcgan import DCGANGeneratorConfig
from pipeline.models.mspie import MSPIEGeneratorConfig
from pipeline.synthesis.sample import generate

GENERATORS = {
    "mspie": MSPIEGeneratorConfig(num_upblocks=2, channel_max=8, z_dim=8, w_dim=8, mapping_layers=1),
    "dcgan": DCGANGeneratorConfig(resolution_px=16, channel_base=8, z_dim=8, bn_group=4),
}


def made(kind: str, **coords):
    torch.manual_seed(0)
    return GENERATORS[kind].replace(coords=CoordSpec(mode="geo", **coords)).build().eval().requires_grad_(False)


@pytest.mark.filterwarnings("ignore:family.G. coords.draw")  # batch norm takes most of that shift away
@pytest.mark.parametrize("draw", ["sample", "batch"])
@pytest.mark.parametrize("kind", GENERATORS)
def test_shifts_of_a_sample_follow_from_its_seed_alone(kind, draw):
    G = made(kind, stochastic_eval=True, draw=draw)
    together = generate(G, [3, 4, 5])
    torch.rand(7)
    assert np.array_equal(together[1], generate(G, [4])[0])
    assert not np.array_equal(together, generate(made(kind), [3, 4, 5])), "the shift has an effect"
