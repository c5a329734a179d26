"""A document per PowerPoint file: column `text` is its slides in their order, each with its notes and ended by a form feed.

The title of a slide comes first, then its shapes in the order that a screen reader has, diagrams, and what the speaker
wrote below it. Numbers, dates and footers of slides are left out, as are charts and pictures.
"""

from collections.abc import Iterator, Mapping
from typing import BinaryIO

from pipeline.sources.formats.document import PAGE_END, extracted, has_text, look_of
from pipeline.sources.formats.form import Form, Misfit
from pipeline.sources.formats.package import Element, Package, local, properties
from pipeline.sources.formats.paragraphs import text_of

_TITLES = frozenset(["title", "ctrTitle"])
_UNREAD = frozenset(["sldNum", "dt", "ftr", "hdr", "sldImg"])
"""Placeholders with these types hold nothing that somebody wrote for this slide."""


def _extract(opened: BinaryIO) -> Mapping[str, str | None]:
    package = Package(opened, "PowerPoint file")
    slides = [_slide(package, name) for name in _slides(package)]
    if not any(map(has_text, slides)):
        raise Misfit(
            f"none of the PowerPoint file's slides ({len(slides):,}) has text: it is empty, or has pictures alone"
        )
    text = "".join(slide + PAGE_END for slide in slides)
    return {"text": text, "pages": str(len(slides)), **properties(package)}


def _slides(package: Package) -> Iterator[str]:
    """The parts of the slides, in their order."""
    presentation, content = package.main("presentation", "ppt/presentation.xml")
    relations = package.relations(presentation)
    for element in content.iter():
        if local(element) == "sldId":
            names = [relations[value].target for value in element.attrib.values() if value in relations]
            yield from names[:1]


def _slide(package: Package, name: str) -> str:
    texts = [_shapes(package.xml(name))]
    texts += [text_of(package.xml(diagram)) for diagram in package.related("diagramData", name)]
    texts += [_shapes(package.xml(notes)) for notes in package.related("notesSlide", name)]
    return "\n".join(filter(None, texts))


def _shapes(slide: Element) -> str:
    """The text of the shapes, titles first."""
    titles: list[str] = []
    others: list[str] = []
    tree = next((element for element in slide.iter() if local(element) == "spTree"), slide)
    for shape in tree:
        kind = next((each.get("type", "") for each in shape.iter() if local(each) == "ph"), "")
        if kind not in _UNREAD and (text := text_of(shape)):
            (titles if kind in _TITLES else others).append(text)
    return "\n".join([*titles, *others])


FORM = Form(
    blocks=extracted(_extract),
    look=look_of(("text", "title", "author", "date", "pages")),
    suffixes=(".pptx", ".pptm", ".ppsx"),
    packable=False,
    isolated=True,
    strings_only=True,
    rows_per_file=1,
    is_document=True,
)
