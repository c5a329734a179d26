"""A document per file: column `text` is what a reader without scripts can see of the page, `title` its title, `path` the
file.

selectolax parses as browsers do, whatever the markup, without limits on depth or size; parsers built on libxml2 drop
text that is nested deeper than 256 elements or longer than 10 MB without a word. Style sheets are not applied.
"""

import codecs
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.config import SourceSpec
from pipeline.sources.formats.content import HEAD_BYTES, UTF8, encoding_of
from pipeline.sources.formats.document import blocks_of, look_of, needs
from pipeline.sources.formats.form import Form, Misfit
from pipeline.work import SourceFile

_META_BYTES = 1024
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
_CHARSET = re.compile(rb"<meta[\s/][^>]*?charset\s*=\s*[\"']?\s*([^\s\"'/>;]+)", re.IGNORECASE)
_BROWSERS_NAMES = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "utf-16": "utf-8",
    "utf-16-le": "utf-8",
    "utf-16-be": "utf-8",
}
"""What browsers take a charset for, by Python's name: the larger one, and UTF-8 where a tag could not be read otherwise."""

_UNSEEN = frozenset(["head", "script", "style", "template"])
_LITERAL = frozenset(["pre", "textarea", "listing", "plaintext", "xmp"])
_CELLS = frozenset(["td", "th"])
_BLOCKS = frozenset(
    name
    for names in (
        "address article aside blockquote body br button caption center dd details dialog dir div dl dt fieldset",
        "figcaption figure footer form frameset h1 h2 h3 h4 h5 h6 header hgroup hr html iframe legend li listing main",
        "menu nav noscript object ol optgroup option p plaintext pre search section select summary table tbody textarea",
        "tfoot thead tr ul video xmp",
    )
    for name in names.split()
)
_SPACE = re.compile(r"[ \t\n\f\r]+")


def page(content: bytes, encoding: str = "auto") -> Mapping[str, str]:
    """The text and the title of a page. Raises Misfit for one that can't be decoded or parsed."""
    from selectolax.lexbor import LexborHTMLParser, SelectolaxError

    markup = _decode(content, encoding)
    try:
        parsed = LexborHTMLParser(markup)
        title = parsed.css_first("title")
        text = _text(parsed.root) if parsed.root is not None else ""
        return {"text": text, "title": _SPACE.sub(" ", title.text()).strip(" ") if title is not None else ""}
    except (SelectolaxError, ValueError, RuntimeError, MemoryError) as error:
        raise Misfit(f"the page can't be parsed: {' '.join(str(error).split())[:200]}") from None


def _decode(content: bytes, encoding: str) -> str:
    name = _charset(content, encoding)
    try:
        return content.decode(name).removeprefix("\ufeff")
    except LookupError:
        raise Misfit(f"the page's charset {name[:40]!r} is unknown") from None
    except UnicodeError as error:
        place = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise Misfit(f"the page is not valid {name}{place}") from None


def _charset(content: bytes, encoding: str) -> str:
    """By a byte order mark, `source.encoding`, NULs between the letters, or a tag of the page, in this order."""
    known = encoding_of(content[:HEAD_BYTES], encoding)
    if known != UTF8 or encoding != "auto" or content.startswith(codecs.BOM_UTF8):
        return known
    found = _CHARSET.search(_COMMENT.sub(b"", content[:_META_BYTES]))
    if found is None:
        return "utf-8"
    asked = found[1].decode("ascii", "replace").lower()
    try:
        known = codecs.lookup(asked).name
    except (LookupError, ValueError):
        return asked
    return _BROWSERS_NAMES.get(known, known)


def _parse(content: bytes, file: SourceFile, spec: SourceSpec) -> Mapping[str, str]:
    return page(content, spec.encoding)


# --- what can be seen


def _text(root: Any) -> str:
    """Lines of text: blocks and line breaks end a line, cells are parted by tabs, white space is as on the page."""
    pieces: list[str] = []
    for piece in _pieces(root):
        if piece in ("\n", "\t"):
            _trim(pieces)
            if piece == "\t" and (not pieces or pieces[-1].endswith("\n")):
                continue
            if piece == "\n" and (not pieces or pieces[-1] == "\n"):
                continue
        elif piece.startswith(" ") and (not pieces or pieces[-1].endswith((" ", "\n", "\t"))):
            piece = piece[1:]
        if piece:
            pieces.append(piece)
    _trim(pieces)
    return "".join(pieces).strip("\n")


def _trim(pieces: list[str]) -> None:
    """Without the space or the tab that stands at the end of a line."""
    while pieces and pieces[-1] in (" ", "\t"):
        pieces.pop()
    if pieces and pieces[-1].endswith(" "):
        pieces[-1] = pieces[-1][:-1]


def _pieces(root: Any) -> Iterator[str]:
    """Text, "\\n" where a block begins or ends, a tab after a cell. No recursion: pages nest without limit."""
    todo: list[tuple[Any, bool, str]] = [(root, False, "")]
    while todo:
        node, literal, end = todo.pop()
        if node is None:
            yield end
            continue
        tag = node.tag
        if tag == "-text":
            text = node.text_content or ""
            yield text if literal else _SPACE.sub(" ", text)
            continue
        if tag in _UNSEEN or tag.startswith("-") or tag.startswith("_"):
            continue
        if tag in _BLOCKS:
            yield "\n"
            todo.append((None, False, "\n"))
        elif tag in _CELLS:
            todo.append((None, False, "\t"))
        children = list(node.iter(include_text=True))
        todo += [(child, literal or tag in _LITERAL, "") for child in reversed(children)]


FORM = Form(
    blocks=blocks_of(_parse),
    look=look_of(("text", "title"), needs("selectolax.lexbor", "HTML", "html")),
    suffixes=(".html", ".htm"),
    isolated=True,
    strings_only=True,
    rows_per_file=1,
    is_document=True,
)
