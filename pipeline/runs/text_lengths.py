"""How long texts are for a model is measured on a sample of them, in the model's own tokens.

The sample of a source and a model come in. A `TextLengths` goes out, or the reason why there is none. Neither
torch nor transformers is loaded for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import ModelSpec
from pipeline.encoder.tokenizer_backend import read_backend
from pipeline.errors import PipelineError, one_line
from pipeline.model.folder import encoder_spec
from pipeline.sources.seen import Seen

MOST_TEXTS, MOST_CHARS = 100, 100_000


@dataclass(frozen=True, kw_only=True)
class TextLengths:
    texts: int
    """So many texts were counted."""
    mean: float
    """The mean tokens of a text."""
    most: int
    limit: int | None
    """The model reads so many tokens of a text; None is all of them."""
    longer: int
    """So many texts are longer than that."""


def text_lengths(seen: Seen, text: Sequence[str], model: ModelSpec) -> TextLengths | str:
    """Return the lengths of the sample's texts, each made of these columns, or the reason why nobody knows them."""
    columns = [column.values for name in text if (column := seen.column(name)) is not None]
    joined = ["\n".join(str(value) for value in row if value is not None) for row in zip(*columns, strict=True)]
    texts = [row for row in joined if row.strip()]
    texts = texts[:: max(1, len(texts) // MOST_TEXTS)][:MOST_TEXTS]
    if not texts:
        return "the sample holds no text"
    try:
        spec = encoder_spec(model)
        path = spec.transformer_folder / "tokenizer.json"
        if not path.is_file():
            return "the model has no tokenizer.json"
        backend = spec.load(lambda: read_backend(path))
    except PipelineError as error:
        return one_line(str(error), 300)
    backend.no_padding()
    backend.no_truncation()
    lengths = [len(found.ids) for found in backend.encode_batch([spec.prompt + row[:MOST_CHARS] for row in texts])]
    limit = spec.max_seq_length
    return TextLengths(
        texts=len(lengths),
        mean=sum(lengths) / len(lengths),
        most=max(lengths),
        limit=limit,
        longer=0 if limit is None else sum(length > limit for length in lengths),
    )
