"""A headless Chromium that tests open pages in: what it asked the network for, and what it complained of, is known.

It is driven by its own protocol over two pipes, which needs no other package.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_SECONDS = 40


def chromium() -> str:
    """Return the path of the browser; without one the test is skipped."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("Chromium is missing: apt-get install chromium")
    return found


@contextlib.contextmanager
def browser(folder: Path) -> Iterator["Browser"]:
    to_browser, from_browser = os.pipe(), os.pipe()
    # High numbers: the shell puts them on 3 and 4, where the browser expects them.
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in (to_browser[0], from_browser[1])]
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    command = ["bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "bash", chromium(), *flags, "about:blank"]
    with subprocess.Popen(command, pass_fds=ends, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        for fd in (to_browser[0], from_browser[1], *ends):
            os.close(fd)
        made = Browser(to_browser[1], from_browser[0])
        try:
            yield made
        finally:
            os.close(to_browser[1])
            os.close(from_browser[0])
            process.terminate()


class Browser:
    def __init__(self, into: int, out: int) -> None:
        self._into, self._out, self._held, self._number = into, out, b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._into, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._out], [], [], _SECONDS)
            assert ready, "the browser doesn't answer"
            content = os.read(self._out, 2**20)
            assert content, "the browser ended"
            self._held += content
        message, _, self._held = self._held.partition(b"\0")
        return json.loads(message)

    def open(
        self, url: str, *, width: int = 1280, height: int = 800, dark: bool = False, ready: str = "true"
    ) -> "Page":
        """Open a page, and wait until the expression `ready` is true of it."""
        self.events.clear()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Runtime", "Log", "Network", "Page"):
            page.call(f"{domain}.enable")
        page.call(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        page.call("Page.navigate", url=url)
        end = time.monotonic() + _SECONDS
        while not page.value(f"document.readyState === 'complete' && Boolean({ready})"):
            assert time.monotonic() < end, (page.complaints, page.value("document.body.innerText")[:300])
            time.sleep(0.1)
        return page


class Page:
    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def value(self, expression: str) -> Any:
        """Return what a JavaScript expression is on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, **({"text": text} if text and kind == "keyDown" else {})
            )

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    @property
    def requests(self) -> list[str]:
        """Return what was asked of anybody else than this file itself."""
        sent = [event["params"]["request"]["url"] for event in self._events("Network.requestWillBeSent")]
        return [url for url in sent if not url.startswith(("file:", "data:", "blob:"))]

    @property
    def complaints(self) -> list[Any]:
        """Return exceptions, errors and warnings of the page."""
        thrown = [event["params"] for event in self._events("Runtime.exceptionThrown")]
        logged = [event["params"]["entry"] for event in self._events("Log.entryAdded")]
        said = [event["params"] for event in self._events("Runtime.consoleAPICalled")]
        return thrown + logged + said

    def _events(self, method: str) -> list[dict[str, Any]]:
        return [event for event in self._browser.events if event.get("method") == method]
