"""Tile importance by positive-unlabeled learning: keep the tiles that do not look like negatives.

Hierarchical Extremum Encoding (DESIGN section 7). For every class, tiles of patients outside it are
sure negatives, and tiles of patients inside it are unlabeled: some show the class, the others are
what every patient has. Survival has two classes, above and below the training patients' median
martingale residual, which counts censored time. A scorer never reads the label of the patient whose
tiles it scores.

The model is linear on the few principal components that carry most of the variance, because it
sees as many tiles as it likes but only as many labels as there are patients. Whatever is read off
scores (prior, tail ratios, cutoff) comes from models that had not seen the patient scored.

Scores of several classes are made comparable by tail ratios: of a class, the logarithm of how many
times rarer tiles at least this unlike the negatives are among the negatives than among the
unlabeled, which is minus the logarithm of the false discovery rate with the negatives as the null
sample (Storey 2002). A class whose patients have no tiles of their own adds nothing to the choice.
`mm_assets_tests.benchmarks.pu_selection` is the study behind the defaults. The excess gives both of
two classes one prior: where only one has tiles of its own, up to twice too many are kept.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mm_assets.cohort.clinical import Endpoint
from mm_assets.models.folds import list_folds
from mm_assets.models.losses import Outcome, nelson_aalen
from mm_assets.models.pu_risk import (
    Floats,
    elkan_noto_prior,
    excess_prior,
    fit_logistic,
    fit_non_negative,
    sigmoid,
    upper_tail,
)
from mm_assets.models.tile_sample import Tiles, sample_tiles, tiles_a_patient
from mm_assets.models.tile_scorers import TileScorer, combine, keep_all
from mm_assets.omics.filters import ALL_PATIENTS

Method = Literal["naive", "elkan_noto", "nnpu"]
Bags = Iterable[tuple[str, NDArray[np.floating]]]

VARIANCE, MOST_COMPONENTS = 0.8, 32
INNER_FOLDS = 5
LEAST_PATIENTS = 2
LEAST_SHARE = 0.05
KNOTS = 129
TAIL_FLOOR = 0.02


@dataclass(frozen=True)
class PuParameters:
    """Settings of a fit.

    Attributes
    ----------
    method
        ``elkan_noto``: logistic regression, prior by Elkan and Noto's c. ``nnpu``: non-negative PU
        risk, prior by `excess_prior`. ``naive``: logistic regression that takes every tile of a
        patient inside a class for a tile of that class.
    share
        Share of the training patients' tiles to keep; None takes it from the estimated priors.
    calibrated
        Whether classes are compared by tail ratios; otherwise by the models' own log odds.
    """

    method: Method = "nnpu"
    share: float | None = None
    calibrated: bool = True
    seed: int = 0


def fit_tile_scorer(
    bags: Bags, endpoint: Endpoint, train: Sequence[str], parameters: PuParameters = PuParameters()
) -> TileScorer:
    """Fit a scorer to the tiles of the training patients.

    Parameters
    ----------
    bags
        Patient and embeddings [n, D], chunk by chunk, as `sample_tiles` takes them.
    train
        Training patients; those without tiles or endpoint are ignored.

    Raises
    ------
    ValueError
        If an embedding is not finite.
    """
    return _fit(sample_for(bags, endpoint, parameters.seed), endpoint, train, parameters)


def sample_for(bags: Bags, endpoint: Endpoint, seed: int) -> dict[str, Tiles]:
    """Sample of the tiles of the patients with an endpoint, in one pass over `bags`."""
    patients = set(endpoint.table.index)
    chosen = ((patient, tiles) for patient, tiles in bags if patient in patients)
    return sample_tiles(chosen, tiles_a_patient(len(patients)), seed)


def fit_tile_scorers(
    sample: Mapping[str, Tiles],
    endpoint: Endpoint,
    splits: pd.DataFrame,
    parameters: PuParameters = PuParameters(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[tuple[int, int], TileScorer]:
    """`fit_tile_scorer` on the training patients of every fold, and on all patients of the task.

    Parameters
    ----------
    sample
        As from `sample_for` with the seed of `parameters`.

    Returns
    -------
    dict
        Scorer by (repeat, fold); repeat = fold = -1 is the scorer of all patients, for the final
        model only.
    """
    trained_on = {(fold.repeat, fold.fold): fold.train for fold in list_folds(splits)}
    trained_on[ALL_PATIENTS, ALL_PATIENTS] = endpoint.table.index.tolist()
    scorers = {}
    for key, train in trained_on.items():
        scorers[key] = _fit(sample, endpoint, train, parameters)
        progress(len(scorers), len(trained_on))
    return scorers


def kept_shares(
    sample: Mapping[str, Tiles],
    scorers: Mapping[tuple[int, int], TileScorer],
    splits: pd.DataFrame,
) -> pd.DataFrame:
    """Share of the sampled tiles above each fold's cutoff: a row a fold.

    Returns
    -------
    DataFrame
        Columns repeat, fold, method, wanted (share aimed at), train and test (shares of the tiles
        of training and of held-out patients; NaN without tiles), classes (learnt about) and priors
        (of negatives, by class), the last two as text.
    """
    rows = []
    for fold in list_folds(splits):
        scorer = scorers[fold.repeat, fold.fold]
        rows.append(
            {
                "repeat": fold.repeat,
                "fold": fold.fold,
                "method": scorer.method,
                "wanted": scorer.share,
                "train": _share_above(sample, scorer, fold.train),
                "test": _share_above(sample, scorer, fold.test),
                "classes": ", ".join(scorer.classes),
                "priors": ", ".join(f"{prior:.2f}" for prior in scorer.priors),
            }
        )
    return pd.DataFrame(rows)


def _share_above(sample: Mapping[str, Tiles], scorer: TileScorer, patients: Sequence[str]) -> float:
    above = [scorer.score(sample[p]) > scorer.cutoff for p in patients if p in sample]
    return float(np.concatenate(above).mean()) if above else float("nan")


def contrasts(endpoint: Endpoint, train: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Class -> which of the patients `train` are inside it, bool [patients].

    Survival: ``high`` is above the median martingale residual of the training patients (event
    minus Nelson-Aalen cumulative hazard), ``low`` is the others.
    """
    table = endpoint.table.loc[list(train)]
    if endpoint.kind == "classification":
        label = table["label"].to_numpy()
        return {name: label == code for code, name in enumerate(endpoint.classes)}
    outcome = Outcome.of(table)
    residual = outcome.event - nelson_aalen(outcome, outcome.time)
    high = residual > np.median(residual)
    return {"high": high, "low": ~high}


