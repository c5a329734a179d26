"""Zip archives with XML in them, as Word, PowerPoint and EPUB write them: parts by name, and the relations between them.

Comes in: an open file. Goes out: bytes and XML of parts. Whatever is wrong is a Misfit that says what. Knows none of the
three.
"""

import posixpath
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import unquote
from xml.etree import ElementTree

from pipeline.sources.formats.form import Misfit

Element = ElementTree.Element
_MOST_BYTES = 128 * 2**20
"""So many uncompressed bytes of a document are read; zip bombs have more."""
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED = 1
"""The bit of a zip entry that says so."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    kind: str
    """The last piece of the relation's type, such as `slide`."""
    target: str
    """The name of the part that it leads to."""


class Package:
    """An open archive."""

    def __init__(self, opened: BinaryIO, what: str) -> None:
        """Raises Misfit for a file that is no archive; `what` names what it should be."""
        self.what = what
        head = opened.read(len(_OLD_OFFICE))
        opened.seek(0)
        if head == _OLD_OFFICE:
            raise Misfit("the file has a password, or is an old binary Office file: save it anew without a password")
        if not head.startswith(b"PK"):
            raise Misfit(f"the file is no {what}, whatever its name says")
        try:
            self._archive = zipfile.ZipFile(opened)
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
            raise Misfit(f"the {what} is damaged or cut off: {error}") from None
        self._left = _MOST_BYTES

    def has(self, name: str) -> bool:
        return name in self._archive.NameToInfo

    def read(self, name: str) -> bytes:
        """The uncompressed part. Raises Misfit where there is none, or where it is damaged, encrypted or too large."""
        info = self._archive.NameToInfo.get(name)
        if info is None:
            raise Misfit(f"the file is a zip archive, but no {self.what}: it has no part {name[:100]!r}")
        if info.flag_bits & _ENCRYPTED:
            raise Misfit(f"the {self.what} is encrypted: save it without a password")
        if info.file_size > self._left:
            raise Misfit(
                f"the {self.what} unpacks to more than {_MOST_BYTES // 2**20} MiB: it is a zip bomb, or no text document"
            )
        self._left -= info.file_size
        try:
            return self._archive.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, OSError) as error:
            raise Misfit(f"the {self.what} is damaged in its part {name[:100]!r}: {error}") from None

    def xml(self, name: str) -> Element:
        """The root of a part in XML. Entities that grow without bounds are refused by the parser itself."""
        try:
            return ElementTree.fromstring(self.read(name))
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise Misfit(f"the {self.what} is damaged in its part {name[:100]!r}: {error}") from None

    def main(self, root: str, usual: str) -> tuple[str, Element]:
        """The part that an Office file begins with, and what is in it. Raises Misfit where its root is another element than
        `root`."""
        name = next(iter(self.related("officeDocument")), usual)
        content = self.xml(name)
        if local(content) != root:
            raise Misfit(f"the file is no {self.what}, whatever its name says")
        return name, content

    def relations(self, name: str = "") -> Mapping[str, Relation]:
        """Where a part leads to, by the ids that it uses; "" is the package itself. Links out of the file are left out."""
        folder, base = posixpath.split(name)
        listed = posixpath.join(folder, "_rels", f"{base}.rels")
        if not self.has(listed):
            return {}
        return {
            each.get("Id", ""): Relation(
                kind=each.get("Type", "").rpartition("/")[2], target=resolved(folder, each.get("Target", ""))
            )
            for each in self.xml(listed)
            if each.get("TargetMode") != "External"
        }

    def related(self, kind: str, name: str = "") -> list[str]:
        """The parts that a part leads to by relations of this kind."""
        return [each.target for each in self.relations(name).values() if each.kind == kind and self.has(each.target)]


def resolved(folder: str, target: str) -> str:
    """The name of the part that a reference from a folder of the archive means."""
    path = unquote(target.partition("#")[0])
    return posixpath.normpath(posixpath.join(folder, path)).lstrip("/")


def local(element: Element) -> str:
    """The name of an element without its namespace; "" for comments."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def child_texts(root: Element) -> dict[str, str]:
    """The text of each child by its local name, the first one where there are several."""
    found: dict[str, str] = {}
    for child in root:
        text = " ".join("".join(child.itertext()).split())
        if text:
            found.setdefault(local(child), text)
    return found


def properties(package: Package) -> dict[str, str | None]:
    """Title, author and date of an Office document."""
    names = package.related("core-properties")
    told = child_texts(package.xml(names[0])) if names else {}
    return {"title": told.get("title"), "author": told.get("creator"), "date": told.get("created")}
