"""Phantom chest radiographs: lungs, ribs, spine and heart, with patterns in the lungs that differ in structure only.

Anatomy, pose, exposure and the strength, scale and side of a pattern vary within every class alike; patterns have
mean 0 over the lungs, so that no class is brighter than another.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Field = NDArray[np.float32]


def clear(rng: np.random.Generator, size: int) -> Field:
    """Lungs without any pattern."""
    return np.zeros((size, size), np.float32)


def nodular(rng: np.random.Generator, size: int) -> Field:
    """Scattered small round opacities."""
    seeds = (rng.random((size, size)) < rng.uniform(0.003, 0.006)).astype(np.float32)
    return _scaled(np.minimum(gaussian_filter(seeds, size * rng.uniform(0.018, 0.025)), 0.005))


def reticular(rng: np.random.Generator, size: int) -> Field:
    """A mesh of fine bright lines: where smooth noise crosses 0."""
    noise = gaussian_filter(rng.standard_normal((size, size)), size * rng.uniform(0.03, 0.04))
    return _scaled(np.exp(-((noise / (0.25 * noise.std())) ** 2)))


def patchy(rng: np.random.Generator, size: int) -> Field:
    """A few large opacities without an edge."""
    return _scaled(np.maximum(gaussian_filter(rng.standard_normal((size, size)), size * rng.uniform(0.08, 0.11)), 0))


RADIOGRAPH_PATTERNS: dict[str, Callable[[np.random.Generator, int], Field]] = {
    "clear": clear,
    "nodular": nodular,
    "reticular": reticular,
    "patchy": patchy,
}


def phantom_radiograph(rng: np.random.Generator, label: str, size: int) -> Field:
    """One frontal radiograph, the heart on the right-hand side of the image (the patient's left).

    Args:
        rng: the only source of randomness.
        label: a key of `RADIOGRAPH_PATTERNS`.
        size: side of the image in pixels.

    Returns:
        ``(size, size)`` float32 in [0, 1], bone bright.
    """
    grid = np.linspace(-1, 1, size, dtype=np.float32)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    angle = rng.uniform(-0.1, 0.1)
    scale = rng.uniform(0.95, 1.1)
    dy, dx = (y - rng.uniform(-0.05, 0.05)) / scale, (x - rng.uniform(-0.05, 0.05)) / scale
    dy, dx = dy * np.cos(angle) - dx * np.sin(angle), dy * np.sin(angle) + dx * np.cos(angle)
    body = _soft(1 - (dx / 0.95) ** 4 - (np.minimum(dy, 0) / 1.05) ** 4, 0.08)
    width = rng.uniform(0.3, 0.36)
    right = _soft(1 - ((dx + 0.42) / width) ** 2 - ((dy + 0.05) / 0.72) ** 2, 0.08)
    left = _soft(1 - ((dx - 0.42) / width) ** 2 - ((dy + 0.05) / 0.72) ** 2, 0.08)
    heart = _soft(1 - ((dx - 0.15) / rng.uniform(0.26, 0.34)) ** 2 - ((dy - 0.35) / 0.33) ** 2, 0.15)
    spine = np.exp(-((dx / 0.09) ** 4))
    lungs = np.maximum(right, left) * (1 - heart)
    ribs = _ribs(rng, dy, dx) * np.maximum(right, left)
    texture = gaussian_filter(rng.standard_normal((size, size)), size * 0.01) * size * 0.01
    pattern = RADIOGRAPH_PATTERNS[label](rng, size)
    pattern = pattern - np.average(pattern, weights=lungs)
    image = 0.62 * body - 0.38 * lungs + 0.18 * heart * body + 0.12 * spine * body + 0.07 * ribs
    image = image + lungs * (rng.uniform(0.1, 0.14) * pattern + 0.05 * texture)
    image = image + rng.uniform(-0.04, 0.04) * y + rng.uniform(-0.04, 0.04) * x
    shown: Field = (image * rng.uniform(0.85, 1.1) + rng.uniform(0.02, 0.12)).clip(0, 1).astype(np.float32)
    return shown


def _ribs(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Bright arcs that fall off to both sides, ``(S, S)`` in [0, 1]."""
    phase = (y - 0.35 * np.abs(x) + rng.uniform(-0.1, 0.1)) * rng.uniform(4.2, 5.0)
    wave: Field = np.clip(np.cos(2 * np.pi * phase), 0, 1) ** 2
    return wave


def _soft(inside: Field, edge: float) -> Field:
    """Soft membership of where ``inside`` is above 0, in [0, 1]."""
    member: Field = 1 / (1 + np.exp(-np.clip(inside / edge, -30, 30)))
    return member


def _scaled(pattern: NDArray[np.floating]) -> Field:
    """``pattern`` with mean 0 and standard deviation 1."""
    scaled: Field = ((pattern - pattern.mean()) / max(float(pattern.std()), 1e-6)).astype(np.float32)
    return scaled
