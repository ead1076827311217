"""Random pictures without an author: backgrounds, textures, shapes and strings of made-up glyphs.

They widen what `nano` sees in pretraining and belong to no task. Suffixes: H height, W width.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fusionbench.api.seeding import stream

Canvas = Float[np.ndarray, "side side 3"]
Mask = Bool[np.ndarray, "side side"]
Plane = Float[np.ndarray, "side side"]


def render(count: int, *, seed: int, side: int = 128) -> UInt8[np.ndarray, "count side side 3"]:
    """`count` pictures; the first ones stay the same when more are asked for."""
    pictures = [_picture(stream("procedural", seed, index), side) for index in range(count)]
    return np.stack(pictures) if pictures else np.zeros((0, side, side, 3), np.uint8)


def _picture(rng: np.random.Generator, side: int) -> UInt8[np.ndarray, "side side 3"]:
    canvas = _filling(rng, side)
    for _ in range(rng.integers(0, 7)):
        canvas = np.where(_shape(rng, side)[..., None], _filling(rng, side), canvas)
    if rng.random() < 0.4:
        canvas = np.where(_writing(rng, side)[..., None], _colour(rng), canvas)
    if rng.random() < 0.3:
        canvas = canvas + rng.normal(0, rng.uniform(0.01, 0.1), canvas.shape)
    if rng.random() < 0.15:
        canvas = np.broadcast_to(canvas.mean(-1, keepdims=True), canvas.shape)
    return (np.clip(canvas, 0, 1) * 255).astype(np.uint8)


def _filling(rng: np.random.Generator, side: int) -> Canvas:
    """Plain colour, or two colours mixed by a gradient, stripes, checks or blurred noise."""
    if rng.random() < 0.4:
        return np.broadcast_to(_colour(rng), (side, side, 3))
    patterns: list[Callable[[np.random.Generator, int], Plane]]
    patterns = [_gradient, _stripes, _checks, _clouds]
    mix = patterns[rng.integers(len(patterns))](rng, side)[..., None]
    return mix * _colour(rng) + (1 - mix) * _colour(rng)


def _colour(rng: np.random.Generator) -> Float[np.ndarray, " 3"]:
    if rng.random() < 0.3:
        return np.full(3, rng.random())
    return rng.random(3)


def _plane(rng: np.random.Generator, side: int) -> Plane:
    """A coordinate along a random direction, 0..1 over about one side."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:side, :side] / side - 0.5
    return x * np.cos(angle) + y * np.sin(angle) + 0.5


def _gradient(rng: np.random.Generator, side: int) -> Plane:
    return np.clip(_plane(rng, side), 0, 1)


def _stripes(rng: np.random.Generator, side: int) -> Plane:
    wave = np.sin(2 * np.pi * rng.uniform(2, 28) * _plane(rng, side))
    return (wave > 0).astype(float) if rng.random() < 0.5 else (wave + 1) / 2


def _checks(rng: np.random.Generator, side: int) -> Plane:
    frequency = rng.uniform(2, 20)
    cells = [np.floor(frequency * _plane(rng, side)) for _ in range(2)]
    return (cells[0] + cells[1]) % 2


def _clouds(rng: np.random.Generator, side: int) -> Plane:
    """Noise with a power-law spectrum: from clouds to grain."""
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij"))
    weight = (frequencies + 1 / side) ** -rng.uniform(0.3, 2.0)
    noise = rng.normal(size=weight.shape) + 1j * rng.normal(size=weight.shape)
    field = np.fft.irfft2(noise * weight, s=(side, side))
    return np.clip(0.5 + 0.25 * (field - field.mean()) / field.std(), 0, 1)


def _shape(rng: np.random.Generator, side: int) -> Mask:
    """A blob in polar form, a polygon, a bar or a ring, anywhere and of any size."""
    centre = rng.uniform(-0.45, 0.45, size=2)
    y, x = np.mgrid[:side, :side] / side - 0.5
    y, x = y - centre[0], x - centre[1]
    radius = rng.uniform(0.04, 0.35)
    turn = rng.uniform(0, 2 * np.pi)
    distance, angle = np.hypot(x, y), np.arctan2(y, x) + turn
    kind = rng.integers(4)
    if kind == 0:
        wobble = rng.uniform(0, 0.5) * np.cos(rng.integers(2, 9) * angle)
        return distance < radius * (1 + wobble) / 1.2
    if kind == 1:
        corner = 2 * np.pi / rng.integers(3, 7)
        return distance * np.cos(angle % corner - corner / 2) < radius * np.cos(corner / 2)
    if kind == 2:
        along, across = distance * np.cos(angle), distance * np.sin(angle)
        return (np.abs(along) < radius) & (np.abs(across) < radius * rng.uniform(0.1, 1))
    return (distance < radius) & (distance > radius * rng.uniform(0.3, 0.85))


def _writing(rng: np.random.Generator, side: int) -> Mask:
    """A line of 1 to 8 glyphs, each a random 7x5 bitmap, some of them mirrored into symmetry."""
    glyphs = rng.random((rng.integers(1, 9), 7, 5)) < 0.5
    mirrored = rng.random(len(glyphs)) < 0.5
    glyphs[mirrored, :, 3:] = glyphs[mirrored, :, 1::-1]
    line = np.concatenate([np.pad(glyph, ((0, 0), (0, 1))) for glyph in glyphs], axis=1)
    largest = max(1, (side - 2) // line.shape[1])
    line = np.kron(line, np.ones((rng.integers(1, largest + 1),) * 2)) > 0
    line = line[:side, :side]
    top = rng.integers(0, side - line.shape[0] + 1)
    left = rng.integers(0, side - line.shape[1] + 1)
    mask = np.zeros((side, side), bool)
    mask[top : top + line.shape[0], left : left + line.shape[1]] = line
    return mask
