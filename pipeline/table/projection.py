"""Vectors become points of a plane, so that neighbours among the vectors are mostly neighbours in the plane.

The method is t-SNE in numpy. Neighbours attract with equal weights; all points repel each other through a potential that is
computed on a grid by FFT. Some landmarks are laid out first, and the others begin at their nearest landmarks. The same
vectors and the same seed give the same points on the same machine.
"""

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.table.neighbours import Numbers, Vectors, nearest_of, nearest_others

Points = NDArray[np.float32]

LANDMARKS = 8_192
_NEIGHBOURS = 15
"""So many neighbours attract each point."""
_STEP = 0.25
"""It is the least width of the grid's cells. The repulsion changes at distances of about 1; twice this width costs half of the
neighbours."""
_MOST_CELLS = 640
_CELLS_ADDED = 64
_STEP_GROWTH = 1.05
"""Grids of few sizes and steps are used, so that the kernels of most are there already."""
_FEW = 30
"""So few vectors are laid out by their principal components."""
_MOST_MOVE = 5.0
"""No point moves further in one round."""


def project(units: Vectors, neighbours: Numbers, seed: int = 0) -> Points:
    """Return float32[n, 2] for vectors of length one, float32[n, dim], and the `nearest_others` of each."""
    if len(units) < 4:
        return np.stack([np.arange(len(units)), np.zeros(len(units))], axis=1).astype(np.float32)
    draw = np.random.default_rng(seed)
    if len(units) < _FEW:
        return _principal(units, draw)
    if len(units) <= LANDMARKS:
        points = _principal(units, draw) * np.float32(1e-2)
        points = _settled(points, neighbours[:, :_NEIGHBOURS], rounds=120, exaggeration=12.0, momentum=0.5)
        return _settled(points, neighbours[:, :_NEIGHBOURS], rounds=280, exaggeration=1.5, momentum=0.8)
    chosen = np.sort(draw.choice(len(units), LANDMARKS, replace=False))
    landmarks = units[chosen]
    laid = project(landmarks, nearest_others(landmarks, _NEIGHBOURS, seed), seed)
    near = laid[nearest_of(units, landmarks, 3)].mean(axis=1)
    spread = np.float32((len(units) / LANDMARKS) ** 0.5)
    points = near * spread + draw.normal(0, 0.3, near.shape).astype(np.float32) * spread
    points = _settled(points, neighbours[:, :_NEIGHBOURS], rounds=60, exaggeration=4.0, momentum=0.5)
    return _settled(points, neighbours[:, :_NEIGHBOURS], rounds=120, exaggeration=1.5, momentum=0.8)


def _principal(units: Vectors, draw: np.random.Generator) -> Points:
    """Return the two principal components, of spread one, with a little noise that parts equal vectors."""
    centred = units - units.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    if axes.shape[1] < 2:
        axes = np.concatenate([axes, np.zeros_like(axes)], axis=1)
    points = centred @ axes[:, -2:]
    scale = np.maximum(points.std(axis=0), 1e-6)
    noisy: Points = (points / scale + draw.normal(0, 1e-2, points.shape)).astype(np.float32)
    return noisy


def _settled(points: Points, neighbours: Numbers, *, rounds: int, exaggeration: float, momentum: float) -> Points:
    """Move the points downhill, `rounds` times, with neighbours that attract `exaggeration` times as much."""
    x, y = points[:, 0].copy(), points[:, 1].copy()
    velocity = np.zeros((2, len(x)), np.float32)
    gains = np.ones((2, len(x)), np.float32)
    rate = np.float32(max(len(x) / exaggeration, 10.0))
    pull = np.float32(4 * exaggeration / (2 * len(x) * neighbours.shape[1]))
    with ThreadPoolExecutor(1) as pool:
        for _ in range(rounds):
            attracted = pool.submit(_attraction, x, y, neighbours)
            repelled = _repulsion(x, y)
            gradient = np.stack(attracted.result()) * pull - repelled * np.float32(4)
            slowed = (gradient > 0) == (velocity > 0)
            gains = np.maximum(np.where(slowed, gains * np.float32(0.8), gains + np.float32(0.2)), np.float32(0.01))
            velocity = np.float32(momentum) * velocity - rate * gains * gradient
            np.clip(velocity, -_MOST_MOVE, _MOST_MOVE, out=velocity)
            x += velocity[0]
            y += velocity[1]
            x -= x.mean()
            y -= y.mean()
    return np.stack([x, y], axis=1)


