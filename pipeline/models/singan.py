"""SinGAN (1905.01164) with MS-PIE's positional codes and without its padding (2012.05217, Section 4.3, Appendix E).

One G and one D hold a small fully convolutional block a stage of the image pyramid; all blocks exist from the start,
and `stage` says how far training has come. Batch norm is of one sample, as with the published batch of 1.
Knows neither losses nor when a stage ends.
Differs from reference: sides are rounded half up (the release; the original's rounding up makes 26 of 25 px);
stages are computed, and convolutions before a norm have no bias, as in the release (mmgeneration).
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, log
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config
from pipeline.layers.noise import noise_maps
from pipeline.layers.norm import GroupBatchNorm2d
from pipeline.layers.posenc import Convention, head_code
from pipeline.spec import UserError

CONVS = 5  # 3x3, of every block
MARGIN = CONVS  # pixels that valid convolutions of a block take from each side
FIELD_PX = 2 * CONVS + 1  # receptive field
WIDEN = 4  # stages from one doubling of the channels to the next

Size = tuple[int, int]  # height, width


def pyramid(image_px: Size, min_px: int, max_px: int, shrink: float) -> tuple[Size, ...]:
    """Sizes of all stages, smallest first.

    The longer side is at most max_px, the shorter side of the first stage is min_px, and between stages both
    shrink by one factor near `shrink`. ValueError when the image is too small for two stages.
    """
    short, long = min(image_px), max(image_px)
    fit = min(max_px / long, 1.0)
    last = tuple(round_px(side * fit) for side in image_px)
    up_to_image, beyond_max = (ceil(log(x) / log(shrink) - 1e-9) for x in (min_px / short, fit))
    stop = up_to_image + 1 - beyond_max
    if min(last) <= min_px or stop < 1:
        raise ValueError(
            f"image_px={list(image_px)} is trained at {last[0]}x{last[1]} px (max_px={max_px}); the shorter side must "
            f"be larger than min_px={min_px}: take a larger image, or lower min_px"
        )
    factor = (min_px / min(last)) ** (1 / stop)
    sizes = (tuple(round_px(side * factor ** (stop - k)) for side in last) for k in range(stop + 1))
    return tuple((h, w) for h, w in sizes)


def round_px(side: float) -> int:
    """The nearest whole number, halves up, at least 1."""
    return max(1, int(side + 0.5))


class SinGANGeneratorConfig(Config):
    """The pyramid, and how G meets the borders of its images."""

    kind: Literal["singan"] = "singan"
    image_px: Size = (186, 248)  # height and width of the training image
    min_px: int = Field(default=25, ge=FIELD_PX)  # shorter side of the first stage
    max_px: int = Field(default=250, ge=FIELD_PX)  # longer side of the last stage; a smaller image keeps its own
    shrink: float = Field(default=0.75, ge=0.1, le=0.95)  # from a stage to the one below it, roughly
    # input: 5 zeros around what enters a block (original); conv: 1 around each convolution (the release's codes);
    # none: maps drawn 10 px larger, the image so far interpolated to that ("interp-pad")
    padding: Literal["input", "conv", "none"] = "input"
    head: Literal["none", "csg", "spe"] = "none"  # code that is added to the first stage's noise
    spe_channels: int = Field(default=8, ge=4, multiple_of=4)  # half of them code the width, half the height
    convention: Convention = "release"  # Parity: formulas of the released code, or as printed ("paper")
    channels: int = Field(default=32, ge=1)  # doubled every 4 stages
    channel_max: int = Field(default=128, ge=1)

    @model_validator(mode="after")
    def _values_agree(self) -> "SinGANGeneratorConfig":
        pyramid(self.image_px, self.min_px, self.max_px, self.shrink)
        if self.head != "spe" and self.spe_channels != 8:
            raise ValueError(f"spe_channels={self.spe_channels} has no effect with head={self.head!r}; leave it out")
        if self.head == "none" and self.convention != "release":
            raise ValueError(f"convention={self.convention!r} has no effect with head='none'; leave it out")
        return self

    def sizes(self) -> tuple[Size, ...]:
        return pyramid(self.image_px, self.min_px, self.max_px, self.shrink)

    def noise_channels(self, stage: int) -> int:
        """Of the noise map: that of a first stage without code is one map for all three colours, as in the original."""
        if stage:
            return 3
        return {"none": 1, "csg": 2, "spe": self.spe_channels}[self.head]

    def in_channels(self, stage: int) -> int:
        return self.noise_channels(0) if stage == 0 and self.head != "none" else 3

    def build(self) -> "SinGANGenerator":
        return SinGANGenerator(self)


class SinGANDiscriminatorConfig(Config):
    """D of every stage. `norm="none"`: against the colour shift of padding-free training (Appendix E.1)."""

    norm: Literal["batch", "none"] = "batch"
    channels: int = Field(default=32, ge=1)  # doubled every 4 stages
    channel_max: int = Field(default=128, ge=1)

    def build(self, stages: int) -> "SinGANDiscriminator":
        return SinGANDiscriminator(self, stages)


class Block(nn.Module):
    """Five 3x3 convolutions of stride 1: four with norm and leaky ReLU, and a plain one onto the output."""

    def __init__(self, in_channels: int, width: int, out_channels: int, *, padding: int, norm: bool):
        super().__init__()
        ends = [in_channels, *[width] * (CONVS - 1)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=padding, bias=not norm) for a, b in pairwise(ends))
        self.norms = nn.ModuleList(GroupBatchNorm2d(width, 1) if norm else nn.Identity() for _ in self.convs)
        self.convs.append(nn.Conv2d(width, out_channels, 3, padding=padding))
        for conv in self.convs:
            nn.init.normal_(conv.get_parameter("weight"), std=0.02)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o ho wo"]:
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = F.leaky_relu(norm(conv(x)), 0.2)
        return self.convs[-1](x)


class Stack(nn.Module):
    """Blocks of all stages and the stage that training has reached, which its state dict remembers."""

    reached: Tensor

    def __init__(self, blocks: Sequence[Block]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.stage = 0
        self.register_buffer("reached", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(_read_stage)

    def at(self, stage: int) -> None:
        """Work as the network of this stage from now on."""
        if stage != self.stage:
            self.stage = stage
            self.reached.fill_(stage)

    @torch.no_grad()
    def inherit(self, stage: int) -> None:
        """Start a stage with the weights of the one before it, if their widths agree."""
        before, now = self.blocks[stage - 1].state_dict(), self.blocks[stage].state_dict()
        if all(before[name].shape == value.shape for name, value in now.items()):
            self.blocks[stage].load_state_dict(before)


def _read_stage(net: Any, _incompatible_keys: object) -> None:
    net.stage = int(net.reached)


def width_at(stage: int, channels: int, channel_max: int) -> int:
    """Channels of a stage's block."""
    return min(channels << stage // WIDEN, channel_max)


class SinGANDiscriminator(Stack):
    """Images at a stage's size to one logit a patch of 11x11 pixels. Never padded."""

    def __init__(self, cfg: SinGANDiscriminatorConfig, stages: int):
        widths = [width_at(k, cfg.channels, cfg.channel_max) for k in range(stages)]
        super().__init__([Block(3, width, 1, padding=0, norm=cfg.norm == "batch") for width in widths])

    def forward(self, img: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 ho wo"]:
        return self.blocks[self.stage](img)


class SinGANGenerator(Stack):
    """Noise maps, one a stage, to images. A phases.Generator whose latent has no effect: all chance is spatial.

    Only the block of the present stage is trained: those below it run without gradients.
    """

    amplitudes: Tensor
    z_star: Tensor

    def __init__(self, cfg: SinGANGeneratorConfig):
        sizes, pad = cfg.sizes(), int(cfg.padding == "conv")
        widths = [width_at(k, cfg.channels, cfg.channel_max) for k in range(len(sizes))]
        super().__init__([Block(cfg.in_channels(k), c, 3, padding=pad, norm=True) for k, c in enumerate(widths)])
        self.cfg, self.sizes = cfg, sizes
        self.z_dim, self.num_ws = 1, 1
        self.wider = 2 * MARGIN if cfg.padding == "none" else 0  # by so much a noise map exceeds its stage's image
        self.register_buffer("z_star", torch.randn(1, *self.noise_shapes(sizes[:1])[0]))  # of the reconstruction
        self.register_buffer("amplitudes", torch.eye(len(sizes))[0])  # of each stage's noise; 0: not known yet

    @property
    def native_size(self) -> Size:
        """That of the present stage."""
        return self.sizes[self.stage]

    def sizes_at(self, size: Size) -> list[Size]:
        """Sizes of the stages up to the present one when its image has this size: all scaled alike."""
        (h, w), (native_h, native_w) = size, self.native_size
        below = [(round_px(a * h / native_h), round_px(b * w / native_w)) for a, b in self.sizes[: self.stage]]
        return [*below, size]

    def check_size(self, size: Size) -> None:
        """The first stage must not be smaller than a receptive field; raises UserError otherwise."""
        first = self.sizes_at(size)[0]
        if min(first) < FIELD_PX:
            least = [ceil((FIELD_PX - 0.5) * n / f) for n, f in zip(self.native_size, self.sizes[0], strict=True)]
            raise UserError(
                f"size={size[0]}x{size[1]}: the first stage would be {first[0]}x{first[1]}, less than the receptive "
                f"field of {FIELD_PX}; the smallest size is {least[0]}x{least[1]}"
            )

    def noise_shapes(self, sizes: Sequence[Size]) -> list[tuple[int, int, int]]:
        """(channels, h, w) of the noise map of each stage, for images of these sizes."""
        return [(self.cfg.noise_channels(k), h + self.wider, w + self.wider) for k, (h, w) in enumerate(sizes)]

    def mapping(self, z: Float[Tensor, "n z_dim"]) -> Float[Tensor, "n w_dim"]:
        return z

    def synthesis(
        self,
        ws: Float[Tensor, "n num_ws w_dim"],
        size: Size,
        noise: tuple[int, ...] | None,
        amplitude: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n 3 h w"]:
        """Images of the present stage at any size; `noise` holds one seed a sample.

        noise=None: the reconstruction of the training image, its noise interpolated at other sizes than the native.
        `amplitude` replaces the known one of the present stage's noise.
        """
        sizes = self.sizes_at(size)
        if noise is None:
            img = self.reconstruction(size)
            return img.expand(len(ws), -1, -1, -1)
        maps = noise_maps(noise, self.noise_shapes(sizes), ws.device)
        return self.advance(self.below(maps, sizes), maps[-1], amplitude)

    def reconstruction(self, size: Size) -> Float[Tensor, "1 3 h w"]:
        """What z* gives at the first stage and no noise at all others."""
        return self.advance(self.reconstruction_below(size), self._z_star(size) if self.stage == 0 else None)

    def reconstruction_below(self, size: Size) -> Float[Tensor, "1 3 h w"]:
        """The reconstruction of the stage before, enlarged to this size of the present one; zeros at the first."""
        sizes = self.sizes_at(size)
        return self.below([self._z_star(size), *[None] * self.stage], sizes)

    def _z_star(self, size: Size) -> Tensor:
        ((_, h, w),) = self.noise_shapes(self.sizes_at(size)[:1])
        return self.z_star if (h, w) == tuple(self.z_star.shape[2:]) else resized(self.z_star, (h, w))

    @torch.no_grad()
    def below(self, maps: Sequence[Tensor | None], sizes: Sequence[Size]) -> Float[Tensor, "n 3 h w"]:
        """What all stages before the present one make of their maps, enlarged to the present size."""
        first = maps[0]
        assert first is not None
        img = first.new_zeros(len(first), 3, *sizes[0])
        for k, noise in enumerate(maps[:-1]):
            img = resized(self._block(k, img, noise, self.amplitudes[k]), sizes[k + 1])
        return img

    def advance(
        self, below: Float[Tensor, "n 3 h w"], noise: Tensor | None, amplitude: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n 3 h w"]:
        """The present stage: what its block adds to the image so far, with gradients."""
        gain = self.amplitudes[self.stage] if amplitude is None else amplitude[:, None, None, None]
        return self._block(self.stage, below, noise, gain)

    def _block(self, k: int, img: Tensor, noise: Tensor | None, amplitude: Tensor) -> Float[Tensor, "n 3 h w"]:
        h, w = img.shape[2:]
        enters = resized(img, (h + self.wider, w + self.wider)) if self.wider else img
        if k == 0 and self.cfg.head != "none":
            assert noise is not None
            enters = (noise + self._code(noise)) * amplitude  # position-aligned: N(code, 1)
        elif noise is not None:
            enters = noise * amplitude + enters
        if self.cfg.padding == "input":
            enters = F.pad(enters, [MARGIN] * 4)
        return torch.tanh(self.blocks[k](enters)) + img

    def _code(self, noise: Tensor) -> Float[Tensor, "c h w"]:
        head, (c, h, w) = self.cfg.head, noise.shape[1:]
        assert head != "none"
        return head_code(head, c, (h, w), self.cfg.convention, noise.device)


def resized(img: Float[Tensor, "n c h w"], size: Size) -> Float[Tensor, "n c h2 w2"]:
    """Bicubic with aligned corners, as the release enlarges from stage to stage."""
    if img.is_meta:  # torch would take it apart into hundreds of operators, none of which is counted
        return img.new_empty(*img.shape[:2], *size)
    return F.interpolate(img, size=size, mode="bicubic", align_corners=True)
