"""What features must be like before a number is made of them: finite, of one width, and enough of them.

Features are [n, d] in the order of image numbers. Knows nothing of detectors or of where images come from.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.errors import UserError, WorkError


def check_finite(features: Float[Tensor, "n d"], whose: str, first_image: int = 0) -> None:
    """Raise WorkError with the number of the first image that has a feature which is nan or infinite."""
    bad = ~torch.isfinite(features).all(dim=1)
    if bad.any():
        row = int(bad.nonzero()[0])
        column = int((~torch.isfinite(features[row])).nonzero()[0])
        raise WorkError(
            f"{whose} image {first_image + row}: feature {column} of {features.shape[1]} is {features[row, column]:g} "
            f"({int(bad.sum())} of {len(bad)} images have such features); "
            "look at that image, and at the precision its generator and the detector run in"
        )


def check_pair(real: Float[Tensor, "n d_real"], fake: Float[Tensor, "m d_fake"], metric: str, least: int) -> None:
    """Raise unless both sets are finite, of one width (UserError) and of at least `least` images (UserError)."""
    if real.shape[1] != fake.shape[1]:
        raise UserError(
            f"{metric}: real images have {real.shape[1]} features and fakes {fake.shape[1]}; "
            "use one detector and one of its outputs for both"
        )
    for whose, features in (("real", real), ("fake", fake)):
        if len(features) < least:
            raise UserError(f"{metric} needs at least {least} {whose} images, got {len(features)}; give it more images")
        check_finite(features, whose)
