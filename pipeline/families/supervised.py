"""One network trained to tell something of each image: the synthetic tasks of GeoPos (2401.01951, Fig. 4).

centre_of_mass: where the image's intensity has its mean, computed from the image, by squared error. classify: the
image's class, by cross-entropy. Both are measured on held-out images. The paper names neither loss, optimizer nor
scale: Adam's usual figures are our choice. Knows nothing of what the images show.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from pipeline.families.one_network import OneNetworkConfig
from pipeline.models.coordnet import CoordNetConfig
from pipeline.phases import Family, Nets, Step, Terms

NO_MASS = 1e-12  # of an image that is black throughout; its centre is the middle


class SupervisedConfig(OneNetworkConfig):
    """Defaults are those of the centre of mass."""

    kind: Literal["supervised"] = "supervised"
    classes_fields: ClassVar[tuple[str, ...]] = ("family.G.outputs",)
    task: Literal["centre_of_mass", "classify"] = "centre_of_mass"
    G: CoordNetConfig = CoordNetConfig()
    target_scale: float = Field(default=1, gt=0)  # of the centre, whose coordinates are -1..1: the paper has a factor
    microbatch: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _values_agree(self) -> "SupervisedConfig":
        if self.task == "centre_of_mass" and self.G.outputs != 2:
            raise ValueError(f"G.outputs={self.G.outputs} with task='centre_of_mass', which has 2: across and down")
        if self.task == "classify" and self.target_scale != 1:
            raise ValueError(f"target_scale={self.target_scale} has no effect with task='classify'; leave it out")
        if self.G.img_channels != 3:
            raise ValueError(f"G.img_channels={self.G.img_channels}: stored images have 3")
        return self

    def num_classes(self) -> int:
        return self.G.outputs if self.task == "classify" else 0

    def side_px(self) -> int:
        return self.G.image_px

    def tiny(self) -> "SupervisedConfig":
        small = self.G.replace(filters=4, extra=0, layers=min(self.G.layers, 2))
        return self.replace(G=small, microbatch=4)

    def build(self, seed: int) -> Family:
        losses = {"centre_of_mass": (self._centre, ("mse",)), "classify": (classify, ("cross_entropy",))}
        loss, terms = losses[self.task]
        return self.family_of(self.G.build(), loss, terms, loss)

    def _centre(self, nets: Nets, step: Step) -> Terms:
        """Mean over both coordinates of the squared error."""
        light = intensity(step.real)
        return {"mse": (nets["G"](light) - self.target_scale * centre_of_mass(light)).square().mean(1)}


def classify(nets: Nets, step: Step) -> Terms:
    """Images without a label count nothing in the loss, and as wrong."""
    logits = nets["G"](intensity(step.real))
    right = (logits.detach().argmax(1) == step.c).float()
    return {"cross_entropy": F.cross_entropy(logits, step.c, reduction="none", ignore_index=-1), "accuracy": right}


def intensity(real: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """[-1, 1] to 0..1, black being 0: what convolutions have around an image too."""
    return (real + 1) / 2


def centre_of_mass(light: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 2"]:
    """(x, y) of the mean place of all light, -1 and 1 being the outermost pixels; float32, summed in float64.

    The middle, (0, 0), where there is no light.
    """
    mass = light.double().sum(1)
    total = mass.sum((1, 2)) + NO_MASS
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64, device=light.device) for n in mass.shape[1:])
    x, y = (mass.sum(1) * columns).sum(1), (mass.sum(2) * rows).sum(1)
    return (torch.stack([x, y], 1) / total[:, None]).float()
