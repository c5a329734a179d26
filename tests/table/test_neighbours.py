"""Neighbours among vectors, pairs that are nearly the same, and points of a plane: by themselves, without a table."""

import numpy as np
import pytest

from pipeline.table import neighbours
from pipeline.table.duplicates import pairs
from pipeline.table.neighbours import nearest_others, unit
from pipeline.table.projection import project


def clustered(rows: int, dim: int, clusters: int, seed: int = 0, spread: float = 0.5) -> np.ndarray:
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(clusters, dim))
    own = np.arange(rows) % clusters
    return unit((centres[own] + spread * draw.normal(size=(rows, dim))).astype(np.float32))


def truly_nearest(units: np.ndarray, count: int) -> np.ndarray:
    scores = units @ units.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def test_neighbours_among_few_vectors_are_exact():
    units = clustered(500, 24, 9)
    assert np.array_equal(nearest_others(units, 7), truly_nearest(units, 7))
    assert nearest_others(units[:3], 7).shape == (3, 2)
    assert nearest_others(units[:1], 7).shape == (1, 0)


def test_neighbours_among_many_are_nearly_all_found_and_never_the_row_itself(monkeypatch):
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 1000)
    units = clustered(4000, 24, 40)
    found = nearest_others(units, 10)
    assert (found != np.arange(4000)[:, None]).all()
    assert all(len(set(row)) == 10 for row in found.tolist())
    exact = truly_nearest(units, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), exact.tolist(), strict=True)]) > 0.9


@pytest.mark.parametrize("dim", [5, 64, 100])
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.99])
def test_pairs_are_those_of_comparing_all_with_all(dim, threshold):
    units = clustered(2500, dim, 400, seed=dim, spread=0.25)
    units[7], units[2400] = units[1300], units[1300]
    groups = np.arange(2500) // 2
    scores = units @ units.T
    one, other = np.nonzero(np.triu(scores >= threshold, 1))
    found = pairs(units, threshold, 10**6)
    # A cosine that lies on the threshold may fall to either side.
    sure = {(a, b) for a, b in zip(one.tolist(), other.tolist(), strict=True) if scores[a, b] > threshold + 1e-5}
    got = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert sure <= got
    assert all(scores[a, b] >= threshold - 1e-5 and a < b for a, b in got)
    assert {(7, 1300), (7, 2400), (1300, 2400)} <= got
    assert found.total == len(got)
    assert (np.diff(found.cosine) <= 0).all()
    apart = pairs(units, threshold, 10**6, groups)
    assert set(zip(apart.first.tolist(), apart.second.tolist(), strict=True)) == {
        (a, b) for a, b in got if a // 2 != b // 2
    }


def test_more_pairs_than_are_kept_are_counted():
    units = np.repeat(clustered(4, 8, 4), 100, axis=0)
    found = pairs(units, 0.999, 10)
    assert (len(found.first), found.total) == (10, 4 * 100 * 99 // 2)


def test_neighbours_in_space_are_neighbours_on_the_map():
    units = clustered(1500, 32, 12, spread=0.4)
    near = nearest_others(units, 15)
    points = project(units, near)
    assert np.isfinite(points).all()
    away = ((points[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)
    np.fill_diagonal(away, np.inf)
    shown = np.argsort(away, axis=1)[:, :15]
    assert (shown % 12 == np.arange(1500)[:, None] % 12).mean() > 0.97
    kept = np.mean([len(set(a) & set(b)) / 15 for a, b in zip(shown.tolist(), near.tolist(), strict=True)])
    assert kept > 0.25  # 0.12 would be chance within the clusters, and scikit-learn's t-SNE keeps 0.37.
    assert np.array_equal(points, project(units, near))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 40])
def test_equal_vectors_and_few_have_points(rows):
    units = unit(np.ones((rows, 8), np.float32))
    points = project(units, nearest_others(units, 15))
    assert points.shape == (rows, 2)
    assert np.isfinite(points).all()
