"""Reports of what evaluation found. Its records are written by hand, as no test can train until a FID means something:
one of 25 million images with precision and recall beside it takes days. The last test trains and measures for real.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import reproduce
from pipeline.cost import parameters
from pipeline.evaluation import Question, evaluate
from pipeline.plan import RunConfig, run_name
from pipeline.run import train_folder
from pipeline.tables import book, sheets
from pipeline.tables.report import write_report
from pipeline.tables.table import Asked, Comparison, Measure, Row, Table
from pipeline.tracking import inbox, jsonl
from tests.tables.toy import TOY

FID, PR = "Metrics/fid64_64/32px", "Metrics/pr64k3_64/32px/precision"
EARLY = Measure(FID, "FID, 20", "lower", best=True, until_kimg=0.02)
LATE = Measure(FID, "FID, 30", "lower", best=True, until_kimg=0.03)
SHARE = Measure(PR, "precision", "higher", digits=4, percent=True, at_best_of=LATE.key)
PUBLISHED = {EARLY.key: "5.00", LATE.key: "2.93", SHARE.key: "73.51"}
LENGTHS = (8, 16, 24, 32)  # images of the checkpoints

Fill = Callable[..., Path]


def rows(form: str) -> list[Row]:
    return [dataclasses.replace(row, published=PUBLISHED) for row in TOY.rows("small")]


TABLE = dataclasses.replace(
    TOY,
    rows=rows,
    measures=(EARLY, LATE, SHARE),
    comparisons=(Comparison("wide against narrow", LATE.key, "variant", "wide", "narrow"),),
    asked={"full": Asked(("fid64_64", "pr64k3_64"), ("32",))},
)


@pytest.fixture
def fill(tmp_path) -> Fill:
    """fill(row, seed, fids): a run folder whose checkpoints have these FIDs, and shares of a hundredth of them."""
    runs = {row.name: row.run for row in rows("full")}

    def make(
        name: str,
        seed: int,
        fids: Mapping[int, float],
        *,
        images: int = 32,
        end: str = "done",
        of: Mapping[int, Mapping[str, object]] | None = None,
        worlds: Mapping[int, tuple[int, str]] | None = None,
    ) -> Path:
        run: RunConfig = runs[name].replace(seed=seed)
        folder = tmp_path / run_name(run)
        (folder / "environment").mkdir(parents=True)
        (folder / "config.json").write_text(run.to_json())
        for attempt, (world, device) in (worlds or {1: (2, "V100"), 2: (4, "V100")}).items():
            text = json.dumps({"world": world, "device": device, "hosts": ["secret"]})
            (folder / "environment" / f"{attempt:03d}.json").write_text(text)
            (folder / "environment.json").write_text(text)
        for nimg in (n for n in LENGTHS if n <= images):
            record = {"nimg": nimg, "time": 0.0, "attempt": 1 if nimg <= 16 else 2}
            jsonl.append(folder / jsonl.METRICS, {**record, "metrics": {"Timing/train_sec": 450.0 * nimg / 8}})
        said = {"says": "64 fakes against 64", "data": "d1", "filter": "lanczos", "notes": []}
        for nimg, fid in fids.items():
            about = {"weights": "", **said, **(of or {}).get(nimg, {})}
            for metric, values in (("fid", {FID: fid}), ("pr", {PR: fid / 100})):
                record = {"nimg": nimg, "time": 0.0, "attempt": 2, "kind": metric, "metrics": values, "of": about}
                jsonl.append(folder / jsonl.METRICS, record)
        for event in ("start", end):
            jsonl.append(folder / jsonl.EVENTS, {"nimg": 0, "time": 0.0, "attempt": 1, "event": event})
        book.write(tmp_path, TABLE, "full", {(name, seed): folder})
        return folder

    return make


def report(tmp_path: Path, table: Table = TABLE, *, drawn: bool = False) -> str:
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:  # plots take a second
            patch.setattr("pipeline.tables.report._draw", lambda *_: {})
        return write_report(table, "full", tmp_path, tmp_path / "out")


def cells(text: str, row: str) -> dict[str, str]:
    """Of a row of the table of rows, by the titles of its columns; "difference" after what it is of."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    head = next(line for line in lines if "parameters" in line)
    named = [f"{head[i - 1]}, difference" if title == "difference" else title for i, title in enumerate(head)]
    (found,) = [line for line in lines if line[0] == row and len(line) == len(head)]
    return dict(zip(named, found, strict=True))


