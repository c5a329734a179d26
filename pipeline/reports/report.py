"""A report shows a table to a person: one HTML file with all that is known of its current version and of those before.

A table comes in, and with it, if there is one, the configuration that names its feeds. A `Report` goes out. What isn't known
is said in the report. This file collects the figures; page.py puts them into words and plots.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from pipeline import schema
from pipeline.config import RunSpec
from pipeline.errors import InputError, PipelineError, one_line
from pipeline.redaction import redacted
from pipeline.reports import drift, feeds, letters, page, texts, vectors, versions
from pipeline.reports import pool as pools
from pipeline.reports.figures import Checks, Figures, Model
from pipeline.runs.published import published
from pipeline.runs.summary import RunSummary
from pipeline.runs.verify import Verification, verify
from pipeline.storage import Folder
from pipeline.table import dead_letters, int8, layout, snapshot
from pipeline.table.row_reader import RowReader
from pipeline.table.snapshot import Snapshot, hex_to_schema

AnySummary = TypeVar("AnySummary", bound=RunSummary)


@dataclass(frozen=True, eq=False)
class Report:
    """It is a report on a version of a table. Notebooks show it."""

    figures: Figures
    html: str
    """It is the whole file, which needs no other one and no network."""

    def write(self, path: str | Path) -> None:
        """Write the file. Raises InputError where that can't be done."""
        try:
            Path(path).write_text(self.html, encoding="utf-8")
        except OSError as error:
            raise InputError(f"the report can't be written to {str(path)!r}: {error.strerror or error}") from None

    def to_dict(self) -> dict[str, Any]:
        return self.figures.to_dict()

    def _repr_html_(self) -> str:
        return page.framed(self.html)


def report(
    table: Folder,
    spec: RunSpec | None = None,
    *,
    asks_feeds: bool = True,
    version: int | None = None,
    price_per_hour: float | None = None,
    verify_rows: int = 0,
) -> Report:
    """Make the report on a version, by default the current one.

    With a `spec` its feeds are asked, unless it was made from the table alone, and `verify_rows` rows are encoded again where
    it is above 0. Raises InputError where nothing is published, or a price or a number of rows is none.
    """
    if price_per_hour is not None and not price_per_hour >= 0:
        raise InputError(f"the price per hour is {price_per_hour}; give a number, 0 or more")
    if verify_rows and spec is None:
        raise InputError("rows can be verified only with the run that made the table: give it")
    started = time.perf_counter()
    found = snapshot.current(table) if version is None else snapshot.read(table, version)
    if not found.version:
        raise InputError(
            f"table {table.url} has no published version: run `python -m jobs.embed` first, or check the path"
        )
    reader = RowReader(table, found)
    pool = pools.draw(reader) if sum(part.rows for part in found.parts) else None
    looked = vectors.look(pool) if pool is not None else None
    figures = Figures(
        table=table.url,
        made=snapshot.utc_now(),
        model=_model(found),
        versions=versions.look(table, found.version, price_per_hour),
        price_per_hour=price_per_hour,
        files=len(found.parts),
        size=sum(part.size for part in found.parts),
        pool=str(pool) if pool is not None else None,
        texts=texts.look(pool, _limit(found)) if pool is not None else None,
        vectors=looked,
        snippets=_snippets(reader, looked) if looked is not None else {},
        drift=drift.look(reader, pool) if pool is not None else "The version has no rows to compare.",
        letters=letters.look(dead_letters.read(table, found), found.counts.failed),
        checks=_checks(table, found, spec, verify_rows),
        feeds=feeds.look(spec, found.version) if spec is not None and asks_feeds else None,
    )
    figures = replace(figures, seconds=round(time.perf_counter() - started, 2))
    return Report(figures=figures, html=page.page(figures))


def leave(spec: RunSpec, summary: AnySummary) -> AnySummary:
    """Leave a report beside the version that a run published, if the configuration asks for one, and return the summary with
    a note of it. A report that can't be made is told in the note; the run has done its work."""
    if not (spec.table.report and summary.published):
        return summary
    table = Folder(spec.table.path, spec.table.storage_options)
    path = layout.report(summary.version)
    try:
        # Feeds follow the version later, and would all be behind.
        made = report(table, replace(spec, feeds={}), version=summary.version)
        table.write(path, made.html.encode())
        note = f"a report is in {table.url}/{path}"
        if max(snapshot.versions(table)) != summary.version:
            # The later version may be a purge, and the report show a row that is to be gone.
            table.delete([path])
            note = f"a later version than {summary.version} was published before its report was made: none was left"
    except Exception as error:
        note = f"no report was left in {table.url}/{path}: {one_line(redacted(str(error) or repr(error)), 300)}"
    return replace(summary, notes=(*summary.notes, note))


def _limit(version: Snapshot) -> int | None:
    limit = version.fingerprint_of.get("encoder", {}).get("max_seq_length")
    chunk = version.fingerprint_of.get("chunk")
    limits = [number for number in (limit, (chunk or {}).get("max_tokens")) if number is not None]
    return min(limits, default=None)


def _model(version: Snapshot) -> Model:
    words, embedding = version.fingerprint_of, version.embeddings[0]
    encoder = words.get("encoder", {})
    return Model(
        place={name: str(value) for name, value in (embedding.get("model") or {}).items()},
        digest=str(encoder.get("model", "")),
        dim=int(embedding["dim"]),
        dtype=str(embedding["dtype"]),
        precision=str(encoder.get("precision", "float32")),
        similarity=str(embedding.get("similarity", "cosine")),
        prompt=str(encoder.get("prompt") or ""),
        max_seq_length=encoder.get("max_seq_length"),
        chunk=words.get("chunk"),
    )


def _snippets(reader: RowReader, looked: vectors.VectorFigures) -> dict[str, str]:
    """Return the beginnings of the texts that the report shows, by id. There are none where the table keeps no texts."""
    if schema.TEXT not in hex_to_schema(reader.version.schema).names:
        return {}
    ids = {name for pair in looked.near for name in (pair.first, pair.second)}
    ids |= {name for name, _ in looked.most_repeated}
    found = reader.with_ids(pa.array(sorted(ids), pa.string()), [schema.ID, schema.TEXT])
    return {row[schema.ID]: one_line(row[schema.TEXT], 160) for rows in found for row in rows.to_pylist()}


def _checks(table: Folder, version: Snapshot, spec: RunSpec | None, verify_rows: int) -> Checks:
    quantised: str | None = None
    try:
        made = int8.stored(table, version.embeddings[0])
        quantised = str(made) if made is not None else None
    except PipelineError as error:
        quantised = one_line(str(error), 300)
    verified: Verification | str | None = None
    if verify_rows and spec is not None:
        try:
            verified = verify(published(spec), verify_rows)
        except PipelineError as error:
            verified = one_line(str(error), 300)
    return Checks(int8=quantised, verified=verified)
