"""Draws chest-like images from numbers alone: no patient, no file, no real image.

    anatomy and findings (arrays over N phantoms) -> optical density on a 64 x 64 grid -> acquisition -> uint8 [N, 64, 64]

    >>> drawn = draw(4, np.random.default_rng(0), "public")
    >>> drawn.images.shape, drawn.findings["consolidation"].shape
    ((4, 64, 64), (4, 2))

Legend: N phantoms, H = W = 64 pixels, S = 2 sides (0: the patient's right, drawn on the image's left; 1: left).
Lengths are in half image widths: x from -1 (image left) to 1, y from -1 (top) to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmed.data.phantom_shapes import (
    SIZE,
    Array,
    Grid,
    add_detail,
    blobs,
    make_grid,
    mix,
    reticulation,
    smooth_noise,
    step,
    uniform,
)

MAX_FOCI = 3


@dataclass(frozen=True)
class Drawn:
    """N phantoms with what is in them.

    Attributes:
        images: uint8 [N, H, W].
        findings: name -> strength [N, S]; 0 is absent. `cardiomegaly` stands in both columns.
        nodules: int [N], how many were drawn; all on one side.
        zones: int [N], zone of the strongest consolidation: 0 upper, 1 middle, 2 lower, -1 none.
        opacity: float32 [N, 7, 7], mean added density in a 7 x 7 division: a dense target for the public vision stage.
        lungs: float32 [N, 7, 7], share that is lung, in the same division.
    """

    images: NDArray[np.uint8]
    findings: Mapping[str, Array]
    nodules: NDArray[np.int64]
    zones: NDArray[np.int64]
    opacity: Array
    lungs: Array


def draw(count: int, rng: np.random.Generator, domain: str) -> Drawn:
    """`count` phantoms of a domain.

    Public phantoms never carry an effusion. Hospital phantoms do, in half of them, are else mostly clear, and come
    from another machine: a brighter exposure curve, collimator edges, more noise.
    """
    findings, foci, nodules, zones = _findings(count, rng, domain)
    grid = make_grid(count, rng)
    chest = _Chest(grid, rng, findings["cardiomegaly"][:, :1], 0.45 if domain == "hospital" else 0.38)
    opacity = _opacity(chest, findings, foci, nodules, rng)
    density = chest.density(opacity)
    density = add_detail(density, grid, chest.inside, rng)
    images = _acquire(density, rng, domain)
    return Drawn(images, findings, nodules["count"], zones, _patches(opacity * chest.lung), _patches(chest.lung))


def _sides(count: int, rng: np.random.Generator, probability: float, low: float, high: float, both: float) -> Array:
    """Strength [N, S]: absent, one side, or with probability `both` on the two sides."""
    present = rng.random(count) < probability
    side = rng.integers(0, 2, count)
    mask = np.stack([side == 0, side == 1], 1) | (rng.random(count) < both)[:, None]
    strength = uniform(rng, (count, 1), low, high) * uniform(rng, (count, 2), 0.75, 1.0)
    return np.where(mask & present[:, None], strength, 0.0).astype(np.float32)


def _findings(
    count: int, rng: np.random.Generator, domain: str
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], NDArray[np.int64]]:
    hospital = domain == "hospital"
    found = {
        "consolidation": _sides(count, rng, 0.1 if hospital else 0.4, 0.45, 1.0, 0.35),
        "haze": _sides(count, rng, 0.1 if hospital else 0.4, 0.35, 0.95, 0.75),
        "interstitial": _sides(count, rng, 0.05 if hospital else 0.25, 0.35, 0.9, 0.8),
        "nodule": _sides(count, rng, 0.1 if hospital else 0.2, 0.6, 1.0, 0.0),
        "cardiomegaly": np.repeat((rng.random((count, 1)) < 0.2).astype(np.float32), 2, 1),
    }
    effusion = _sides(count, rng, 0.5, 0.8, 1.0, 0.1)
    clear = rng.random(count) < (0.0 if hospital else 0.35)
    found = {name: np.where(clear[:, None], 0, strength).astype(np.float32) for name, strength in found.items()}
    found["effusion"] = effusion if hospital else np.zeros_like(effusion)
    level = rng.random((count, 2, MAX_FOCI)).astype(np.float32)
    extra = np.stack([np.ones((count, 2), bool), rng.random((count, 2)) < 0.4, rng.random((count, 2)) < 0.2], 2)
    foci = {
        "level": 0.12 + 0.8 * level,
        "lateral": uniform(rng, (count, 2, MAX_FOCI), 0.15, 0.85),
        "radius": uniform(rng, (count, 2, MAX_FOCI), 0.16, 0.55),
        "active": extra.astype(np.float32),
    }
    strongest = found["consolidation"].argmax(1)
    zones = np.minimum((foci["level"][np.arange(count), strongest, 0] * 3).astype(np.int64), 2)
    number = np.where(found["nodule"].any(1), rng.integers(1, MAX_FOCI + 1, count), 0)
    nodules = {
        # One nodule per third of the lung, so that two never melt into one.
        "level": (rng.permuted(np.tile(np.arange(3.0), (count, 2, 1)), axis=2) + rng.uniform(0.3, 0.7, (count, 2, 3)))
        / 3,
        "lateral": uniform(rng, (count, 2, MAX_FOCI), 0.25, 0.75),
        "radius": uniform(rng, (count, 2, MAX_FOCI), 0.06, 0.09),
        "active": (np.arange(MAX_FOCI) < number[:, None, None]).astype(np.float32).repeat(2, 1),
        "count": number,
    }
    return found, foci, nodules, np.where(found["consolidation"].any(1), zones, -1)


class _Chest:
    """Anatomy of N chests on their grids: lungs, heart, spine, diaphragm, body outline. Fields are [N, H, W]."""

    def __init__(self, grid: Grid, rng: np.random.Generator, enlarged: Array, least_depth: float) -> None:
        n = len(grid.x)
        x, y = grid.x, grid.y
        self.grid = grid
        self.top = uniform(rng, (n, 1, 1), -0.85, -0.6)
        self.base = np.stack([uniform(rng, (n, 1, 1), 0.35, 0.7), uniform(rng, (n, 1, 1), 0.4, 0.75)], 1)
        self.width = uniform(rng, (n, 1, 1), 0.55, 0.85)
        self.power = uniform(rng, (n, 1, 1), 0.3, 0.6)
        self.gap = uniform(rng, (n, 1, 1), 0.08, 0.2)
        soft = uniform(rng, (n, 1, 1), 0.02, 0.06)
        dome = uniform(rng, (n, 1, 1), 0.1, 0.45)
        sides = []
        for side, sign in enumerate((-1.0, 1.0)):
            lateral = sign * x
            level = self.level(y, side)
            floor = self.base[:, side] - dome * (1 - ((lateral - 0.3) / 0.5) ** 2) + dome * 0.5
            mask = step(lateral - self.gap, soft) * step(self.outer(level) - lateral, soft)
            sides.append(mask * step(y - self.top, soft) * step(floor - y, soft))
        heart_x = uniform(rng, (n, 1, 1), 0.05, 0.16)
        heart_y = self.base[:, 1] - uniform(rng, (n, 1, 1), 0.15, 0.3)
        radius = uniform(rng, (n, 1, 1), 0.24, 0.32) + 0.13 * enlarged[:, :, None]
        radius_y = uniform(rng, (n, 1, 1), 0.26, 0.38)
        self.heart = step(1 - np.hypot((x - heart_x) / radius, (y - heart_y) / radius_y), 0.12)
        self.side_masks = np.stack(sides, 1)
        self.lung = np.clip(self.side_masks.sum(1), 0, 1) * (1 - 0.9 * self.heart)
        torso = uniform(rng, (n, 1, 1), 0.85, 1.25)
        shoulder = torso * np.clip(0.45 + 2.2 * (y + 1.05), 0.3, 1)
        self.inside = step(shoulder - np.abs(x), 0.05)
        spine = np.exp(-((x / uniform(rng, (n, 1, 1), 0.06, 0.13)) ** 2))
        bones = 1 + 0.25 * np.sin(y * uniform(rng, (n, 1, 1), 18, 30))
        self.middle = uniform(rng, (n, 1, 1), 0.03, 0.2) * spine * bones
        self.depth = uniform(rng, (n, 1, 1), least_depth, 0.62)
        self.tissue = uniform(rng, (n, 1, 1), 0.55, 0.8)
        self.belly = uniform(rng, (n, 1, 1), 0.0, 0.25) * step(y - self.base.max(1), 0.1)

    def level(self, y: Array, side: int) -> Array:
        """Height inside the lung: 0 apex, 1 base."""
        return np.clip((y - self.top) / (self.base[:, side] - self.top), 0, 1)

    def outer(self, level: Array) -> Array:
        """Half width of the rib cage at a height in the lung."""
        return self.width * (0.25 + 0.75 * (level + 1e-3) ** self.power)

    def place(self, level: Array, lateral: Array, side: int) -> tuple[Array, Array]:
        """Lung coordinates [N, K] as centres (x, y) in the image plane, each [N, K]."""
        top, base = self.top[:, :, 0], self.base[:, side, :, 0]
        width, power, gap = self.width[:, :, 0], self.power[:, :, 0], self.gap[:, :, 0]
        outer = width * (0.25 + 0.75 * (level + 1e-3) ** power)
        sign = -1.0 if side == 0 else 1.0
        return sign * (gap + lateral * (outer - gap)), top + level * (base - top)

    def density(self, opacity: Array) -> Array:
        """Grey value before acquisition, about 0..1: lungs dark, what fills them bright again."""
        air = self.lung * (1 - np.clip(opacity, 0, 1) * 0.92)
        body = self.tissue + self.middle + 0.12 * self.heart + self.belly - self.depth * air
        return body * self.inside + 0.03 * (1 - self.inside)


def _opacity(
    chest: _Chest,
    findings: Mapping[str, Array],
    foci: Mapping[str, Array],
    nodules: Mapping[str, Array],
    rng: np.random.Generator,
) -> Array:
    """Share of the air that is replaced [N, H, W], 0..1 (nodules may pass 1 before clipping)."""
    n = len(chest.top)
    x, y = chest.grid.x, chest.grid.y
    cloud = smooth_noise(n, rng, 5)
    net = reticulation(n, rng)
    total = np.zeros((n, SIZE, SIZE), np.float32)
    for side, sign in enumerate((-1.0, 1.0)):
        focus = blobs(
            chest.grid,
            *chest.place(foci["level"][:, side], foci["lateral"][:, side], side),
            foci["radius"][:, side],
            foci["active"][:, side],
        )
        small = blobs(
            chest.grid,
            *chest.place(nodules["level"][:, side], nodules["lateral"][:, side], side),
            nodules["radius"][:, side],
            nodules["active"][:, side],
            sharp=True,
        )
        strength = {name: value[:, side, None, None] for name, value in findings.items()}
        level = chest.level(y, side)
        gradient = 0.55 + 0.45 * (level * uniform(rng, (n, 1, 1), -1, 1) + uniform(rng, (n, 1, 1), 0, 1)).clip(0, 1)
        surface = 1 - 0.65 * strength["effusion"] - 0.3 * (np.abs(x) / chest.width) ** 3
        part = mix(
            strength["consolidation"] * focus * (0.75 + 0.4 * cloud),
            strength["haze"] * gradient * (0.7 + 0.5 * cloud),
            strength["interstitial"] * net,
            strength["nodule"] * small,
            (strength["effusion"] > 0) * 0.97 * step(level - surface, 0.05),
        )
        total = mix(total, part * (sign * x > 0))
    return total


def _acquire(density: Array, rng: np.random.Generator, domain: str) -> NDArray[np.uint8]:
    """Exposure, contrast, blur, collimation and noise of the machine; uint8 [N, H, W]."""
    n = len(density)
    hospital = domain == "hospital"
    image = _expose(density, rng)
    low, high = (-0.6, -0.4) if hospital else (-0.35, 0.35)
    image = image ** np.exp(uniform(rng, (n, 1, 1), low, high))
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    image = image * (
        1 + uniform(rng, (n, 1, 1), -0.15, 0.15) * ramp + uniform(rng, (n, 1, 1), -0.15, 0.15) * ramp[:, None]
    )
    image = _blur(image, uniform(rng, (n, 1, 1), 0.0, 1.0))
    noise = uniform(rng, (n, 1, 1), 0.03, 0.06) if hospital else uniform(rng, (n, 1, 1), 0.0, 0.03)
    image = image + noise * rng.standard_normal(image.shape, dtype=np.float32)
    if hospital:
        edge = uniform(rng, (n, 4, 1), 0.82, 0.98)
        open_ = (ramp > -edge[:, :1]) & (ramp < edge[:, 1:2])
        shut = (ramp > -edge[:, 2:3]) & (ramp < edge[:, 3:4])
        image = image * (open_ & np.swapaxes(shut, 1, 2))
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _expose(density: Array, rng: np.random.Generator) -> Array:
    """Automatic exposure: the darkest and brightest tenths go to nearly fixed grey values."""
    n = len(density)
    low, high = np.quantile(density, [0.05, 0.95], axis=(1, 2)).astype(np.float32)[:, :, None, None]
    floor, ceiling = uniform(rng, (n, 1, 1), 0.05, 0.35), uniform(rng, (n, 1, 1), 0.65, 1.0)
    spread = (density - low) / np.maximum(high - low, 0.2)
    return np.clip(floor + spread * (ceiling - floor), 0, 1)


def _blur(image: Array, amount: Array) -> Array:
    """Mixes with a 3 x 3 binomial blur, twice."""
    for _ in range(2):
        padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
        rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
        image = (1 - amount) * image + amount * (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
    return image


def _patches(field: Array) -> Array:
    """[N, 64, 64] -> [N, 7, 7]: means over a 7 x 7 division, edges rounded to whole pixels."""
    edges = np.linspace(0, SIZE, 8).round().astype(int)
    rows = np.add.reduceat(field, edges[:-1], axis=1)
    sums = np.add.reduceat(rows, edges[:-1], axis=2)
    return (sums / (np.diff(edges)[:, None] * np.diff(edges))).astype(np.float32)
