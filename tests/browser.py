"""A headless Chromium opens a file, and tells what a person would meet: requests, errors, overflow, colours.

It is spoken to by its own protocol over two pipes, so that no package is needed.
"""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""It is None where there is no browser: Debian has it as `apt-get install chromium`."""


@dataclass
class Page:
    requests: list[str] = field(default_factory=list)
    """They are the addresses that were asked for, the file's own left out."""
    errors: list[str] = field(default_factory=list)
    """They are what the console says of warnings and errors."""
    width: int = 0
    """It is the width that the content needs, in CSS pixels."""
    background: str = ""
    letters: float = 0.0
    """It is the height of the smallest letters of all plots, in CSS pixels as they are shown."""
    screenshot: bytes = b""


class Browser:
    def __init__(self, process: "subprocess.Popen[bytes]", to: int, answers: int) -> None:
        self._process, self._to, self._answers = process, to, answers
        self._rest, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, session: str | None = None, **given: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": given} | ({"sessionId": session} if session else {})
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]
            self.events.append(told)

    def wait(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._answers, 2**16)
            assert piece, f"the browser ended with {self._process.wait()}"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def look(self, path: Path, width: int, scheme: str, *, screenshot: bool = False) -> Page:
        """Open the file in a window of this width, with the colour `scheme` light or dark."""
        self.events.clear()
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Log", "Runtime", "Page"):
            self.ask(f"{domain}.enable", session)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", session, **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", session, features=features)
        self.ask("Page.navigate", session, url=path.resolve().as_uri())
        self.wait("Page.loadEventFired")
        found = Page(
            width=self._value(session, "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"),
            background=self._value(session, "getComputedStyle(document.body).backgroundColor"),
            letters=self._value(session, _LETTERS),
        )
        if screenshot:
            shot = self.ask("Page.captureScreenshot", session, captureBeyondViewport=True)
            found.screenshot = base64.b64decode(shot["data"])
        for event in self.events:
            params = event.get("params", {})
            if (
                event.get("method") == "Network.requestWillBeSent"
                and params["request"]["url"] != path.resolve().as_uri()
            ):
                found.requests.append(params["request"]["url"])
            elif event.get("method") == "Log.entryAdded":
                found.errors.append(params["entry"]["text"])
            elif event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                found.errors.append(str(params))
        self.ask("Target.closeTarget", targetId=target)
        return found

    def _value(self, session: str, expression: str) -> Any:
        return self.ask("Runtime.evaluate", session, expression=expression)["result"].get("value")


_LETTERS = """Math.min(...[...document.querySelectorAll("svg")].map(
    svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width * 11.5))"""


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a profile of its own. It must be installed."""
    assert CHROMIUM is not None
    commands, to = os.pipe()
    answers, said = os.pipe()
    # The protocol is spoken over the descriptors 3 and 4.
    script = f'exec "$0" "$@" 3<&{commands} 4>&{said}'
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
    process = subprocess.Popen(
        ["bash", "-c", script, CHROMIUM, *flags, "--disable-background-networking", f"--user-data-dir={profile}"],
        pass_fds=(commands, said),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands)
    os.close(said)
    opened = Browser(process, to, answers)
    try:
        yield opened
        opened.ask("Browser.close")
    finally:
        os.close(to)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(answers)
