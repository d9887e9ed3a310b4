"""From anatomy to pixels: amounts of haematoxylin and eosin, then colour."""

import cv2
import numpy as np

from mm_assets.synthetic.anatomy import Anatomy
from mm_assets.synthetic.nucleus import stamp_nuclei
from mm_assets.synthetic.phenotype import Phenotype
from mm_assets.synthetic.stain import Stain
from mm_assets.synthetic.texture import FINE_STEP, CoarseField

OPTICS_SIGMA_PX = 0.7
EDGE_PX = 32
STRIP_PX = 256
HALO_PX = 8
NORMAL_BASOPHILIA = 0.16


def paint(rng: np.random.Generator, anatomy: Anatomy, look: Phenotype, stain: Stain) -> np.ndarray:
    """Paint a slide: uint8, shape (height, width, 3).

    The tissue is painted in strips, because arrays that fit the processor's cache make this three
    times faster than whole-slide arrays.
    """
    image = stain.glass(anatomy.width, anatomy.height)
    canvas = _Canvas(rng, anatomy, look)
    x, y = canvas.left, canvas.top
    for top in range(0, canvas.height, STRIP_PX):
        bottom = min(top + STRIP_PX, canvas.height)
        start, stop = max(0, top - HALO_PX), min(bottom + HALO_PX, canvas.height)
        amounts = cv2.GaussianBlur(canvas.amounts(start, stop), (0, 0), OPTICS_SIGMA_PX)
        colours = stain.colour(amounts[top - start : bottom - start])
        image[y + top : y + bottom, x : x + canvas.width] = colours
    return image


class _Canvas:
    """What is where in the bounding box of the tissue; amounts of stain are made on demand."""

    def __init__(self, rng: np.random.Generator, anatomy: Anatomy, look: Phenotype):
        left, top, right, bottom = (round(edge) for edge in anatomy.tissue.bounds)
        self.left, self.top = max(0, left - EDGE_PX), max(0, top - EDGE_PX)
        self.width = min(anatomy.width, right + EDGE_PX) - self.left
        self.height = min(anatomy.height, bottom + EDGE_PX) - self.top
        self.offset = np.array([self.left, self.top])
        self.look = look
        self.fibres = anatomy.fibres
        lesions = [np.array(p.exterior.coords) for p in anatomy.lesions.geoms]
        tissue = [np.array(p.exterior.coords) for p in anatomy.tissue.geoms]
        self.lesion = CoarseField(self._soft_mask(lesions, 16), FINE_STEP)
        self.presence = CoarseField(self._presence(rng, tissue), FINE_STEP)
        in_lesion = self._mask(lesions)
        tumour = [gland for gland in anatomy.glands if gland.in_lesion]
        normal = [gland for gland in anatomy.glands if not gland.in_lesion]
        self.epithelium = (
            (self._mask([g.outline for g in normal]), NORMAL_BASOPHILIA),
            (self._mask([g.outline for g in tumour]) & in_lesion, look.basophilia),
        )
        self.empty = self._mask([g.lumen for g in normal])
        self.empty |= self._mask([g.lumen for g in tumour]) & in_lesion
        for x, y, radius in anatomy.fat:
            centre = (round(x - self.left), round(y - self.top))
            cv2.circle(self.empty, centre, round(radius), 255, -1)
        self.nuclei = stamp_nuclei(anatomy.nuclei, self.offset, self.width, self.height)

    def amounts(self, start: int, stop: int) -> np.ndarray:
        """Haematoxylin and eosin of some rows: float32, shape (stop - start, width, 2)."""
        height = stop - start
        rows = slice(start, stop)
        window = (0, start, self.width, height)
        bundles, fibrils, grain = cv2.split(
            self.fibres.texture(self.left, self.top + start, self.width, height)
        )
        eosin = np.maximum(0.50 + 0.11 * bundles + 0.07 * fibrils + 0.04 * grain, 0.05)
        haematoxylin = np.maximum(0.05 + 0.02 * fibrils + 0.02 * grain, 0)
        haematoxylin += self.lesion.window(*window) * (0.45 * self.look.basophilia)
        for mask, basophilia in self.epithelium:
            cytoplasm = _soften(mask[rows], 1.5)
            eosin += cytoplasm * (0.40 + 0.04 * grain + 0.03 * bundles - eosin)
            haematoxylin += cytoplasm * (basophilia + 0.03 * grain - haematoxylin)
        filled = 1 - 0.94 * _soften(self.empty[rows], 1.2)
        nuclei = self.nuclei[rows]
        covered = np.minimum(nuclei, 1)
        haematoxylin *= filled * (1 - 0.5 * covered)
        eosin *= filled * (1 - 0.55 * covered)
        haematoxylin = np.maximum(haematoxylin, nuclei * (1 + 0.10 * grain))
        present = np.maximum(self.presence.window(*window), 0)
        return cv2.merge([haematoxylin * present, eosin * present])

    def _presence(self, rng: np.random.Generator, tissue: list[np.ndarray]) -> np.ndarray:
        """Thickness of the tissue, about 1, with an edge as ragged as cutting leaves it."""
        unevenness, wear, fray = (
            CoarseField.noise(rng, self.width, self.height, step).grid for step in (180, 45, 9)
        )
        inside = self._soft_mask(tissue, 9) + 0.16 * wear + 0.10 * fray
        return np.clip((inside - 0.45) * 4, 0, 1) * (1 + 0.08 * unevenness)

    def _mask(self, outlines: list[np.ndarray]) -> np.ndarray:
        """Polygons as a uint8 mask of 0 and 255 over the canvas."""
        mask = np.zeros((self.height, self.width), np.uint8)
        for outline in outlines:
            cv2.fillPoly(mask, [np.round(outline - self.offset).astype(np.int32)], 255)
        return mask

    def _soft_mask(self, outlines: list[np.ndarray], feather: float) -> np.ndarray:
        """Polygons with a wide feathered edge: float32 from 0 to 1, every `FINE_STEP` pixels."""
        mask = cv2.copyMakeBorder(
            self._mask(outlines), 0, 2 * FINE_STEP, 0, 2 * FINE_STEP, cv2.BORDER_REPLICATE
        )[::FINE_STEP, ::FINE_STEP]
        mask = mask[: self.height // FINE_STEP + 2, : self.width // FINE_STEP + 2]
        return cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), feather / FINE_STEP)


def _soften(mask: np.ndarray, feather: float) -> np.ndarray:
    return cv2.GaussianBlur(mask, (0, 0), feather).astype(np.float32) / np.float32(255)
