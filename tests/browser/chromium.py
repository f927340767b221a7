"""A headless Chromium, driven by its own protocol over two pipes: no driver package is needed.

Only what the pages here ask for: go somewhere, ask in JavaScript, click, press a key, take a picture.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
INSTALL = "apt-get install -y --no-install-recommends chromium fonts-dejavu-core"
FLAGS = ("--headless=new", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage", "--no-first-run")


def found() -> str:
    """Its path, "" where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), "") or ""


class Chromium:
    """One browser with one page of this size in CSS px."""

    def __init__(self, width: int = 1600, height: int = 900):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [found(), *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}"]
        command += [f"--window-size={width},{height}", *(["--no-sandbox"] if os.getuid() == 0 else []), "about:blank"]
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'  # the protocol's are descriptors 3 and 4
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._number, self._session = b"", 0, ""
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        self.call("Page.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer; what else arrives meanwhile is passed over."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                piece = os.read(self._in, 1 << 20)
                assert piece, "the browser has ended"
                self._buffer += piece
            line, self._buffer = self._buffer.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def goto(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> Any:
        """Until it is true."""
        end = time.monotonic() + seconds
        while not (value := self.ask(script)):
            if time.monotonic() > end:
                raise TimeoutError(f"{script}\n{self.text()[:2000]}")
            time.sleep(0.2)
        return value

    def text(self) -> str:
        """What stands on the page."""
        return self.ask("document.documentElement.innerText")

    def click(self, x: float, y: float) -> None:
        """A real one, at this place in CSS px."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click_on(self, script: str) -> None:
        """On the middle of the element that the expression gives."""
        self.wait(f"!!({script})")
        self.ask(f"({script}).scrollIntoView({{block: 'center'}})")
        r = self.ask(f"({script}).getBoundingClientRect().toJSON()")
        self.click(r["x"] + r["width"] / 2, r["y"] + r["height"] / 2)

    def press(self, key: str, code: int) -> None:
        """A key that writes nothing, by its name and its Windows code, which pages still ask for."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self, path: Path, clip: tuple[float, float, float, float] | None = None) -> None:
        """A PNG of the window, or of (x, y, width, height) of it."""
        part = (
            {} if clip is None else {"clip": dict(zip(("x", "y", "width", "height"), clip, strict=True)) | {"scale": 1}}
        )
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **part)["data"]))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        os.close(self._out)
        os.close(self._in)
        self._profile.cleanup()
