"""A document per file: column `text` is all of it, as it is (so are Markdown and reStructuredText), `path` the file."""

from collections.abc import Mapping

from pipeline.sources.formats.document import blocks_of, look_of
from pipeline.sources.formats.form import Form, Misfit
from pipeline.sources.formats.scan import BOM


def _parse(content: bytes) -> Mapping[str, str]:
    try:
        return {"text": content.removeprefix(BOM).decode()}
    except UnicodeDecodeError as error:
        raise Misfit(f"the file is not valid UTF-8 (byte {error.start})") from None


FORM = Form(
    blocks=blocks_of(_parse),
    look=look_of(("text", "path")),
    suffixes=(".txt", ".text", ".md", ".markdown", ".rst"),
    strings_only=True,
    rows_per_file=1,
)
