"""Phantom dermoscopy: lesions whose classes differ in the structure of their pigment, and in nothing else.

Colour, size, place, border, pattern scale, contrast, light, hairs and blur vary within every class alike, and the
pattern has mean 0 and one strength, so that no class can be told by an average colour or by how dark a lesion is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

Field = NDArray[np.float32]


def globules(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Dark round islands: the globular pattern."""
    nearest, _ = _cells(rng, y, x)
    islands: Field = -np.exp(-((nearest / 0.33) ** 4))
    return islands


def network(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Dark lines around light holes: the pigment network."""
    nearest, second = _cells(rng, y, x)
    lines: Field = -np.exp(-(((second - nearest) / 0.22) ** 2))
    return lines


def ridges(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Parallel, slightly bent dark lines: the parallel pattern."""
    bend = rng.uniform(0.05, 0.12) * y.max()
    phase = 2 * np.pi * (x + bend * np.sin(y * rng.uniform(0.15, 0.35) + rng.uniform(0, 6.3)))
    waves: Field = -np.cos(phase)
    return waves


def clouds(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Soft blotches without any unit: the structureless pattern."""
    scale = y.shape[0] / (y.max() - y.min())
    noise: Field = gaussian_filter(rng.standard_normal(y.shape), 0.35 * scale).astype(np.float32)
    return noise


LESION_PATTERNS: dict[str, Callable[[np.random.Generator, Field, Field], Field]] = {
    "globular": globules,
    "network": network,
    "parallel": ridges,
    "structureless": clouds,
}


def phantom_lesion(rng: np.random.Generator, label: str, skin: Field, pigment: Field, size: int) -> Field:
    """One view of one lesion.

    Args:
        rng: the only source of randomness.
        label: a key of `LESION_PATTERNS`.
        skin: ``(3,)`` colour of the skin, in [0, 1].
        pigment: ``(3,)`` colour of the lesion, in [0, 1].
        size: side of the image in pixels.

    Returns:
        ``(size, size, 3)`` float32 in [0, 1], RGB.
    """
    grid = np.linspace(-1, 1, size, dtype=np.float32)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    angle = rng.uniform(0, 2 * np.pi)
    dy, dx = y - rng.uniform(-0.2, 0.2), x - rng.uniform(-0.2, 0.2)
    dy, dx = dy * np.cos(angle) - dx * np.sin(angle), dy * np.sin(angle) + dx * np.cos(angle)
    inside = _outline(rng, dy, dx)
    unit = rng.uniform(0.28, 0.36)  # side of a cell of the pattern; the image's side is 2
    pattern = LESION_PATTERNS[label](rng, (dy + 3) / unit, (dx + 3) / unit)
    pattern = gaussian_filter(pattern, size * rng.uniform(0.003, 0.008))
    centre = np.average(pattern, weights=inside)
    pattern = (pattern - centre) / np.sqrt(np.average((pattern - centre) ** 2, weights=inside))
    relief = rng.uniform(0.18, 0.26) * np.clip(pattern, -2.5, 2.5)
    mottle = 0.02 * _smooth(rng, size, 0.03) + 0.02 * _smooth(rng, size, 0.15)
    lesion = pigment * (1 + relief + mottle)[..., None]
    ground = skin * (1 + mottle)[..., None]
    image = ground + inside[..., None] * (lesion - ground)
    light = rng.uniform(0.95, 1.05) + rng.uniform(-0.06, 0.06) * y + rng.uniform(-0.06, 0.06) * x
    image = image * light[..., None] * (1 - _hairs(rng, y, x))[..., None]
    return _float32(image.clip(0, 1))


def _outline(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Soft membership in a lobed ellipse, ``(S, S)`` in [0, 1]."""
    theta = np.arctan2(y, x * rng.uniform(0.75, 1.0))
    radius = rng.uniform(0.75, 0.95) * np.ones_like(theta)
    for lobes in range(2, 7):
        radius += rng.normal(0, 0.06 / lobes) * np.cos(lobes * theta + rng.uniform(0, 6.3))
    edge = rng.uniform(0.03, 0.08)
    inside: Field = 1 / (1 + np.exp((np.hypot(y, x) - radius) / edge))
    return inside


def _cells(rng: np.random.Generator, y: Field, x: Field) -> tuple[Field, Field]:
    """Distance to the nearest and to the second nearest of points on a jittered hexagonal grid of side 1."""
    low, high = np.floor(min(y.min(), x.min())) - 1, np.ceil(max(y.max(), x.max())) + 1
    rows, columns = np.meshgrid(np.arange(low, high, 0.866), np.arange(low, high), indexing="ij")
    columns = columns + 0.5 * (np.arange(len(rows))[:, None] % 2)
    points = np.stack([rows, columns], -1).reshape(-1, 2)  # (N, 2)
    points += rng.normal(0, 0.1, points.shape)
    distances, _ = cKDTree(points).query(np.stack([y, x], -1), k=2)  # (S, S, 2)
    return distances[..., 0].astype(np.float32), distances[..., 1].astype(np.float32)


def _smooth(rng: np.random.Generator, size: int, sigma: float) -> Field:
    """Smooth noise ``(S, S)`` of standard deviation 1; ``sigma`` is a part of the side."""
    noise = gaussian_filter(rng.standard_normal((size, size)), sigma * size, mode="wrap")
    return _float32(noise / noise.std())


def _hairs(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Darkness of a few hairs, ``(S, S)`` in [0, 1]."""
    dark = np.zeros_like(y)
    for _ in range(rng.integers(0, 3)):
        angle, offset, bend = rng.uniform(0, np.pi), rng.uniform(-0.8, 0.8), rng.uniform(-0.3, 0.3)
        along = x * np.cos(angle) + y * np.sin(angle)
        across = y * np.cos(angle) - x * np.sin(angle) - offset - bend * along**2
        dark = np.maximum(dark, 0.4 * np.exp(-((across / 0.012) ** 2)))
    return dark


def _float32(values: NDArray[np.floating]) -> Field:
    return values.astype(np.float32)