def test_a_column_of_a_length_has_the_best_until_then_and_its_precision_is_that_checkpoints(fill, tmp_path):
    fill("narrow", 0, {8: 9.0, 16: 4.5, 24: 4.75, 32: 1.0})
    fill("wide", 0, {8: 80.0, 16: 75.0, 24: 50.0, 32: 1.0})
    text = report(tmp_path)
    narrow, wide = cells(text, "narrow"), cells(text, "wide")
    assert [narrow[m] for m in ("FID, 20", "FID, 30", "precision, %")] == ["4.50", "4.50", "4.50"]
    assert [wide[m] for m in ("FID, 20", "FID, 30", "precision, %")] == ["75.00", "50.00", "50.00"]
    assert narrow["FID, 20, difference"] == "-0.50", "measured less published"
    assert wide["FID, 30, difference"] == "+47.07"
    assert wide["precision, %, difference"] == "-23.51"
    assert wide["FID, 30, published"] == "2.93"
    assert "- FID, 20, FID, 30, precision: 64 fakes against 64; data set d1, filter lanczos." in text
    assert "- FID, 30: the best of a run's values up to 0.03 kimg" in text
    assert "there were 3 in a run" in text
    assert "- precision: of the checkpoint with the best FID, 30." in text


def test_a_run_counts_in_columns_of_a_length_that_it_has_trained_and_no_further(fill, tmp_path):
    fill("narrow", 0, {8: 9.0, 16: 4.0, 24: 3.0}, images=24, end="preempt")
    fill("wide", 0, {8: 9.0, 16: 4.0}, images=16, end="failed")
    text = report(tmp_path)
    found = cells(text, "narrow")
    assert [found["FID, 20"], found["FID, 30"], found["precision, %"]] == ["4.00", "", ""]
    assert [found["FID, 20, difference"], found["FID, 30, difference"]] == ["-1.00", ""]
    assert found["images seen, kimg"] == "0.024"
    assert found["runs"] == "0 of 1 done, 1 begun"
    assert "`narrow`, seed 0: at 0.024 of 0.032 kimg; counted all the same: FID, 20" in text
    assert set(cells(text, "wide").values()) & {"4.00", "9.00"} == set(), "16 of 20 images are not 20"
    assert "wide against narrow: not measured." in text


def test_what_is_trained_and_not_evaluated_is_empty_and_says_what_is_lacking(fill, tmp_path):
    fill("narrow", 0, {})
    wide = fill("wide", 0, {16: 4.0})
    for nimg in LENGTHS:
        (wide / "checkpoints" / f"{nimg:012d}").mkdir(parents=True)
        (wide / "checkpoints" / f"{nimg:012d}" / "manifest.json").write_text(
            '{"files": {"G_ema.safetensors": {"sha256": ""}}}'
        )
    jsonl.append(wide / jsonl.EVENTS, {"nimg": 32, "time": 1.0, "event": "evaluation failed", "error": "no\ndetector"})
    text = report(tmp_path)
    assert cells(text, "narrow")["FID, 30"] == ""
    assert cells(text, "narrow")["runs"] == "1 done"
    assert f"`narrow`, seed 0: trained, not evaluated: lacking {FID}, {PR}" in text
    assert (
        f"lacking {FID} of 3 of 4 checkpoints, {PR} of 3 of 4 checkpoints, the last evaluation failed: no detector"
        in text
    )


