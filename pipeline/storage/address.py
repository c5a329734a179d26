"""A path in, the place it leads to out: this disk, or a root of a store. Nothing is opened or looked up here.

A store's path is `<scheme>://<root>/<key>`. The root has to be there before: a bucket, a container, a repository.
"""

import fnmatch
import os
import re
import urllib.parse
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.redaction import redacted_url

MAGIC = re.compile(r"[*?\[]")

_STORES = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "abfs": "az",
    "abfss": "az",
    "hf": "hf",
    "memory": "memory",
    "file": "file",
}
_ONE_SLASH = re.compile(rf"({'|'.join(name for name in _STORES if name != 'file')}):/(?!/)")
_FILE_URL = re.compile(r"file:(?://(?:localhost)?(?=/|$))?", re.IGNORECASE)
_ROOTS = {"s3": "bucket", "gs": "bucket", "az": "container", "hf": "repository", "memory": ""}
_HUB_KINDS = "(?:models|datasets|spaces|buckets)/"
# A revision ends at the slash, but for the two kinds that the Hub itself names with slashes.
_HUB_ROOT = re.compile(
    rf"(?:{_HUB_KINDS})?(?!{_HUB_KINDS})[^/@]+/[^/@]+(?:@(?:refs/(?:convert|pr)/[^/]+|[^/]+))?(?=/|$)"
)
_AZURE_ACCOUNT = re.compile(r"([^@]+)@([^./]+)\.(?:dfs|blob)\.core\.[a-z.]+")
_COMMIT = re.compile(r"@[0-9a-f]{40}$")


@dataclass(frozen=True)
class Address:
    store: str
    """s3, gs, az, hf or memory: one name for each store, whatever the scheme was."""
    root: str
    """The root as it was written, with the Azure account or the revision in it; empty for memory."""
    key: str
    """The key has no slash at its end, and may be empty."""

    def url(self, key: str) -> str:
        """The URL of another key at the same root."""
        return f"{self.store}://" + "/".join(filter(None, [self.root, key]))

    @property
    def container(self) -> str:
        """The root without Azure's account."""
        account = _AZURE_ACCOUNT.fullmatch(self.root) if self.store == "az" else None
        return account[1] if account else self.root

    @property
    def account(self) -> str | None:
        """Azure's account, if the URL names it."""
        account = _AZURE_ACCOUNT.fullmatch(self.root) if self.store == "az" else None
        return account[2] if account else None


def address_of(path: str) -> Address:
    """The parts of a store's path or pattern; InputError where no root is named, or one with wildcards."""
    store, rest = store_of(path), path.partition("://")[2].rstrip("/")
    if store == "memory":
        return Address(store, "", rest.lstrip("/"))
    if store == "hf":
        match = _HUB_ROOT.match(rest)
        root = match[0] if match else ""
    else:
        root = rest.partition("/")[0]
    if not root or MAGIC.search(root):
        example = "hf://datasets/owner/name/path" if store == "hf" else f"{store}://{_ROOTS[store]}/path"
        raise InputError(f"{path!r} names no {_ROOTS[store]}: expected {example}")
    return Address(store, root, rest[len(root) + 1 :])


def store_of(path: str) -> str:
    """`file` for paths of this disk, else the store's one name.

    Raises InputError for a scheme that is not known, for one that has lost a slash, and for a URL that holds a secret: every
    path comes through here first, so that no message, log or table can show what it holds.
    """
    if _is_file_url(path):
        return "file"
    if one_slash := _ONE_SLASH.match(path):
        meant = redacted_url(path.replace(":/", "://", 1))
        given = meant.replace("://", ":/", 1)
        raise InputError(f"{given!r} has one slash after {one_slash[1]}:, {meant!r} was meant: write it so")
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", path)
    if scheme and redacted_url(path) != path:
        raise InputError(
            f"{redacted_url(path)!r} holds a password or a signature: leave it out, and give keys in storage_options, where "
            "they are never shown"
        )
    if scheme and scheme[1] not in _STORES:
        known = ", ".join(f"{name}://" for name in _STORES if name != "file")
        raise InputError(f"{path!r} is not a path of this disk and begins with none of {known}: only these are known")
    return _STORES[scheme[1]] if scheme else "file"


