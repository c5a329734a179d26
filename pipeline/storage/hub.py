"""The Hugging Face Hub: which commit a name and a revision mean, and a model's files in this node's cache of it.

The one home of huggingface_hub, and loaded only when a Hub name is used. Tokens, endpoint, cache folder and offline mode
are that library's own settings (HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE); nothing here knows or shows them.
"""

import contextlib
import errno
import glob
import logging
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import InputError
from pipeline.extras import install_packages
from pipeline.machine.folders import cache_folder, why_unusable
from pipeline.redaction import redacted

Kind = Literal["model", "data set"]


class NotOnHub(InputError):
    """There is no repository of the name, or nobody may know of it."""


NAME = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
"""`organisation/name`, or the bare name that some old repositories have."""

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_DESCRIPTIONS = ("modules.json", "config.json")


@dataclass(frozen=True, kw_only=True)
class Commit:
    name: str
    """The repository's full name, `organisation/name`."""
    sha: str


def resolve_data_set(name: str, revision: str | None) -> Commit:
    """The commit that a branch, tag or commit of a data set means now; InputError if there is none, or no way to
    ask."""
    with _reported("data set", name, revision):
        from huggingface_hub import HfApi

        info = HfApi().dataset_info(name, revision=revision)
        return Commit(name=info.id, sha=str(info.sha))


def fetch_model(
    name: str, revision: str | None, choose: Callable[[Iterable[str]], Sequence[str]]
) -> tuple[Path, str, tuple[str, ...]]:
    """(folder in this node's cache, commit, files) of a branch, tag or commit; `choose` says which files are needed.

    Without a network, or in offline mode, the commit that the cache remembers for the revision counts. Raises InputError.
    """
    with _reported("model", name, revision):
        # Asked for by the revision itself, so that the library's cache remembers which commit it was.
        folder = _snapshot(name, revision, _DESCRIPTIONS)
        files = tuple(choose(_listing(name, folder)))
        return _snapshot(name, folder.name, files), folder.name, files


def fetch_files(name: str, commit: str, files: Sequence[str]) -> Path:
    """The folder in this node's cache that holds these files of the commit, and maybe others. Raises InputError."""
    with _reported("model", name, commit):
        return _snapshot(name, commit, files)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Errors of the library only, and no progress bars unless the user asks with HF_HUB_DISABLE_PROGRESS_BARS=0."""
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as of_library
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    verbosity = of_library.get_verbosity()
    bars = not are_progress_bars_disabled() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    of_library.set_verbosity(logging.ERROR)
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        of_library.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


def _snapshot(name: str, revision: str | None, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(file) for file in files]
    with quiet():
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


def _listing(name: str, folder: Path) -> list[str]:
    """All files of the commit."""
    from huggingface_hub import HfApi, constants, errors, get_cached_repo_tree

    try:
        return [file.path for file in get_cached_repo_tree(name, revision=folder.name)]
    except errors.CachedRepoTreeNotFoundError:
        # Only a cache that an older release of the library filled has none: all that stands there is all we can know.
        if constants.is_offline_mode():
            return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        return list(HfApi().list_repo_files(name, revision=folder.name))


def _give_a_home() -> None:
    """Where the user has no home that can be written, let the library's cache be beside ours. Without a home it would
    make a folder named ~ where it stands."""
    if any(os.environ.get(name) for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")):
        return
    with contextlib.suppress(RuntimeError):
        usual = Path("~/.cache/huggingface")
        try:
            usable = usual.expanduser().exists() or not why_unusable(usual.expanduser())
        except RuntimeError:  # The user has no home at all.
            usable = False
        if not usable:
            os.environ["HF_HOME"] = str(cache_folder() / "huggingface")


# --- errors


@contextlib.contextmanager
def _reported(kind: Kind, name: str, revision: str | None) -> Iterator[None]:
    """The library's errors become ours, in words that say what to do."""
    _give_a_home()
    try:
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise InputError(
            f"{kind} {name!r} is on the Hub: its package is missing ({error}): {install_packages('huggingface_hub')}"
        ) from None
    what, node = f"{kind} {name!r}", f"node {platform.node()!r}"
    try:
        yield
    except errors.GatedRepoError:
        raise InputError(
            f"{what} is gated: accept its conditions on its page on the Hub, and give every node a token of that account "
            "(HF_TOKEN)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise NotOnHub(
            f"{what} is not on the Hub, or is private: check the name; a private one needs a token (HF_TOKEN) on every node"
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(
            f"{what} has no revision {revision or constants.DEFAULT_REVISION!r} on the Hub: give a branch, a tag or a "
            "whole commit hash"
        ) from None
    except errors.HFValidationError:
        raise InputError(f"{what} is no name on the Hub: expected organisation/name") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if constants.is_offline_mode():
            reason = "offline mode is on (HF_HUB_OFFLINE): fetch it once without it, or give a local folder"
        else:
            reason = f"the Hub didn't give it ({_said(error.__cause__ or error)}): check the network"
        missing = "is not whole in the Hub's cache" if kind == "model" else "must be looked up"
        absent = NotOnHub if constants.is_offline_mode() else InputError
        raise absent(f"{what} {missing} on {node}, and {reason}") from None
    except InputError:
        raise
    except Exception as error:  # of the HTTP client, of Xet, of the disk: their types differ between releases
        refused = isinstance(error, OSError) and error.errno in _NOT_WRITABLE
        remedy = "set HF_HOME to a folder that can be written" if refused else "check network, token and free space"
        raise InputError(f"{what} can't be fetched from the Hub to {node} ({_said(error)}): {remedy}") from None


def _said(error: BaseException) -> str:
    """One short line, without the queries of URLs: those of downloads are signed."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"it answered {response.status_code}"
    text = (getattr(error, "strerror", None) or str(error)) if isinstance(error, OSError) else str(error)
    text = re.sub(r"(https?://[^\s?\"']*)\?[^\s\"']*", r"\1", redacted(" ".join(text.split())))
    return f"{type(error).__name__}: {text}"[:300]
