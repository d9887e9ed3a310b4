"""Nuclei as stamps: outline, rim, chromatin clumps, nucleolus."""

from functools import cache

import cv2
import numpy as np
import pandas as pd

ASPECTS = (1.0, 1.25, 1.6, 2.4, 3.6)
ANGLES = 16
VARIANTS = 3
PAD_PX = 64


def stamp_nuclei(nuclei: pd.DataFrame, offset: np.ndarray, width: int, height: int) -> np.ndarray:
    """Haematoxylin of all nuclei; where nuclei overlap the darker wins.

    Parameters
    ----------
    nuclei
        Columns x, y, radius, aspect, angle, darkness (see `anatomy.Anatomy`).
    offset
        Slide coordinates (x, y) of the canvas's top-left corner.
    width, height
        Size of the canvas in pixels; nuclei must lie inside it.

    Returns
    -------
    ndarray
        float32, shape (height, width).
    """
    canvas = np.zeros((height + 2 * PAD_PX, width + 2 * PAD_PX), np.float32)
    columns = (
        np.round(nuclei["x"] - offset[0]).astype(int) + PAD_PX,
        np.round(nuclei["y"] - offset[1]).astype(int) + PAD_PX,
        np.clip(np.round(nuclei["radius"] * 2), 5, 40).astype(int),
        np.abs(nuclei["aspect"].to_numpy()[:, None] - ASPECTS).argmin(axis=1),
        np.round(nuclei["angle"] / np.pi * ANGLES).astype(int) % ANGLES,
        nuclei["darkness"].astype(np.float32),
    )
    rows = zip(*(np.asarray(column).tolist() for column in columns), strict=True)
    for number, (x, y, half_pixels, aspect, angle, darkness) in enumerate(rows):
        stamp = _stamp(half_pixels, aspect, angle, number % VARIANTS)
        reach = stamp.shape[0] // 2
        window = canvas[y - reach : y + reach + 1, x - reach : x + reach + 1]
        np.maximum(window, stamp * np.float32(darkness), out=window)
    return canvas[PAD_PX:-PAD_PX, PAD_PX:-PAD_PX]


@cache
def _stamp(half_pixels: int, aspect: int, angle: int, variant: int) -> np.ndarray:
    """One nucleus of unit darkness; `half_pixels` is twice its median radius."""
    rng = np.random.default_rng([half_pixels, aspect, angle, variant])
    radius, stretch, turn = half_pixels / 2, np.sqrt(ASPECTS[aspect]), angle * np.pi / ANGLES
    reach = int(np.ceil(radius * stretch * 1.25)) + 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    along = (np.cos(turn) * x + np.sin(turn) * y) / stretch
    across = (-np.sin(turn) * x + np.cos(turn) * y) * stretch
    theta = np.arctan2(across, along)
    order = np.array([2, 3, 5])[:, None, None]
    amplitude = np.array([0.05, 0.05, 0.03])[:, None, None]
    phase = rng.uniform(0, 2 * np.pi, (3, 1, 1))
    outline = 1 + (amplitude * np.cos(order * theta + phase)).sum(axis=0)
    depth = np.hypot(along, across) / (radius * outline)
    inside = np.clip((1 - depth) * radius / 1.4 + 0.5, 0, 1)
    noise = rng.standard_normal(x.shape).astype(np.float32)
    clumps = cv2.GaussianBlur(noise, (0, 0), max(1.0, radius / 5))
    chromatin = 0.76 + 0.14 * clumps / clumps.std()
    rim = 0.22 * np.exp(-(((depth - 0.86) / 0.13) ** 2))
    nucleolus = np.zeros_like(depth)
    if radius > 7:
        u, v = rng.uniform(-0.35, 0.35, 2) * radius
        nucleolus = 0.45 * np.exp(-((along - u) ** 2 + (across - v) ** 2) / (2 * 1.4**2))
    return (inside * np.clip(chromatin + rim + nucleolus, 0.35, 1.4)).astype(np.float32)
