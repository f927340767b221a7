"""A real `mlflow server`, and a door in front of it that can misbehave."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.tracking.records import wait_until


class Server:
    """`mlflow server` on a port that stays the same over restarts. Starting takes seconds: one for all tests."""

    def __init__(self, folder: Path, empty_store: Path):
        self.folder, self.empty_store, self.process = folder, empty_store, None
        self.empty()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        self.command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
        self.command += ["--artifacts-destination", str(folder / "artifacts")]

    def empty(self) -> None:
        for path in self.folder.glob("server.db*"):
            path.unlink()
        shutil.copy(self.empty_store, self.folder / "server.db")

    def start(self) -> "Server":
        """If it is not running already."""
        if self.process is None:
            env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            with (self.folder / "log").open("a") as log:
                self.process = subprocess.Popen(
                    self.command, env=env, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
                )
            wait_until(self.answers, seconds=120)
        return self

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


class Door:
    """A fake in front of a real server. `mode` says what comes of a request whose path contains `where`:

    "pass"; a number: this HTTP status and nothing is forwarded; "silent": accepted, neither forwarded nor answered;
    "hold": forwarded, but the answer is kept back; "lost": forwarded, then the connection breaks.
    """

    def __init__(self, port: int):
        self.mode, self.where, self.hits = "pass", "", 0
        door, self._open = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                mode = door.mode if door.where in self.path else "pass"
                if mode == "silent":
                    door.hits += 1
                    door.wait()
                elif mode.isdigit():
                    door.hits += 1
                    self.answer(int(mode), b"not today", {})
                else:
                    status, answer, headers = forward(port, self, body)
                    door.hits += mode != "pass"
                    if mode == "hold":
                        door.wait()
                    if mode == "pass":
                        self.answer(status, answer, headers)
                self.close_connection = mode != "pass"

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address) -> None:
                pass  # clients that were killed

        self._httpd = Quiet(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._httpd.server_address[1]}"
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def wait(self) -> None:
        self._open.wait(300)

    def set(self, mode: str, where: str = "") -> None:
        self.hits, self.where, self.mode = 0, where, mode

    def close(self) -> None:
        self._open.set()
        self._httpd.shutdown()
        self._thread.join()
        self._httpd.server_close()


def forward(port: int, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        kept = {k: v for k, v in handler.headers.items() if k.lower() not in ("host", "connection")}
        connection.request(handler.command, handler.path, body, {**kept, "Host": f"127.0.0.1:{port}"})
        answer = connection.getresponse()
        text = answer.read()
        named = {"Content-Type": answer.headers.get("Content-Type", "application/json")}
        return answer.status, text, named
    finally:
        connection.close()