def _attraction(x: Points, y: Points, neighbours: Numbers) -> tuple[Any, Any]:
    """Return the sums over a point's neighbours, and over those that it is a neighbour of, of the difference / (1 + d²)."""
    across, up = x[:, None] - x[neighbours], y[:, None] - y[neighbours]
    weights = np.reciprocal(1 + across * across + up * up)
    across *= weights
    up *= weights
    flat = neighbours.ravel()
    return (
        (across.sum(axis=1) - np.bincount(flat, across.ravel(), len(x))).astype(np.float32),
        (up.sum(axis=1) - np.bincount(flat, up.ravel(), len(x))).astype(np.float32),
    )


def _repulsion(x: Points, y: Points) -> NDArray[np.float32]:
    """Return float32[2, n], the push on each point that t-SNE has: the sum of difference / (1 + d²)² over the sum of
    1 / (1 + d²).

    The sum of 1 / (1 + d²) over all points is a potential, half of whose slope is the first of these sums.
    """
    low = np.array([x.min(), y.min()], np.float32) - np.float32(_STEP)
    span = float(max(x.max() - x.min(), y.max() - y.min())) + 4 * _STEP
    step = _STEP * _STEP_GROWTH ** max(0, math.ceil(math.log(span / (_MOST_CELLS - 4) / _STEP, _STEP_GROWTH)))
    cells = -(-(math.ceil(span / step) + 2) // _CELLS_ADDED) * _CELLS_ADDED
    gx, gy = (x - low[0]) / np.float32(step), (y - low[1]) / np.float32(step)
    column, row = gx.astype(np.int32), gy.astype(np.int32)
    right, above = (gx - column).astype(np.float32), (gy - row).astype(np.float32)
    corners = [
        (row * cells + column, (1 - right) * (1 - above)),
        (row * cells + column + 1, right * (1 - above)),
        ((row + 1) * cells + column, (1 - right) * above),
        ((row + 1) * cells + column + 1, right * above),
    ]
    mass = sum(np.bincount(place, share, cells * cells) for place, share in corners)
    potential = _convolved(np.asarray(mass, np.float32).reshape(cells, cells), step)
    slope_x, slope_y = np.zeros_like(potential), np.zeros_like(potential)
    slope_x[:, 1:-1] = (potential[:, 2:] - potential[:, :-2]) / np.float32(2 * step)
    slope_y[1:-1] = (potential[2:] - potential[:-2]) / np.float32(2 * step)

    def at(grid: NDArray[np.float32]) -> NDArray[np.float32]:
        flat = grid.ravel()
        return np.asarray(sum(flat[place] * share for place, share in corners))

    total = max(float(at(potential).sum()) - len(x), 1e-6)
    return np.stack([at(slope_x), at(slope_y)]) * np.float32(-0.5 / total)


def _convolved(mass: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    """Return the sum of mass / (1 + d²) over the grid at each of its points."""
    cells = len(mass)
    # Twice as wide, so that what leaves the grid on one side does not come back on the other.
    spectrum = np.fft.rfft2(mass, (2 * cells, 2 * cells)) * _kernel(cells, step)
    return np.asarray(np.fft.irfft2(spectrum, (2 * cells, 2 * cells))[:cells, :cells], np.float32)


@functools.lru_cache(maxsize=4)
def _kernel(cells: int, step: float) -> NDArray[np.complex64]:
    away = np.minimum(np.arange(2 * cells), 2 * cells - np.arange(2 * cells)).astype(np.float32) * np.float32(step)
    return np.asarray(np.fft.rfft2(np.reciprocal(1 + away[:, None] ** 2 + away[None, :] ** 2)), np.complex64)
