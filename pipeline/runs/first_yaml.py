"""What was chosen for a source comes in; the YAML of its configuration, with comments, and the lines for a person go out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.runs.text_lengths import TextLengths
from pipeline.sources.seen import Column, Seen

if TYPE_CHECKING:
    from pipeline.runs.first_spec import Chosen

_WIDTH = 118
_SHOWN_CHARS = 60
_MOST_COLUMNS = 100
_DOCUMENTS = (
    "Each file is read by its kind: texts, HTML, PDF, Office, EPUB, notebooks, e-mail. A note names the others."
)
_FRONT_MATTER = "The front matter of Markdown files becomes columns, which `keep` can name."


def told(chosen: "Chosen", *, writes: bool) -> str:
    """Return what a person reads: every choice with its reason."""
    roles = chosen.roles
    lines = [
        f"chosen for {chosen.source}",
        f"  files      {_files(chosen.seen)}",
        *(f"             {reason}" for reason in chosen.seen.left_out),
        f"  id         {', '.join(roles.id) or 'none'}: {roles.id_reason}",
        f"  text       {', '.join(roles.text)}: {roles.text_reason}",
        f"  keep       {', '.join(roles.keep) or 'no other column'}",
        *([f"  left out   {', '.join(roles.left_out)}"] if roles.left_out else []),
        f"  model      {chosen.model}: {chosen.model_reason}",
        f"  lengths    {_lengths(chosen)}",
        f"  table      {chosen.table}",
        *([f"  settings   {', '.join(_dotted(chosen.settings))}: as you said"] if chosen.settings else []),
        f"  config     {chosen.place}{'' if writes else ', which is not written by a dry run'}",
    ]
    return "\n".join(lines)


def _files(seen: Seen) -> str:
    counts = ", ".join(f"{count:,} {form}" for form, count in seen.formats.items())
    what = "a document each" if seen.are_documents else "a document per row"
    return f"{counts}: {what} ({seen.looked_into:,} looked into, {seen.rows:,} documents sampled)"


def _dotted(settings: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield the keys as --set has them, each with its value."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{above}{key}.")
        else:
            yield f"{above}{key}={_value(value)}"


def _lengths(chosen: "Chosen") -> str:
    lengths = chosen.lengths
    if isinstance(lengths, str):
        return f"not counted in tokens: {lengths}"
    counted = f"{lengths.mean:,.0f} tokens on average, {lengths.most:,} at most, in {lengths.texts:,} texts"
    if lengths.limit is None:
        return f"{counted}; the model reads all of them"
    if not lengths.longer:
        return f"{counted}; the model reads {lengths.limit:,}, which is enough for all of them"
    share = f"{counted}; the model reads {lengths.limit:,}, and {lengths.longer / lengths.texts:.0%} of the texts are"
    if chosen.settings.get("chunk"):
        return f"{share} longer: the section `chunk` keeps their rest"
    return f"{share} cut off there: the section `chunk` of the configuration would keep their rest"


def written(chosen: "Chosen") -> str:
    """Return the configuration as YAML with comments. What `_value` writes is YAML whatever it holds."""
    given = dict(chosen.settings)
    lines = [
        *_comment(
            "A configuration of embedding-pipeline, written by looking at the source. It is yours to change; every key is "
            "described in docs/configuration.md."
        ),
        *_section("source", _source(chosen), given.pop("source", None) or {}),
        *_columns(chosen),
        *([] if "chunk" in given else _chunk(chosen.lengths)),
        *_section("model", _model(chosen), given.pop("model", None) or {}),
        *_section("table", _table(chosen), given.pop("table", None) or {}),
    ]
    for name, keys in given.items():
        lines += _section(name, (), keys) if isinstance(keys, Mapping) and keys else [f"{_value(name)}: {_value(keys)}"]
    return "\n".join(lines) + "\n"


Entry = tuple[list[str], str, object]
"""The comment in front of a key, the key, and its value."""


def _section(name: str, entries: Sequence[Entry], given: Mapping[str, object]) -> list[str]:
    """Write a section. What was given takes the place of what was chosen, and other keys follow."""
    lines = [f"{_value(name)}:"]
    for comment, key, value in entries:
        lines += [*comment, f"  {key}: {_value(given.get(key, value))}"]
    others = {key: value for key, value in given.items() if key not in {entry[1] for entry in entries}}
    if others:
        lines += _comment("This was given with --set.", 2)
    return [*lines, *(f"  {_value(key)}: {_value(value)}" for key, value in others.items())]


def _source(chosen: "Chosen") -> list[Entry]:
    roles = chosen.roles
    text = roles.text[0] if len(roles.text) == 1 else list(roles.text)
    id_columns = roles.id[0] if len(roles.id) == 1 else list(roles.id) or None
    files = [_files(chosen.seen), *(f"{reason}." for reason in map(_capital, chosen.seen.left_out))]
    documents: list[Entry] = [
        (_comment(_DOCUMENTS, 2), "format", "documents"),
        (_comment(_FRONT_MATTER, 2), "front_matter", "columns"),
    ]
    return [
        ([line for said in files for line in _comment(said, 2)], "path", chosen.source),
        *(documents if chosen.seen.are_documents else []),
        (_comment(f"This identifies a document; {roles.id_reason}.", 2), "id", id_columns),
        (_comment(f"This is embedded; {roles.text_reason}. {_sentence(_lengths(chosen))}", 2), "text", text),
        (_comment("These columns are carried into the table as they are.", 2), "keep", list(roles.keep)),
    ]


def _columns(chosen: "Chosen") -> list[str]:
    left_out = chosen.roles.left_out
    return [
        *(_comment(f"Left out: {', '.join(left_out)}.", 2) if left_out else []),
        *_comment("Columns, with types, how many rows of the sample have a value, and an example:", 2),
        *(_column_line(column) for column in chosen.seen.columns[:_MOST_COLUMNS]),
    ]


def _model(chosen: "Chosen") -> list[Entry]:
    said = f"{_sentence(chosen.model_reason)} It can be any model of the sentence-transformers format."
    return [(_comment(said, 2), "path", chosen.model)]


def _table(chosen: "Chosen") -> list[Entry]:
    return [(_comment("This folder is made. Its data/ is plain Parquet.", 2), "path", chosen.table)]


def _chunk(lengths: TextLengths | str) -> list[str]:
    if isinstance(lengths, str) or lengths.limit is None or not lengths.longer:
        return []
    said = (
        f"{lengths.longer:,} of {lengths.texts:,} texts are longer than the {lengths.limit:,} tokens that the model reads. "
        "Without the # in front, these lines cut them into chunks with a vector each, so that nothing is lost. A table that "
        "was made without them is built anew with --new-model."
    )
    keys = [f"  max_tokens: {lengths.limit}", f"  overlap_tokens: {lengths.limit // 8}", "  border: sentence"]
    return [*_comment(said), "# chunk:", *(f"# {key}" for key in keys)]


def _column_line(column: Column) -> str:
    example = next(iter(column.filled), None)
    shown = "" if example is None else f"  e.g. {_short(str(example))}"
    return f"  #   {_short(column.name)}: {column.described()}; {column.share:.0%}{shown}"


def _short(text: str) -> str:
    """Return the text for one line of a comment: no character in it ends the line."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return plain if len(plain) <= _SHOWN_CHARS else f"{plain[: _SHOWN_CHARS - 2]}.."


def _sentence(text: str) -> str:
    return _capital(text) + "."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _comment(text: str, indent: int = 0) -> list[str]:
    """Wrap a text into lines of comment."""
    lines, line = list[str](), ""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    for word in printable.split():
        if line and len(line) + 1 + len(word) > _WIDTH - indent - 2:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [f"{' ' * indent}# {each}" for each in [*lines, line]]


def _value(value: object) -> str:
    """Write a value as YAML in one line. A letter that may end a line is escaped."""
    printable = all(map(str.isprintable, _strings(value)))
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=printable, width=1_000_000)
    return text.removesuffix("...\n").strip()


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for item in pair for text in _strings(item))
    elif isinstance(value, list):
        yield from (text for item in value for text in _strings(item))
