"""Scale draws of MS-PIE: configured probabilities, a function of (seed, nimg) alone. Pure functions, no training."""

from collections import Counter

import pytest

from pipeline.families.mspie import MSPIEConfig
from pipeline.recipes import find


def draws(family: MSPIEConfig, seed: int, n: int) -> list[int]:
    return [family.size_at(seed, 24 * i)[0] for i in range(n)]


@pytest.mark.parametrize("probs", [(0.5, 0.25, 0.25), (0.1, 0.2, 0.7)])
def test_frequencies_follow_the_configured_probabilities_within_three_sigma(probs):
    n, family = 6000, MSPIEConfig(scale_probs=probs)
    seen = Counter(draws(family, 0, n))
    for size, p in zip((256, 384, 512), probs, strict=True):
        assert abs(seen[size] - n * p) < 3 * (n * p * (1 - p)) ** 0.5


def test_the_draw_is_a_function_of_seed_and_nimg_so_ranks_and_resumes_agree():
    a, b = MSPIEConfig(), MSPIEConfig()
    assert draws(a, 3, 200) == draws(b, 3, 200)
    assert draws(a, 3, 200)[150:] == [b.size_at(3, 24 * i)[0] for i in range(150, 200)]
    assert draws(a, 3, 200) != draws(a, 4, 200)


def test_knobs_hand_the_drawn_size_to_the_loop():
    config = find("mspie.table5_f").make().family.tiny()
    family = config.build(7)
    assert [family.knobs(n).size for n in range(0, 240, 12)] == [config.size_at(7, n) for n in range(0, 240, 12)]
    assert {family.knobs(n).size for n in range(0, 600, 12)} == {(32, 32), (48, 48), (64, 64)}


@pytest.mark.parametrize(
    ("row", "sides", "stored", "batch", "group", "kimg"),
    [
        ("table2_e", (256,), 256, 24, 3, 20_000),
        ("table5_a", (256,), 256, 24, 3, 26_400),
        ("table5_b", (512,), 512, 24, 3, 26_400),
        ("table5_f", (256, 384, 512), 512, 24, 3, 26_400),
        ("table5_k", (256, 384, 512), 512, 24, 3, 26_400),
        ("table5_f_896", (256, 512, 896), 1024, 24, 3, 26_400),
        ("table5_f_1024", (256, 512, 1024), 1024, 16, 2, 24_000),
    ],
)
def test_rows_are_trained_at_the_papers_sizes_with_its_batches(row, sides, stored, batch, group, kimg):
    run = find(f"mspie.{row}").make()
    family = run.family
    assert family.sizes() == tuple((side, side) for side in sides)
    assert (run.data.size_px, run.batch_size, family.group, run.total_kimg) == (stored, batch, group, kimg)
    assert family.size_probs() == ((0.5, 0.25, 0.25) if len(sides) == 3 else (1,))
    seen = Counter(family.size_at(0, batch * i)[0] for i in range(400))
    assert set(seen) == set(sides)
    assert abs(seen[256 if 256 in sides else 512] - 400 * family.size_probs()[0]) <= 3 * (400 * 0.25) ** 0.5


def test_optimizer_constants_are_those_of_the_lazy_correction():
    for family in (MSPIEConfig(), find("cips.table3_main").make().family):
        assert family.lrs()["G"] == pytest.approx(0.0016)
        assert family.lrs()["D"] == pytest.approx(0.00188235, rel=1e-5)
        adam = family.adam()
        assert adam["G"].betas == (0.0, pytest.approx(0.991992, rel=1e-6))
        assert adam["D"].betas == (0.0, pytest.approx(0.990585, rel=1e-6))
        assert adam["G"].eps == 1e-8


def test_regularisers_are_due_every_16_and_every_4_iterations_weighted_by_as_many():
    d_phase, g_phase = find("mspie.table5_f").make().family.tiny().build(0).phases
    assert [i for i in range(33) if "r1" in d_phase.due(i)] == [0, 16, 32]
    assert [i for i in range(9) if "pl" in g_phase.due(i)] == [0, 4, 8]
    assert (d_phase.lazy["r1"], g_phase.lazy["pl"]) == (16, 4)
