"""A document per file: column `text` is all of it, as it is (so are Markdown and reStructuredText), `path` the file.

With `source.front_matter: columns` the front matter of Markdown files becomes columns, and leaves their text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO

from pipeline.config import SourceSpec
from pipeline.sources.formats import front_matter
from pipeline.sources.formats.compression import Broken
from pipeline.sources.formats.content import HEAD_BYTES, encoding_of, peeked, uncompressed
from pipeline.sources.formats.document import PLACE, blocks_of, look_with
from pipeline.sources.formats.form import Form, Look, Misfit
from pipeline.work import SourceFile

_BROKEN = "with front matter that can't be read, which stays text"
_MARKDOWN = (".md", ".markdown", ".md.gz", ".md.zst", ".markdown.gz", ".markdown.zst")


def _parse(content: bytes, file: SourceFile, spec: SourceSpec) -> Mapping[str, str | None]:
    name = encoding_of(content[:HEAD_BYTES], spec.encoding)
    try:
        text = content.decode(name).removeprefix("\ufeff")
    except UnicodeError as error:
        place = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise Misfit(f"the file is not valid {name.upper()}{place}") from None
    if not _has_columns(file, spec):
        return {"text": text}
    columns, rest = front_matter.split(text)
    return {**columns, "text": rest}


def _has_columns(file: SourceFile, spec: SourceSpec) -> bool:
    return spec.front_matter == "columns" and file.path.lower().endswith(_MARKDOWN)


def _look(opened: BinaryIO, file: SourceFile, columns: Sequence[str], spec: SourceSpec) -> Look:
    """Only the files themselves know which columns their front matter has."""
    names: dict[str, None] = {"text": None}
    remark = ""
    if _has_columns(file, spec):
        try:
            _, head = peeked(uncompressed(opened, file), front_matter.MOST_BYTES)
            text = head.decode(encoding_of(head[:HEAD_BYTES], spec.encoding), "replace").removeprefix("\ufeff")
            found, _ = front_matter.split(text)
            names |= dict.fromkeys(found)
            remark = _BROKEN if not found and front_matter.is_broken(text) else ""
        except Broken:  # reading the file tells
            pass
    return replace(look_with([name for name in names if name not in PLACE], file, columns), remark=remark)


FORM = Form(
    blocks=blocks_of(_parse),
    look=_look,
    suffixes=(".txt", ".text", ".md", ".markdown", ".rst"),
    strings_only=True,
    rows_per_file=1,
    is_document=True,
)
