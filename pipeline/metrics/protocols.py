"""Names of metrics that say how a number was taken: how many images, which ones, through which detector, whose variant.

`fid50k_full` is 50,000 fakes against all images of a set. `parse` reads the grammar, METRICS lists what is published
(docs/metrics.md has the table). Numbers are made in compute.py, what they are made of in extract.py: this module
imports neither, nor torch, so that the command line can check a name at once.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal, cast

from pipeline.config import nearest
from pipeline.errors import UserError

Kind = Literal["fid", "kid", "pr", "dc", "swd", "spectra"]

SWD16K = 16384  # PGGAN's number; every other k is 1000
HIGHER = ("pr", "dc", "precision", "recall", "density", "coverage")
KID_SUBSETS, KID_SUBSET = 100, 1000  # NVlabs and torch-fidelity

# kind -> parity (the last word of a name) -> (variant of the function, detector)
PARITIES: dict[str, dict[str, tuple[str, str]]] = {
    "fid": {
        "": ("nvlabs", "inception"),
        "mseitzer": ("mseitzer", "inception_mseitzer"),
        "mmgeneration": ("mseitzer", "inception_mseitzer"),
        "fidelity": ("unbiased", "inception_fidelity"),
    },
    "kid": {"": ("", "inception"), "fidelity": ("", "inception_fidelity")},
    "pr": {"": ("exact", "vgg16"), "nvlabs": ("nvlabs", "vgg16"), "mmgeneration": ("mmgeneration", "vgg16")},
    "dc": {"": ("", "vgg16")},
    "swd": {"": ("tkarras", ""), "mmgeneration": ("mmgeneration", "")},
    "spectra": {"": ("ring1", ""), "power": ("power", ""), "durall": ("durall", "")},
}

_FED = {
    "inception": "inception (NVlabs' export; it takes bytes and resizes them to 299 px by itself)",
    "vgg16": "vgg16 (NVlabs' export; it takes bytes and resizes them to 224 px by itself)",
    "inception_mseitzer": "inception_mseitzer (torch's bilinear to 299 px without antialias, in [-1, 1])",
    "inception_fidelity": "inception_fidelity (TensorFlow 1's bilinear to 299 px, (x - 128) / 128)",
}
_TAKEN = {
    ("fid", "nvlabs"): "covariances over n",
    ("fid", "mseitzer"): "covariances over n - 1, with 1e-6 on their diagonals where scipy finds no root",
    ("fid", "unbiased"): "covariances over n - 1",
    ("kid", ""): f"mean of {KID_SUBSETS} subsets of {KID_SUBSET:,} images",
    ("pr", "exact"): "k = {k}, distances in float64",
    ("pr", "nvlabs"): "k = {k}, features, distances and radii rounded to float16",
    ("pr", "mmgeneration"): "k = {k}, radii rounded to float16",
    ("dc", ""): "k = {k}, distances in float64",
    ("swd", "tkarras"): "levels down to 16 px, 128 patches of 7 px each, 4 x 128 directions, times 1000",
    ("swd", "mmgeneration"): "mmgeneration's pyramid of at most 4 levels, 128 patches of 7 px each, times 1000",
    ("spectra", "ring1"): "root mean square in dB of the mean powers by ring, each over its ring 1",
    ("spectra", "power"): "root mean square in dB of the mean powers by ring",
    ("spectra", "durall"): "root mean square of Durall's mean profiles, in parts of 1",
}


@dataclass(frozen=True)
class Protocol:
    """How a number is taken; `name` says all but a detector that is not the protocol's own."""

    name: str
    kind: Kind
    fake: int
    real: int | None  # None: all images of the set
    stored_order: bool  # the first `real` ones as they are stored; else a keyed draw without replacement
    mirror: bool  # all real images and their mirror images
    variant: str  # of the function of that kind
    k: int  # neighbours; 0 where none are looked for
    detector: str  # as `detectors.find` takes it; "" for swd and spectra

    @property
    def least(self) -> int:
        """Real images without which there is no number, where the name asks for all of them."""
        return self.k + 1 if self.k else 2 if self.real is None else self.real

    def says(self, size_px: int) -> str:
        """One sentence: images of both sets, size, quantisation, detector with its resize, variant."""
        reals = "all" if self.real is None else f"{'the first ' if self.stored_order else ''}{self.real:,}"
        reals += f" real images{' and their mirror images' if self.mirror else ''}"
        detector = _FED.get(self.detector, f"{self.detector} (fed as the JSON beside it says)")
        through = f" through {detector}" if self.detector else ""
        taken = _TAKEN[self.kind, self.variant].format(k=self.k)
        return f"{self.fake:,} fakes against {reals}, uint8 at {size_px} px{through}; {taken}."


_NAME = re.compile(
    r"(?P<kind>fid|kid|pr|dc|swd|spectra)(?P<fake>\d{1,9}[kn]?)(?P<k>\d{1,3})?"
    r"(?:_(?P<real>full|(?:first)?\d{1,9}k?))?(?P<mirror>_mirror)?(?:_(?P<parity>[a-z]+))?"
)
_FORMS = {
    "fid": "fid50k_full, fid50k_10k or fid50k_first50k",
    "kid": "kid50k_full, kid50k_10k or kid50k_first50k",
    "pr": "pr50k3_full or pr10k3_10k: thousands of fakes, k, reals (pr600n3_600 where they are no thousands)",
    "dc": "dc50k5_full or dc10k5_10k: thousands of fakes, k, reals (dc600n5_600 where they are no thousands)",
    "swd": "swd16k, which is 16384 of each, or swd2k",
    "spectra": "spectra5k: 5000 of each",
}


