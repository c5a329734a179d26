"""Prometheus gets the metrics of a run: over HTTP while it works, and from a file when it has ended.

Samples come in. A port is open, and a file is written whole or not at all. Whatever would keep them from that is told
before the run begins its work.
"""

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, InputError, one_line
from pipeline.extras import install
from pipeline.telemetry.metrics import METRICS, PREFIX, Samples, labels_of

if TYPE_CHECKING:
    from prometheus_client.core import Metric

READABLE = 0o644
"""The collector reads the file as another user."""


class Collector:
    """It gives samples to the Prometheus client, as a collector of its."""

    def __init__(self, samples: Callable[[], Samples]) -> None:
        self._samples = samples

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client.core import Metric

        found = self._samples()
        for name, metric in METRICS.items():
            family = Metric(PREFIX + name.removesuffix("_total"), metric.help, metric.kind)
            for (own, labels), value in found.items():
                if own == name:
                    family.add_sample(PREFIX + name, dict(labels), value)
            if family.samples:
                yield family


def check_installed() -> None:
    """Raise ConfigError where the Prometheus client is missing."""
    try:
        import prometheus_client  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(
            f"the section metrics needs the Prometheus client: {install('metrics')}, or leave the section out"
        ) from None


@contextlib.contextmanager
def served(address: str, port: int, samples: Callable[[], Samples]) -> Iterator[None]:
    """Answer scrapes while the block runs. Raises ConfigError where the port can't be opened."""
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(samples))
    try:
        server, thread = start_http_server(port, address, registry)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            f"metrics can't be served at {address}:{port} ({error}): give a free port in metrics.port and an address of this "
            "machine in metrics.address, or leave metrics.port out"
        ) from None
    try:
        yield
    finally:
        _end(server, thread)


def _end(server: Any, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()


def check_writable(path: str) -> None:
    """Raise InputError where the file could not be written at the end."""
    folder = Path(path).expanduser().absolute().parent
    try:
        number, name = tempfile.mkstemp(prefix=".embedding-pipeline-", dir=folder)
        os.close(number)
        os.unlink(name)
    except OSError as error:
        raise InputError(
            f"metrics.textfile {path!r} can't be written ({error.strerror or error}): its folder has to be there, and "
            "this user has to be allowed to write into it"
        ) from None


def read_file(path: str) -> Samples:
    """Return the samples of an earlier run. What isn't there, or isn't ours, is nothing."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        families = list(text_string_to_metric_families(text))
    except (OSError, ValueError):
        return {}
    found = Samples()
    for sample in (sample for family in families for sample in family.samples):
        name = sample.name.removeprefix(PREFIX)
        if name in METRICS and {"command", "table"} <= sample.labels.keys():
            found[name, labels_of(sample.labels)] = sample.value
    return found


def write_file(path: str, samples: Samples) -> str:
    """Write the file in one step. Return why it could not be written, or ""."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(lambda: samples))
    target = Path(path).expanduser().absolute()
    try:
        # The collector reads no file whose name doesn't end in .prom.
        number, name = tempfile.mkstemp(prefix=".embedding-pipeline-", dir=target.parent)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(generate_latest(registry))
            os.chmod(name, READABLE)
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        return one_line(str(error))
    return ""
