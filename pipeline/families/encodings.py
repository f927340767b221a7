"""Which spatial encodings work with which family: asked of the configurations, so that the table cannot be out of date.

An encoding is a list of ways to set it; a family has it where its configuration accepts one of them. Encodings are
those of MS-PIE (2012.05217), CIPS (2011.13775), CoordConv (1807.03247) and GeoPos (2401.01951), in the generator G;
the network of a family without a generator is called G too. Knows no network and no recipe.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config import override
from pipeline.families import KINDS
from pipeline.phases import FamilyConfig
from pipeline.spec import UserError

Way = tuple[str, ...]  # settings below family.G, together


@dataclass(frozen=True)
class Encoding:
    """A way for a network to know where it is."""

    name: str
    what: str
    ways: tuple[Way, ...]  # the first one that a family accepts counts
    without_head: Way = ()  # of networks that have no place for a code


ENCODINGS = (
    Encoding(
        "zero padding alone",
        "No code: places differ by the zeros beyond the borders, and by dense layers where the network has some.",
        (("head=none", "padding=true"), ("head=none", "padding=input")),
        without_head=("coords.mode=none",),
    ),
    Encoding(
        "neither code nor padding",
        "Places differ by noise (`singan`) or by the dense layer below the first map (`pggan`, `dcgan`) alone.",
        (("head=none", "padding=false"), ("head=none", "padding=none")),
    ),
    Encoding(
        "learned constant",
        "StyleGAN2's first map, interpolated for other sizes (MS-PIE, Table 5, rows c and h).",
        (("head=const", "resize=interp"),),
    ),
    Encoding("CSG", "Cartesian grid at the first map: two channels (MS-PIE, Section 3.3).", (("head=csg",),)),
    Encoding(
        "SPE",
        "Sinusoidal code at the first map, as in Transformers, for both axes (MS-PIE, Section 3.3).",
        (("head=spe",),),
    ),
    Encoding(
        "code interpolated",
        "At other sizes the code of the base size, interpolated: a place keeps its share of the image.",
        (("head=spe", "resize=interp"),),
    ),
    Encoding(
        "code expanded",
        "At other sizes a code with more positions: a place keeps its distance from the first one.",
        (("head=spe", "resize=expand"), ("head=spe",)),
    ),
    Encoding(
        "Fourier features", "Sines of learned frequencies of each pixel's coordinates (CIPS).", (("variant=ne",),)
    ),
    Encoding("coordinate embeddings", "A learned vector for each pixel (CIPS).", (("variant=no_fourier",),)),
    Encoding("features and embeddings", "Both of these, as in CIPS' main rows.", (("variant=skips",),)),
    Encoding(
        "CoordConv",
        "A channel a dimension beside the input of convolutions; no shift.",
        (("coords.mode=coord",),),
    ),
    Encoding(
        "GeoConv",
        "One channel, the sum over dimensions, plus a shift that is random in training and 0 in evaluation (GeoPos).",
        (("coords.mode=geo",),),
    ),
)


def applied(encoding: Encoding, family: FamilyConfig) -> tuple[FamilyConfig, tuple[str, ...]] | None:
    """The family with this encoding and the settings that make it so; None where it refuses all of them."""
    fields = type(family.G).model_fields  # pyright: ignore[reportAttributeAccessIssue]
    last = [encoding.without_head] if encoding.without_head and "head" not in fields else []
    for way in (*encoding.ways, *last):
        try:
            return override(family, [f"G.{setting}" for setting in way]), tuple(f"family.G.{s}" for s in way)
        except UserError:
            continue
    return None


def markdown(kinds: Mapping[str, type[FamilyConfig]] = KINDS) -> list[str]:
    """Lines: the table, encodings by families, and a list of what each encoding is."""
    families = {kind: config(kind=kind) for kind, config in kinds.items()}
    rows = [["encoding", *(f"`{kind}`" for kind in families)], ["---"] * (1 + len(families))]
    for encoding in ENCODINGS:
        found = [applied(encoding, family) for family in families.values()]
        rows.append([encoding.name, *(", ".join(f"`{s}`" for s in f[1]) if f else "no" for f in found)])
    return [*(f"| {' | '.join(row)} |" for row in rows), "", *(f"- **{e.name}**: {e.what}" for e in ENCODINGS)]
