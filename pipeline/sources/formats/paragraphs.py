"""The paragraphs of WordprocessingML and DrawingML, which name them alike, as lines of text.

Comes in: an element. Goes out: its text, with a line per paragraph and per row of a table, whose cells are parted by tabs.
Deleted and hidden text is left out, inserted text is there.
"""

import re
from collections.abc import Iterator

from pipeline.sources.formats.package import Element, local

_UNSEEN = frozenset(
    name
    for names in (
        "del moveFrom delText instrText delInstrText Fallback",
        "pPr rPr sectPr tblPr trPr tcPr tblGrid bodyPr lstStyle",
        "footnoteRef endnoteRef annotationRef separator continuationSeparator",
    )
    for name in names.split()
)
_MARKS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_AROUND_TABS = re.compile(r" *\t *")
_SPACES = re.compile(r"(?<=[^ ]) {2,}")
_NUMBERS = frozenset(["slidenum", "datetime"])


def text_of(root: Element) -> str:
    """Lines that end without white space, at most one of them empty at a time."""
    lines: list[str] = []
    for line in "".join(_pieces(root)).split("\n"):
        line = _SPACES.sub(" ", _AROUND_TABS.sub("\t", line)).rstrip()
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).strip("\n")


def _pieces(root: Element) -> Iterator[str]:
    """No recursion: documents nest without limit."""
    todo: list[tuple[Element | None, str]] = [(root, "")]
    cells = 0
    while todo:
        element, end = todo.pop()
        if element is None:
            cells -= end == "\t"
            yield " " if cells else end
            continue
        name = local(element)
        if name in _UNSEEN or (name == "r" and _is_hidden(element)) or _is_number(name, element):
            continue
        if name == "t":
            text = element.text or ""
            yield text if not cells else text.replace("\n", " ").replace("\t", " ")
        elif name in _MARKS:
            mark = _MARKS[name]
            yield " " if cells and mark != "-" else mark
        else:
            if name == "txbxContent":
                yield " " if cells else "\n"
            if name in ("p", "tr"):
                todo.append((None, "\n"))
            elif name == "tc":
                cells += 1
                todo.append((None, "\t"))
            todo += [(child, "") for child in reversed(element)]


def _is_hidden(run: Element) -> bool:
    """Whether Word shows the run to nobody."""
    for properties in run:
        if local(properties) == "rPr":
            return any(local(each) == "vanish" and _is_on(each) for each in properties)
    return False


def _is_on(switch: Element) -> bool:
    return not any(key.endswith("val") and value in ("0", "false", "off") for key, value in switch.items())


def _is_number(name: str, element: Element) -> bool:
    """Whether it is a field that a slide's own number or today's date fills."""
    return name == "fld" and element.get("type", "").rstrip("0123456789") in _NUMBERS
