"""Shards across lost connections, and what a URL may be."""

import importlib.util
import time

import pytest

from pipeline.data import remote
from pipeline.data.reader import DataError
from pipeline.data.stream import load_manifest
from pipeline.errors import UserError, WorkError
from tests.data.server import SHARD, by_hand, taken


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("lengths", [True, False])
def test_a_lost_connection_is_taken_up_where_it_broke(prepared, served, ranges, lengths):
    server = served(prepared("png"))
    server.ranges, server.lengths = ranges, lengths
    server.cuts = {SHARD: [700, 3000], "manifest.json": [100] if lengths else []}
    images, _ = taken(server.url, 10, workers=0)
    assert sorted(images) == sorted(by_hand(prepared("png")))
    assert [at for name, at in server.asked if name == SHARD][:3] == ([0, 700, 3700] if ranges else [0, 0, 0])


def test_a_server_that_is_overloaded_for_a_while_is_waited_for(prepared, served):
    server = served(prepared("png"))
    server.statuses = {SHARD: [503, 429, 500], "manifest.json": [502]}
    assert sorted(taken(server.url, 10)[0]) == sorted(by_hand(prepared("png")))


def test_a_shard_that_never_comes_whole_is_an_error(prepared, served):
    server = served(prepared("png"))
    server.ranges = False
    server.cuts = {SHARD: [700] * 10}
    with pytest.raises(DataError, match=rf"{server.url}/{SHARD}: 700 of \d+ bytes came, then: the connection ended"):
        taken(server.url, 10)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_shard_is_an_error_and_not_asked_for_again(prepared, served, workers):
    server = served(prepared("png"))
    (server.root / SHARD).unlink()
    with pytest.raises(DataError, match=rf"{server.url}/{SHARD}: is not to be had \(HTTP 404"):
        taken(server.url, 10, workers=workers)
    # of two threads, the other may have come to its next pass meanwhile
    assert [name for name, _ in server.asked].count(SHARD) in range(1, max(1, workers) + 1)


def test_a_server_that_falls_silent_is_asked_again(prepared, served, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT_SEC", 0.2)
    server = served(prepared("png"))
    server.silent = range(2, 3)
    began = time.monotonic()
    assert sorted(taken(server.url, 10, workers=0)[0]) == sorted(by_hand(prepared("png")))
    assert time.monotonic() - began < 10


def test_a_server_that_is_down_is_no_mistake_of_the_user(prepared, served):
    server = served(prepared("png"))
    server.close()
    with pytest.raises(WorkError, match=f"{server.url}.*look at server"):
        load_manifest(server.url)


@pytest.mark.parametrize(
    "url",
    ["pipe:touch {0}", "file://{0}", "{0}", "-", "", "http://", "ais://b/k", "htgs://b/k", "sftp://h/p", "pipe://{0}",
     "http://user:word@host/set", "http://host/a b"],
)  # fmt: skip
def test_nothing_but_http_and_buckets_is_opened(tmp_path, url):
    with pytest.raises(UserError, match="data=") as seen:
        load_manifest(url.format(tmp_path / "touched"))
    assert "word" not in str(seen.value)
    assert not list(tmp_path.iterdir())


def test_a_signature_is_sent_with_every_request_and_never_shown(prepared, served):
    server = served(prepared("png"))
    taken(f"{server.url}/?sig=secret", 10)
    assert {name for name, _ in server.asked} == {
        f"{n}?sig=secret" for n in ("manifest.json", "shard-00000.tar", SHARD, "shard-00002.tar")
    }
    (server.root / SHARD).unlink()
    with pytest.raises(DataError) as seen:
        taken(f"{server.url}/?sig=secret", 10)
    assert "secret" not in str(seen.value)


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_bucket_needs_s3fs_and_says_so():
    with pytest.raises(UserError, match=r"pip install s3fs"):
        load_manifest("s3://bucket/set")


@pytest.fixture
def bucket(prepared, monkeypatch):
    """The URL of a prepared set in an S3 server on this machine, and a client of that server."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    moto = pytest.importorskip("moto.server", reason="moto[server], an S3 server for tests, is not installed")
    import boto3

    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="sets")
    for file in prepared("png").iterdir():
        client.upload_file(str(file), "sets", f"faces/{file.name}")
    yield "s3://sets/faces", client
    server.stop()


@pytest.mark.filterwarnings("ignore")  # of s3fs and botocore
def test_a_bucket_is_read_like_any_other_server(bucket, prepared):
    url, client = bucket
    images, _ = taken(url, 20)
    for first in (0, 10):
        assert sorted(images[first : first + 10]) == sorted(by_hand(prepared("png")))
    client.delete_object(Bucket="sets", Key=f"faces/{SHARD}")
    with pytest.raises(DataError, match=f"{url}/{SHARD}: is not there"):
        taken(url, 20)
    with pytest.raises(UserError, match=r"manifest\.json is not there"):
        load_manifest("s3://sets/nothing")