def _fit(
    sample: Mapping[str, Tiles], endpoint: Endpoint, train: Sequence[str], parameters: PuParameters
) -> TileScorer:
    patients = sorted(set(train) & set(sample) & set(endpoint.table.index))
    learnable = {
        name: inside
        for name, inside in (contrasts(endpoint, patients).items() if patients else ())
        if min(inside.sum(), (~inside).sum()) >= LEAST_PATIENTS
    }
    if not learnable or _all_alike(sample, patients):
        return keep_all(parameters.method)
    owner = np.repeat(np.arange(len(patients)), [len(sample[patient]) for patient in patients])
    tiles = np.concatenate([sample[patient] for patient in patients]).astype(np.float32)
    projection, shift = _fit_projection(tiles)
    rows = (tiles @ projection + shift).astype(np.float64)
    fitted = [_fit_class(rows, owner, inside, parameters) for inside in learnable.values()]
    held_out = np.column_stack([each.held_out for each in fitted])
    knots, ratios = np.stack([e.knots for e in fitted]), np.stack([e.ratios for e in fitted])
    share = parameters.share
    if share is None:
        own = sum(each.own_tiles for each in fitted) / len(rows)
        share = float(np.clip(own, LEAST_SHARE, 1.0))
    combined = combine(held_out, knots, ratios)
    cutoff = -np.inf if share == 1.0 else float(np.quantile(combined, 1 - share))
    return TileScorer(
        method=parameters.method,
        share=share,
        cutoff=cutoff,
        classes=tuple(learnable),
        priors=np.array([each.prior for each in fitted]),
        projection=projection,
        shift=shift,
        weights=np.stack([each.weights for each in fitted]),
        offsets=np.array([each.offset for each in fitted]),
        knots=knots,
        ratios=ratios,
    )


def _all_alike(sample: Mapping[str, Tiles], patients: Sequence[str]) -> bool:
    first = sample[patients[0]][0]
    return all((sample[patient] == first).all() for patient in patients)


