"""The sections `metrics` and `lineage` of a configuration say who else hears of a run.

Like config.py, this file only says what was asked for.
"""

import re
from dataclasses import dataclass

from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MetricsSpec:
    """This section gives the figures of a run to Prometheus; it needs the extra `metrics`."""

    port: int | None = None
    """While a run works, its metrics are at `http://<address>:<port>/metrics`; null opens no port."""
    address: str = "127.0.0.1"
    """The port is open at this address of the machine; `0.0.0.0` lets other machines read it."""
    textfile: str | None = None
    """When a run has ended, this file has its metrics, for the textfile collector of node_exporter. Its name ends in
    `.prom`."""

    @property
    def wanted(self) -> bool:
        return self.port is not None or self.textfile is not None

    def __post_init__(self) -> None:
        if self.port is not None and not 0 < self.port < 2**16:
            raise ConfigError(f"metrics.port is {self.port}; give a number from 1 to 65535, or null")
        if not self.address:
            raise ConfigError("metrics.address is empty: give an address of this machine, such as 127.0.0.1")
        if self.textfile is not None and not re.fullmatch(r"[^\0]*[^/\0]\.prom", self.textfile):
            raise ConfigError(
                f"metrics.textfile is {self.textfile!r}; give the path of a file whose name ends in .prom, since the "
                "collector reads no other"
            )


@dataclass(frozen=True, kw_only=True)
class LineageSpec:
    """This section tells an OpenLineage server from which sources a table was made; it needs the extra `lineage`."""

    url: str | None = None
    """Events go to `<url>/api/v1/lineage`, with the key in `OPENLINEAGE_API_KEY` if there is one; null goes by the variables
    and files that the OpenLineage client knows, such as `OPENLINEAGE_URL`, and tells nobody without them."""
    namespace: str = "embedding-pipeline"
    """Jobs are known under this namespace, by the path of their table."""

    def __post_init__(self) -> None:
        if self.url is not None and not re.match(r"https?://[^/]", self.url):
            raise ConfigError("lineage.url is no http:// or https:// address of an OpenLineage server")
        if not self.namespace:
            raise ConfigError("lineage.namespace is empty: give a name, such as embedding-pipeline")
