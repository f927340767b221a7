"""Iterations that were not finite, as the loop counts them: on the CPU, on CUDA's schedule, and on CUDA itself."""

import json
import math

import pytest
import torch

from pipeline.training.health import Health, report

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")


def iteration(health: Health, nimg: int, **values: float) -> None:
    """Notes D/gradient=..., closes."""
    for name, value in values.items():
        health.note(name, torch.tensor(value).isfinite())
    health.close_iteration(nimg)


def boundary(health: Health, *, others: bool = False, last: bool = False) -> bool:
    """What the loop does; `others` stands for the sum over ranks."""
    bad = health.bad_now(last=last)
    health.count(bad or others)
    return bad


def read_late(limit: int) -> Health:
    """A stand-in for CUDA's schedule: flags lie on the CPU, reading them is one iteration late."""
    health = Health(limit, CPU)
    health._late = 1
    return health


def test_it_stops_at_the_limit_of_bad_iterations_in_a_row_and_names_what_was_bad():
    health = Health(3, CPU)
    for nimg, values in ((0, {"D": NAN, "G": 1.0}), (12, {"D": 1.0, "G": INF}), (24, {"D": -INF, "G": NAN})):
        assert not health.exceeded
        iteration(health, nimg, **values)
        assert boundary(health)
    assert health.exceeded
    assert health.culprits == {0: ["D"], 12: ["G"], 24: ["D", "G"]}


def test_a_good_iteration_starts_the_count_anew():
    health = Health(2, CPU)
    for nimg, loss in enumerate([NAN, 1.0, NAN, 1.0]):
        iteration(health, nimg, loss=loss)
        assert boundary(health) == math.isnan(loss)
        assert not health.exceeded
    assert health.culprits == {}
    for nimg in (4, 5):
        iteration(health, nimg, loss=NAN)
        boundary(health)
    assert health.exceeded
    assert list(health.culprits) == [4, 5]


def test_one_bad_microbatch_makes_the_name_bad_once():
    health = Health(1, CPU)
    for value in (1.0, NAN, 1.0):
        health.note("D/gradient", torch.tensor(value).isfinite())
    health.close_iteration(0)
    assert boundary(health)
    assert health.culprits == {0: ["D/gradient"]}


def test_another_ranks_bad_iteration_counts_here_without_a_name():
    health = Health(1, CPU)
    iteration(health, 0, loss=1.0)
    assert not boundary(health, others=True)
    assert health.exceeded
    assert health.culprits == {0: []}


def test_a_bad_iteration_is_seen_exactly_once():
    health = Health(2, CPU)
    iteration(health, 0, loss=NAN)
    assert [boundary(health) for _ in range(3)] == [True, False, False]
    assert health.in_a_row == 1  # boundaries that read nothing change nothing, neither up nor back


def test_read_late_each_iteration_counts_once_and_one_boundary_later():
    health = read_late(2)
    bad = {1, 2, 4}
    seen = []
    for k in range(6):
        iteration(health, k, loss=NAN if k in bad else 1.0)
        seen.append(boundary(health))
    assert seen == [False, False, True, True, False, True]


def test_read_late_the_decision_comes_at_the_same_boundary_on_a_rank_that_saw_nothing():
    here, there = read_late(2), read_late(2)
    stopped = []
    for k in range(5):
        iteration(here, k, loss=NAN if k in (1, 2) else 1.0)
        iteration(there, k, loss=1.0)
        bad = here.bad_now() + there.bad_now() > 0
        here.count(bad)
        there.count(bad)
        assert here.exceeded == there.exceeded
        if here.exceeded:
            stopped.append(k)
    assert stopped == [3]  # one boundary after iteration 2; iteration 3 was good, which boundary 4 knows


def test_before_a_save_also_the_last_iteration_is_read_and_none_is_lost_or_counted_twice():
    health = read_late(9)
    iteration(health, 0, loss=NAN)
    assert not boundary(health)
    iteration(health, 12, loss=NAN)
    assert boundary(health)
    assert boundary(health, last=True)
    assert health.in_a_row == 2
    iteration(health, 24, loss=NAN)
    assert not boundary(health)  # read one boundary late again; what was counted holds
    assert health.in_a_row == 2
    iteration(health, 36, loss=NAN)
    assert boundary(health)
    assert list(health.culprits) == [0, 12, 24]


def test_an_iteration_without_notes_is_good():
    health = Health(1, CPU)
    health.close_iteration(0)
    assert not boundary(health)
    assert not health.exceeded


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="limit=0"):
        Health(0, CPU)


def test_a_report_with_nan_is_valid_json(tmp_path):
    rows = {
        "batch_ids": {0: range(2), 1: (2, 3)},
        "Loss/D": {"adv": NAN, "r1": -INF, "mean": 0.5},
        "gradient": torch.tensor([1.0, INF]),
        "where": tmp_path,
        "rank": None,
    }
    path = report(tmp_path, 4000, rows)

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    assert path == tmp_path / "not-finite-000000004000.json"
    assert json.loads(path.read_text(), parse_constant=refuse) == {
        "nimg": 4000,
        "batch_ids": {"0": [0, 1], "1": [2, 3]},
        "Loss/D": {"adv": "nan", "r1": "-inf", "mean": 0.5},
        "gradient": [1.0, "inf"],
        "where": str(tmp_path),
        "rank": None,
    }
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: run make test-gpu on a GPU machine")
def test_on_cuda_nothing_waits_for_the_iteration_that_was_just_closed():
    """The boundary returns while the device still works on it: an event recorded after it has not happened."""
    health = Health(9, torch.device("cuda"))
    big = torch.randn(8192, 8192, device="cuda")
    still_running = []
    for nimg, factor in enumerate([1.0, NAN, 1.0, NAN]):
        value = big
        for _ in range(20):
            value = value @ big * 1e-4
        health.note("D/gradient", (value.sum() * factor).isfinite())
        health.close_iteration(nimg)
        after = torch.cuda.Event()
        after.record()
        bad = boundary(health)
        assert bad == (nimg == 2)
        still_running.append(not after.query())
    assert any(still_running)
    assert boundary(health, last=True)
    assert health.in_a_row == 1
