"""The record on disk: what a kill may cost, and what it may not."""

import json
import math

import numpy as np
import pytest

from pipeline.tracking import jsonl


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def record(nimg, value, **more):
    return {"nimg": nimg, "metrics": {"a": value}, **more}


def test_what_is_appended_is_read_back_in_order(path):
    records = [record(n, n / 7) for n in range(5)]
    for r in records:
        jsonl.append(path, r)
    assert jsonl.read(path) == records


def test_no_file_is_no_records(path):
    assert jsonl.read(path) == []


def test_nan_and_infinities_survive_as_valid_json(path):
    jsonl.append(path, {"nimg": 1, "metrics": {"a": math.nan, "b": -math.inf, "c": np.float32(0.5)}, "l": [math.inf]})
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    (back,) = jsonl.read(path)
    assert math.isnan(back["metrics"]["a"])
    assert (back["metrics"]["b"], back["metrics"]["c"], back["l"]) == (-math.inf, 0.5, [math.inf])


@pytest.mark.parametrize("cut", range(1, len('{"nimg": 1, "metrics": {"a": 0.5}}')))
def test_a_line_torn_anywhere_costs_that_record_only(path, cut):
    jsonl.append(path, record(0, 0.25))
    with path.open("ab") as f:
        f.write(json.dumps(record(1, 0.5)).encode()[:cut])
    assert [r["nimg"] for r in jsonl.read(path)] == [0]
    jsonl.append(path, record(2, 0.75))
    assert [r["nimg"] for r in jsonl.read(path)] == [0, 2]


BRACES = json.dumps({"detail": 'a " } }} \\\\', "n": {"a": 1}})


@pytest.mark.parametrize("cut", range(1, len(BRACES) + 1))
def test_braces_inside_a_text_do_not_make_a_torn_line_look_damaged(path, cut):
    path.write_text(BRACES[:cut] + "\n")
    jsonl.append(path, record(2, 0.75))
    assert [r.get("nimg") for r in jsonl.read(path)] == [None] * (cut == len(BRACES)) + [2]


def test_a_line_still_being_written_is_left_for_the_next_time(path):
    jsonl.append(path, record(0, 1.0))
    with path.open("a") as f:
        f.write('{"nimg": 1, "metrics"')
    ((_, end),) = jsonl.tail(path, 0)
    with path.open("a") as f:
        f.write(': {"a": 2.0}}\n')
    assert [r["nimg"] for r, _ in jsonl.tail(path, end)] == [1]


def test_zeros_left_by_a_power_cut_are_skipped(path):
    jsonl.append(path, record(0, 1.0))
    with path.open("ab") as f:
        f.write(bytes(64))
    jsonl.append(path, record(1, 1.0))
    assert [r["nimg"] for r in jsonl.read(path)] == [0, 1]


def test_damage_that_is_no_torn_line_is_reported_with_file_and_place(path):
    path.write_text('{"nimg": 1, "metrics"; {}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: the line ending at byte 27 is damaged"):
        jsonl.read(path)


def test_what_a_resumed_run_writes_again_counts_once_and_the_later_one_wins(path):
    for nimg, value in [(0, 0.0), (4, 1.0), (8, 2.0), (4, 10.0), (8, 20.0), (12, 30.0)]:
        jsonl.append(path, record(nimg, value))
    jsonl.append(path, record(8, 99.0, kind="fid50k_full"))
    found = [(r["nimg"], r["metrics"]["a"]) for r in jsonl.metrics(path)]
    assert found == [(0, 0.0), (4, 10.0), (8, 20.0), (8, 99.0), (12, 30.0)]


def test_the_last_record_is_found_without_reading_all(path):
    assert jsonl.last(path) == {}
    for n in range(200):
        jsonl.append(path, record(n, 0.5, more="x" * 1000))
    assert jsonl.last(path)["nimg"] == 199
    with path.open("a") as f:
        f.write('{"nimg": 200, "met')
    assert jsonl.last(path)["nimg"] == 199


def test_tail_reads_no_further_than_it_is_asked(path):
    """A file larger than memory would do; here its second half is damage that would be an error."""
    with path.open("w") as f:
        f.writelines(json.dumps(record(n, 0.5)) + "\n" for n in range(10_000))
        f.write("damage\n")
    rows = jsonl.tail(path, 0)
    assert [next(rows)[0]["nimg"] for _ in range(9000)] == list(range(9000))
    with pytest.raises(ValueError, match="damaged"):
        list(rows)
