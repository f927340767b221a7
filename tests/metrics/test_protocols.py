"""Names of protocols: what they say, how they are written, and what is refused."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.metrics.detectors import KNOWN
from pipeline.metrics.protocols import METRICS, PARITIES, better, metric_name, parse

# kind, fake, real, stored order, mirror, variant, k, detector
FIELDS = {
    "fid50k_full": ("fid", 50_000, None, False, False, "nvlabs", 0, "inception"),
    "fid50k_full_mirror": ("fid", 50_000, None, False, True, "nvlabs", 0, "inception"),
    "fid50k_50k": ("fid", 50_000, 50_000, False, False, "nvlabs", 0, "inception"),
    "fid50k_50k_mmgeneration": ("fid", 50_000, 50_000, False, False, "mseitzer", 0, "inception_mseitzer"),
    "fid50k_first50k_fidelity": ("fid", 50_000, 50_000, True, False, "unbiased", 0, "inception_fidelity"),
    "fid50k_full_mseitzer": ("fid", 50_000, None, False, False, "mseitzer", 0, "inception_mseitzer"),
    "kid50k_full": ("kid", 50_000, None, False, False, "", 0, "inception"),
    "kid50k_full_fidelity": ("kid", 50_000, None, False, False, "", 0, "inception_fidelity"),
    "pr10k3_10k": ("pr", 10_000, 10_000, False, False, "exact", 3, "vgg16"),
    "pr10k3_10k_mmgeneration": ("pr", 10_000, 10_000, False, False, "mmgeneration", 3, "vgg16"),
    "pr50k3_full": ("pr", 50_000, None, False, False, "exact", 3, "vgg16"),
    "pr50k3_full_nvlabs": ("pr", 50_000, None, False, False, "nvlabs", 3, "vgg16"),
    "dc10k5_10k": ("dc", 10_000, 10_000, False, False, "", 5, "vgg16"),
    "dc50k5_full": ("dc", 50_000, None, False, False, "", 5, "vgg16"),
    "swd16k": ("swd", 16_384, 16_384, False, False, "tkarras", 0, ""),
    "swd16k_mmgeneration": ("swd", 16_384, 16_384, False, False, "mmgeneration", 0, ""),
    "spectra5k": ("spectra", 5_000, 5_000, False, False, "ring1", 0, ""),
    "spectra5k_durall": ("spectra", 5_000, 5_000, False, False, "durall", 0, ""),
}


def test_a_published_name_is_what_it_says() -> None:
    fields = ("kind", "fake", "real", "stored_order", "mirror", "variant", "k", "detector")
    assert {name: tuple(getattr(p, field) for field in fields) for name, p in METRICS.items()} == FIELDS


def test_a_name_reads_back_and_says_how_the_number_is_taken() -> None:
    for name, protocol in METRICS.items():
        assert parse(name) == protocol
        assert protocol.name == name
        says = protocol.says(256)
        assert f"{protocol.fake:,} fakes against" in says
        assert "uint8 at 256 px" in says
        assert protocol.detector in says
        assert ("first 50,000" in says) == protocol.stored_order
        assert ("mirror" in says) == protocol.mirror
    assert {p.kind for p in METRICS.values()} == set(PARITIES)
    assert "dinov2 (fed as the JSON beside it says)" in parse("fid50k_full.dinov2").says(256)
    assert {d for of in PARITIES.values() for _, d in of.values() if d} == set(KNOWN)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("fid50000_full", "fid50k_full"),
        ("fid600_first300", "fid600_first300"),
        ("fid64_1000", "fid64_1k"),
        ("pr600n3_full_nvlabs", "pr600n3_full_nvlabs"),
        ("dc2000n4_full_mirror", "dc2k4_full_mirror"),
        ("swd16384", "swd16k"),
        ("swd16000", "swd16000"),
        ("swd2k_mmgeneration", "swd2k_mmgeneration"),
        ("spectra64_power", "spectra64_power"),
    ],
)
def test_a_protocol_has_one_name(text: str, name: str) -> None:
    assert parse(text).name == name
    assert parse(name) == parse(text)


def test_counts_of_a_name_that_is_not_published() -> None:
    p = parse("pr600n3_full_nvlabs")
    assert (p.fake, p.k, p.real, p.variant, p.least) == (600, 3, None, "nvlabs", 4)
    p = parse("fid64_first300")
    assert (p.fake, p.real, p.stored_order, p.mirror, p.least) == (64, 300, True, False, 300)
    assert (parse("swd16k").fake, parse("swd16000").fake, parse("swd2k").fake) == (16_384, 16_000, 2_000)
    assert parse("kid64_full").least == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fid50k_ful", "no such protocol; did you mean 'fid50k_full'"),
        ("fidk50_full", "no such protocol; did you mean 'fid50k_full'"),
        ("pr5ok3_full", "no such protocol; did you mean 'pr50k3_full'"),
        ("kid50k_full_fidelty", "no such protocol; did you mean 'kid50k_full_fidelity'"),
        ("FID", "no such protocol; known: dc10k5_10k, "),
        ("", "no such protocol; known: "),
        ("fid50k", "write fid50k_full, fid50k_10k or fid50k_first50k"),
        ("fid50k3_full", "write fid50k_full"),
        ("fid600n_full", "write fid50k_full"),
        ("pr10k_10k", "write pr50k3_full or pr10k3_10k"),
        ("pr64_64", "write pr50k3_full or pr10k3_10k: .*pr600n3_600"),
        ("swd16k_full", "write swd16k"),
        ("swd16k_mirror", "write swd16k"),
        ("fid50k_50k_mirror", r"mirror images of some are not defined; write fid\.\.\._full_mirror"),
        ("fid50k_full_nvlabs", "fid50k_full is NVlabs' as it stands"),
        ("kid50k_full_mmgeneration", r"kid has no variant 'mmgeneration' \(there is fidelity\); ask for kid50k_full$"),
        ("dc10k5_10k_nvlabs", r"dc has no variant 'nvlabs' \(there is no other\); ask for dc10k5_10k$"),
        ("pr3n3_full", "4 images or more"),
        ("pr10k0_10k", "k of 1 or more"),
        ("fid50k_first1", "2 images or more"),
        ("swd0", "1 images or more"),
        ("swd16k.dinov2", "swd has no detector; ask for swd16k"),
        ("fid50k_full.", "a detector follows the dot"),
    ],
)
def test_other_words_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as e:
        parse(text)
    assert str(e.value).startswith(f"metric={text!r}: ")
    assert "\n" not in str(e.value)


def test_a_detector_follows_the_dot_and_its_label_goes_into_the_name() -> None:
    other = parse("pr50k3_full./data/nets/dinov2.pt2")
    assert (other.name, other.detector) == ("pr50k3_full", "/data/nets/dinov2.pt2")
    assert metric_name(other, "dinov2-1a2b3c4d", 256) == "Metrics/pr50k3_full.dinov2-1a2b3c4d/256px"
    assert metric_name(parse("fid50k_full"), "inception", 256) == "Metrics/fid50k_full/256px"
    assert metric_name(parse("fid50k_full.inception"), "inception", 256) == "Metrics/fid50k_full/256px"
    assert metric_name(parse("fid50k_full"), "inception", 256, 512) == "Metrics/fid50k_full/256px_of_512px"
    assert metric_name(parse("fid50k_full.vgg16"), "vgg16", 256) == "Metrics/fid50k_full.vgg16/256px"
    assert metric_name(parse("swd16k_mmgeneration"), "swd", 128) == "Metrics/swd16k_mmgeneration/128px"


def test_which_way_is_better() -> None:
    for value in ("/precision", "/recall", "/density", "/coverage", "pr", "dc", "Metrics/pr50k3_full/256px/recall"):
        assert better(value) == "higher"
    for value in ("", "/128", "/avg32", "fid", "kid", "swd", "spectra", "Metrics/fid50k_full/256px"):
        assert better(value) == "lower"


def test_a_name_is_checked_without_torch() -> None:
    code = "import sys, pipeline.metrics.protocols as p; p.parse('fid64_full.own'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_page_names_every_published_protocol_and_only_such() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    table = page.partition("| name | fakes |")[2].partition("\n\n")[0]
    assert {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])} == {*METRICS}
