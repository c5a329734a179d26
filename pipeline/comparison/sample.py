"""A seeded sample of a run's source is read, with titles where a column has them.

A `RunSpec` comes in, of which the source section alone counts. Documents go out, and a sentence that says which they are.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import RunSpec, SourceSpec
from pipeline.errors import InputError
from pipeline.sources import filter
from pipeline.sources.listing import find_sources
from pipeline.sources.reader import SliceSpec, first_spans, read_slices
from pipeline.sources.survey import Survey, survey
from pipeline.storage import before_work
from pipeline.work import Unit

READ = 20
"""So many times the sample's rows are read at most, from files that the seed chooses."""
LEAST_READ = 20_000
SLICE_ROWS = 2_048
TITLES = ("title", "headline", "heading", "subject", "name")
"""A column that is kept and has one of these names is taken for the documents' title."""


@dataclass(frozen=True, kw_only=True)
class Documents:
    texts: dict[str, str]
    """They are the texts of the sample, by id."""
    asked: dict[str, str]
    """They are the texts of the documents that were asked for and found, by id. The sample may have some of them."""
    titles: dict[str, str]
    """They are by id. There are none where no column holds them."""
    title: str | None
    """It is the column of the titles."""
    rows_estimate: int
    """The source has about so many rows."""
    read: int
    """So many documents were looked at."""
    seed: int

    def __str__(self) -> str:
        whole = self.read == self.rows_estimate
        of = f"all {self.read:,}" if whole else f"{self.read:,} of about {self.rows_estimate:,}"
        return f"{len(self.texts):,} documents, sampled from {of} (seed {self.seed})"


def sample(spec: RunSpec, rows: int, seed: int, *, title: str | None = None, asked: Collection[str] = ()) -> Documents:
    """Read the sample, and all documents whose ids are `asked` for, for which the whole source is read.

    Raises InputError for anything wrong with the source, a `title` that is no column of it, or if it has no document.
    """
    with before_work():
        source, title, found = _surveyed(spec, title)
    most = None if asked else max(READ * rows, LEAST_READ)
    kept: pa.Table | None = None
    read, is_whole = 0, True
    random = np.random.default_rng(seed)
    wanted = pa.array(sorted(asked), pa.string())
    for some in _documents(spec, source, found, title, random):
        read += some.num_rows
        named = pc.is_in(some.column(schema.ID), wanted)
        some = some.append_column("key", pa.array(random.random(some.num_rows))).append_column("named", named)
        kept = _lowest(some if kept is None else pa.concat_tables([kept, some]), rows)
        if most is not None and read >= most:
            is_whole = False
            break
    if kept is None or kept.num_rows < 2:
        raise InputError("the source has fewer than two documents with a text: there is nothing to compare models on")
    found_asked, kept = kept.filter(kept.column("named")), kept.sort_by("key").slice(0, rows)
    ids = kept.column(schema.ID).to_pylist()
    titles = kept.column("title").to_pylist() if title is not None else []
    return Documents(
        texts=dict(zip(ids, kept.column(schema.TEXT).to_pylist(), strict=True)),
        asked=dict(zip(*(found_asked.column(name).to_pylist() for name in (schema.ID, schema.TEXT)), strict=True)),
        titles={name: str(head) for name, head in zip(ids, titles, strict=False) if head},
        title=title,
        rows_estimate=read if is_whole else max(found.rows_estimate, read),
        read=read,
        seed=seed,
    )


def _surveyed(spec: RunSpec, title: str | None) -> tuple[SourceSpec, str | None, Survey]:
    """Return the source with its title column kept, that column, and the survey."""
    files = find_sources(spec.source).files
    several = spec.source.text_columns[:1] if len(spec.source.text_columns) > 1 else ()
    named = [name for name in spec.source.keep if name.casefold() in TITLES]
    candidates = [title] if title is not None else [*several, *named, "title", None]
    for name in candidates:
        keep = () if name is None else (name,)
        renamed = {new: old for new, old in spec.source.renamed.items() if new in keep}
        source = replace(spec.source, keep=keep, renamed=renamed)
        try:
            found = survey(files, source)
            break
        except InputError:
            # A column of this name that nobody named need not be there.
            if name != "title" or title is not None:
                raise
    if source.where is not None:
        filter.check(source.where, found.schema)
    spans = first_spans(found.spans, found.schema, source, list(source.keep), spec.limits)
    return source, name, replace(found, spans=spans)


def _documents(
    spec: RunSpec, source: SourceSpec, found: Survey, title: str | None, random: np.random.Generator
) -> Iterator[pa.Table]:
    """Yield id, text and title of documents, from units in an order of the seed."""
    slices = SliceSpec(source=source, schema=found.schema, carried=source.keep, limits=spec.limits, rows=SLICE_ROWS)
    for number in random.permutation(len(found.spans)).tolist():
        spans = found.spans[number]
        unit = Unit(unit_id=str(number), spans=spans, sources=tuple(range(len(spans))))
        for piece in read_slices(unit, slices):
            rows = piece.documents
            columns = [rows.column(schema.ID).cast(pa.string()), rows.column(schema.TEXT).cast(pa.large_string())]
            if title is not None:
                columns.append(rows.column(title).cast(pa.string()))
            yield pa.table(columns, names=[schema.ID, schema.TEXT, "title"][: len(columns)])


def _lowest(rows: pa.Table, count: int) -> pa.Table:
    """Return the rows that have the lowest keys, and those that are asked for."""
    lowest = np.zeros(rows.num_rows, np.bool_)
    lowest[np.argsort(rows.column("key").to_numpy(), kind="stable")[:count]] = True
    return rows.filter(pc.or_(pa.array(lowest), rows.column("named")))
