"""MLflow against metrics.jsonl, over a real SQLite store."""

import json
import math
import shutil
import subprocess
import sys
import time
import tracemalloc

import pytest
from PIL import Image

from pipeline.spec import UserError
from pipeline.tracking import jsonl, upload
from pipeline.tracking.client import connect, tracking_uri
from pipeline.tracking.mirror import Mirror, sync
from pipeline.tracking.upload import CURSOR, Cursor, catch_up, cursor_of
from tests.tracking.records import (
    assert_exactly_once,
    attempt,
    event,
    history,
    make_run,
    on_disk,
    only_run,
    wait_until,
    write,
)

# MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def test_mlflow_equals_metrics_jsonl(folder):
    write(folder, range(0, 4000, 40))
    assert catch_up(folder) == 100
    assert history(folder) == on_disk(folder)
    assert history(folder, "Loss/D/adv") == on_disk(folder, "Loss/D/adv")


def test_only_new_records_are_sent(folder):
    write(folder, [1, 2])
    assert catch_up(folder) == 2
    assert catch_up(folder) == 0
    write(folder, [3])
    assert catch_up(folder) == 1
    assert history(folder) == on_disk(folder)


def test_more_metrics_than_one_request_takes_are_all_sent(folder):
    write(folder, range(30), **{f"m{i}": 0.5 for i in range(100)})
    write(folder, [30], **{f"m{i}": 0.5 for i in range(1500)})
    assert catch_up(folder) == 31
    assert history(folder) == on_disk(folder)
    assert history(folder, "m1499") == [(30, 0.5)]


def test_params_tags_and_files_are_there(folder):
    (folder / "overrides").write_text("family.r1_gamma=10\n")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "long": "x" * 9000}))
    catch_up(folder)
    client, run = only_run(folder)
    params, tags = run.data.params, run.data.tags
    assert (params["recipe"], params["data.dataset_id"]) == ("mspie", "d1")
    assert (params["family.G.wide"], len(params["long"])) == ("[1, 2]", 500)
    assert (tags["graticule.run"], tags["graticule.params_cut"]) == ("mspie-12345678", "long")
    assert (tags["mlflow.source.git.commit"], tags["env.torch"]) == ("c0ffee", "2.8")
    assert not any("git_diff" in name for name in tags)
    files = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert files == {"config.json", "environment.json", "overrides"}
    assert run.info.run_name == "mspie-12345678"


def test_three_attempts_are_one_run_even_if_the_cursor_is_lost(folder):
    write(folder, [100, 200, 300])
    catch_up(folder)
    attempt(folder, 2, nimg=200, job_id="72", host="n2")
    write(folder, [300, 400], attempt=2)
    assert catch_up(folder) == 1
    (folder / CURSOR).unlink()
    attempt(folder, 3, nimg=400, job_id="72", host="n1")
    write(folder, [500], attempt=3)
    catch_up(folder, final=True)
    assert history(folder) == on_disk(folder)
    _, run = only_run(folder)
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert (tags["graticule.attempts"], tags["graticule.job_ids"]) == ("3", "71, 72")
    assert tags["graticule.hosts"] == "n1, n2"


def test_a_finished_run_that_goes_on_is_running_again(folder):
    write(folder, [1])
    catch_up(folder, final=True)
    assert only_run(folder)[1].info.status == "FINISHED"
    attempt(folder, 2, nimg=1)
    catch_up(folder)
    assert only_run(folder)[1].info.status == "RUNNING"


def test_sync_finishes_a_run_whose_training_is_done(folder):
    write(folder, [1])
    began = jsonl.read(folder / jsonl.EVENTS)[0]["time"]
    sync(folder)
    assert only_run(folder)[1].info.status == "RUNNING"
    event(folder, "done", nimg=1)
    event(folder, "tracking back", nimg=1)
    sync(folder)
    info = only_run(folder)[1].info
    assert (info.status, info.start_time) == ("FINISHED", int(began * 1000))
    assert [e["records"] for e in jsonl.read(folder / jsonl.EVENTS) if e["event"] == "sync"] == [1]


def test_a_metric_of_another_kind_at_an_earlier_nimg_is_sent(folder):
    write(folder, [100, 200])
    catch_up(folder)
    late = {"nimg": 100, "time": 1.0, "attempt": 1, "kind": "fid50k_full", "metrics": {"fid50k_full": 9.5}}
    jsonl.append(folder / jsonl.METRICS, late)
    assert catch_up(folder) == 1
    assert history(folder, "fid50k_full") == [(100, 9.5)]


