"""Pictures made of a run are MLflow's, too: over a real SQLite store, and an address where nobody listens."""

import pytest

from pipeline.plan import ExecConfig
from pipeline.run import Launch
from pipeline.tracking.mirror import sync
from tests.runs import CIPS, MSPIE
from tests.synthesis.untrained import write_run
from tests.tracking.records import only_run

# MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def pictures(folder) -> list[str]:
    client, run = only_run(folder)
    return sorted(a.path for a in client.list_artifacts(run.info.run_id, "pictures"))


def names(folder) -> list[str]:
    return sorted(f"pictures/{p.name}" for p in (folder / "pictures").iterdir())


def tracked(folder, recipe=MSPIE):
    """This folder with a generator to look at, and a launch that is tracked."""
    write_run(folder, recipe)
    (folder / "exec.json").write_text(Launch(exec=ExecConfig(), data=("data",)).to_json())
    return folder


def test_a_verb_sends_its_picture_and_sync_sends_those_that_are_not_there_yet(folder, graticule, tmp_path):
    code, _, err = graticule("sample", tracked(folder), "--seeds", "0-1")
    assert (code, err) == (0, "")
    assert len(pictures(folder)) == 1
    assert pictures(folder) == names(folder)
    assert graticule("sample", folder, "--seeds", "0-1", "--grid", tmp_path / "elsewhere.png")[0] == 0
    assert pictures(folder) == names(folder)
    (folder / "pictures" / "mine.png").write_bytes(b"made by hand")
    (folder / "pictures" / ".half.png.tmp").write_bytes(b"not whole yet")
    sync(folder)
    (folder / "pictures" / ".half.png.tmp").unlink()
    assert pictures(folder) == names(folder)
    client, run = only_run(folder)
    got = client.download_artifacts(run.info.run_id, "pictures", str(tmp_path))
    for path in (folder / "pictures").iterdir():
        assert (tmp_path / "pictures" / path.name).read_bytes() == path.read_bytes()
    assert got == str(tmp_path / "pictures")


def test_analyses_send_their_plot_and_their_numbers(folder, graticule):
    code, _, err = graticule("look", "codes", tracked(folder, CIPS))
    assert (code, err) == (0, "")
    assert sorted(name.rpartition(".")[2] for name in pictures(folder)) == ["json", "png"]
    assert pictures(folder) == names(folder)


def test_a_server_that_is_down_costs_a_line_and_never_the_picture(folder, graticule, tmp_path, monkeypatch):
    """Nothing listens on that port; the store that answers later is another one, which gets everything."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, out, err = graticule("edit", tracked(folder), "--seeds", "1")
    assert code == 0
    assert len(err.strip().splitlines()) == 1
    assert f"graticule sync {folder}" in err
    (path,) = (folder / "pictures").iterdir()
    assert f"{path}: " in out
    assert graticule("sample", folder, "--grid", tmp_path / "elsewhere.png")[::2] == (0, "")  # MLflow is not asked
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert graticule("sync", folder)[0] == 0
    assert pictures(folder) == names(folder)


def test_the_picture_of_a_registered_model_lies_here_unless_a_file_is_named(folder, graticule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert graticule("register", tracked(folder), "--name", "m", "--alias", "best")[0] == 0
    code, out, err = graticule("probe", "padding", "models:/m@best", "--runs", folder.parent)
    assert (code, err) == (0, "")
    (path,) = tmp_path.glob("probe-padding-m-1-*-px16x16-seed0.png")
    assert f"{path.name}: " in out
    assert not (folder / "pictures").exists()
