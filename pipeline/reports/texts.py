"""How long the texts of a pool of rows are, against what the model reads of a text."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import schema
from pipeline.reports.pool import Pool


@dataclass(frozen=True, kw_only=True, eq=False)
class TextFigures:
    tokens: NDArray[np.float64]
    """They are the tokens that the model read of each row, after truncation."""
    limit: int | None
    """The model reads so many tokens of a text, None where it has no limit."""
    truncated: int
    """The model read only the beginning of so many rows of the pool."""

    @property
    def truncated_share(self) -> float:
        return self.truncated / len(self.tokens)

    def to_dict(self) -> dict[str, Any]:
        middle, high = np.percentile(self.tokens, [50, 95]).tolist()
        return {
            "limit": self.limit,
            "truncated": self.truncated,
            "truncated_share": self.truncated_share,
            "tokens": {
                "mean": float(self.tokens.mean()),
                "median": middle,
                "p95": high,
                "most": float(self.tokens.max()),
            },
        }


def look(pool: Pool, limit: int | None) -> TextFigures:
    """Take the figures of a pool with at least one row."""
    truncated = pool.rows.column(schema.TRUNCATED).to_numpy()
    return TextFigures(
        tokens=pool.rows.column(schema.N_TOKENS).to_numpy().astype(np.float64),
        limit=limit,
        truncated=int(truncated.sum()),
    )
