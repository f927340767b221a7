"""Files behind http(s)://, s3:// and gs:// URLs, read front to back and across lost connections.

Whatever a URL says, no program is started and no local file is opened. What comes of a shard is held against
the manifest: its size as soon as the server tells it, every byte's part in the sha256 as it passes. Knows
nothing of tars, images or ranks.
"""

import contextlib
import hashlib
import io
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from pipeline.data.manifest import Shard
from pipeline.data.reader import DataError
from pipeline.errors import UserError

BUCKETS = {"s3": "s3fs", "gs": "gcsfs"}  # scheme -> the package through which fsspec reads it
SCHEMES = ("http", "https", *BUCKETS)
PAUSES_SEC = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # before each new try; bytes that came start the row anew
TIMEOUT_SEC = 30.0
BLOCK = 2**22  # bytes of one request to a bucket
MANIFEST_BYTES = 2**28  # 2 million shards
RETRIED = (408, 425, 429)  # of the HTTP statuses 4xx


class Refused(Exception):  # noqa: N818 - the server's answer
    """The file is not there, not for us, or not the one meant: asking again does not help."""


class Closed(Exception):  # noqa: N818 - asked for by the owner
    """The stream is being closed while it waits for a server."""


def located(folder: str, name: str) -> str:
    """The URL of a file in a folder. UserError for a scheme that is not streamed."""
    scheme, colon, rest = folder.partition("://")
    if not colon or scheme not in SCHEMES or not rest.strip("/"):
        raise UserError(
            f"data={shown(folder)!r}: only {', '.join(f'{s}://' for s in SCHEMES)} are streamed, and nothing that "
            "starts a program; give such a URL of a prepared folder, or a local folder"
        )
    if scheme in BUCKETS:
        return f"{folder.rstrip('/')}/{name}"
    if any(c <= " " or c == "\x7f" for c in folder) or "@" in rest.partition("/")[0]:
        raise UserError(f"data={shown(folder)!r}: a URL holds no blanks (write %20) and no user name; give another")
    path, mark, query = folder.partition("?")  # a signature stays behind the path
    return f"{path.partition('#')[0].rstrip('/')}/{name}{mark}{query}"


def shown(url: str) -> str:
    """A URL for messages and logs: without its query and user, which may be secrets."""
    scheme, colon, rest = url.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{colon}{host.rpartition('@')[2]}{slash}{path}"


def fetch(url: str) -> bytes:
    """A whole small file. Refused, or OSError when several tries did not bring it."""
    problem = ""
    for pause in (0.0, *PAUSES_SEC[:3]):
        time.sleep(pause)
        try:
            with contextlib.closing(_opened(url, 0)) as source:
                data = bytearray()
                while piece := source.read(BLOCK):
                    data += piece
                    if len(data) > MANIFEST_BYTES:
                        raise Refused(f"has more than {MANIFEST_BYTES} bytes")
            if source.total in (None, len(data)):
                return bytes(data)
            problem = f"{len(data)} of {source.total} bytes came"
        except (Refused, UserError):
            raise
        except Exception as e:  # the clients of buckets raise whatever they like
            problem = _line(e)
    raise OSError(problem)


class RemoteShard(io.RawIOBase):
    """The bytes of one shard. After a lost connection it goes on where it was.

    Reading raises DataError, which names the URL, when the server refuses the file, has it in another size,
    or brings nothing for as long as PAUSES_SEC; Closed when `stop` is set.
    """

    def __init__(self, url: str, shard: Shard, stop: threading.Event):
        self.url, self.shard, self._stop = url, shard, stop
        self._at = 0
        self._digest = hashlib.sha256()
        self._source: _Source | None = None
        self.problem = ""  # of the DataError that was raised

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._next(min(len(view), self.shard.bytes - self._at))
        view[: len(data)] = data
        self._digest.update(data)
        self._at += len(data)
        return len(data)

    def finish(self) -> None:
        """Read what is left. DataError unless these were the bytes that the manifest speaks of."""
        while self.readinto(bytearray(2**18)):
            pass
        if self._digest.hexdigest() != self.shard.sha256:
            raise self._error("its sha256 is not the manifest's (damaged, or another shard)")

    def close(self) -> None:
        self._disconnect()
        super().close()

    def _next(self, size: int) -> bytes:
        """Some bytes from where we are; none at the end, or when none are asked for."""
        problem = ""
        for pause in (0.0, *PAUSES_SEC) if size else ():
            if self._stop.wait(pause):
                raise Closed
            try:
                if self._source is None:
                    self._source = _opened(self.url, self._at, self.shard.bytes)
                if data := self._source.read(size):
                    return data
                problem = "the connection ended"
            except Refused as e:
                raise self._error(str(e)) from e
            except Exception as e:  # the clients of buckets raise whatever they like
                problem = _line(e)
            self._disconnect()
        if size:
            raise self._error(f"{self._at} of {self.shard.bytes} bytes came, then: {problem}")
        return b""

    def _error(self, problem: str) -> DataError:
        self.problem = problem
        return DataError(f"{shown(self.url)}: {problem}")

    def _disconnect(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            with contextlib.suppress(Exception):
                source.close()


@dataclass(frozen=True)
class _Source:
    """An open file: some bytes at a time, b"" at its end."""

    read: Callable[[int], bytes]
    close: Callable[[], None]
    total: int | None  # bytes of the whole file, where the server tells


def _opened(url: str, start: int, expected: int | None = None) -> _Source:
    """The file from byte `start` on."""
    source = (_opened_bucket if url.partition("://")[0] in BUCKETS else _opened_http)(url, start)
    if expected is not None and source.total not in (None, expected):
        source.close()
        raise Refused(f"has {source.total} bytes there, the manifest says {expected}")
    return source


def _opened_http(url: str, start: int) -> _Source:
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(request, timeout=TIMEOUT_SEC)
    except HTTPError as e:
        e.close()
        if e.code < 500 and e.code not in RETRIED:
            raise Refused(f"is not to be had (HTTP {e.code} {e.reason})") from e
        raise
    try:
        if response.status == 206:
            got, _, total = response.headers.get("Content-Range", "").partition("/")
            if not got.startswith(f"bytes {start}-"):
                raise OSError(f"asked for bytes from {start}, the server sent {got!r}")
        else:
            total = response.headers.get("Content-Length", "")
            _skip(response, start)  # this server knows no ranges
    except BaseException:
        response.close()
        raise
    return _Source(response.read1, response.close, int(total) if total.isdecimal() else None)


def _skip(response: Any, size: int) -> None:
    while size:
        piece = response.read(min(size, 2**18))
        if not piece:
            raise OSError("the connection ended")
        size -= len(piece)


def _opened_bucket(url: str, start: int) -> _Source:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as e:
        package = BUCKETS[url.partition("://")[0]]
        raise UserError(f"data={url!r} needs {package}; install it with: pip install {package}") from e
    try:
        file = fs.open(path, "rb", block_size=BLOCK, cache_type="readahead")
    except FileNotFoundError as e:
        raise Refused("is not there") from e
    except PermissionError as e:
        raise Refused(f"is not to be had ({_line(e)})") from e
    file.seek(start)
    return _Source(file.read, file.close, file.size)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
