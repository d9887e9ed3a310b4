"""Weighted pair counting in O(n log n): the engine under every concordance and AUC.

A bootstrap resample of patients is a column of integer weights, so that all resamples of a metric
are computed at once from one sort of the data. Functions here take weights of shape ``(n, b)``,
float64, one column a resample, and return arrays of shape ``(b,)``.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

# Rows times columns worked on at once: a slice of a few hundred kB stays in the cache.
_CELLS = 1 << 16


def concordant_pairs(
    time: Floats, event: Flags, risk: Floats, case: Floats, control: Floats
) -> tuple[Floats, Floats]:
    """Weighted concordant and comparable pairs of right-censored data.

    A pair (i, j) is comparable when i had the event and j was observed longer, or as long without
    the event (Harrell et al., Statistics in Medicine 15, 1996, section 5.5); it is concordant
    when i has the higher risk, and counts one half when the risks are equal.

    Parameters
    ----------
    time, event, risk
        Shape ``(n,)``. Higher risk means an earlier event.
    case, control
        Shape ``(n, b)``: weight of a patient as the one with the event (i) and as the other (j).

    Returns
    -------
    concordant, comparable
        Sums over pairs of ``case[i] * control[j]``, shape ``(b,)``.
    """
    exit_order = _dense_rank(np.lexsort((~event, time)), time, event)
    # Equal exits are not comparable: with rising risk inside such a group it holds no inversion.
    order = np.lexsort((risk, exit_order))
    risk_rank = np.empty(len(order), dtype=np.int64)
    risk_rank[np.argsort(risk[order], kind="stable")] = np.arange(len(order))
    levels = _inversion_levels(risk_rank, event[order])
    concordant = np.zeros(case.shape[1])
    comparable = np.zeros(case.shape[1])
    tied = np.lexsort((exit_order, risk))
    for columns in _column_slices(case.shape):
        cases, controls = case[order, columns], control[order, columns]
        cases *= event[order, None]
        inversions = sum(
            (
                _dot(controls[later], _cumulative(cases[earlier]), start, stop)
                for earlier, later, start, stop in levels
            ),
            start=np.zeros(cases.shape[1]),
        )
        before = _group_starts(exit_order[order])
        comparable[columns] = _dot(controls, _cumulative(cases), np.zeros_like(before), before)
        ties = _dot(
            control[tied, columns],
            _cumulative(case[tied, columns] * event[tied, None]),
            _group_starts(risk[tied]),
            _group_starts(risk[tied], exit_order[tied]),
        )
        concordant[columns] = inversions + 0.5 * ties
    return concordant, comparable


def ranked_pairs(score: Floats, case: Floats, control: Floats) -> tuple[Floats, Floats]:
    """Weighted pairs in which the case has the higher score, and all pairs.

    Their ratio is the area under the ROC curve; equal scores count one half.

    Parameters
    ----------
    score
        Shape ``(n,)``.
    case, control
        Shape ``(n, b)``; a patient who is no case (no control) has weight 0 there.

    Returns
    -------
    ranked, all_pairs
        Shape ``(b,)``.
    """
    order = np.argsort(score, kind="stable")
    starts = _group_starts(score[order])
    stops = _group_stops(score[order])
    is_case = np.any(case != 0, axis=1)[order]
    ranked = np.zeros(case.shape[1])
    for columns in _column_slices(case.shape):
        below = _cumulative(control[order, columns])
        halves = 0.5 * (below[starts[is_case]] + below[stops[is_case]])
        ranked[columns] = np.einsum("ij,ij->j", case[order[is_case], columns], halves)
    return ranked, case.sum(axis=0) * control.sum(axis=0)


def threshold_counts(score: Floats, case: Floats, control: Floats) -> tuple[Floats, Floats]:
    """Weighted cases and controls at or above each distinct score, from the highest down.

    Returns
    -------
    true_positives, false_positives
        Shape ``(distinct scores, b)``.
    """
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    return case[order].cumsum(axis=0)[last], control[order].cumsum(axis=0)[last]


def _inversion_levels(
    rank: Integers, is_case: Flags
) -> list[tuple[Integers, Integers, Integers, Integers]]:
    """Index arrays that split the inversions of a permutation by the bit that reveals them.

    Two elements of an inversion share the high bits of their ranks down to some bit, where the
    earlier has 1 and the later 0. Arranged by those high bits, all such pairs lie in one block.

    Returns
    -------
    levels
        One tuple a bit: positions of cases with the bit set, positions of elements without it,
        and for each of the latter the range of the former that precede it in its block.
    """
    count = len(rank)
    arrangement = np.arange(count)
    levels = []
    for bit in reversed(range(max(count - 1, 1).bit_length())):
        ranks = rank[arrangement]
        one = (ranks >> bit) & 1 == 1
        cases_before = np.concatenate([[0], np.cumsum(one & is_case[arrangement])])
        zeros = np.flatnonzero(~one)
        block_start = (ranks[zeros] >> (bit + 1)) << (bit + 1)
        levels.append(
            (
                arrangement[one & is_case[arrangement]],
                arrangement[zeros],
                cases_before[block_start],
                cases_before[zeros],
            )
        )
        arrangement = arrangement[np.argsort(ranks >> bit, kind="stable")]
    return levels


def _dot(weights: Floats, cumulative: Floats, start: Integers, stop: Integers) -> Floats:
    """Sum over rows r of ``weights[r] * (cumulative[stop[r]] - cumulative[start[r]])``."""
    return np.asarray(np.einsum("ij,ij->j", weights, cumulative[stop] - cumulative[start]))


def _cumulative(weights: Floats) -> Floats:
    """Cumulative sums along rows with a leading row of zeros, shape ``(n + 1, b)``."""
    out = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=out[1:])
    return out


def _dense_rank(order: Integers, *keys: NDArray[np.generic]) -> Integers:
    """Rank from 0 of each element under `order`, equal for elements with equal keys."""
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.cumsum(_is_new(*(key[order] for key in keys))) - 1
    return rank


def _group_starts(*ordered: NDArray[np.generic]) -> Integers:
    """For each element of sorted keys, the position of the first equal one."""
    new = _is_new(*ordered)
    return np.flatnonzero(new)[np.cumsum(new) - 1]


def _group_stops(ordered: NDArray[np.generic]) -> Integers:
    """For each element of a sorted key, one past the position of the last equal one."""
    new = _is_new(ordered)
    return np.append(np.flatnonzero(new)[1:], len(new))[np.cumsum(new) - 1]


def _is_new(*ordered: NDArray[np.generic]) -> Flags:
    new = np.zeros(len(ordered[0]), dtype=bool)
    new[:1] = True
    for key in ordered:
        new[1:] |= key[1:] != key[:-1]
    return new


def _column_slices(shape: tuple[int, ...]) -> Iterator[slice]:
    width = max(1, _CELLS // max(shape[0], 1))
    for start in range(0, shape[1], width):
        yield slice(start, start + width)