def is_remote(path: str) -> bool:
    """Whether the path is in a store; InputError for a scheme that is not known."""
    return store_of(path) != "file"


def is_shared(path: str) -> bool:
    """Whether other processes can see what one writes there: not in memory. A disk may still be another node's."""
    return store_of(path) != "memory"


def checks_itself(path: str) -> bool:
    """Whether every read of a pinned file is checked by itself; else call `check_unchanged` after reading."""
    store = store_of(path)
    return store == "s3" or (store == "hf" and bool(_COMMIT.search(address_of(path).root)))


def local_path(path: str) -> str:
    """The absolute path of a local path or of a file: URL, whose %xx are decoded; symlinks are kept.

    Where only a folder of the undecoded name is there, as Spark writes `file:/x/lang=e%20n`, that one is meant.
    """
    if not _is_file_url(path):
        return _absolute(path)
    rest = _after_file(path)
    return _existing(rest, urllib.parse.unquote(rest))


def local_pattern(path: str) -> str:
    """`local_path` of a pattern: a wildcard's character that a URL has as %xx stands for itself."""
    if not (_is_file_url(path) and MAGIC.search(path)):
        return local_path(path)
    rest = _after_file(path)
    pieces = re.split(r"((?:%[0-9a-fA-F]{2})+)", rest)
    decoded = [MAGIC.sub(r"[\g<0>]", urllib.parse.unquote(piece)) if piece[:1] == "%" else piece for piece in pieces]
    return _existing(rest, "".join(decoded))


def _existing(literal: str, decoded: str) -> str:
    """The decoded path, unless only the literal one is there."""
    plain, meant = _absolute(literal), _absolute(decoded)
    return plain if os.path.lexists(_before_magic(plain)) and not os.path.lexists(_before_magic(meant)) else meant


def _before_magic(pattern: str) -> str:
    """The folder of a pattern that holds all that it can match; a path without wildcards is itself."""
    magic = MAGIC.search(pattern)
    return os.path.dirname(pattern[: magic.start()]) if magic else pattern


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _is_file_url(path: str) -> bool:
    return path[:6].lower() == "file:/"


def _after_file(path: str) -> str:
    """What follows file:, file:// or file://localhost. Raises InputError where another host is named."""
    rest = path[_FILE_URL.match(path).end() :]  # type: ignore[union-attr]
    if rest.startswith("//"):
        raise InputError(
            f"{path!r} names a folder of another host: expected file:///folder, or a path that this machine has"
        )
    return rest


def same_place(a: str, b: str) -> bool:
    """Whether two paths or URLs name the same file or folder; symlinks on the disk are resolved."""
    return not _other_accounts(a, b) and _components(a) == _components(b)


def contains(outer: str, inner: str) -> bool:
    """Whether `inner` is `outer` or lies below it; for a pattern: whether it can match a file below `inner`."""
    if _other_accounts(outer, inner):
        return False
    pattern, path = _components(outer), _components(inner)
    for index, (expected, name) in enumerate(zip(pattern, path, strict=False)):
        if expected == "**":
            return True
        if not fnmatch.fnmatchcase(name, expected) and name != expected:
            return False
        if index == len(pattern) - 1 and MAGIC.search(expected):
            return False
    return len(path) >= len(pattern) or any(map(MAGIC.search, pattern))


def _components(path: str) -> list[str]:
    if not is_remote(path):
        return ["", *filter(None, os.path.realpath(local_path(path)).split(os.sep))]
    address = address_of(path)
    return [f"{address.store}://", *filter(None, f"{address.container}/{address.key}".split("/"))]


def _other_accounts(a: str, b: str) -> bool:
    """Whether both name an Azure account, and not the same; where one leaves it open they may be one place."""
    accounts = {address_of(path).account for path in (a, b) if store_of(path) == "az"}
    return len(accounts - {None}) == 2
