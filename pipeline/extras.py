"""What is needed by a few only is installed with an extra of this project, and this file alone knows which.

A message that misses a package names the command from here.
"""

from collections.abc import Mapping

PROJECT = "embedding-pipeline"

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "completion": ("shtab",),
    "s3": ("s3fs",),
    "gs": ("gcsfs",),
    "az": ("adlfs",),
    "delta": ("deltalake",),
    "iceberg": ("pyiceberg",),
    "documents": ("pypdfium2", "selectolax"),
    "html": ("selectolax",),
    "lineage": ("openlineage-python",),
    "metrics": ("prometheus-client",),
    "sentencepiece": ("sentencepiece",),
    "postgres": ("psycopg",),
    "milvus": ("pymilvus",),
    "redis": ("redis",),
    "chroma": ("chromadb",),
    "lance": ("pylance",),
    "files": ("duckdb", "faiss-cpu", "usearch"),
    "qdrant": ("qdrant-client",),
    "opensearch": ("orjson", "urllib3"),
    "search": ("bm25s",),
    "openvino": ("openvino", "nncf"),
}
"""It maps the name of each extra to the packages that it brings."""


FAST_TOKENIZERS_FOLDER = "fast-tokenizers"
"""This folder of sys.prefix, which all processes of an installation have in common, holds a second release of tokenizers.
No extra can bring it: transformers needs another one."""


def install(extra: str) -> str:
    """Return the command that installs what an extra brings."""
    if extra not in EXTRAS:
        raise ValueError(f"there is no extra {extra!r}")
    return f"pip install '{PROJECT}[{extra}]'"
