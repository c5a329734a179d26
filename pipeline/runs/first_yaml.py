"""What was chosen for a source comes in; the YAML of its configuration, with comments, and the lines for a person go out."""

from typing import TYPE_CHECKING

import yaml

from pipeline.runs.text_lengths import TextLengths
from pipeline.sources.seen import Column, Seen

if TYPE_CHECKING:
    from pipeline.runs.first_spec import Chosen

_WIDTH = 118
_SHOWN_CHARS = 60
_MOST_COLUMNS = 100
_DOCUMENTS = [
    "  # Each file is read by its kind: texts, HTML, PDF, Office, EPUB, notebooks, e-mail. A note names the others.",
    "  format: documents",
    "  # The front matter of Markdown files becomes columns, which `keep` can name.",
    "  front_matter: columns",
]


def told(chosen: "Chosen", *, writes: bool) -> str:
    """Return what a person reads: every choice with its reason."""
    roles = chosen.roles
    lines = [
        f"chosen for {chosen.source}",
        f"  files      {_files(chosen.seen)}",
        f"  id         {', '.join(roles.id) or 'none'}: {roles.id_reason}",
        f"  text       {', '.join(roles.text)}: {roles.text_reason}",
        f"  keep       {', '.join(roles.keep) or 'no other column'}",
        *([f"  left out   {', '.join(roles.left_out)}"] if roles.left_out else []),
        f"  model      {chosen.model}: {chosen.model_reason}",
        f"  lengths    {_lengths(chosen.lengths)}",
        f"  table      {chosen.table}",
        f"  config     {chosen.place}{'' if writes else ', which is not written by a dry run'}",
    ]
    return "\n".join(lines)


def _files(seen: Seen) -> str:
    counts = ", ".join(f"{count:,} {form}" for form, count in seen.formats.items())
    what = "a document each" if seen.are_documents else "a document per row"
    return f"{counts}: {what} ({seen.looked_into:,} looked into, {seen.rows:,} documents sampled)"


def _lengths(lengths: TextLengths | str) -> str:
    if isinstance(lengths, str):
        return f"not counted in tokens: {lengths}"
    counted = f"{lengths.mean:,.0f} tokens on average, {lengths.most:,} at most, in {lengths.texts:,} texts"
    if lengths.limit is None:
        return f"{counted}; the model reads all of them"
    if not lengths.longer:
        return f"{counted}; the model reads {lengths.limit:,}, which is enough for all of them"
    return (
        f"{counted}; the model reads {lengths.limit:,}, and {lengths.longer / lengths.texts:.0%} of the texts are cut off "
        "there: the section `chunk` of the configuration would keep their rest"
    )


def written(chosen: "Chosen") -> str:
    """Return the configuration as YAML with comments. What `_value` writes is YAML whatever it holds."""
    roles = chosen.roles
    text = roles.text[0] if len(roles.text) == 1 else list(roles.text)
    id_columns = roles.id[0] if len(roles.id) == 1 else list(roles.id) or None
    lines = [
        *_comment(
            "A configuration of embedding-pipeline, written by looking at the source. It is yours to change; every key is "
            "described in docs/configuration.md."
        ),
        "source:",
        *_comment(_files(chosen.seen), 2),
        f"  path: {_value(chosen.source)}",
        *(_DOCUMENTS if chosen.seen.are_documents else []),
        *_comment(f"This identifies a document; {roles.id_reason}.", 2),
        f"  id: {_value(id_columns)}",
        *_comment(f"This is embedded; {roles.text_reason}. {_sentence(_lengths(chosen.lengths))}", 2),
        f"  text: {_value(text)}",
        *_comment("These columns are carried into the table as they are.", 2),
        f"  keep: {_value(list(roles.keep))}",
        *(_comment(f"Left out: {', '.join(roles.left_out)}.", 2) if roles.left_out else []),
        *_comment("Columns, with types, how many rows of the sample have a value, and an example:", 2),
        *(_column_line(column) for column in chosen.seen.columns[:_MOST_COLUMNS]),
        *_chunk(chosen.lengths),
        "model:",
        *_comment(
            f"{_sentence(chosen.model_reason)} It can be any model of the sentence-transformers format.",
            2,
        ),
        f"  path: {_value(chosen.model)}",
        "table:",
        *_comment("This folder is made. Its data/ is plain Parquet.", 2),
        f"  path: {_value(chosen.table)}",
    ]
    return "\n".join(lines) + "\n"


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
    return text[:1].upper() + text[1:] + "."


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
    words = value if isinstance(value, list) else [str(value)]
    printable = all(map(str.isprintable, words))
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=printable, width=1_000_000)
    return text.removesuffix("...\n").strip()
