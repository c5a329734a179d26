"""Every source row is a row of the table, or chunks of it, or one dead letter, or left out on request: whatever it holds."""

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.sources.column_types import carried_type, without_nulls
from pipeline.storage import Folder
from pipeline.table import layout
from tests import arrows, inline
from tests.inline import spec_of

MAX_ROW_BYTES = 300
KINDS = [kind for kind in arrows.ALL if not ("interval" in str(kind) or isinstance(kind, pa.BaseExtensionType))]
"""Those that are other Python values once they are stored have tests of their own."""
TEXT = st.one_of(
    st.none(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.integers(MAX_ROW_BYTES - 60, MAX_ROW_BYTES + 20).map(lambda size: "oil " * (size // 4) + "x" * (size % 4)),
    st.sampled_from(["", " ", "the market", "the market", "서울 날씨가", "中文句子。" * 8]),
)


@st.composite
def corpora(draw: Any) -> pa.Table:
    rows = draw(st.integers(1, 25))
    ids = pa.array([None if draw(st.integers(0, 9)) == 0 else f"d{row:02}" for row in range(rows)])
    columns = {"id": ids, "text": pa.array([draw(TEXT) for _ in range(rows)], pa.string())}
    for index, kind in enumerate(draw(st.lists(st.sampled_from(KINDS), max_size=3))):
        columns[f"kept {index}"] = draw(arrows.arrays(kind, rows))
    columns["n"] = pa.array(range(rows), pa.int64())
    return pa.table(columns)


def write_parquet(rows: pa.Table, path: Path) -> Path:
    pq.write_table(rows, path.with_suffix(".parquet"), row_group_size=7)
    return path.with_suffix(".parquet")


def write_arrow(rows: pa.Table, path: Path) -> Path:
    sink = io.BytesIO()
    with ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=6)
    path.with_suffix(".arrow").write_bytes(sink.getvalue())
    return path.with_suffix(".arrow")


def read_by_row_group(path: Path) -> pa.Table:
    """pyarrow 26 can't read some nested dictionaries over several row groups at once."""
    file = pq.ParquetFile(path)
    return pa.concat_tables([file.read_row_group(number) for number in range(file.num_row_groups)])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data(), rows=corpora(), unit_rows=st.integers(1, 30))
def test_rows_in_are_rows_out_and_dead_letters(tiny_model, data, rows, unit_rows):
    write = data.draw(st.sampled_from([write_arrow, write_parquet]))
    chunk = data.draw(st.sampled_from([None, {"max_tokens": 16, "overlap_tokens": 3}]))
    on_null = data.draw(st.sampled_from(["dead_letter", "skip"]))
    where = data.draw(st.sampled_from([None, "n < 12"]))
    keep = [name for name in rows.column_names if name not in ("id", "text")]
    assume(is_valid(rows))
    folder = Path(tempfile.mkdtemp())
    try:
        # Some types can't be stored, and of lists of size 0 with nulls pyarrow 26 can't read what it stored.
        read_by_row_group(write_parquet(rows, folder / "trial"))
    except (pa.ArrowException, OSError):
        write = write_arrow
    try:
        path = write(rows, folder / "corpus")
        # What the file itself says: Parquet has no dictionaries of durations, nor of times with zones.
        rows = read_by_row_group(path) if write is write_parquet else rows
        spec = spec_of(
            path, tiny_model, folder / "table",
            source={"keep": keep, "on_null": on_null, "where": where},
            limits={"unit_rows": unit_rows, "max_row_bytes": MAX_ROW_BYTES, "max_failed_rows": 1000},
            chunk=chunk,
        )  # fmt: skip
        counts = inline.embed(spec).counts
        live = pipeline.read(folder / "table").to_table()
        letters = letters_of(folder / "table")
        documents = live["doc_id" if chunk else "id"].unique().to_pylist()
    finally:
        shutil.rmtree(folder)
    event(f"{counts.failed > 0=}, {counts.skipped > 0=}, {write.__name__}")
    assert len(documents) == counts.documents
    assert len(letters) == counts.failed
    assert counts.documents + counts.failed + counts.skipped == rows.num_rows
    source = rows.to_pylist()
    # Nobody knows whether `where` would hold for a row that is too large to be looked at.
    too_large = {letter["position"] for letter in letters if "larger than" in letter["error"]}
    source = [row for row in source if row["n"] not in too_large]
    passing = [row for row in source if where is None or row["n"] < 12]
    nulls = [row for row in passing if row["text"] is None]
    if on_null == "skip":
        assert counts.skipped == len(source) - len(passing) + len(nulls)
    else:
        assert counts.skipped == len(source) - len(passing)
    assert set(documents) == {row["id"] for row in passing if row["id"] is not None and row["text"] is not None}
    check_values(live, rows, keep, chunk is not None)


def is_valid(rows: pa.Table) -> bool:
    """pyarrow itself makes null structs over dictionaries whose indices lead nowhere; such a batch is refused, and told."""
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def letters_of(table: Path) -> list[dict[str, Any]]:
    folder = Folder(str(table))
    return [row for info in folder.list(layout.dead_letters(1)) for row in pq.read_table(table / info.path).to_pylist()]


def check_values(live: pa.Table, rows: pa.Table, keep: list[str], chunked: bool) -> None:
    """The kept columns and texts of every live row are its source row's, types included."""
    numbers = live["n"].to_pylist()
    for name in keep:
        kind = without_nulls(carried_type(rows.schema.field(name).type))
        assert live.schema.field(name).type == kind
        source = rows[name].to_pylist()
        for found, number in zip(live[name].to_pylist(), numbers, strict=True):
            assert found == source[number] or repr(found) == repr(source[number])  # NaN equals nothing
    if not chunked:
        texts = rows["text"].to_pylist()
        assert live["text"].to_pylist() == [texts[number] for number in numbers]
    assert np.isfinite(np.array(live["embedding"].to_pylist())).all()
