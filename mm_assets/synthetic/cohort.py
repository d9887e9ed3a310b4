"""The demo cohort: a folder like a real cohort's, with the truth beside it for scoring."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from mm_assets.cohort.problems import CohortError, Problem
from mm_assets.synthetic.latents import SITES, draw_patients
from mm_assets.synthetic.oddities import (
    WITHOUT_AGE,
    WITHOUT_ENDPOINT,
    WITHOUT_OMICS,
    SlidePlan,
    plan_slides,
)
from mm_assets.synthetic.omics import OmicsTables, draw_omics, write_study
from mm_assets.synthetic.threads import do_each

GENERATOR_VERSION = 2
MARKER = "demo.json"
PATIENTS, SLIDES_PX = 120, (1500, 3000)
CLINICAL_COLUMNS = ["age", "sex", "site", "subtype", "survival_months", "event"]


def create_demo_cohort(
    out: Path,
    patients: int = PATIENTS,
    seed: int = 0,
    slides_px: tuple[int, int] = SLIDES_PX,
    progress: Callable[[int, int], None] | None = None,
    oddities: bool = True,
) -> None:
    """Write a synthetic cohort with planted, known signal.

    `out` gets ``slides/``, ``slides.csv``, ``clinical.csv``, ``omics/`` (a cBioPortal study),
    ``attainable.json`` (the best metrics that knowledge of the truth would reach) and ``truth/``
    (read by `synthetic.truth`; for scoring only). The same parameters give the same bytes. All is
    written beside `out` and moved there at the end; a complete cohort of the same parameters is
    left as it is, one of other parameters is replaced.

    Parameters
    ----------
    out
        Folder of the cohort.
    patients
        Number of patients; the first n patients are the same for every larger number.
    seed
        Seed of everything random.
    slides_px
        Least and largest edge of a slide in pixels of 0.5 micrometres.
    progress
        Called with slides done and slides in all after every slide.
    oddities
        Whether to include what real cohorts hold: a truncated slide, a blank one, one without
        resolution, a patient without omics, one without endpoints, one without age, two with
        several slides (see `oddities`).

    Raises
    ------
    CohortError
        If `out` holds something that is not a demo cohort.
    """
    if demo_is_complete(out, patients, seed, slides_px, oddities):
        return
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise CohortError(
            [Problem(str(out), "holds files that are not a demo cohort", "choose another folder")]
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as workplace:
        folder = Path(workplace) / "cohort"
        folder.mkdir()
        _write_cohort(folder, patients, seed, slides_px, progress, oddities)
        (folder / MARKER).write_text(_marker(patients, seed, slides_px, oddities))
        if out.exists():
            out.rename(Path(workplace) / "replaced")
        folder.rename(out)


def demo_is_complete(
    out: Path,
    patients: int = PATIENTS,
    seed: int = 0,
    slides_px: tuple[int, int] = SLIDES_PX,
    oddities: bool = True,
) -> bool:
    """Whether `out` holds the whole cohort of these parameters, made by this generator."""
    marker = out / MARKER
    return marker.exists() and marker.read_text() == _marker(patients, seed, slides_px, oddities)


def _marker(patients: int, seed: int, slides_px: tuple[int, int], oddities: bool) -> str:
    content = {
        "generator": GENERATOR_VERSION,
        "patients": patients,
        "seed": seed,
        "slides_px": list(slides_px),
        "oddities": oddities,
    }
    return json.dumps(content, indent=1) + "\n"


def _write_cohort(
    folder: Path,
    patients: int,
    seed: int,
    slides_px: tuple[int, int],
    progress: Callable[[int, int], None] | None,
    oddities: bool,
) -> None:
    latents, plans = _drawn(patients, seed, oddities)
    write_tables(folder, patients, seed, oddities)
    clinical = _clinical_table(latents, oddities)
    attainable = json.dumps(_attainable(latents, clinical), indent=1)
    (folder / "attainable.json").write_text(attainable + "\n")
    truth = folder / "truth"
    truth.mkdir()
    columns = ["image", "genomic", "clinical", "risk", "subtype_logit"]
    latents[columns].to_csv(truth / "latents.csv")
    pd.DataFrame(plans).drop(columns=["patient", "section"]).to_csv(
        truth / "slides.csv", index=False
    )
    _write_slides(folder, plans, latents, seed, slides_px, progress)


def write_tables(folder: Path, patients: int, seed: int, oddities: bool) -> None:
    """What a cohort reads beside its slides: ``clinical.csv``, ``slides.csv`` and ``omics/``."""
    latents, plans = _drawn(patients, seed, oddities)
    _clinical_table(latents, oddities).to_csv(folder / "clinical.csv")
    _manifest(plans, latents).to_csv(folder / "slides.csv", index=False)
    write_study(folder / "omics", _omics_tables(latents, seed, oddities), seed)


def _drawn(patients: int, seed: int, oddities: bool) -> tuple[pd.DataFrame, list[SlidePlan]]:
    latents = draw_patients(patients, seed)
    return latents, plan_slides(list(latents.index), oddities)


def _clinical_table(latents: pd.DataFrame, oddities: bool) -> pd.DataFrame:
    clinical = latents[CLINICAL_COLUMNS].astype({"event": "Int64"})
    if oddities:
        places = np.arange(len(clinical))
        endpoints = ["subtype", "survival_months", "event"]
        clinical.loc[places == WITHOUT_ENDPOINT, endpoints] = pd.NA
        clinical.loc[places == WITHOUT_AGE, "age"] = np.nan
    return clinical


def _manifest(plans: list[SlidePlan], latents: pd.DataFrame) -> pd.DataFrame:
    patients = latents.index[[plan.patient for plan in plans]]
    return pd.DataFrame(
        {
            "slide_id": [plan.slide_id for plan in plans],
            "patient_id": patients,
            "path": [f"{plan.slide_id}.tiff" for plan in plans],
            "site": latents.loc[patients, "site"].to_numpy(),
            "mpp": "",
        }
    )


def _omics_tables(latents: pd.DataFrame, seed: int, oddities: bool) -> OmicsTables:
    tables = draw_omics(latents["genomic"], seed)
    if not oddities or len(latents) <= WITHOUT_OMICS:
        return tables
    missing = f"{latents.index[WITHOUT_OMICS]}-01"
    return OmicsTables(
        tables.expression.drop(index=missing),
        tables.copy_number.drop(index=missing),
        tables.mutations.drop(index=missing),
    )


def _attainable(latents: pd.DataFrame, clinical: pd.DataFrame) -> dict[str, dict[str, object]]:
    """Metrics of the true risk and the true logit on the patients that have endpoints."""
    from lifelines.utils import concordance_index
    from sklearn.metrics import roc_auc_score

    known = clinical.dropna(subset=["survival_months", "event", "subtype"])
    truth = latents.loc[known.index]
    note = f"of the true linear predictor on the {len(known)} patients with endpoints"
    results: dict[str, dict[str, object]] = {}
    if known["event"].sum() >= 2:
        value = concordance_index(known["survival_months"], -truth["risk"], known["event"])
        results["survival"] = {"metric": "c_index", "value": round(value, 4), "note": note}
    if known["subtype"].nunique() == 2:
        value = roc_auc_score(known["subtype"] == "ILC", truth["subtype_logit"])
        results["subtype"] = {"metric": "auc", "value": round(value, 4), "note": note}
    return results


def _write_slides(
    folder: Path,
    plans: list[SlidePlan],
    latents: pd.DataFrame,
    seed: int,
    slides_px: tuple[int, int],
    progress: Callable[[int, int], None] | None,
) -> None:
    from mm_assets.synthetic.slides import write_slide
    from mm_assets.synthetic.truth import write_slide_truth

    (folder / "slides").mkdir()

    def write(plan: SlidePlan) -> None:
        patient = latents.iloc[plan.patient]
        path = folder / "slides" / f"{plan.slide_id}.tiff"
        site = SITES.index(patient["site"])
        truth = write_slide(path, plan, patient["image"], site, seed, slides_px)
        write_slide_truth(folder, plan.slide_id, truth)

    do_each(write, plans, min(8, os.cpu_count() or 1), progress)
