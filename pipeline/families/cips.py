"""CIPS (2011.13775): the per-pixel generator against StyleGAN2's discriminator, in the paper's ways to train it.

Full images; patches of strided pixels (Appendix C, Table 5); crops of a cylinder, for panoramas; a coordinate grid that
grows by stages (the 1024 px model). Fresh z for D and for G, no style mixing, no path length, R1 every 16 iterations.
Parity: G's Adam keeps the lazy correction of an interval of 4 although G has no regulariser. R1 takes the gradient of
all that D sees, coordinates among it.
Unverified: lengths of the growing stages; there, nothing fades, and optimizers start anew.
"""

from bisect import bisect_right
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor

from pipeline.config import added
from pipeline.families.cips_views import (
    Positions,
    cropped,
    gathered,
    panorama,
    patches,
    whole,
    with_coordinates,
)
from pipeline.families.logistic import LogisticConfig, g_adversarial, plain_fakes, resize_reals
from pipeline.models.cips import CIPSGeneratorConfig
from pipeline.models.cips_discriminator import CIPSDiscriminatorConfig
from pipeline.models.stylegan2 import broadcast_w, power_of_two
from pipeline.phases import Family, Knobs, Nets, Phase, Stages, Step, Terms


class CIPSConfig(LogisticConfig):
    """Table 3: defaults are "main" (Fourier and embeddings, RGB skips) at 256 px, full images."""

    recomputes: ClassVar[bool] = True

    kind: Literal["cips"] = "cips"
    G: CIPSGeneratorConfig = CIPSGeneratorConfig()
    D: CIPSDiscriminatorConfig = CIPSDiscriminatorConfig(mbstd_group=4)
    patch_px: int | None = added(None)  # train on patches of this side, D's own; None: on full images
    grow_kimg: tuple[float, ...] = added(())  # lengths of stages on grids of ..., a quarter, half of G.size_px
    crop_of_px: int | None = added(None, ge=2)  # stored images as if of this side: a random square of G.size_px of it
    rotate: bool = added(False)  # stored images by a random number of quarter turns

    @model_validator(mode="after")
    def _sizes_agree(self) -> "CIPSConfig":
        name = "G.size_px" if self.patch_px is None else "patch_px"
        seen = self.patch_px or self.G.size_px
        if self.patch_px is not None and power_of_two(seen) >= self.G.size_px:
            raise ValueError(
                f"patch_px={seen} must be smaller than G.size_px={self.G.size_px}, or null for full images"
            )
        if self.D.resolution_px != seen:
            raise ValueError(f"D.resolution_px={self.D.resolution_px} must equal {name}={seen}")
        if self.crop_of_px is not None and self.crop_of_px <= self.G.size_px:
            raise ValueError(f"crop_of_px={self.crop_of_px} must be larger than G.size_px={self.G.size_px}, or null")
        smallest = self.G.size_px >> len(self.grow_kimg)
        if self.grow_kimg and (min(self.grow_kimg) <= 0 or smallest < 8):
            raise ValueError(
                f"grow_kimg={list(self.grow_kimg)} must be positive; its first stage would be at {smallest} px, at "
                "least 8 is allowed"
            )
        return self

    @model_validator(mode="after")
    def _one_mode(self) -> "CIPSConfig":
        modes = {
            "patch_px": self.patch_px is not None,
            "grow_kimg": bool(self.grow_kimg),
            "G.cylinder_px": self.G.cylinder_px is not None,
        }
        chosen = [name for name, on in modes.items() if on]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} are different ways to train; set one of them")
        if self.D.coords and self.G.cylinder_px is not None:
            raise ValueError(
                "D.coords=true: a photograph has no place on the cylinder of G.cylinder_px; set one of them"
            )
        return self

    def sizes(self) -> tuple[tuple[int, int], ...]:
        """With growth, those of its stages."""
        sides = [self.G.size_px >> k for k in range(len(self.grow_kimg), -1, -1)]
        return tuple((side, side) for side in sides)

    def stored_px(self) -> int:
        return self.crop_of_px or self.G.size_px

    def part(self, size: tuple[int, int]) -> tuple[int, int]:
        return size if self.patch_px is None else (self.patch_px, self.patch_px)

    def staged(self) -> bool:
        return bool(self.grow_kimg)

    def starts(self) -> tuple[int, ...]:
        """Where each stage begins, in images."""
        return tuple(round(1000 * sum(self.grow_kimg[:k])) for k in range(len(self.grow_kimg) + 1))

    def size_probs(self, total_kimg: float = inf) -> tuple[float, ...]:
        if total_kimg == inf:
            return (*(0.0 for _ in self.grow_kimg), 1.0)
        ends = [min(start, 1000 * total_kimg) for start in (*self.starts()[1:], inf)]
        return tuple(max(0.0, end - at) / (1000 * total_kimg) for at, end in zip(self.starts(), ends, strict=True))

    def tiny(self) -> "CIPSConfig":
        """32 px; sides of patches, embeddings, cylinders and crops in proportion."""
        side = max(32, 8 << len(self.grow_kimg))

        def scaled(px: int | None) -> int | None:
            return px and max(8, round(px * side / self.G.size_px))

        small_g = self.G.replace(
            size_px=side,
            embedding_px=scaled(self.G.embedding_px),
            cylinder_px=scaled(self.G.cylinder_px),
            width=32,
            z_dim=32,
            w_dim=32,
            mapping_layers=2,
        )
        return self.replace(
            G=small_g,
            D=self.D.replace(resolution_px=scaled(self.patch_px) or side, channel_max=32),
            patch_px=scaled(self.patch_px),
            grow_kimg=tuple(0.064 for _ in self.grow_kimg),
            crop_of_px=scaled(self.crop_of_px),
            ema_kimg=0.5,
        )

    def build(self, seed: int) -> Family:
        D_phase, sizes, share = self.d_phase(self._fakes), self.sizes(), self.G.size_px / self.stored_px()
        shown = partial(cropped, share=share, rotate=self.rotate, seed=seed)
        if self.G.cylinder_px is not None:
            sizes = ((self.G.size_px, self.G.cylinder_px),)
        return Family(
            nets={"G": self.G.build(), "D": self.D.build(len(self.grow_kimg))},
            adam=self.adam(),
            phases=(
                replace(D_phase, loss=lambda nets, step: D_phase.loss(nets, self._as_seen(step))),
                Phase("G", "G", self._g_loss, ("adv",)),
            ),
            knobs=self._knobs_at,
            resize=resize_reals,
            present=shown if share < 1 or self.rotate else None,
            ema_kimg=self.ema_kimg,
            sizes=sizes,
            stages=Stages(self.starts(), (1,) * len(sizes), _nothing, _nothing) if self.grow_kimg else None,
        )

    def _knobs_at(self, nimg: int) -> Knobs:
        return Knobs(self.sizes()[bisect_right(self.starts(), nimg) - 1], self.lrs())

    def _positions(self, step: Step) -> Positions:
        if self.patch_px is not None:
            return patches(step.chance, step.size[0], self.patch_px)
        if self.G.cylinder_px is not None:
            return panorama(step.chance, step.size, self.G.cylinder_px)
        return whole(step.size, step.chance.device)

    def _as_seen(self, step: Step) -> Step:
        """With the reals as D sees them: fakes' positions, and coordinates."""
        real = step.real if self.patch_px is None else gathered(step.real, self._positions(step))
        return replace(step, real=self._for_d(real, step))

    def _for_d(self, img: Float[Tensor, "n c h w"], step: Step) -> Float[Tensor, "n c2 h w"]:
        return with_coordinates(img, self._positions(step), step.size) if self.D.coords else img

    def _fakes(self, G: Any, step: Step) -> Float[Tensor, "n c h w"]:
        if self.patch_px is None and self.G.cylinder_px is None:
            return self._for_d(plain_fakes(G, step), step)
        ws = broadcast_w(G.mapping(step.chance.normal("z", G.z_dim)), G.num_ws)
        return self._for_d(G.at(ws, *self._positions(step), step.chance.seeds("noise")), step)

    def _g_loss(self, nets: Nets, step: Step) -> Terms:
        return g_adversarial(nets, step, self._fakes)


def _nothing(nets: Nets, at: int) -> None:
    """G is the same at all stages, and D knows a stage by the side of its images."""
