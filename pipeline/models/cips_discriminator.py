"""CIPS' discriminator (2011.13775, Section 4.1 and Appendix C): StyleGAN2's, for coordinates and for growing grids.

With `coords` it sees the positions of the pixels beside their colours: 28,864,385 parameters at 256 px. For growing
grids each smaller side enters at its own block through its own 1x1 convolution, without a fade: which blocks take part
is a function of the input's side alone. Knows neither positions nor schedule.
Unverified: the 1024 px model was published without a recipe; growth block by block is our reading of "progressive".
"""

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.config import added
from pipeline.layers.equalized import EqualizedConv2d
from pipeline.models.stylegan2 import Discriminator, DiscriminatorConfig, channels_at


class CIPSDiscriminatorConfig(DiscriminatorConfig):
    """StyleGAN2's, and what it sees."""

    coords: bool = added(False)  # RGB and each pixel's x and y in [-1, 1]: what the release does without --img2dis

    def build(self, growths: int = 0) -> "CIPSDiscriminator":
        """For images of resolution_px, and with growths also of half of it, a quarter ..."""
        return CIPSDiscriminator(self, growths)


class CIPSDiscriminator(Discriminator):
    """Images to logits; `growths` smaller sides are let in as well."""

    def __init__(self, cfg: CIPSDiscriminatorConfig, growths: int):
        super().__init__(cfg, img_channels=5 if cfg.coords else 3)
        self.entries = nn.ModuleDict()
        for side in cfg.sides()[1 : growths + 1]:
            channels = channels_at(side, cfg.channel_multiplier, cfg.channel_max)
            self.entries[str(side)] = EqualizedConv2d(self.img_channels, channels, 1)

    def forward(self, img: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        for i, (side, from_rgb) in enumerate(self.entries.items()):
            if img.shape[2] == int(side):
                return self.enter(img, from_rgb, i + 1)
        return super().forward(img)