def parse(text: str) -> Protocol:
    """The protocol of a name, with `.DETECTOR` behind it where another detector is wanted (a name or a path).

    UserError, one line, where the name is none; counts are written in one way (fid50000_full is fid50k_full).
    """
    name, dot, detector = text.partition(".")
    protocol = METRICS.get(name) or _protocol(name, f"metric={text!r}")
    if not dot:
        return protocol
    if not protocol.detector:
        raise UserError(f"metric={text!r}: {protocol.kind} has no detector; ask for {protocol.name}")
    if not detector:
        raise UserError(f"metric={text!r}: a detector follows the dot, its name or a path; or ask for {protocol.name}")
    return replace(protocol, detector=detector)


def _protocol(name: str, where: str) -> Protocol:
    found = _NAME.fullmatch(name)
    if not found or (found["parity"] and not any(found["parity"] in of for of in PARITIES.values())):
        raise UserError(f"{where}: no such protocol; {nearest(name, METRICS)} docs/metrics.md has the grammar")
    kind, parity = cast(Kind, found["kind"]), found["parity"] or ""
    counted, paired = kind in ("pr", "dc"), kind in ("swd", "spectra")
    if counted != bool(found["k"]) or (found["fake"][-1] == "n") != (counted and found["fake"][-1] != "k"):
        raise UserError(f"{where}: write {_FORMS[kind]}")
    if paired == bool(found["real"]) or (paired and found["mirror"]):
        raise UserError(f"{where}: write {_FORMS[kind]}")
    if found["mirror"] and found["real"] != "full":
        raise UserError(f"{where}: the mirror images of some are not defined; write {kind}..._full_mirror")
    if parity not in PARITIES[kind]:
        raise UserError(f"{where}: {_refusal(kind, parity, name)}")
    fake, k = _number(kind, found["fake"]), int(found["k"] or 0)
    real = fake if paired else None if found["real"] == "full" else _number(kind, found["real"].removeprefix("first"))
    least = max(k + 1, 1 if paired else 2)
    if min(fake, least if real is None else real) < least or (counted and not k):
        raise UserError(f"{where}: it takes {least} images or more of each set, and k of 1 or more")
    variant, detector = PARITIES[kind][parity]
    order = (found["real"] or "").startswith("first")
    return Protocol(
        name=_canonical(kind, fake, k, None if paired else found["real"], real, bool(found["mirror"]), parity),
        kind=kind,
        fake=fake,
        real=real,
        stored_order=order,
        mirror=bool(found["mirror"]),
        variant=variant,
        k=k,
        detector=detector,
    )


def _refusal(kind: str, parity: str, name: str) -> str:
    there = " or ".join(filter(None, PARITIES[kind])) or "no other"
    bare = name.removesuffix(f"_{parity}")
    if parity == "nvlabs" and kind in ("fid", "kid"):
        return f"{bare} is NVlabs' as it stands; leave _nvlabs away"
    return f"{kind} has no variant {parity!r} (there is {there}); ask for {bare}"


def _number(kind: str, text: str) -> int:
    if kind == "swd" and text == "16k":
        return SWD16K
    return int(text[:-1]) * 1000 if text.endswith("k") else int(text.removesuffix("n"))


def _written(kind: str, n: int) -> str:
    if kind == "swd" and n in (SWD16K, 16000):
        return "16k" if n == SWD16K else str(n)
    return str(n) if n % 1000 else f"{n // 1000}k"


def _canonical(kind: str, fake: int, k: int, asked: str | None, real: int | None, mirror: bool, parity: str) -> str:
    name = kind + _written(kind, fake)
    if k:
        name += f"{'n' if fake % 1000 else ''}{k}"
    if asked:
        name += "_full" if real is None else f"_{'first' if asked.startswith('first') else ''}{_written(kind, real)}"
    return name + ("_mirror" if mirror else "") + (f"_{parity}" if parity else "")


METRICS: dict[str, Protocol] = {
    name: _protocol(name, name)
    for name in (
        "fid50k_full",
        "fid50k_full_mirror",
        "fid50k_50k",
        "fid50k_50k_mmgeneration",  # MS-PIE
        "fid50k_first50k_fidelity",  # CIPS
        "fid50k_full_mseitzer",
        "kid50k_full",
        "kid50k_full_fidelity",
        "pr10k3_10k",
        "pr10k3_10k_mmgeneration",  # MS-PIE
        "pr50k3_full",  # CIPS: k and detector are not stated there
        "pr50k3_full_nvlabs",
        "dc10k5_10k",
        "dc50k5_full",
        "swd16k",
        "swd16k_mmgeneration",  # MS-PIE
        "spectra5k",  # CIPS, Figure 7
        "spectra5k_durall",
    )
}


def label_of(protocol: Protocol) -> str:
    """The label of its extractor without loading it: hashes the file of a detector that is not the protocol's own."""
    if not protocol.detector or protocol.detector == parse(protocol.name).detector:
        return protocol.detector or protocol.kind
    from pipeline.metrics.detectors import find  # torch, for those who need it

    name, found = find(protocol.detector)
    return name if found.names else found.label


def metric_name(protocol: Protocol, extractor_label: str, size_px: int, of_px: int | None = None) -> str:
    """`Metrics/fid50k_full/256px`; `of_px`: made at that size and reduced. Suffixes of values are appended to it."""
    own = parse(protocol.name).detector
    label = f".{extractor_label}" if own and extractor_label != own else ""
    return f"Metrics/{protocol.name}{label}/{size_px}px" + (f"_of_{of_px}px" if of_px else "")


def better(value: str) -> Literal["lower", "higher"]:
    """Which way a value improves, by its suffix ("/recall"), its kind or its whole name."""
    return "higher" if value.rsplit("/", 1)[-1] in HIGHER else "lower"