def _fit_projection(tiles: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Standardization, then the whitened components that carry `VARIANCE`, as one affine map."""
    from sklearn.decomposition import PCA

    mean, scale = tiles.mean(axis=0), tiles.std(axis=0)
    scale[scale < 1e-6] = 1.0
    most = min(MOST_COMPONENTS, *tiles.shape)
    pca = PCA(most, svd_solver="covariance_eigh").fit((tiles - mean) / scale)
    carried = np.cumsum(pca.explained_variance_ratio_)
    count = min(int(np.searchsorted(carried, VARIANCE)) + 1, most)
    spread = np.sqrt(np.maximum(pca.explained_variance_[:count], 1e-6))
    projection = (pca.components_[:count] / spread[:, None] / scale).T
    shift = -(mean @ projection) - pca.mean_ @ (pca.components_[:count] / spread[:, None]).T
    return projection.astype(np.float32), shift.astype(np.float32)


@dataclass(frozen=True, eq=False)
class _FittedClass:
    """Linear score of one class, and what was learnt from `held_out`, the training tiles' scores
    by models that had not seen the patient."""

    weights: Floats
    offset: float
    prior: float
    own_tiles: float
    held_out: Floats
    knots: Floats
    ratios: Floats


Linear = tuple[Floats, float]


def _fit_class(
    rows: Floats, owner: NDArray[np.int64], inside: NDArray[np.bool_], parameters: PuParameters
) -> _FittedClass:
    rng = np.random.default_rng(parameters.seed)
    fold, unlabeled = _deal(inside, rng)[owner], inside[owner]
    fit: Callable[[Floats, Floats], Linear] = fit_logistic
    negative = _cross_fit(rows, unlabeled, fold, fit)
    prior = {
        "naive": lambda: 0.0,
        "elkan_noto": lambda: elkan_noto_prior(sigmoid(negative[~unlabeled])),
        "nnpu": lambda: excess_prior(negative[~unlabeled], negative[unlabeled]),
    }[parameters.method]()
    if parameters.method == "nnpu":

        def fit(labelled: Floats, unlabeled: Floats) -> Linear:
            return fit_non_negative(labelled, unlabeled, prior, parameters.seed)

        negative = _cross_fit(rows, unlabeled, fold, fit)
    weights, intercept = fit(rows[~unlabeled], rows[unlabeled])
    # Elkan and Noto: among the unlabeled, P(negative) is the odds of being labelled times prior.
    shift = -np.log(max(prior, 1e-9)) if parameters.method == "elkan_noto" else 0.0
    held_out = shift - negative
    knots, ratios = np.empty(0), np.empty(0)
    if parameters.calibrated:
        knots, ratios = _tail_ratios(held_out, unlabeled)
    own = (1 - prior) * float(unlabeled.sum())
    return _FittedClass(-weights, shift - intercept, prior, own, held_out, knots, ratios)


def _deal(inside: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """Inner fold of each patient, patients inside and outside dealt evenly and apart."""
    fold = np.empty(len(inside), np.int64)
    for side in (inside, ~inside):
        fold[rng.permutation(np.flatnonzero(side))] = np.arange(side.sum()) % INNER_FOLDS
    return fold


def _cross_fit(
    rows: Floats,
    unlabeled: NDArray[np.bool_],
    fold: NDArray[np.int64],
    fit: Callable[[Floats, Floats], Linear],
) -> Floats:
    """Score of every row (above 0: negative) by the model fitted without its fold."""
    score = np.empty(len(rows))
    for number in np.unique(fold):
        out = fold == number
        weights, intercept = fit(rows[~out & ~unlabeled], rows[~out & unlabeled])
        score[out] = rows[out] @ weights + intercept
    return score


def _tail_ratios(scores: Floats, unlabeled: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Knots over the scores, and the logarithm of the ratio of upper tails at each, rising."""
    knots = np.quantile(scores, np.linspace(0, 1, KNOTS))
    # The floor keeps a handful of tiles, perhaps of one patient, from making a large ratio.
    inside = upper_tail(scores[unlabeled], knots) + TAIL_FLOOR
    outside = upper_tail(scores[~unlabeled], knots) + TAIL_FLOOR
    return knots, np.maximum.accumulate(np.log(inside / outside))
