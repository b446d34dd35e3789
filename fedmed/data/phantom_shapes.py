"""Shapes and textures that phantoms are drawn from; pure functions over arrays [N, 64, 64].

>>> float(step(np.zeros(1, np.float32), 0.1)[0])
0.5
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 64
Array = NDArray[Any]  # numbers, float32 where they become pixels


@dataclass(frozen=True)
class Grid:
    """Body coordinates of every pixel, after pose: x, y are [N, H, W]."""

    x: Array
    y: Array


def uniform(rng: np.random.Generator, shape: int | tuple[int, ...], low: float, high: float) -> Array:
    """float32 uniform draws."""
    return rng.uniform(low, high, shape).astype(np.float32)


def step(distance: Array, soft: Array | float) -> Array:
    """A soft edge: 0 far below, 0.5 at 0, 1 far above; `soft` is its width."""
    return (0.5 * (1 + np.tanh(distance / (2 * np.asarray(soft, np.float32))))).astype(np.float32)


def mix(*parts: Array) -> Array:
    """Opacities in line: 1 - prod(1 - part)."""
    clear = np.ones_like(parts[0], dtype=np.float32)
    for part in parts:
        clear = clear * (1 - np.clip(part, 0, 1))
    return (1 - clear).astype(np.float32)


def make_grid(count: int, rng: np.random.Generator) -> Grid:
    """Pose: rotation up to 10 degrees, scale and stretch, shift, shear."""
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    px, py = axis[None, None, :], axis[None, :, None]
    turn = uniform(rng, (count, 1, 1), -0.17, 0.17)
    sx, sy = uniform(rng, (count, 1, 1), 0.62, 1.05), uniform(rng, (count, 1, 1), 0.7, 1.05)
    px = px - uniform(rng, (count, 1, 1), -0.15, 0.15)
    py = py - uniform(rng, (count, 1, 1), -0.15, 0.15)
    shear = uniform(rng, (count, 1, 1), -0.1, 0.1)
    x = (np.cos(turn) * px + np.sin(turn) * py) * sx + shear * py
    y = (np.cos(turn) * py - np.sin(turn) * px) * sy
    return Grid(x.astype(np.float32), y.astype(np.float32))


def blobs(grid: Grid, centre_x: Array, centre_y: Array, radius: Array, active: Array, *, sharp: bool = False) -> Array:
    """K round spots, the strongest wins: centres, radii, switches [N, K] -> [N, H, W]."""
    field = np.zeros_like(grid.x)
    for k in range(centre_x.shape[1]):
        cx, cy, r, on = (value[:, k, None, None].astype(np.float32) for value in (centre_x, centre_y, radius, active))
        squared = ((grid.x - cx) ** 2 + (grid.y - cy) ** 2) / r**2
        field = np.maximum(field, on * np.exp(-(squared**2 if sharp else squared)))
    return field


def smooth_noise(count: int, rng: np.random.Generator, cells: int) -> Array:
    """A cloud texture 0..1: random values on a coarse lattice, smoothly interpolated."""
    lattice = rng.random((count, cells + 1, cells + 1), dtype=np.float32)
    place = np.linspace(0, cells, SIZE, endpoint=False)
    low = place.astype(int)
    part = (place - low).astype(np.float32)
    part = part * part * (3 - 2 * part)
    rows = lattice[:, low] * (1 - part)[None, :, None] + lattice[:, low + 1] * part[None, :, None]
    cloud: Array = rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part
    return cloud


def reticulation(count: int, rng: np.random.Generator) -> Array:
    """A net of fine bright lines 0..1: where two cloud textures cross their middle."""
    lines = np.zeros((count, SIZE, SIZE), np.float32)
    for cells in (8, 12):
        lines = np.maximum(lines, np.exp(-(((smooth_noise(count, rng, cells) - 0.5) / 0.07) ** 2)))
    return lines


def add_detail(density: Array, grid: Grid, inside: Array, rng: np.random.Generator) -> Array:
    """Ribs, clavicles, vessels around the hila and uneven tissue."""
    n = len(density)
    x, y = grid.x, grid.y
    slope, bend = uniform(rng, (n, 1, 1), 0.1, 0.7), uniform(rng, (n, 1, 1), 0.0, 0.5)
    wave = np.sin(
        (y - slope * np.abs(x) + bend * x * x) * uniform(rng, (n, 1, 1), 14, 26) + uniform(rng, (n, 1, 1), 0, 6.3)
    )
    cage = step(0.8 - np.abs(x), 0.05) * step(0.75 - y, 0.1) * step(np.abs(x) - 0.08, 0.03)
    ribs = uniform(rng, (n, 1, 1), 0.0, 0.12) * np.clip(wave, -0.3, 1) * cage
    line = y + uniform(rng, (n, 1, 1), 0.6, 0.85) + uniform(rng, (n, 1, 1), -0.3, 0.3) * np.abs(x)
    clavicles = uniform(rng, (n, 1, 1), 0.0, 0.12) * np.exp(-((line / 0.045) ** 2)) * step(0.65 - np.abs(x), 0.05)
    near = np.exp(-(((np.abs(x) - 0.22) / 0.2) ** 2) - ((y + 0.05) / 0.4) ** 2)
    vessels = uniform(rng, (n, 1, 1), 0.0, 0.3) * near * smooth_noise(n, rng, 14)
    uneven = uniform(rng, (n, 1, 1), 0.0, 0.18) * (smooth_noise(n, rng, 4) - 0.5)
    return (density + (ribs + clavicles + vessels + uneven) * inside).astype(np.float32)
