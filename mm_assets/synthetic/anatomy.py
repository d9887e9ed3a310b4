"""Where things are on a slide: tissue, lesions, glands, fat and nuclei, in level-0 pixels."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree
from shapely import contains_xy
from shapely.geometry import MultiPolygon, Polygon
from shapely.ops import unary_union

from mm_assets.synthetic.phenotype import Phenotype
from mm_assets.synthetic.texture import FibreField

TILE_PX = 256
TISSUE_TILES = (21, 29)
MARGIN_PX = 40
UNIT_PX = 150
NUCLEUS_COLUMNS = ["x", "y", "radius", "aspect", "angle", "darkness", "in_lesion"]


@dataclass(frozen=True)
class Gland:
    """Epithelium around a lumen; both outlines have shape (n, 2)."""

    outline: np.ndarray
    lumen: np.ndarray
    in_lesion: bool


@dataclass(frozen=True)
class Anatomy:
    """Geometry of one slide.

    `nuclei` has the columns `NUCLEUS_COLUMNS`: centre, median radius and long-to-short axis ratio,
    angle of the long axis in radians, amount of haematoxylin, and whether it is tumour.
    """

    width: int
    height: int
    tissue: MultiPolygon
    lesions: MultiPolygon
    glands: list[Gland]
    fat: np.ndarray
    nuclei: pd.DataFrame
    fibres: FibreField


def draw_anatomy(rng: np.random.Generator, size: tuple[int, int], look: Phenotype) -> Anatomy:
    """Draw the geometry of a slide of `size` (width, height) with lesions of the given look."""
    width, height = size
    fibres = FibreField.draw(rng, width, height)
    tissue = _draw_tissue(rng, width, height)
    lesions = _draw_lesions(rng, tissue, look.extent)
    healthy = tissue.buffer(-15).difference(lesions.buffer(20))
    fat = _draw_fat(rng, healthy)
    glands = _draw_lobules(rng, healthy, fat)
    glandular = [_gland_nuclei(rng, gland) for gland in glands]
    tumour_glands, tumour = _draw_tumour(rng, lesions, look, fibres)
    stroma = _draw_stroma(rng, tissue, lesions, glands + tumour_glands, fat, fibres)
    nuclei = pd.concat([stroma, *glandular, tumour], ignore_index=True)
    inside = contains_xy(tissue, nuclei["x"], nuclei["y"])
    return Anatomy(
        width=width,
        height=height,
        tissue=tissue,
        lesions=lesions,
        glands=glands + tumour_glands,
        fat=fat,
        nuclei=nuclei[inside].reset_index(drop=True),
        fibres=fibres,
    )


def _blob(
    rng: np.random.Generator, radius: float, roughness: float, vertices: int = 120
) -> np.ndarray:
    """Outline of a star-shaped blob around the origin, shape (vertices, 2)."""
    theta = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    order = np.arange(2, 9)[:, None]
    amplitude = roughness * rng.standard_normal((7, 1)) / np.sqrt(order)
    waves = amplitude * np.cos(order * theta + rng.uniform(0, 2 * np.pi, (7, 1)))
    profile = radius * np.clip(1 + waves.sum(0), 0.4, 1.8)
    return np.stack([profile * np.cos(theta), profile * np.sin(theta)], axis=1)


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _polygons(shape: Polygon | MultiPolygon) -> MultiPolygon:
    """Only the polygons of a geometry, without holes and without crumbs under 400 px."""
    parts = getattr(shape, "geoms", [shape])
    return MultiPolygon(
        [Polygon(p.exterior) for p in parts if p.geom_type == "Polygon" and p.area > 400]
    )


def _draw_tissue(rng: np.random.Generator, width: int, height: int) -> MultiPolygon:
    """One blob, or two as in serial cuts, whose area is that of `TISSUE_TILES` tiles."""
    area = min(rng.uniform(*TISSUE_TILES) * TILE_PX**2, 0.62 * width * height)
    room = np.array([width, height], float) - 2 * MARGIN_PX
    outline = _blob(rng, 1.0, 0.12) * [np.sqrt(rng.uniform(1, 1.8)), 1]
    outline = outline @ _rotation(rng.uniform(0, np.pi)).T
    outline *= np.sqrt(area / Polygon(outline).buffer(0).area)
    for _ in range(4):  # stretching one axis to fit shrinks the area: give it back to the other
        outline *= np.minimum(1, room / np.ptp(outline, axis=0))
        outline *= min(1.3, np.sqrt(area / Polygon(outline).buffer(0).area))
    outline *= np.minimum(1, room / np.ptp(outline, axis=0))
    slack = room - np.ptp(outline, axis=0)
    outline += MARGIN_PX - outline.min(axis=0) + rng.uniform(0, 1, 2) * slack
    return _polygons(Polygon(outline).buffer(0))


def _draw_lesions(rng: np.random.Generator, tissue: MultiPolygon, extent: float) -> MultiPolygon:
    """One to three blobs inside the tissue that cover `extent` of it."""
    inner = tissue.buffer(-25)
    count = int(rng.integers(1, 4))
    centres = _points_in(rng, inner.buffer(-60) if inner.buffer(-60).area else inner, count)
    radius = np.sqrt(extent * tissue.area / count / np.pi)
    outlines = [_blob(rng, radius, 0.13) for _ in centres]
    lesions = MultiPolygon()
    for growth in np.geomspace(0.7, 2.5, 24):
        blobs = [
            Polygon(outline * growth + centre).buffer(0)
            for outline, centre in zip(outlines, centres, strict=True)
        ]
        lesions = _polygons(unary_union(blobs).intersection(inner))
        if lesions.area >= extent * tissue.area:
            break
    return lesions


def _points_in(rng: np.random.Generator, shape: MultiPolygon, count: int) -> np.ndarray:
    """Uniform points inside a geometry, shape (count, 2)."""
    left, top, right, bottom = shape.bounds
    found = np.empty((0, 2))
    while len(found) < count:
        points = rng.uniform([left, top], [right, bottom], (4 * count + 16, 2))
        found = np.concatenate([found, points[contains_xy(shape, points[:, 0], points[:, 1])]])
    return found[:count]


def _apart(points: np.ndarray, distance: float) -> np.ndarray:
    """Points left after dropping every one that comes after a neighbour within `distance`."""
    if not len(points):
        return points
    later = cKDTree(points).query_pairs(distance, output_type="ndarray").max(axis=1, initial=-1)
    return np.delete(points, np.unique(later[later >= 0]), axis=0)


def _draw_fat(rng: np.random.Generator, healthy: MultiPolygon) -> np.ndarray:
    """Fat cells of one lobule in four of ten slides: columns x, y, radius."""
    if rng.random() > 0.4 or healthy.area < 60_000:
        return np.empty((0, 3))
    centre = _points_in(rng, healthy, 1)[0]
    spread = rng.uniform(130, 240)
    corner, opposite = centre - spread, centre + spread
    points = _jittered_grid(rng, (*corner, *opposite), 57, 0.1)
    near = np.hypot(*(points - centre).T) < spread
    inside = contains_xy(healthy.buffer(-12), points[:, 0], points[:, 1])
    points = points[near & inside]
    return np.column_stack([points, rng.uniform(19, 29, len(points))])


def _draw_lobules(rng: np.random.Generator, healthy: MultiPolygon, fat: np.ndarray) -> list[Gland]:
    """Lobules of normal acini, with a duct here and there, in the tissue outside lesions."""
    if healthy.area < 20_000:
        return []
    centres = _points_in(rng, healthy, max(2, int(healthy.area / 130_000)))
    circles = []
    for centre in centres:
        if rng.random() < 0.35:
            circles.append(np.array([[*centre, rng.uniform(50, 85)]]))
        else:
            acini = centre + rng.normal(0, 62, (rng.integers(6, 13), 2))
            circles.append(np.column_stack([acini, rng.uniform(25, 38, len(acini))]))
    glands: list[Gland] = []
    taken = [fat]
    for circle in np.concatenate(circles):
        point, radius = circle[:2], float(circle[2])
        others = np.concatenate(taken)
        crowded = (np.hypot(*(others[:, :2] - point).T) < others[:, 2] + radius + 4).any()
        outline = point + _blob(rng, radius, 0.06, 48)
        if crowded or not contains_xy(healthy, outline[:, 0], outline[:, 1]).all():
            continue
        taken.append(circle[None])
        thickness = min(rng.uniform(19, 24), 0.8 * radius)
        lumen = point + (outline - point) * (1 - thickness / radius)
        glands.append(Gland(outline, lumen, in_lesion=False))
    return glands


def _gland_nuclei(rng: np.random.Generator, gland: Gland) -> pd.DataFrame:
    """A regular ring of nuclei between the lumen and the outline."""
    path = 0.62 * gland.outline + 0.38 * gland.lumen
    closed = np.concatenate([path, path[:1]])
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    count = max(5, int(length[-1] / 15))
    at = (np.arange(count) + rng.uniform(-0.15, 0.15, count)) * length[-1] / count
    points = np.stack([np.interp(at, length, closed[:, axis]) for axis in (0, 1)], axis=1)
    outward = points - gland.outline.mean(axis=0)
    return _nuclei(
        points + rng.normal(0, 1.0, points.shape),
        radius=6.5 * np.exp(0.09 * rng.standard_normal(count)),
        aspect=rng.uniform(1.2, 1.6, count),
        angle=np.arctan2(outward[:, 1], outward[:, 0]) + rng.normal(0, 0.2, count),
        darkness=1.2 * np.exp(0.1 * rng.standard_normal(count)),
    )


def _nuclei(
    points: np.ndarray,
    radius: np.ndarray,
    aspect: np.ndarray,
    angle: np.ndarray,
    darkness: np.ndarray,
    in_lesion: bool = False,
) -> pd.DataFrame:
    columns = [points[:, 0], points[:, 1], radius, aspect, angle, darkness]
    table = pd.DataFrame(np.column_stack(columns), columns=NUCLEUS_COLUMNS[:-1])
    return table.assign(in_lesion=in_lesion)


def _draw_tumour(
    rng: np.random.Generator, lesions: MultiPolygon, look: Phenotype, fibres: FibreField
) -> tuple[list[Gland], pd.DataFrame]:
    """Tumour nests (glands with a small lumen) and single files of tumour nuclei."""
    left, top, right, bottom = lesions.bounds
    units = _jittered_grid(rng, (left, top, right, bottom), UNIT_PX, 0.22)
    in_files = rng.random(len(units)) < look.discohesion
    radius = 0.47 * UNIT_PX * rng.uniform(0.85, 1.1, len(units))
    opening = radius * rng.uniform(0.05, 0.4, len(units))
    points = _jittered_grid(rng, (left, top, right, bottom), look.spacing, 0.3)
    distance, unit = cKDTree(units).query(points)
    filed = in_files[unit]
    nested = ~filed & (distance < radius[unit] - 4) & (distance > opening[unit] + 7)
    files = fibres.pull_to_files(points[filed], 2.3 * look.spacing)
    files = _apart(files + rng.normal(0, 0.17 * look.spacing, files.shape), 0.7 * look.spacing)
    points = np.concatenate([points[nested], files])
    points = points[contains_xy(lesions.buffer(-8), points[:, 0], points[:, 1])]
    glands = [
        Gland(unit + _blob(rng, r, 0.05, 40), unit + _blob(rng, hole, 0.1, 24), in_lesion=True)
        for unit, r, hole, file in zip(units, radius, opening, in_files, strict=True)
        if not file
    ]
    count = len(points)
    return glands, _nuclei(
        points,
        radius=look.nuclear_radius * np.exp(0.20 * rng.standard_normal(count)),
        aspect=rng.uniform(1.0, 1.7, count),
        angle=fibres.direction(points) + rng.normal(0, 0.7, count),
        darkness=look.nuclear_darkness * np.exp(0.14 * rng.standard_normal(count)),
        in_lesion=True,
    )


def _jittered_grid(
    rng: np.random.Generator, bounds: tuple[float, float, float, float], step: float, jitter: float
) -> np.ndarray:
    """Hexagonal grid over the bounds with Gaussian jitter (a share of `step`), shape (n, 2)."""
    left, top, right, bottom = bounds
    x, y = np.meshgrid(np.arange(left, right + step, step), np.arange(top, bottom, 0.87 * step))
    x = x + (np.arange(len(x)) % 2)[:, None] * step / 2
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    return points + rng.normal(0, jitter * step, points.shape)


def _draw_stroma(
    rng: np.random.Generator,
    tissue: MultiPolygon,
    lesions: MultiPolygon,
    glands: list[Gland],
    fat: np.ndarray,
    fibres: FibreField,
) -> pd.DataFrame:
    """Fibroblasts along the fibres everywhere, and a few small clusters of lymphocytes."""
    spindles = _points_in(rng, tissue, int(tissue.area / 3_000))
    healthy = tissue.difference(lesions)
    clusters = _points_in(rng, healthy, max(1, int(healthy.area / 250_000)))
    lymphocytes = np.concatenate(
        [_apart(c + rng.normal(0, 28, (rng.integers(6, 30), 2)), 9.5) for c in clusters]
    )
    points = np.concatenate([spindles, lymphocytes])
    is_spindle = np.arange(len(points)) < len(spindles)
    radius = np.where(is_spindle, rng.uniform(4.0, 5.2, len(points)), 4.8)
    table = _nuclei(
        points,
        radius=radius,
        aspect=np.where(is_spindle, rng.uniform(2.4, 4.5, len(points)), 1.1),
        angle=fibres.direction(points) + rng.normal(0, 0.15, len(points)),
        darkness=np.where(is_spindle, 1.1, 1.6) * np.exp(0.1 * rng.standard_normal(len(points))),
    )
    round_glands = [(*g.outline.mean(axis=0), np.ptp(g.outline[:, 0]) / 2 + 5) for g in glands]
    circles = np.concatenate([np.array(round_glands).reshape(-1, 3), fat])
    if len(circles):
        distance, nearest = cKDTree(circles[:, :2]).query(points)
        table = table[distance > circles[nearest, 2]]
    return table
