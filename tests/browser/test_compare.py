"""A table in MLflow's compare view, as a real browser shows it. Run by `make test-browser`, as it takes its time."""

import os

import pytest

from pipeline.tracking.tables import publish_table
from tests.browser.chromium import INSTALL, found
from tests.browser.compare import picture, served
from tests.tracking.records import make_run, write

WANTED = bool(os.environ.get("GRATICULE_TEST_BROWSER"))
pytestmark = [
    pytest.mark.skipif(not WANTED, reason="needs GRATICULE_TEST_BROWSER=1 (make test-browser)"),
    pytest.mark.skipif(WANTED and not found(), reason=f"needs Chromium: {INSTALL}"),
    # MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]


def test_the_compare_view_takes_the_tables_labels_for_its_axes_and_finds_its_cells(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with served(tmp_path) as uri:
        rows, cells = {}, {}
        for i, padding in enumerate(("none", "zero", "grid")):
            folder = make_run(tmp_path / "runs" / f"mspie-{i}")
            write(folder, [1000])
            rows[folder] = {"padding": padding, "head": f"h{i}", "params": i, "seed": 0}
            cells[folder] = {"FID 512 px (25 M)": 7.0 + i}
        parent = publish_table(tmp_path / "runs", "mspie.table5", "small", rows, cells)
        labels = ["Row.1 padding", "Row.2 head", "Row.3 params"]
        picture(uri, parent, tmp_path / "seen.png", labels, "Cell/FID 512 px - 25 M")
    assert (tmp_path / "seen.png").stat().st_size > 10_000
