"""The sections of a report on the rows: their texts, their vectors, how these drifted, and how they were checked."""

from collections.abc import Iterator

import numpy as np

from pipeline.reports import plots
from pipeline.reports.drift import Drift
from pipeline.reports.figures import Figures
from pipeline.reports.markup import card, definitions, grid, paragraph, section, shown
from pipeline.reports.plots import Series
from pipeline.reports.vectors import ASKED, NEAR, PAIRS, VectorFigures
from pipeline.runs.verify import Verification

UNIT = 1e-3
"""Norms that are no further from 1 than this are all 1."""


def sections(figures: Figures) -> Iterator[str]:
    yield section("Texts", card("Tokens of a text", *_tokens(figures)), card("Repeated texts", *_repeated(figures)))
    yield section(
        "Vectors",
        card("How alike the rows are", *_similarities(figures)),
        card("Norms", *_norms(figures)),
        card("Near-duplicates", *_near(figures), wide=True),
    )
    yield section("Drift", *_drift(figures))
    yield section("Checks", card("Verified", *_verified(figures)), card("int8", *_int8(figures)))


def _none() -> str:
    return paragraph("The version has no rows to look at.")


def _tokens(figures: Figures) -> Iterator[str]:
    texts = figures.texts
    if texts is None:
        yield _none()
        return
    limit = (float(texts.limit), f"the model reads {texts.limit:,}") if texts.limit is not None else None
    yield plots.histogram([Series("rows", texts.tokens)], "tokens that the model read, special ones included", limit)
    middle, high = np.percentile(texts.tokens, [50, 95]).tolist()
    yield paragraph(
        f"Half of the texts have at most {middle:,.0f} tokens, 95% at most {high:,.0f}. Of {texts.truncated:,} "
        f"({texts.truncated_share:.2%}) the model read only the beginning"
        + (": <code>chunk</code> in the configuration would let it read them whole." if texts.truncated else ".")
    )
    yield paragraph(f"Read from {shown(figures.pool)}.", "soft")


def _repeated(figures: Figures) -> Iterator[str]:
    vectors = figures.vectors
    if vectors is None:
        yield _none()
        return
    if not vectors.repeated_rows:
        yield paragraph(f"No two of {shown(figures.pool)} have the same text.")
        return
    yield paragraph(
        f"{vectors.repeated_rows:,} of {shown(figures.pool)} have the text of another row, and share its vector."
    )
    rows = [(f"{count:,}", name, figures.snippets.get(name, "")) for name, count in vectors.most_repeated]
    yield grid(("rows", "one of them", "text"), rows, frozenset([1, 2]))


def _similarities(figures: Figures) -> Iterator[str]:
    vectors = figures.vectors
    if vectors is None or not len(vectors.random_pairs) or not len(vectors.nearest):
        yield paragraph("There are no two rows with different texts to compare.")
        return
    series = [Series("random pairs", vectors.random_pairs), Series("nearest neighbours", vectors.nearest)]
    yield plots.histogram(series, "cosine")
    middle, nearest = float(np.median(vectors.random_pairs)), float(np.median(vectors.nearest))
    yield paragraph(
        f"Random pairs have a median cosine of {middle:.3f}, rows and their nearest row of another text {nearest:.3f}. The "
        "further apart the two hills stand, the better the model tells these texts apart."
    )
    yield paragraph(
        f"{PAIRS:,} pairs, and the neighbours of {min(ASKED, len(vectors.nearest)):,} rows, among {shown(figures.pool)}.",
        "soft",
    )


def _norms(figures: Figures) -> Iterator[str]:
    vectors = figures.vectors
    if vectors is None:
        yield _none()
    elif _are_unit(vectors):
        yield paragraph(
            f"All vectors have length 1: they lie between {vectors.least_norm:.6f} and {vectors.most_norm:.6f}."
        )
    else:
        yield plots.histogram([Series("rows", vectors.norms)], "length of the vector")
        yield paragraph(
            f"They lie between {vectors.least_norm:.4g} and {vectors.most_norm:.4g}, with a mean of {vectors.mean_norm:.4g}."
        )


