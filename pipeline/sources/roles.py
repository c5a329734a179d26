"""The columns that were seen in a source come in, and what each is used for goes out: text, id, or to be kept.

Each choice has its reason, which a person is told. Where the columns leave it open, an InputError names them and the option
that decides. All functions are pure.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.schema import is_reserved
from pipeline.sources.column_types import can_be_id
from pipeline.sources.seen import Column, Seen

TEXT_NAMES = (
    "text", "content", "contents", "body", "document", "passage", "article", "message", "markdown", "abstract",
    "description", "summary", "transcript", "review", "comment", "sentence", "note", "notes", "page_content",
)  # fmt: skip
"""Columns of these names hold what documents say."""
TITLE_NAMES = ("title", "headline", "subject", "heading")
"""Columns of these names say what a document is about, and stand in front of its text."""
ID_NAMES = (
    "id", "_id", "uuid", "guid", "doc_id", "docid", "document_id", "row_id", "key", "pk", "uri", "url", "link", "permalink",
    "doi", "isbn", "path", "file", "filename", "file_name", "slug",
)  # fmt: skip
"""Columns of these names tell documents apart, the surest first."""
COMPARABLE = 0.5
"""A text is as good a choice as the longest where it has this share of its characters."""
MOST_KEPT_CHARS = 300
"""Columns whose values are longer on average are not kept."""
LEAST_TITLES = 0.5
"""A title goes before the text where this share of the rows has one."""
_MOST_NAMED = 12
_DELIMITERS = (";", "\t", "|", ",")


@dataclass(frozen=True, kw_only=True)
class Roles:
    text: tuple[str, ...]
    id: tuple[str, ...]
    """No column means that ids are made from file and position."""
    keep: tuple[str, ...]
    text_reason: str
    id_reason: str
    left_out: tuple[str, ...]
    """The other columns, each with the reason in brackets."""


def roles_of(seen: Seen, text: Sequence[str] = (), id: Sequence[str] | None = None) -> Roles:
    """Choose; `text` and `id` are what a person chose, and an empty `id` is the choice of none.

    Raises InputError for a column that there is none of, and where the choice is open.
    """
    for option, names in (("--text", text), ("--id", id or ())):
        for name in names:
            if seen.column(name) is None:
                raise InputError(
                    f"{option} {name!r} is no column of the source: {_listed(seen.columns)}{_delimiter_hint(seen)}"
                )
    texts, text_reason = (tuple(text), "as you said") if text else _text(seen)
    ids, id_reason = (tuple(id), "as you said") if id is not None else _id(seen, texts)
    keep, left_out = _kept(seen, texts, ids)
    return Roles(text=texts, id=ids, keep=keep, text_reason=text_reason, id_reason=id_reason, left_out=left_out)


# --- text


def _text(seen: Seen) -> tuple[tuple[str, ...], str]:
    if seen.are_documents and (whole := seen.column("text")) is not None:
        main, reason = whole, f"what a file says, {whole.mean_chars:,.0f} characters on average"
    else:
        main, reason = _longest(seen)
    title = next((column for column in seen.columns if _is_title(column) and column.name != main.name), None)
    if title is None or not main.mean_chars > title.mean_chars:
        return (main.name,), reason + _why_no_title(seen, main, title)
    return (title.name, main.name), f"the {title.name}, then {main.name}: {reason}"


def _why_no_title(seen: Seen, main: Column, title: Column | None) -> str:
    """Say why a title that some rows have does not stand in front of the text, where there is one."""
    if title is not None:
        return f"; no {title.name} goes before it, since they are as long"
    rare = (column for column in seen.columns if _is_named_title(column) and column.filled and column.name != main.name)
    found = next(rare, None)
    if found is None:
        return ""
    return f"; no {found.name} goes before it, since only {found.share:.0%} of the sample have one"


def _delimiter_hint(seen: Seen) -> str:
    """Return the remedy, as the end of a message, where a header was not parted at what parts it; else ""."""
    folders = {name for file in seen.files for name, _ in file.partition}
    columns = [column for column in seen.columns if column.name not in folders]
    if len(columns) != 1 or not set(seen.formats) <= {"csv", "tsv"}:
        return ""
    values = [columns[0].name, *map(str, columns[0].filled)]
    usual = {"," if form == "csv" else "\t" for form in seen.formats}
    found = [sign for sign in _DELIMITERS if sign not in usual and all(sign in value for value in values)]
    shown = json.dumps(max(found, key=columns[0].name.count)) if found else ""
    return f"; if {shown} parts its columns, add --set 'source.csv.delimiter={shown}'" if found else ""


def _longest(seen: Seen) -> tuple[Column, str]:
    """Return the column that holds what documents say. Raises InputError where that is open."""
    prose = [column for column in seen.columns if column.is_prose]
    if hint := _delimiter_hint(seen):
        raise InputError(
            f"the source has a single column: {_listed(seen.columns)}{hint}; else choose with --text COLUMN"
        )
    if not prose:
        raise InputError(
            f"no column of the source looks like text that somebody wrote: {_listed(seen.columns)}; choose with --text COLUMN"
        )
    longest = max(prose, key=lambda column: column.mean_chars)
    about = f"{longest.mean_chars:,.0f} characters on average"
    strong = [column for column in prose if column.mean_chars >= COMPARABLE * longest.mean_chars]
    others = [column for column in strong if not _is_title(column)]
    if len(strong) == 1 or not others:
        return longest, f"the longest text, {about}"
    if len(others) == 1:
        return others[0], f"the longest text beside titles, {others[0].mean_chars:,.0f} characters on average"
    named = [column for column in others if column.name.lower() in TEXT_NAMES]
    if len(named) == 1:
        return named[0], f"by its name, {named[0].mean_chars:,.0f} characters on average"
    raise InputError(
        f"several columns may be the text to embed: {_listed(others)}; choose with --text COLUMN, given once for each column "
        "that belongs to it"
    )


def _is_title(column: Column) -> bool:
    return _is_named_title(column) and column.share >= LEAST_TITLES


def _is_named_title(column: Column) -> bool:
    return column.name.lower() in TITLE_NAMES and column.is_text


# --- id


def _id(seen: Seen, texts: Sequence[str]) -> tuple[tuple[str, ...], str]:
    if seen.are_documents and seen.column("file") is not None:
        if len(seen.files) == 1 and "/" not in seen.files[0].relative:
            return ("file",), "the name of the file, which stays when its folder moves"
        return ("file",), "the path of each file below the folder, which stays when the folder moves"
    able = [column for column in seen.columns if _can_be_id(column) and column.name not in texts]
    if not seen.rows:
        able = []
    by_name = {column.name.lower(): column for column in reversed(able)}
    for name in ID_NAMES:
        if name in by_name:
            return (by_name[name].name,), f"by its name, and no value comes twice in {seen.rows:,} rows"
    ending = [
        column for column in able if column.name.lower().endswith(("_id", "-id", " id")) or _is_camel(column.name)
    ]
    if len(ending) == 1:
        return (ending[0].name,), f"by its name, and no value comes twice in {seen.rows:,} rows"
    if ending:
        raise InputError(
            f"several columns may be the id of a document: {_listed(ending)}; choose with --id COLUMN, or --id none to number "
            "rows by file and position"
        )
    twice = [column.name for column in seen.columns if column.name.lower() in ID_NAMES and not column.is_unique]
    why = f"values of {', '.join(twice)} come twice or are missing" if twice else "no column is one by its name"
    return (), f"{why}, so rows are numbered by file and position: those that move count as new"


def _can_be_id(column: Column) -> bool:
    return column.is_unique and column.type is not None and can_be_id(column.type)


def _is_camel(name: str) -> bool:
    return len(name) > 2 and name.endswith(("Id", "ID")) and name[-3].islower()


# --- what is kept


def _kept(seen: Seen, texts: Sequence[str], ids: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the columns to keep, and the others with their reasons."""
    keep, left_out = list[str](), list[str]()
    known = {name.lower() for name in (*ids, "embedding")}
    for column in seen.columns:
        if column.name in ids or (column.name in texts and not _is_title(column)):
            continue
        own_path = seen.are_documents and column.name == "path"
        reason = "the file's whole path" if own_path else _why_not_kept(column, known)
        if reason:
            left_out.append(f"{column.name} ({reason})")
        else:
            keep.append(column.name)
            known.add(column.name.lower())
    return tuple(keep), tuple(left_out)


def _why_not_kept(column: Column, known: set[str]) -> str:
    """Return why a column is not kept, or "" where it is."""
    if column.type is None:
        return "files disagree about its type"
    if not column.is_flat:
        return str(column.type)
    if not column.filled:
        return "empty in the sample"
    if column.mean_chars > MOST_KEPT_CHARS:
        return f"long: {column.mean_chars:,.0f} characters on average"
    if is_reserved(column.name) or column.name.lower() in known:
        return "the table has a column of this name"
    return ""


def _listed(columns: Sequence[Column]) -> str:
    """Name columns, each with its type and length."""
    shown = [f"{column.name} ({column.described()})" for column in columns[:_MOST_NAMED]]
    more = f" and {len(columns) - _MOST_NAMED} more" if len(columns) > _MOST_NAMED else ""
    return ", ".join(shown) + more if shown else "it has no columns"