def test_the_last_value_is_of_the_last_checkpoint_or_of_none(fill, tmp_path):
    last = dataclasses.replace(TABLE, measures=(Measure(FID, "FID", "lower"),), comparisons=())
    fill("narrow", 0, {16: 4.0, 32: 6.0})
    fill("wide", 0, {16: 4.0})
    text = report(tmp_path, last)
    assert (cells(text, "narrow")["FID"], cells(text, "wide")["FID"]) == ("6", "")


def test_numbers_on_other_data_or_by_another_filter_are_not_averaged_nor_ranked(fill, tmp_path):
    fill("narrow", 0, {16: 4.0})
    fill("narrow", 1, {16: 5.0}, of={16: {"data": "d2"}})
    fill("wide", 0, {8: 3.0, 16: 4.0}, of={8: {"filter": "box"}})
    text = report(tmp_path)
    assert cells(text, "narrow")["FID, 20"] == cells(text, "wide")["FID, 20"] == ""
    assert cells(text, "wide")["precision, %"] == "", "of the best of what cannot be ranked"
    told = "left empty, as its numbers were not taken alike: 64 fakes against 64; data set d1, filter lanczos; or 64"
    assert f"`narrow`, FID, 20: {told} fakes against 64; data set d2, filter lanczos" in text
    assert "`wide`, FID, 20: left empty" in text


def test_rows_that_were_measured_on_different_sets_are_not_compared(fill, tmp_path):
    fill("narrow", 0, {16: 4.0}, of={16: {"notes": ["covariance is singular"]}})
    fill("wide", 0, {16: 3.0}, of={16: {"data": "d2"}})
    text = report(tmp_path)
    assert cells(text, "wide")["FID, 30"] == "3.00"
    assert "wide against narrow: not compared in FID, 30: its numbers were not all taken alike." in text
    assert "(narrow): 64 fakes against 64; data set d1, filter lanczos. Noted: covariance is singular." in text
    assert "(wide): 64 fakes against 64; data set d2, filter lanczos.\n" in text


def test_hours_are_those_of_all_ranks_by_what_they_ran_on(fill, tmp_path):
    fill("narrow", 0, {})  # 900 s on two GPUs, then 900 s on four
    fill("wide", 0, {}, worlds={1: (3, ""), 2: (3, "")})
    text = report(tmp_path)
    narrow, wide = cells(text, "narrow"), cells(text, "wide")
    assert narrow["hardware"] == "2 x V100, then 4 x V100"
    assert (narrow["GPU-hours, all seeds"], narrow["process-hours, all seeds"]) == ("1.5", "")
    assert (wide["hardware"], wide["process-hours, all seeds"]) == ("3 x CPU process", "1.5")
    assert "In all: 1 hours of training, 1.5 GPU-hours, 1.5 process-hours." in text


def test_a_record_that_the_trainer_has_not_taken_over_counts_and_one_of_replaced_weights_does_not(fill, tmp_path):
    folder = fill("narrow", 0, {16: 4.0}, of={16: {"weights": "old"}})
    (folder / "checkpoints" / f"{16:012d}").mkdir(parents=True)
    manifest = {"files": {"G_ema.safetensors": {"sha256": "new"}}}
    (folder / "checkpoints" / f"{16:012d}" / "manifest.json").write_text(json.dumps(manifest))
    assert cells(report(tmp_path), "narrow")["FID, 20"] == ""
    about = {"weights": "new", "says": "", "data": "", "filter": "", "notes": []}
    (folder / inbox.FOLDER).mkdir()
    record = {"nimg": 16, "time": 0.0, "attempt": 2, "kind": "fid", "metrics": {FID: 7.0}, "of": about}
    jsonl.append(folder / inbox.FOLDER / "0.json", record)
    assert cells(report(tmp_path), "narrow")["FID, 20"] == "7.00"