def test_a_kill_between_sending_and_noting_it_doubles_nothing(folder):
    write(folder, [1, 2], nan=math.nan)
    catch_up(folder)
    cursor = json.loads((folder / CURSOR).read_text())
    (folder / CURSOR).write_text(json.dumps({**cursor, "offset": 0, "nimg": -1}))
    write(folder, [3], nan=math.nan)
    catch_up(folder)
    assert history(folder) == on_disk(folder)
    assert [step for step, _ in history(folder, "nan")] == [1, 2, 3]


def test_after_a_rollback_the_curve_has_one_point_each_and_the_tags_tell_where_it_turned(folder, empty_store, tmp_path):
    write(folder, range(1, 9))
    catch_up(folder)
    event(folder, "rollback", nimg=8, to=4)
    for nimg in range(5, 11):
        values = {"Loss/G/adv": -float(nimg), "Loss/D/adv": 0.5}
        record = {"nimg": nimg, "time": time.time(), "attempt": 1, "rollbacks": 1, "metrics": values}
        jsonl.append(folder / jsonl.METRICS, record)
        if nimg == 6:
            catch_up(folder)
    catch_up(folder)
    assert_exactly_once(folder)
    assert sorted(history(folder)) == [*((n, float(n)) for n in range(1, 9)), (9, -9.0), (10, -10.0)]
    assert on_disk(folder)[-6:] == [(n, -float(n)) for n in range(5, 11)]
    tags = only_run(folder)[1].data.tags
    assert (tags["graticule.rollbacks"], tags["graticule.rolled_back"]) == ("1", "8 to 4")
    later = tmp_path / "later" / folder.name  # sent a day later in one go, MLflow shows the same
    shutil.copytree(folder, later, ignore=shutil.ignore_patterns(CURSOR))
    shutil.copy(empty_store, later.parent / "mlflow.db")
    sync(later)
    assert sorted(history(later)) == sorted(history(folder))


