"""A headless Chromium for tests, spoken to over two pipes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
    "--hide-scrollbars", "--no-first-run", "--disable-extensions", "--disable-dev-shm-usage",
    "--disable-background-networking", "--force-device-scale-factor=1",
)  # fmt: skip

_START = """
import os, sys
reading, writing = (os.dup(int(end)) for end in sys.argv[1:3])
for end, place in ((reading, 3), (writing, 4)):
    os.dup2(end, place)
    os.set_inheritable(place, True)
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""Chromium reads commands from 3 and answers on 4; copies first, as an end may lie there."""


def find_chromium() -> str | None:
    """The path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab of a running Chromium."""

    def __init__(self, to: Any, back: Any) -> None:
        self._to, self._back, self._number = to, back, 0
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """What Chromium answers to a command; what it reports meanwhile is kept in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._back.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("chromium has ended")
            text += byte
        answer: dict[str, Any] = json.loads(bytes(text))
        return answer

    def open(self, path: Path, *, width: int, dark: bool = False) -> None:
        """Load a file at a width of the window, in one of both themes, until it is shown."""
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=theme)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives on the page, or what it promises."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]["exception"].get("description")))
        return found["result"].get("value")

    def requests(self) -> list[str]:
        """Addresses that the page has asked for; what lies in it has none."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
            and not event["params"]["request"]["url"].startswith("data:")
        ]

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Write what is shown as a PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            found = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def chromium(program: str) -> Iterator[Browser]:
    """A browser that ends with the block."""
    to_read, to_write = os.pipe()
    back_read, back_write = os.pipe()

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _START,
                str(to_read),
                str(back_write),
                program,
                *_OPTIONS,
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(to_read, back_write),
        )
        os.close(to_read)
        os.close(back_write)
        try:
            with os.fdopen(to_write, "wb") as to, os.fdopen(back_read, "rb") as back:
                yield Browser(to, back)
        finally:
            process.terminate()
            process.wait(timeout=20)


if __name__ == "__main__":
    # python tests/chromium.py PAGE.html PICTURE.png: the top of a page, 1,200 pixels wide.
    page, target = map(Path, sys.argv[1:3])
    found = find_chromium()
    assert found is not None, "no Chromium is at hand"
    with chromium(found) as browser:
        browser.open(page, width=1200)
        browser.picture(target, whole=False)
