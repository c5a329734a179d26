"""A process beside a command turns all that reaches the command's stderr into JSON, one object a line.

Two pipes come in. What stands on stdin was written to the command's stderr by anybody: a library in C, a child, a traceback
at the very end. What comes on the pipe that the first argument names are objects of the command itself, a line each. Both
go out on stderr, whole lines after one another. This process outlives the command, so that its last words are told, too.

The command closes its pipe when it is about to end. All that was written until then is out when this process closes its
stdout.
"""

import datetime
import json
import os
import re
import select
import signal
import sys
from typing import Any

from pipeline.redaction import redacted

CONTEXT = "="
"""A line that begins so holds what is added to every line that somebody else wrote."""
AT_ONCE = 65536
_LEVEL = re.compile(r"\W*(debug|info|warn(?:ing)?|error|critical|fatal)\b", re.IGNORECASE)
_LEVELS = {"warn": "warning", "fatal": "critical"}


def now() -> str:
    """Return the time in UTC, in ISO 8601 with microseconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def object_of(line: str, context: dict[str, Any]) -> dict[str, Any]:
    """Make an object of a line that somebody printed. Its level is the one that it begins with, or `info`."""
    found = _LEVEL.match(line)
    level = found[1].lower() if found else "info"
    told = {"time": now(), "level": _LEVELS.get(level, level), "event": "printed", "message": redacted(line)}
    return told | context


class Lines:
    """They are the whole lines of a pipe, as bytes come in. A bar that draws itself anew ends its lines by \\r."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[str]:
        """Return the lines that are whole by now, without empty ones."""
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        return [text for line in lines if (text := line.decode("utf-8", "replace").rstrip())]

    def end(self) -> list[str]:
        """Return the line that was begun, if there is one."""
        return self.add(b"\n")


def tell(records: int) -> None:
    """Turn lines into objects until both pipes have ended."""
    printed, own, context = Lines(), Lines(), dict[str, Any]()
    waiting = {0: printed, records: own}
    while waiting:
        ready, _, _ = select.select(list(waiting), [], [])
        # The objects come first, as they say what the lines of others belong to.
        for number in sorted(ready, reverse=True):
            data = os.read(number, AT_ONCE)
            lines = waiting[number].add(data) if data else waiting[number].end()
            for line in lines:
                if number == records and line.startswith(CONTEXT):
                    context = json.loads(line[len(CONTEXT) :])
                else:
                    _write(line if number == records else json.dumps(object_of(line, context), ensure_ascii=False))
            if not data:
                del waiting[number]
                if number == records:
                    _drain(printed, context)


def _drain(printed: Lines, context: dict[str, Any]) -> None:
    """Tell what was printed until now, and then that it is told."""
    while select.select([0], [], [], 0)[0] and (data := os.read(0, AT_ONCE)):
        for line in printed.add(data):
            _write(json.dumps(object_of(line, context), ensure_ascii=False))
    os.close(1)


def _write(line: str) -> None:
    data = f"{line}\n".encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(2, data) :]


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)
    tell(int(sys.argv[1]))
