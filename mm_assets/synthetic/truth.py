"""The planted truth of a demo cohort, written and read for scoring only."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from shapely.geometry import MultiPolygon, mapping, shape

KINDS = ("tissue", "lesions")
NUCLEUS_COLUMNS = ["x", "y", "radius", "in_lesion"]


@dataclass(frozen=True)
class SlideTruth:
    """What is on a slide, in level-0 pixels; empty where the file shows none.

    Attributes
    ----------
    tissue, lesions
        Polygons without holes.
    nuclei
        Columns x, y, radius (pixels) and in_lesion (bool), a row a nucleus.
    """

    tissue: MultiPolygon
    lesions: MultiPolygon
    nuclei: pd.DataFrame


def write_slide_truth(cohort: Path, slide_id: str, truth: SlideTruth) -> None:
    """Write the truth of one slide under ``truth/`` of the cohort folder."""
    for kind, polygons in (("tissue", truth.tissue), ("lesions", truth.lesions)):
        path = _geojson(cohort, slide_id, kind)
        path.parent.mkdir(exist_ok=True)
        features = [
            {"type": "Feature", "geometry": mapping(part), "properties": {"name": kind}}
            for part in polygons.geoms
        ]
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    path = _nuclei(cohort, slide_id)
    path.parent.mkdir(exist_ok=True)
    truth.nuclei[NUCLEUS_COLUMNS].to_parquet(path, index=False)


def read_slide_truth(cohort: Path, slide_id: str) -> SlideTruth:
    """Read the truth of one slide of the cohort folder."""
    tissue, lesions = (
        MultiPolygon(
            [
                shape(feature["geometry"])
                for feature in json.loads(_geojson(cohort, slide_id, kind).read_text())["features"]
            ]
        )
        for kind in KINDS
    )
    return SlideTruth(tissue, lesions, pd.read_parquet(_nuclei(cohort, slide_id)))


def read_latents(cohort: Path) -> pd.DataFrame:
    """Latents by patient id: image, genomic, clinical, risk (log hazard), subtype_logit."""
    return pd.read_csv(cohort / "truth" / "latents.csv", index_col="patient_id")


def read_slide_plans(cohort: Path) -> pd.DataFrame:
    """By slide id: state (good, truncated, blank, no_mpp), pen colour, folded, blurred."""
    return pd.read_csv(cohort / "truth" / "slides.csv", index_col="slide_id")


def _geojson(cohort: Path, slide_id: str, kind: str) -> Path:
    return cohort / "truth" / kind / f"{slide_id}.geojson"


def _nuclei(cohort: Path, slide_id: str) -> Path:
    return cohort / "truth" / "nuclei" / f"{slide_id}.parquet"
