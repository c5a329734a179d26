"""What is known of a model that was quantised to int8: its digest, and how its vectors agree with float32.

These are plain values without torch, so that a table can be read and described where no encoder is installed.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How the vectors of some of the table's texts, computed in int8, agree with those computed in float32."""

    texts: int
    mean_cosine: float
    least_cosine: float
    rank: float
    """Spearman's correlation of the similarities of all pairs of these texts; 1 where there are no two pairs."""


@dataclass(frozen=True, kw_only=True)
class Quantised:
    digest: str
    """The graph's `digest_of`."""
    measured_on: int
    """The number of texts that the ranges of activations were measured on."""
    agreement: Agreement

    def __str__(self) -> str:
        return (
            f"the model was quantised to int8 on {self.measured_on:,} texts of this table; on {self.agreement.texts:,} its "
            f"vectors have a mean cosine of {self.agreement.mean_cosine:.4f} with those of float32 (least "
            f"{self.agreement.least_cosine:.3f}), and rank pairs alike to {self.agreement.rank:.4f}"
        )


def digest_of(graph: bytes) -> str:
    """The name of a graph by its content: 32 hex digits."""
    return hashlib.blake2b(graph, digest_size=16).hexdigest()
