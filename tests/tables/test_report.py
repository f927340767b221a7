"""Reports of runs whose records are written by hand, so that every number in them is known."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline import tables
from pipeline.errors import UserError
from pipeline.plan import run_name
from pipeline.tables import book
from pipeline.tables.report import write_report
from pipeline.tables.table import Row
from pipeline.tracking import jsonl
from tests.tables.toy import BROKEN, KIMG, LOSS, TOY

Fill = Callable[..., Path]


@pytest.fixture
def fill(tmp_path) -> Fill:
    """fill(row, seed, loss, end=): a run folder with two records of this loss; the table's file names it."""
    rows = {row.name: row for row in TOY.rows("full")}

    def make(name: str, seed: int, loss: float, end: str = "done", error: str = "", kimg: float = KIMG) -> Path:
        row: Row = rows[name]
        folder = tmp_path / run_name(row.run.replace(seed=seed))
        folder.mkdir()
        (folder / "config.json").write_text(row.run.replace(seed=seed).to_json())
        (folder / "environment.json").write_text('{"device": "", "world": 1, "torch": "9.9", "hosts": ["secret"]}')
        for at, value in ((kimg / 2, 2 * loss), (kimg, loss)):
            values = {LOSS: value, "Timing/train_sec": 1800 * at / kimg}
            jsonl.append(folder / jsonl.METRICS, {"nimg": round(1000 * at), "time": 0.0, "metrics": values})
        for event in ("start", end):
            record = {"nimg": 0, "time": 0.0, "attempt": 1, "event": event}
            jsonl.append(folder / jsonl.EVENTS, record | ({"error": error} if event == end and error else {}))
        book.write(tmp_path, TOY, "full", {(name, seed): folder})
        return folder

    return make


def cells(text: str, row: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_published_stands_beside_measured_and_what_was_not_measured_is_empty(fill, tmp_path):
    for seed, (narrow, wide) in enumerate([(1.0, 0.8), (1.2, 0.9)]):
        fill("narrow", seed, narrow)
        fill("wide", seed, wide)
    fill(BROKEN, 0, 9.0, end="failed", error=f"WorkError: not finite\nsee {tmp_path}/x.json")
    fill(BROKEN, 1, 9.0, end="checkpoint", kimg=0.016)
    text = write_report(TOY, "full", tmp_path, tmp_path / "out")
    assert cells(text, "wide")[3:] == ["0.7", "0.85 ± 0.64", "+0.15", "2", "0.032", "1 x CPU process", "1", "2 done"]
    assert cells(text, BROKEN)[3:] == ["", "", "", "", "", "1 x CPU process", "1", "0 of 2 done, 1 begun, 1 failed"]
    assert f"`{BROKEN}`, seed 0: failed: WorkError: not finite see x.json" in text
    assert f"`{BROKEN}`, seed 1: at 0.016 of 0.032 kimg" in text
    assert "4 of 6 cells" in text
    assert "secret" not in text
    # 1 - 0.8/1 and 1 - 0.9/1.2: mean 22.5%, half width 12.706 * 2.5%
    assert "wide against narrow: loss of D lower by 22.5% (-9.3 to 54.3) over 2 seeds (published: 10% lower); " in text
    assert "leaves the sign that the paper reports open" in text
    assert (tmp_path / "out" / "report.md").read_text() == text


def test_a_row_that_was_never_planned_and_one_of_another_configuration_count_for_nothing(fill, tmp_path):
    fill("narrow", 0, 1.0)
    other = fill("wide", 0, 0.5)
    config = other / "config.json"
    config.write_text(config.read_text().replace(f'"total_kimg": {KIMG}', '"total_kimg": 0.5'))
    text = write_report(TOY, "full", tmp_path, tmp_path / "out")
    assert cells(text, "wide")[4:7] == ["", "", ""]
    assert "`wide`, seed 0: other: made with another configuration than the table has now" in text
    assert f"`{BROKEN}`, seed 0: missing: never planned" in text
    assert "wide against narrow: not measured." in text
    assert "Seeds 0 lack a run" in text


def test_a_run_that_ended_not_finite_is_named_and_not_counted(fill, tmp_path):
    fill("narrow", 0, 1.0)
    fill("narrow", 1, float("nan"))
    row = cells(write_report(TOY, "full", tmp_path, tmp_path / "out"), "narrow")
    assert (row[4], row[6]) == ("1", "1")
    assert row[-1] == "2 done, 1 ended not finite, not counted"


def test_the_html_is_one_file_with_the_plots_inside(fill, tmp_path):
    for seed in (0, 1):
        fill("narrow", seed, 1.0 + seed)
        fill("wide", seed, 0.8)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plot-sweep-gone.png").touch()
    text = write_report(TOY, "full", tmp_path, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    plots = sorted(path.name for path in (tmp_path / "out").glob("plot-*.png"))
    assert plots == ["plot-curves-loss_of_D.png", "plot-sweep-loss_of_D.png"], "those of an earlier report are gone"
    assert all(f"]({name})" in text for name in plots)
    assert page.count("src=") == page.count('src="data:image/png;base64,') == 2
    assert not re.search(r"https?:|href|url\(|@import|<script|<link", page)
    inside = [base64.b64decode(code) for code in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert {code: Image.open(io.BytesIO(code)).size for code in inside}.keys() == {
        (tmp_path / "out" / name).read_bytes() for name in plots
    }
    assert "<td>narrow</td>" in page


def test_without_reproduce_there_is_no_report(tmp_path):
    with pytest.raises(UserError, match=r"start with graticule reproduce toy\.widths"):
        write_report(TOY, "small", tmp_path, tmp_path / "out")
    book.write(tmp_path, TOY, "full", {})
    with pytest.raises(UserError, match=r"there is toy\.widths\.full\.json: give --full"):
        write_report(TOY, "small", tmp_path, tmp_path / "out")


def test_seeds_of_several_calls_are_one_table(fill, tmp_path):
    fill("narrow", 0, 1.0)
    fill("narrow", 3, 2.0)
    assert book.read(tmp_path, TOY, "full").seeds() == (0, 3)


def test_the_tables_are_known_by_name():
    assert {"mspie.table5", "cips.table3", "geopos.com"} <= tables.TABLES.keys()
    with pytest.raises(UserError, match=r"did you mean 'geopos\.com'\?"):
        tables.find("geopos.con")
