"""Where a path leads: to this disk, or to which root of which store. Nothing is opened or looked up here.

A store's path is `<scheme>://<root>/<key>`. The root has to be there before: a bucket, a container, a repository.
"""

import fnmatch
import os
import re
from dataclasses import dataclass
from urllib.parse import unquote

from pipeline.errors import InputError

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
_ROOTS = {"s3": "bucket", "gs": "bucket", "az": "container", "hf": "repository", "memory": ""}
_HUB_KINDS = "(?:models|datasets|spaces|buckets)/"
# A revision ends at the slash, but for the two kinds that the Hub itself names with slashes.
_HUB_ROOT = re.compile(
    rf"(?:{_HUB_KINDS})?(?!{_HUB_KINDS})[^/@]+/[^/@]+(?:@(?:refs/(?:convert|pr)/[^/]+|[^/]+))?(?=/|$)"
)
_AZURE_ACCOUNT = re.compile(r"([^@]+)@([^./]+)\.(?:dfs|blob)\.core\.[a-z.]+")
_FILE_URL = re.compile(r"file:(?://([^/]*)(?=/|$)|(?=/))", re.IGNORECASE)
_COMMIT = re.compile(r"@[0-9a-f]{40}$")


@dataclass(frozen=True)
class Address:
    store: str
    """s3, gs, az, hf or memory: one name for each store, whatever the scheme was."""
    root: str
    """As it was written, with the Azure account or the revision in it; empty for memory."""
    key: str
    """Without a slash at its end; may be empty."""

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
    """`file` for paths of this disk, else the store's one name; InputError for a scheme that is not known."""
    if _FILE_URL.match(path):
        return "file"
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", path)
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
    """The absolute path of a local path or of a file: URL, as Hadoop (`file:/x`) and Python (`file:///x%20y`) write them;
    symlinks are kept. Where a folder has the very name of the URL, escapes and all, that one is meant."""
    url = _FILE_URL.match(path)
    if url is None:
        return os.path.abspath(os.path.expanduser(path))
    host = url[1] or ""
    rest = ("" if host == "localhost" else host) + path[url.end() :]
    plain = os.path.abspath(os.path.expanduser(rest))
    magic = MAGIC.search(plain)
    above = os.path.dirname(plain[: magic.start()]) if magic else plain
    return plain if os.path.lexists(above) else os.path.abspath(os.path.expanduser(unquote(rest)))


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
        return os.path.realpath(local_path(path)).split(os.sep)
    address = address_of(path)
    return [f"{address.store}://", *filter(None, f"{address.container}/{address.key}".split("/"))]


def _other_accounts(a: str, b: str) -> bool:
    """Whether both name an Azure account, and not the same; where one leaves it open they may be one place."""
    accounts = {address_of(path).account for path in (a, b) if store_of(path) == "az"}
    return len(accounts - {None}) == 2
