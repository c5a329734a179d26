"""A person is told what the settings of a run cost, where others would serve better.

A prepared run comes in, and what is known of its texts. Sentences go out, for plans and summaries. Only a sample of the
source is read here.
"""

import contextlib
from dataclasses import replace
from typing import Any, cast

import pyarrow.compute as pc

from pipeline import schema
from pipeline.encoder.tokenizer_backend import read_backend
from pipeline.errors import PipelineError
from pipeline.execution.pools import ALONE
from pipeline.progress import counted
from pipeline.runs.prepared import Prepared
from pipeline.sources.formats import registry
from pipeline.sources.reader import read_slices
from pipeline.work import Unit

MANY_TRUNCATED = 0.1
"""If the model reads only the beginning of this share of the texts, a person should know of chunks."""
SAMPLE_SPANS, SAMPLE_TEXTS = 4, 16
"""A plan looks into so many spans, and at so many texts of each."""


def about_ids(prepared: Prepared) -> list[str]:
    """Say what rows without an id are known by, and what that costs. A file that is one document is known by its name."""
    forms = (registry.FORMS[file.format] for file in prepared.corpus.files)
    if prepared.spec.source.id_columns or all(form.rows_per_file == 1 for form in forms):
        return []
    return [
        "source.id is not set, so that a row is known by its file and its position there: where a file is renamed, or a row "
        "is put in above others, these rows are deleted and come back as new ones; name a column in source.id to avoid that"
    ]


def about_length(prepared: Prepared, truncated: int, texts: int, *, sampled: bool = False) -> list[str]:
    """Say how many of the texts are longer than what the model reads, if they are many."""
    if prepared.spec.chunk is not None or not texts or truncated < MANY_TRUNCATED * texts:
        return []
    length, truncated = prepared.encoder.max_seq_length, min(truncated, texts)
    looked, are = counted(texts, "text"), "is" if texts == 1 else "are"
    share = f"{truncated / texts:.0%}"
    those = f"{share} of a sample of {looked}" if sampled else f"{truncated:,} of {looked} ({share})"
    return [
        f"{those} {are} longer than the {length} tokens that the model reads, and what comes after these is in no "
        f"vector: a section `chunk: {{max_tokens: {length}}}` gives every part of a text a vector"
    ]


def sampled_lengths(prepared: Prepared) -> tuple[int, int]:
    """Return how many of a sample of the texts to encode are longer than what the model reads, and how many it has.

    Both are 0 where texts are chunked, or where nothing limits their length.
    """
    encoder = prepared.encoder
    if prepared.spec.chunk is not None or encoder.max_seq_length is None or not prepared.plan.added:
        return 0, 0
    texts = _some_texts(prepared)
    file = encoder.transformer_folder / "tokenizer.json"
    if not texts or not file.is_file():
        return 0, 0
    tokenizer = encoder.load(lambda: read_backend(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    lengths = [len(found.ids) for found in tokenizer.encode_batch([encoder.prompt + text for text in texts])]
    return sum(length > encoder.max_seq_length for length in lengths), len(texts)


def _some_texts(prepared: Prepared) -> list[str]:
    """Return the first texts of some spans. A file that can't be read gives none, and is told of when it is read."""
    spans = [span for unit in prepared.plan.added for span in unit.spans]
    count = min(SAMPLE_SPANS, len(spans))
    chosen = [spans[place * len(spans) // count] for place in range(count)]
    spec = replace(prepared.worker_spec(ALONE).slices, rows=SAMPLE_TEXTS)
    texts: list[str] = []
    for span in chosen:
        unit = Unit(unit_id="sample", spans=(span,), sources=(0,))
        try:
            with contextlib.closing(cast(Any, read_slices(unit, spec))) as slices:
                first = next(slices)
        except PipelineError:
            continue
        texts += pc.drop_null(first.documents.column(schema.TEXT)).to_pylist()
    return texts