def _are_unit(vectors: VectorFigures) -> bool:
    return max(abs(vectors.least_norm - 1), abs(vectors.most_norm - 1)) <= UNIT


def _near(figures: Figures) -> Iterator[str]:
    vectors = figures.vectors
    if vectors is None:
        yield _none()
        return
    asked = f"{len(vectors.nearest):,} rows that were compared with {shown(figures.pool)}"
    yield paragraph(
        f"{vectors.near_share:.1%} of {asked} have a row of another text with a cosine of {NEAR} or more. What that means "
        "depends on the model: look at the pairs."
    )
    rows = [
        (f"{pair.cosine:.4f}", _with_text(figures, pair.first), _with_text(figures, pair.second))
        for pair in vectors.near
    ]
    if rows:
        yield grid(("cosine", "row", "row"), rows, frozenset([1, 2]))


def _with_text(figures: Figures, name: str) -> str:
    text = figures.snippets.get(name)
    return f"{name}: {text}" if text else name


def _drift(figures: Figures) -> Iterator[str]:
    drift = figures.drift
    if not isinstance(drift, Drift):
        yield card("Against the version before", paragraph(shown(drift)))
        return
    last = figures.versions[-1]
    yield card(f"The same ids in version {drift.before}", *_same_ids(drift, last.rows - last.new - last.changed))
    yield card("All rows together", *_centroids(drift))


def _same_ids(drift: Drift, untouched: int) -> Iterator[str]:
    if drift.of_changed:
        yield paragraph(f"{max(0, untouched):,} rows did not change, and have the vectors that they had.")
        what = "rows that changed"
    else:
        yield paragraph("Another model, or other settings of it, made these vectors: old and new ones don't compare.")
        what = "rows with the same id"
    if not len(drift.cosines):
        yield paragraph(f"No {what} could be compared.")
        return
    yield plots.histogram([Series(what, drift.cosines)], "cosine of the old and the new vector")
    yield paragraph(
        f"The mean over {len(drift.cosines):,} {what} is {drift.cosines.mean():.4f}, the least {drift.cosines.min():.4f}."
    )


def _centroids(drift: Drift) -> Iterator[str]:
    if drift.centroid_cosine is None or drift.centroid_shift is None:
        yield paragraph("The two versions have vectors of different dimensions, so that their centroids don't compare.")
        return
    yield paragraph(
        f"The centroid moved by {drift.centroid_shift:.4f} of the mean distance of a row from it; old and new centroid have a "
        f"cosine of {drift.centroid_cosine:.5f}."
    )
    before, now = drift.centroid_rows
    yield paragraph(f"Centroids of unit vectors: {shown(before)} then, {shown(now)} now.", "soft")


def _verified(figures: Figures) -> Iterator[str]:
    found = figures.checks.verified
    if found is None:
        yield paragraph(
            "No row was encoded again for this report: <code>--verify ROWS</code> does it, as <code>verify</code> does."
        )
    elif isinstance(found, Verification):
        verdict = '<span class="good">passed</span>' if found.passed else '<span class="bad">FAILED</span>'
        yield paragraph(f"{found.sampled:,} rows were encoded again by {shown(found.oracle)}: {verdict}.")
        pairs = {
            "largest difference": found.max_abs_difference,
            "mean cosine": found.mean_cosine,
            "least cosine": found.min_cosine,
            "same neighbours": found.neighbour_overlap,
        }
        yield definitions((name, f"{value:.6g}") for name, value in pairs.items() if value is not None)
        yield definitions((row.id, row.problem) for row in found.wrong[:5])
    else:
        yield paragraph(f"The table could not be verified: {shown(found)}.")


def _int8(figures: Figures) -> Iterator[str]:
    told = figures.checks.int8
    yield paragraph(
        f"{shown(told)}." if told else "The model computed in " + shown(figures.model.precision) + ", not in int8."
    )
