"""Which reader is opened for which sets, what is refused, and runs on a mix from the command line to a checkpoint."""

import functools
import http.server
import itertools
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import cli
from pipeline.data import feed
from pipeline.data.manifest import load_manifest
from pipeline.data.reader import ShardReader
from pipeline.errors import UserError
from pipeline.plan import DataConfig, ExecConfig, override_all
from pipeline.recipes import find
from pipeline.run import Launch, folder_of, plan_run, read_run, resolve, sets_of, train_folder
from tests.runs import CIPS, SETTINGS, SMALL

SIZE_PX = 32


def opened(sets: list[str], config: DataConfig, **changes):
    words = {"reader": "tar", "seed": 1, "nimg": 0, "batch_size": 4, "slices": [range(4)]}
    return feed.batches(sets, config, **{**words, "rank": 0, "world": 1, "workers": 0, **changes})


def configured(*sets: str):
    return override_all(find(CIPS).make().tiny(), ExecConfig(), [*SMALL[CIPS], *SETTINGS, *sets])


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """Twelve images of 32 px."""
    from dataprep.sources.folder import Folder
    from dataprep.transform import Transform
    from dataprep.writer import prepare

    root = tmp_path_factory.mktemp("noise")
    (root / "images").mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
    prepare(Folder(root / "images"), root / "set", Transform(size_px=SIZE_PX), shard_size=5)
    return root / "set"