def test_the_html_holds_curves_of_each_row_and_needs_nothing_else(fill, tmp_path):
    for seed in (0, 1):
        fill("narrow", seed, dict(zip(LENGTHS, (9.0, 5.0, 4.0, 3.0), strict=True)))
        fill("wide", seed, dict(zip(LENGTHS, (8.0, 6.0, 4.0 + seed, 2.0), strict=True)))
    text = report(tmp_path, drawn=True)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    curves = [name for name in names if name.startswith("plot-by_row-")]
    assert curves == ["plot-by_row-Metrics_fid64_64_32px.png", "plot-by_row-Metrics_pr64k3_64_32px_precision.png"]
    assert all(f"]({name})" in text for name in names)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == page.count("src=") == len(names)
    assert not re.search(r"https?:|href|url\(|@import|<script|<link", page)


def test_columns_of_the_configuration_need_no_run(tmp_path):
    def count(run: RunConfig) -> float:
        return float(parameters(run.family)["G"])

    sizes = dataclasses.replace(
        TABLE,
        rows=lambda form: [dataclasses.replace(row, published={"size": "1,000"}) for row in TOY.rows("small")],
        measures=(Measure("size", "parameters of G", "lower", of=count),),
        comparisons=(),
    )
    text = report(tmp_path, sizes)
    n = parameters(TOY.rows("small")[0].run.family)["G"]
    assert f"| narrow | 1 | 1,000 | {n:,} | {n - 1000:+,} |" in text
    assert "made by `graticule report toy.widths --full`." in text
    assert "runs" not in text


def test_a_run_that_was_trained_and_measured_has_its_number_and_its_samples_pixels(photos, tmp_path):
    (tmp_path / "photos-32").symlink_to(photos(32))
    spectra = Measure("Metrics/spectra64/8px", "spectra, dB", "lower")
    asked = {"small": Asked(("spectra64",), ("8",), "newest")}
    table = dataclasses.replace(TOY, measures=(spectra,), comparisons=(), asked=asked)
    plan = reproduce.plan(table, "small", tmp_path / "runs", seeds=[0], root=tmp_path)
    trained = plan.folders["narrow", 0]
    assert train_folder(trained, should_stop=lambda: False) == "done"
    words = (table, "small", tmp_path / "runs", tmp_path / "out")
    assert f"`narrow`, seed 0: trained, not evaluated: lacking {spectra.metric}" in write_report(*words)
    question = Question(metrics=("spectra64",), sizes=("8",), references=str(tmp_path / "references"))
    assert evaluate(trained, question) == "done"
    text = write_report(*words)
    (record,) = [r for r in jsonl.read(trained / jsonl.METRICS) if "of" in r]
    assert cells(text, "narrow")["spectra, dB"] == f"{record['metrics'][spectra.metric]:.3g}"
    assert f"- spectra, dB (narrow): {record['of']['says'].rstrip('.')}; data set {record['of']['data']}" in text
    newest = sorted((trained / "samples").glob("*.png"))[-1]
    assert "![The first 8 fixed latents" in text
    grid, sheet = (np.asarray(Image.open(p).convert("RGB")) for p in (newest, tmp_path / "out" / "sheet.png"))
    h, w = (int(side) for side in newest.stem.split("-")[1].split("x"))
    times = -(-sheets.SMALLEST_PX // h)
    tiles = [grid[i // 4 * h : (i // 4 + 1) * h, i % 4 * w : (i % 4 + 1) * w] for i in range(sheets.TILES)]
    left = sheet.shape[1] - sheets.TILES * (times * w + sheets.GAP_PX)
    for i, tile in enumerate(tiles):
        x = left + i * (times * w + sheets.GAP_PX)
        assert np.array_equal(sheet[: times * h : times, x : x + times * w : times], tile)
    other = sheet[times * h + sheets.GAP_PX :]
    assert (other[:, left:] == 255).all(), "the other row is not trained"
    assert (other[:, :left] < 128).any(), "its name is there"
    found = cells(text, "narrow")
    assert found["hardware"] == "1 x CPU process"
    assert float(found["process-hours, all seeds"]) > 0
