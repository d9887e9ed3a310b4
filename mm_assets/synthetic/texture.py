"""Noise fields from which tissue texture is made."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

LIBRARY_PX = 1024
LIBRARY_ZERO, LIBRARY_UNIT = 128, 32
FINE_STEP = 4


@dataclass(frozen=True)
class CoarseField:
    """A smooth function over a slide, known every `step` pixels.

    Attributes
    ----------
    grid
        float32, shape (rows, columns): values at multiples of `step`.
    step
        Distance of the grid points in level-0 pixels.
    """

    grid: np.ndarray
    step: int

    @classmethod
    def noise(cls, rng: np.random.Generator, width: int, height: int, step: int) -> "CoarseField":
        """Gaussian noise of about unit variance over a slide, smooth over `step` pixels.

        The field itself has the step `FINE_STEP`.
        """
        knots = rng.standard_normal((height // step + 4, width // step + 4), dtype=np.float32)
        scale = step / FINE_STEP
        fine = cv2.resize(knots, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        return cls(fine[: height // FINE_STEP + 2, : width // FINE_STEP + 2], FINE_STEP)

    def window(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Values at every pixel of a window: float32, shape (height, width)."""
        to_grid = np.array(
            [[1 / self.step, 0, left / self.step], [0, 1 / self.step, top / self.step]]
        )
        return cv2.warpAffine(
            self.grid,
            to_grid,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def at(self, points: np.ndarray) -> np.ndarray:
        """Values at points (x, y) of shape (n, 2): float64, shape (n,)."""
        if not len(points):
            return np.empty(0)  # OpenCV refuses empty maps
        position = (points / self.step).astype(np.float32)
        sampled = cv2.remap(
            self.grid,
            position[:, :1],
            position[:, 1:],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return sampled[:, 0].astype(float)

    def gradient(self, points: np.ndarray) -> np.ndarray:
        """Slope by x and y at points of shape (n, 2): float64, shape (n, 2)."""
        slopes = [
            (self.at(points + shift) - self.at(points - shift)) / (2 * self.step)
            for shift in np.eye(2) * self.step
        ]
        return np.stack(slopes, axis=1)


@dataclass(frozen=True)
class FibreField:
    """Wavy orientation of the stroma: coordinates along and across the fibres, in pixels."""

    along: CoarseField
    across: CoarseField

    @classmethod
    def draw(cls, rng: np.random.Generator, width: int, height: int) -> "FibreField":
        """A random field for a slide of the given size."""
        waves = [CoarseField.noise(rng, width, height, step).grid for step in (420, 140) * 2]
        rows, columns = waves[0].shape
        y, x = np.mgrid[:rows, :columns].astype(np.float32) * FINE_STEP
        angle = rng.uniform(0, np.pi)
        offset = rng.uniform(0, LIBRARY_PX, 2)
        along = np.cos(angle) * x + np.sin(angle) * y + offset[0] + 70 * waves[0] + 14 * waves[1]
        across = np.cos(angle) * y - np.sin(angle) * x + offset[1] + 70 * waves[2] + 14 * waves[3]
        return cls(
            CoarseField(along.astype(np.float32), FINE_STEP),
            CoarseField(across.astype(np.float32), FINE_STEP),
        )

    def texture(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """The fibre library bent along the field: float32, shape (height, width, 3)."""
        along, across = (
            _centred(field.window(left, top, width, height)) for field in (self.along, self.across)
        )
        bent = cv2.remap(
            fibre_library(), along, across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )
        return (bent.astype(np.float32) - LIBRARY_ZERO) * np.float32(1 / LIBRARY_UNIT)

    def direction(self, points: np.ndarray) -> np.ndarray:
        """Angle of the fibres in radians at points of shape (n, 2)."""
        slope = self.across.gradient(points)
        return np.arctan2(-slope[:, 0], slope[:, 1])

    def pull_to_files(self, points: np.ndarray, distance: float) -> np.ndarray:
        """Move points across the fibres onto the nearest of lines `distance` pixels apart."""
        slope = self.across.gradient(points)
        steepness = np.maximum((slope**2).sum(axis=1), 0.05)
        value = self.across.at(points)
        shift = (np.round(value / distance) * distance - value) / steepness
        return points + shift[:, None] * slope


@lru_cache(maxsize=1)
def fibre_library() -> np.ndarray:
    """Periodic texture: collagen bundles, fine fibrils and isotropic grain, along the x axis.

    Returns
    -------
    ndarray
        uint8, two by two periods of `LIBRARY_PX`, 3 channels: `LIBRARY_ZERO` plus `LIBRARY_UNIT`
        times noise of unit variance, because bytes are bent twice as fast as floats.
    """
    rng = np.random.default_rng(20)
    bundles = _periodic_noise(rng, 60, 7.0) + 0.7 * _periodic_noise(rng, 30, 3.0)
    fibrils = _periodic_noise(rng, 12, 1.3)
    grain = _periodic_noise(rng, 1.2, 1.2)
    noise = np.stack([bundles / 1.22, fibrils, grain], axis=-1)
    period = np.clip(np.round(LIBRARY_ZERO + LIBRARY_UNIT * noise), 0, 255).astype(np.uint8)
    return np.tile(period, (2, 2, 1))


def _centred(coordinates: np.ndarray) -> np.ndarray:
    """Coordinates moved by whole periods into the middle of the library: wrapping is slow."""
    periods = np.round(float(coordinates.mean()) / LIBRARY_PX) - 1
    return coordinates - np.float32(periods * LIBRARY_PX)


def _periodic_noise(rng: np.random.Generator, along: float, across: float) -> np.ndarray:
    frequency = np.fft.fftfreq(LIBRARY_PX)
    length = (frequency[None, :] * along) ** 2 + (frequency[:, None] * across) ** 2
    spectrum = np.fft.fft2(rng.standard_normal((LIBRARY_PX, LIBRARY_PX)))
    noise = np.fft.ifft2(spectrum * np.exp(-2 * np.pi**2 * length)).real
    return (noise / noise.std()).astype(np.float32)
