"""Asset checks of the cohort's tables; `inputs_ok` ones stop what depends on the asset."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mm_assets.assets.cohort_level import INPUTS_OK
from mm_assets.assets.stage import Check
from mm_assets.cohort.problems import Problem

if TYPE_CHECKING:
    import pandas as pd

    from mm_assets.evaluation.comparison import Evaluation

SHOWN = 50
PLAUSIBLE_SLOPE = (0.5, 2.0)
SANE_SHARE = (0.02, 0.9)
MOST_SHARE_GAP = 0.2


def remarks(problems: Sequence[Problem]) -> Check:
    """Warnings of a reader, listed."""
    lines = [f"- {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"- and {len(problems) - SHOWN} more: `mm check` lists all")
    return Check("remarks", passed=not problems, note="\n".join(lines))


def clinical_checks(table: "pd.DataFrame", problems: Sequence[Problem]) -> tuple[Check, ...]:
    """Patients are there, and there once."""
    return (
        Check(INPUTS_OK, passed=len(table) > 0, note="" if len(table) else "no patients"),
        Check("patients_unique", passed=bool(table.index.is_unique)),
        remarks(problems),
    )


def omics_checks(
    table: "pd.DataFrame", clinical: "pd.DataFrame", problems: Sequence[Problem]
) -> tuple[Check, ...]:
    """The omics table speaks of the patients of the clinical table."""
    shared = len(table.index.intersection(clinical.index))
    note = f"{shared} of {len(clinical)} clinical patients have omics, of {len(table)} with omics"
    return (
        Check(INPUTS_OK, passed=shared > 0, note=note),
        Check("overlap", passed=shared == len(clinical) == len(table), note=note),
        remarks(problems),
    )


def all_scored(predictions: "pd.DataFrame") -> Check:
    """Every model could read what there is of every patient; columns patient_id, model, refused."""
    refused = predictions[predictions["refused"] != ""]
    lines = [f"- {row.model}, {row.patient_id}: {row.refused}" for row in refused.itertuples()]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"- and {len(lines) - SHOWN} more, in the table"]
    return Check("all_scored", passed=refused.empty, note="\n".join(lines))


def splits_checks(
    splits: "pd.DataFrame",
    clinical: "pd.DataFrame",
    problems: Sequence[Problem],
    *,
    preserve_sites: bool,
) -> tuple[Check, ...]:
    """No patient, and under site-preserving folds no site, is on both sides of a fold."""
    sides = splits.groupby(["repeat", "fold", "patient_id"])["role"].nunique()
    both = sides[sides > 1]
    checks = [
        Check(INPUTS_OK, passed=both.empty, note=_listing(both.index.get_level_values(2))),
        Check("patients_apart", passed=both.empty, note=_listing(both.index.get_level_values(2))),
    ]
    if preserve_sites and "site" in clinical:
        located = splits.join(clinical["site"], on="patient_id")
        sites = located.groupby(["repeat", "fold", "site"])["role"].nunique()
        shared = sites[sites > 1].index.get_level_values("site").unique()
        checks.append(Check("sites_apart", passed=shared.empty, note=_listing(shared)))
    test = splits[splits["role"] == "test"].groupby(["repeat", "fold"]).size()
    uneven = test.max() > 2 * test.min()
    sizes = f"test folds hold {test.min()} to {test.max()} patients"
    checks += [Check("fold_sizes", passed=not uneven, note=sizes), remarks(problems)]
    return tuple(checks)


def telltale_check(names: Sequence[str]) -> Check:
    """No omics feature ranks the patients almost perfectly by itself."""
    note = f"a copy of the outcome? Leave out, or the results mean nothing: {', '.join(names)}"
    return Check("no_telltale", passed=not names, note=note if names else "")


def evaluation_checks(evaluation: "Evaluation", metric: str, model: str) -> tuple[Check, ...]:
    """Whether the judged model ranks better than chance and its probabilities can be believed."""
    rows = evaluation.metrics
    row = rows[(rows["model"] == model) & (rows["metric"] == metric)].iloc[0]
    figures = f"{metric} {row['value']:.3f}, 95 % interval {row['low']:.3f} to {row['high']:.3f}"
    fit = evaluation.calibration_fit
    slopes = fit.loc[fit["model"] == model, ["target", "slope"]].dropna()
    believable = slopes["slope"].between(*PLAUSIBLE_SLOPE)
    note = ", ".join(f"{r.target}: slope {r.slope:.2f}" for r in slopes.itertuples())
    return (
        Check("better_than_chance", passed=bool(row["low"] > 0.5), note=figures),
        Check("calibration", passed=bool(believable.all()), note=note),
    )


def selection_checks(shares: "pd.DataFrame") -> tuple[Check, ...]:
    """The selection chooses, and treats patients it has seen like those it has not."""
    without = shares[shares["classes"] == ""]
    contrast = [f"repeat {row.repeat} fold {row.fold}" for row in without.itertuples()]
    kept = shares["test"].dropna()
    gap = (shares["train"] - shares["test"]).abs().max()
    return (
        Check(INPUTS_OK, passed=bool(len(shares))),
        Check("contrast", passed=not contrast, note="keeps all tiles: " + ", ".join(contrast)),
        Check(
            "share_kept",
            passed=bool(kept.between(*SANE_SHARE).all()),
            note=f"{kept.min():.2f} to {kept.max():.2f} of the held-out patients' tiles",
        ),
        Check(
            "train_and_test_alike",
            passed=not gap > MOST_SHARE_GAP,
            note=f"share kept differs by up to {gap:.2f} between training and held-out patients",
        ),
    )


def _listing(names: "pd.Index") -> str:
    shown = ", ".join(map(str, names[:SHOWN]))
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