@pytest.fixture
def served():
    """served(folder): its URL on this machine."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    def serve(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        servers.append((server, threading.Thread(target=server.serve_forever, args=(0.05,))))
        servers[-1][1].start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("sets", "config", "reader", "said"),
    [
        (["a", "b"], {}, "tar", r"2 sets, and data.weights=\[\]; .* --set data.weights='\[1, 1\]'"),
        (["a", "b", "c"], {"weights": (1, 2)}, "tar", r"3 sets, and data.weights=\[1, 2\]"),
        (["a"], {"weights": (1, 2)}, "tar", r"data.weights=\[1, 2\]: there is one set"),
        (["a", "b"], {"weights": (1, 2)}, "beton", "exec.reader='beton': only .* can be mixed"),
        (["a", "s3://b"], {"weights": (1, 2)}, "tar", "data='s3://b' is a URL: only .* can be mixed"),
        (["s3://b"], {}, "beton", "exec.reader='beton': data='s3://b' is a URL"),
        (["s3://b"], {"shuffle_block": 2, "shuffle_window": 2}, "tar", "data.shuffle_block=2: has no effect on a URL"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line_before_anything_is_opened(sets, config, reader, said):
    config = DataConfig(size_px=8, **config)
    for attempt in (
        lambda: feed.check_sets(sets, config, reader),
        lambda: opened(sets, config, reader=reader),
        lambda: resolve(configured()[0].replace(data=config.replace(size_px=32)), ExecConfig(reader=reader), sets),
    ):
        with pytest.raises(UserError, match=said) as caught:
            attempt()
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["data.shuffle_block=4"], "shuffle_block=4 and shuffle_window=1 need each other"),
        (["data.shuffle_window=4"], "shuffle_block=1 and shuffle_window=4 need each other"),
        (["data.shuffle_block=0"], "data.shuffle_block=0: input should be greater than or equal to 1"),
        (["data.weights=[1]"], r"weights=\[1\] must be"),
        (["data.weights=[1, 0]"], r"weights=\[1, 0\] must be"),
        (["data.weights=[1, 100000]"], "100000 in sum"),
        (["data.weights=3"], "data.weights=3: input should be a valid tuple"),
        (["exec.reader=lmdb"], "reader='lmdb': input should be 'tar' or 'beton'"),
    ],
)
def test_a_value_that_could_have_no_effect_is_refused(sets, said):
    with pytest.raises(UserError, match=said):
        configured(*sets)


def test_a_url_is_streamed_and_its_manifest_checked_like_a_folders(served, noise):
    url, config = served(noise), DataConfig(size_px=SIZE_PX, mirror=False)
    run, exec_ = configured()
    streamed, read = resolve(run, exec_, url), resolve(run, exec_, noise)
    assert (
        streamed.data.dataset_id == f"streamed:{read.data.dataset_id}" == f"streamed:{load_manifest(noise).dataset_id}"
    )
    with pytest.raises(UserError, match=r"is data set streamed:\w+, this run was made with \w+; "):
        resolve(read, exec_, url)  # in another order
    with pytest.raises(UserError, match=r"data='http.*' holds 32 px images, the recipe wants data.size_px=64"):
        resolve(run.replace(data=run.data.replace(size_px=64)), exec_, url)
    it, reader = opened([url], config), ShardReader(noise)
    img = torch.cat([next(it).img for _ in range(3)])
    assert sorted(i.numpy().tobytes() for i in img) == sorted(reader.read(i)[0].tobytes() for i in range(12))
    ranks = [next(opened([url], config, slices=[range(2 * r, 2 * r + 2)], rank=r, world=2)).img for r in (0, 1)]
    assert not torch.equal(*ranks)


def test_the_ffcv_copy_is_asked_for_before_anything_is_written(noise, tmp_path):
    with pytest.raises(UserError, match=r"images\.beton: .*make it with `graticule beton "):
        opened([str(noise)], DataConfig(size_px=SIZE_PX), reader="beton")
    with pytest.raises(UserError, match=r"images\.beton: .*make it with `graticule beton "):
        plan_run(*configured("exec.reader=beton"), noise, tmp_path, [])
    assert not list(tmp_path.iterdir())


def test_nothing_of_other_readers_is_imported_for_a_folder():
    code = "import sys, pipeline.run; print({'webdataset', 'ffcv', 'pipeline.data.stream'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.parametrize("field", ["mirror", "weights", "shuffle_block", "shuffle_window"])
def test_every_way_of_presenting_reaches_the_reader(noise, photos, field):
    plain = DataConfig(size_px=SIZE_PX, weights=(1, 1), shuffle_block=2, shuffle_window=2)
    other = {"mirror": False, "weights": (2, 1), "shuffle_block": 3, "shuffle_window": 3}
    sets = [str(noise), str(photos(SIZE_PX))]
    img = []
    for config in (plain, plain.replace(**{field: other[field]})):
        it = opened(sets, config)
        img.append(torch.cat([b.img for b in itertools.islice(it, 8)]))
    assert not torch.equal(*img)


def test_a_run_on_a_mix_remembers_each_set_and_names_the_one_that_is_wrong(noise, photos, tmp_path):
    run, exec_ = configured("data.weights=[3, 1]", "total_kimg=0.032", "exec.workers=2")
    sets = [photos(SIZE_PX), noise]
    folder = plan_run(run, exec_, sets, tmp_path, [])
    ids = [load_manifest(s).dataset_id for s in sets]
    assert read_run(folder).data.dataset_id == "+".join(ids)
    assert train_folder(folder, should_stop=lambda: False) == "done"
    assert plan_run(run, exec_, sets, tmp_path, []) == folder == folder_of(run, exec_, sets, tmp_path)

    def moved(*data: Path) -> None:
        launch = json.loads((folder / "exec.json").read_text()) | {"data": list(map(str, data))}
        (folder / "exec.json").write_text(json.dumps(launch))

    for data, said in [
        ((noise, noise), f"data='{noise}' is data set {ids[1]}, this run was made with {ids[0]}"),
        ((sets[0], sets[0]), f"data='{sets[0]}' is data set {ids[0]}, this run was made with {ids[1]}"),
        ((noise,), "there is one set"),
    ]:
        moved(*data)
        with pytest.raises(UserError) as caught:
            train_folder(folder, should_stop=lambda: False)
        assert said in str(caught.value)
    plain = configured()[0]
    with pytest.raises(UserError, match="2 sets, this run was made with 1"):
        resolve(
            run.replace(data=run.data.replace(dataset_id=resolve(plain, exec_, noise).data.dataset_id)), exec_, sets
        )


def test_an_old_attempt_with_one_data_set_is_read():
    exec_ = ExecConfig()
    text = json.dumps({"exec": exec_.model_dump(mode="json"), "data": "/somewhere"})
    assert Launch.from_json(text) == Launch(exec=exec_, data=("/somewhere",))


def test_folders_become_absolute_and_urls_stay():
    assert sets_of("set") == sets_of(Path("set")) == (str(Path("set").absolute()),)
    assert sets_of(["s3://bucket/set", Path("/a/b")]) == ("s3://bucket/set", "/a/b")


def test_only_a_full_check_looks_at_shards(copy, tmp_path):
    root = copy("png")
    run, exec_ = configured()
    run = run.replace(
        data=run.data.replace(size_px=12),
        family=run.family.replace(G=run.family.G.replace(size_px=8), D=run.family.D.replace(resolution_px=8)),
    )
    (root / "shard-00001.tar").unlink()
    folder = plan_run(run, exec_, root, tmp_path / "runs", [], full=False)
    for attempt in (
        lambda: plan_run(run, exec_, root, tmp_path / "runs", []),
        lambda: train_folder(folder, should_stop=lambda: False),
    ):
        with pytest.raises(UserError, match=r"shard-00001\.tar: is missing"):
            attempt()


@pytest.fixture
def graticule_train(monkeypatch, capsys, tmp_path):
    """`graticule train` in this process: (exit code, stderr)."""

    def run(*words: str, sets: tuple[str, ...]) -> tuple[int, str]:
        settings = [part for s in (*SMALL[CIPS], *SETTINGS, "total_kimg=0.032", *sets) for part in ("--set", s)]
        argv = ["graticule", "train", CIPS, "--tiny", *words, *settings, "--runs", str(tmp_path / "runs")]
        monkeypatch.setattr(sys, "argv", argv)
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = int(e.code or 0)
        return code, capsys.readouterr().err

    return run


def test_several_sets_are_given_on_the_command_line(noise, photos, tmp_path, graticule_train):
    data = [part for s in (photos(SIZE_PX), noise) for part in ("--data", str(s))]
    assert graticule_train(*data, sets=("data.weights=[1, 2]",)) == (0, "")
    (folder,) = (tmp_path / "runs").glob(f"{CIPS}-*")
    assert Launch.from_json((folder / "exec.json").read_text()).data == (str(photos(SIZE_PX)), str(noise))
    assert read_run(folder).data.weights == (1, 2)
    code, err = graticule_train(*data, sets=())
    assert code == 2
    assert "2 sets, and data.weights=[]" in err


def test_a_damaged_shard_ends_training_with_one_line(tmp_path, noise, graticule_train):
    root = Path(shutil.copytree(noise, tmp_path / "set"))
    for shard in root.glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))  # as long as before: found when it is read
    code, err = graticule_train("--data", str(root), sets=("exec.workers=2",))
    assert code == 1
    assert err.startswith("graticule: image 0 of the run: ")
    assert len(err.splitlines()) == 1