def test_memory_is_bounded_however_far_behind_and_however_often_resumed(folder, monkeypatch):
    monkeypatch.setattr(upload, "PIECE", 200)
    monkeypatch.setattr(upload, "MAX_BATCH", 50)
    with (folder / jsonl.METRICS).open("w") as f:
        for nimg in [*range(2000), *range(1500, 2500)]:
            f.write(json.dumps({"nimg": nimg, "more": "x" * 1000, "metrics": {"a": 0.5, "b": 0.25}}) + "\n")
    cursor, sent = Cursor("", ""), 0
    tracemalloc.start()
    for records, end in upload._requests(folder / jsonl.METRICS, cursor):
        sent += len(records)
        cursor.offset, cursor.nimg = end, max([cursor.nimg, *(r["nimg"] for r in records)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (sent, cursor.nimg) == (2500, 2499)
    assert cursor.offset == (folder / jsonl.METRICS).stat().st_size
    assert peak < 0.2 * cursor.offset


def test_tags_tell_code_engine_and_what_the_attempts_met(folder):
    facts = {"code": "0123456789ab", "engine": "ddp", "world": 8, "git_sha": "c0ffee", "git_diff": ""}
    facts["variables"] = {"SLURM_JOB_ID": "71"}
    for n in (1, 2):
        write_facts = {**facts, "attempt": n}
        (folder / "environment").mkdir(exist_ok=True)
        (folder / "environment" / f"{n:03d}.json").write_text(json.dumps(write_facts))
        (folder / "environment.json").write_text(json.dumps(write_facts))
        if n == 2:
            event(folder, "preempt", nimg=1, cause="time limit")
            event(folder, "preempt", nimg=2, cause="preemption")
            event(folder, "preempt", nimg=3, cause="preemption")
            attempt(folder, 2, nimg=3, job_id="72", host="n1, n2")
        catch_up(folder)
    client, run = only_run(folder)
    tags = run.data.tags
    expected = {"code": "0123456789ab", "dirty": "no", "engine": "ddp", "world": "8", "attempts": "2"}
    expected |= {"time_limits": "1", "preemptions": "2", "hosts": "n1, n2", "job_ids": "71, 72", "dataset_id": "d1"}
    assert {name: tags[f"graticule.{name}"] for name in expected} == expected
    assert "graticule.rollbacks" not in tags
    assert not any("SLURM" in name for name in tags)
    kept = [a.path for a in client.list_artifacts(run.info.run_id, "environment")]
    assert kept == ["environment/001.json", "environment/002.json"]


def test_a_torn_last_line_is_neither_sent_nor_in_the_way(folder):
    write(folder, [1])
    with (folder / jsonl.METRICS).open("a") as f:
        f.write('{"nimg": 2, "time": 1.0, "metrics": {"Loss/G')
    assert catch_up(folder) == 1
    write(folder, [2, 3])
    assert catch_up(folder) == 2
    assert history(folder) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_nan_arrives_as_nan(folder):
    write(folder, [1], broken=math.nan)
    catch_up(folder)
    ((step, value),) = history(folder, "broken")
    assert step == 1
    assert math.isnan(value)


def test_a_name_that_mlflow_refuses_does_not_hold_up_the_others(folder):
    write(folder, [1], **{"odd(name)": 4.0})
    catch_up(folder)
    assert history(folder, "odd_name_") == [(1, 4.0)]


def test_each_sample_grid_is_shown_once_at_its_nimg(folder):
    Image.new("RGB", (32, 32), (255, 0, 0)).save(folder / "samples" / "000000000100-16x16.png")
    (folder / "samples" / "000000000200-16x16.png").write_bytes(b"half a file")
    catch_up(folder)
    (folder / CURSOR).unlink()
    Image.new("RGB", (32, 32)).save(folder / "samples" / "000000000200-16x16.png")
    catch_up(folder)
    client, run = only_run(folder)
    names = [a.path for a in client.list_artifacts(run.info.run_id, "images") if a.path.endswith(".png")]
    assert [n.split("+timestamp")[0] for n in sorted(names)] == [
        "images/samples_16x16+step+100",
        "images/samples_16x16+step+200",
    ]
    assert Image.open(client.download_artifacts(run.info.run_id, min(names))).getpixel((0, 0)) == (255, 0, 0)


def test_the_users_experiment_and_run_are_obeyed(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    client = connect(tracking_uri(folder.parent))
    made = client.create_run(client.create_experiment("theirs", (folder.parent / "theirs").as_uri()))
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    catch_up(folder)
    assert only_run(folder)[1].info.run_id == made.info.run_id


def test_another_store_under_the_same_address_gets_everything(folder, empty_store):
    write(folder, [1, 2])
    catch_up(folder)
    other = make_run(folder.parent.parent / "other" / folder.name)
    (other.parent / "mlflow.db").write_bytes(empty_store.read_bytes())
    for name in (jsonl.METRICS, CURSOR):
        text = (folder / name).read_text().replace(str(folder.parent), str(other.parent))
        (other / name).write_text(text)
    assert sync(other) == 2
    assert history(other) == on_disk(other)


def test_a_password_in_the_address_is_not_written_to_disk(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1' fails") as e:
        sync(folder)
    assert "secret" not in str(e.value)
    assert "\n" not in str(e.value)


def test_a_folder_that_is_no_run_is_a_one_line_error(tmp_path):
    with pytest.raises(UserError, match=r"run=.* is not a run folder"):
        sync(tmp_path)


def test_the_mirror_follows_and_finishes_in_the_background(folder):
    mirror = Mirror(folder, every_sec=0.05)
    mirror.start()
    write(folder, [1, 2])
    wait_until(lambda: (folder / CURSOR).exists() and json.loads((folder / CURSOR).read_text())["nimg"] == 2)
    write(folder, [3])
    assert mirror.close(final=True)
    assert history(folder) == on_disk(folder)
    assert only_run(folder)[1].info.status == "FINISHED"


TRAINING = """
import sys, time
from pathlib import Path
from pipeline.tracking.mirror import Mirror
from tests.tracking.records import write
folder, first = Path(sys.argv[1]), int(sys.argv[2])
Mirror(folder, every_sec=0.01).start()
for nimg in range(first, first + 100_000):
    write(folder, [nimg])
    time.sleep(0.002)
"""


def test_kill_nine_in_the_middle_of_sending_loses_and_doubles_nothing(folder):
    for first in (0, 50):  # the second attempt passes where the first has been
        before = cursor_of(folder)
        process = subprocess.Popen([sys.executable, "-c", TRAINING, str(folder), str(first)])
        wait_until(lambda before=before: cursor_of(folder) != before and cursor_of(folder).nimg > 0)
        time.sleep(0.2)
        process.kill()
        process.wait()
    sync(folder)
    assert history(folder) == on_disk(folder)


def test_a_damaged_file_is_an_event_and_not_an_exception(folder):
    (folder / jsonl.METRICS).write_text("rubbish\n")
    mirror = Mirror(folder, every_sec=0.01)
    mirror.start()

    def told() -> list[dict]:
        return [e for e in jsonl.read(folder / jsonl.EVENTS) if e["event"].startswith("tracking")]

    wait_until(lambda: told() != [])
    (folder / jsonl.METRICS).unlink()
    wait_until(lambda: len(told()) == 2)
    assert mirror.close(final=False)
    assert [e["event"] for e in told()] == ["tracking down", "tracking back"]
    assert "is damaged" in told()[0]["detail"]


def test_importing_the_mirror_does_not_import_mlflow():
    code = (
        "import sys, pipeline.tracking.mirror, pipeline.tracking.registry, pipeline.tracking.console;"
        "sys.exit(any(m.split('.')[0] in ('mlflow', 'torch') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
