"""What is needed by a few only is installed with an extra of this project, and this file alone knows which.

A message that misses a package names the command from here.
"""

from collections.abc import Mapping

PROJECT = "embedding-pipeline"

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "s3": ("s3fs",),
    "gs": ("gcsfs",),
    "az": ("adlfs",),
    "delta": ("deltalake",),
    "iceberg": ("pyiceberg",),
    "html": ("selectolax",),
    "sentencepiece": ("sentencepiece",),
    "postgres": ("psycopg",),
    "lance": ("pylance",),
    "files": ("duckdb", "faiss-cpu", "usearch"),
    "qdrant": ("qdrant-client",),
    "opensearch": ("orjson", "urllib3"),
    "openvino": ("openvino", "nncf"),
}
"""It maps the name of each extra to the packages that it brings."""


def install(extra: str) -> str:
    """Return the command that installs what an extra brings."""
    if extra not in EXTRAS:
        raise ValueError(f"there is no extra {extra!r}")
    return f"pip install '{PROJECT}[{extra}]'"
