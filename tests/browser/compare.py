"""The picture of docs/comparing.md: a table's runs in MLflow's compare view, in a real browser on a real server.

    python -m tests.browser.compare docs/mlflow_compare.png [--runs DIR]

DIR is where `graticule reproduce geopos.com` has trained; if not given, one seed of it is trained first (20 runs, some
minutes). Needs Chromium (see chromium.py). MLflow takes the params itself; the script fails if these are not the
table's labels. As metric it takes the one that was sent first, a loss: the table's cell is chosen in its place.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from pipeline.tables import find
from pipeline.tables.report import track_report, write_report
from pipeline.tracking.client import ENVIRONMENT, connect, tracking_uri
from pipeline.tracking.tables import PARENT_TAG
from tests.browser.chromium import INSTALL, Chromium, found
from tests.tracking.server import Server

TABLE = "geopos.com"
LABELS, CELL = ["Row.1 variant", "Row.2 layers", "Row.3 filters"], "Cell/validation loss"
WIDTH, HEIGHT = 1400, 640
AXES = "[...document.querySelectorAll('.axis-title')].map(axis => axis.textContent)"
METRICS = "[...document.querySelectorAll('input[role=combobox]')].at(-1)"  # the second field
MARKED = "document.querySelector('[class*=item-option-active]')?.title"  # in an open list
PANELS = ("[aria-label=Close][data-component-id*=assistant]", "[aria-label='Toggle sidebar']")


def main() -> None:
    """Arguments, a server for as long as it takes, the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path)
    given = parser.parse_args()
    if not found():
        sys.exit(f"no Chromium here; install it: {INSTALL}")
    with tempfile.TemporaryDirectory() as temp, served(Path(temp)) as uri:
        runs = given.runs or trained(Path(temp))
        picture(uri, publish(runs, Path(temp) / "report"), given.out)
    print(f"{given.out}: {given.out.stat().st_size / 1000:.0f} kB")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A real server, to which this process then reports."""
    os.environ |= ENVIRONMENT
    (folder / "server").mkdir()
    connect(tracking_uri(folder)).search_experiments()  # makes the tables of a store, which the server gets a copy of
    server = Server(folder / "server", folder / "mlflow.db").start()
    os.environ["MLFLOW_TRACKING_URI"] = server.uri
    try:
        yield server.uri
    finally:
        server.kill()


def trained(folder: Path) -> Path:
    """The folder of the runs."""
    graticule = [sys.executable, "-m", "pipeline.cli", "reproduce", TABLE, "--seeds", "0", "--wait"]
    subprocess.run([*graticule, "--runs", str(folder / "runs"), "--data-root", str(folder / "data")], check=True)
    return folder / "runs"


def publish(runs: Path, out: Path) -> str:
    """The table as `graticule report --track` brings it to MLflow; the parent run."""
    table, began = find(TABLE), time.monotonic()
    write_report(table, "small", runs, out)
    parent = track_report(table, "small", runs, out)
    print(f"reported in {time.monotonic() - began:.1f} s", flush=True)
    return parent


def picture(uri: str, parent: str, out: Path, labels: list[str] = LABELS, cell: str = CELL) -> None:
    """What the compare view shows of the parent's children: these params, and this metric once it is chosen."""
    client = connect(uri)
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{parent}'", max_results=1000)
    ids = [run.info.run_id for run in children]
    with closing(Chromium(WIDTH, HEIGHT)) as browser:
        words = f"runs={quote(json.dumps(ids))}&experiments={quote(json.dumps([experiment]))}"
        browser.goto(f"{uri}/#/compare-runs?{words}")
        browser.wait("document.querySelectorAll('.js-plotly-plot text').length > 0")
        *params, first = browser.ask(AXES)
        assert params == labels, params
        for panel in PANELS:
            element = f"document.querySelector({json.dumps(panel)})"
            if browser.ask(f"!!{element}"):
                browser.click_on(element)
        browser.click_on(METRICS)
        for name in (cell, first):
            toggle(browser, name)
        browser.press("Escape", 27)
        browser.wait(f"JSON.stringify({AXES}) == {json.dumps(json.dumps([*labels, cell], separators=(',', ':')))}")
        time.sleep(2)  # panels slide away, lists fade
        browser.picture(out)


def toggle(browser: Chromium, option: str) -> None:
    """In the open list, which is scrolled as the mark moves down it."""
    for _ in range(200):
        browser.press("ArrowDown", 40)
        if browser.ask(MARKED) == option:
            return browser.press("Enter", 13)
    raise LookupError(option)


if __name__ == "__main__":
    main()
