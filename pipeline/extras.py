"""What is needed by a few only is installed with an extra of this project, and this file alone knows which.

A message that misses a package names the command from here. The project is in no registry, so that the command goes by
how the program was installed.
"""

import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

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
    """Return the command that installs what an extra brings into the environment of this process."""
    if extra not in EXTRAS:
        raise ValueError(f"there is no extra {extra!r}")
    return f"{_pip()} install {_wanted(extra)}"


def install_packages(*requirements: str) -> str:
    """Return the command that installs packages that no extra brings into the environment of this process."""
    return f"{_pip()} install {shlex.join(requirements)}"


def _pip() -> str:
    """Return what starts this environment's pip: its name alone may start another one's, or none."""
    found = shutil.which("pip")
    is_ours = found is not None and Path(found).parent.resolve() == Path(sys.executable).parent.resolve()
    return "pip" if is_ours else f"{shlex.quote(sys.executable)} -m pip"


def _wanted(extra: str) -> str:
    """Return the arguments that make pip install an extra.

    Where this project is installed, pip finds it by its name, from whatever it was installed. Elsewhere the name would
    be looked for in a registry, which doesn't have it, so the folder of the sources stands for it, or the packages do.
    """
    if _is_installed_with(extra):
        return shlex.quote(f"{PROJECT}[{extra}]")
    sources = Path(__file__).resolve().parents[1]
    if (sources / "pyproject.toml").is_file():
        return shlex.quote(f"{sources}[{extra}]")
    return shlex.join(EXTRAS[extra])


def _is_installed_with(extra: str) -> bool:
    """Say whether pip knows this project as installed, in a release that has the extra."""
    try:
        provided = metadata.metadata(PROJECT).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return False
    return extra in [re.sub(r"[-_.]+", "-", name).lower() for name in provided]
