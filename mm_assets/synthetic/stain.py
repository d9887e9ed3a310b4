"""Haematoxylin and eosin as optical density, a little different at every site."""

from dataclasses import dataclass

import cv2
import numpy as np

HAEMATOXYLIN = np.array([0.60, 0.72, 0.35])
EOSIN = np.array([0.12, 0.85, 0.51])


@dataclass(frozen=True)
class Stain:
    """Stain and scanner of one site.

    Attributes
    ----------
    vectors
        float32, shape (2, 3): optical density of one unit of haematoxylin and of eosin in R, G, B.
    background
        float32, shape (3,): grey levels of the empty glass.
    """

    vectors: np.ndarray
    background: np.ndarray

    @classmethod
    def of_site(cls, site: int, seed: int) -> "Stain":
        """Stain of a site: about 8 % in intensity and 3 degrees in hue."""
        rng = np.random.default_rng([seed, 7_000 + site])
        vectors = np.stack([HAEMATOXYLIN, EOSIN]) + rng.normal(0, 0.03, (2, 3))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors *= np.clip(rng.normal(1, [[0.06], [0.10]]), 0.85, 1.15)
        background = rng.uniform(238, 246) + rng.uniform(-2, 2, 3)
        return cls(vectors.astype(np.float32), background.astype(np.float32))

    def glass(self, width: int, height: int) -> np.ndarray:
        """An empty slide: uint8, shape (height, width, 3)."""
        return np.full((height, width, 3), self.background.round(), np.uint8)

    def colour(self, amounts: np.ndarray) -> np.ndarray:
        """Beer-Lambert: uint8 RGB of haematoxylin and eosin amounts, shape (height, width, 2)."""
        haematoxylin, eosin = amounts[..., 0].copy(), amounts[..., 1].copy()
        channels = [
            cv2.convertScaleAbs(cv2.exp(-(h * haematoxylin + e * eosin)), alpha=float(glass))
            for (h, e), glass in zip(self.vectors.T, self.background, strict=True)
        ]
        return cv2.merge(channels)
