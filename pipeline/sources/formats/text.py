"""A document per file: column `text` is all of it, as it is (so are Markdown and reStructuredText), `path` the file."""

from collections.abc import Mapping

from pipeline.sources.formats.content import HEAD_BYTES, encoding_of
from pipeline.sources.formats.document import blocks_of, look_of
from pipeline.sources.formats.form import Form, Misfit


def _parse(content: bytes, encoding: str) -> Mapping[str, str]:
    name = encoding_of(content[:HEAD_BYTES], encoding)
    try:
        return {"text": content.decode(name).removeprefix("\ufeff")}
    except UnicodeError as error:
        place = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise Misfit(f"the file is not valid {name.upper()}{place}") from None


FORM = Form(
    blocks=blocks_of(_parse),
    look=look_of(("text", "path")),
    suffixes=(".txt", ".text", ".md", ".markdown", ".rst"),
    strings_only=True,
    rows_per_file=1,
)
