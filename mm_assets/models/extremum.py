"""Extremum encoding: per embedding dimension the smallest and largest value and where it lies.

The extrema of Hierarchical Extremum Encoding (Genomics England / AWS; DESIGN section 7). Extrema
are associative, so chunks combine into slides and slides into patients by another minimum and
maximum: one pass, memory bounded by a chunk. Every value keeps the level-0 coordinate of its
instance, so a model's feature leads back to a place on a slide. Ties go to the first instance
in grid order (by y, then x), then to the first slide id, whatever the order of the input.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mm_assets.omics.filters import ALL_PATIENTS

Level = Literal["tile", "region", "nucleus"]
# (level, dimension) -> a row of `patient_extrema`, by column.
Places = Mapping[tuple[str, int], Mapping[Hashable, Any]]
CHUNK_ROWS = 1024
SLIDE_COLUMNS = [
    "level", "dimension", "minimum", "min_x", "min_y", "maximum", "max_x", "max_y", "size0",
]  # fmt: skip
FOLD_COLUMNS = ["repeat", "fold", "selected"]


@dataclass(frozen=True)
class ExtremumFeature:
    """What a feature name stands for: one extremum of one embedding dimension of one level."""

    level: str
    extremum: Literal["min", "max"]
    dimension: int

    @property
    def name(self) -> str:
        """Feature name, ``<level>:<min|max>:<dimension>``, e.g. ``tile:max:0017``."""
        return f"{self.level}:{self.extremum}:{self.dimension:04d}"


@dataclass(frozen=True)
class Evidence:
    """Where an extremum lies: slide, level-0 pixel of the top-left corner, edge, and its value."""

    slide_id: str
    x: int
    y: int
    size0: int
    value: float


def parse_feature(name: str) -> ExtremumFeature:
    """Level, extremum and dimension of a feature name.

    Raises
    ------
    ValueError
        If the name is not one of an extremum feature.
    """
    level, extremum, dimension = [*name.split(":"), "", ""][:3]
    if name.count(":") != 2 or extremum not in ("min", "max") or not dimension.isdigit():
        raise ValueError(f"{name!r} is no extremum feature, expected <level>:<min|max>:<dimension>")
    return ExtremumFeature(level, "min" if extremum == "min" else "max", int(dimension))


def encode_extrema(chunks: Iterable[pa.Table | pa.RecordBatch], level: Level) -> pd.DataFrame:
    """Extrema of one slide's embeddings, in one pass.

    Parameters
    ----------
    chunks
        Arrow tables or record batches with columns `embedding` (fixed-size list of D floats),
        `x`, `y` (int32, level-0 pixels of the top-left corner) and `size0` (int32, edge in
        level-0 pixels, equal in all rows).
    level
        Which instances these are.

    Returns
    -------
    DataFrame
        D rows sorted by dimension: `level`, `dimension` (int32), `minimum` (float32), `min_x`,
        `min_y`, `maximum` (float32), `max_x`, `max_y`, `size0` (int32). No rows when there is no
        instance.

    Raises
    ------
    ValueError
        If an embedding is not finite or `size0` differs between rows.
    """
    lowest: _Running | None = None
    highest: _Running | None = None
    sizes: set[int] = set()
    for values, x, y, size0 in _blocks(chunks):
        sizes.update(np.unique(size0).tolist())
        # Minimum of x is the negated maximum of -x, so that one update rule serves both.
        lowest = _update(lowest, values, x, y, -1)
        highest = _update(highest, values, x, y, 1)
    if len(sizes) > 1:
        raise ValueError(f"{level} embeddings of one slide differ in size0: {sorted(sizes)}")
    if lowest is None or highest is None:
        return _typed(pd.DataFrame(columns=SLIDE_COLUMNS))
    if not (np.isfinite(lowest.value).all() and np.isfinite(highest.value).all()):
        raise ValueError(f"{level} embeddings hold values that are not finite; compute them anew")
    return _typed(
        pd.DataFrame(
            {
                "level": level,
                "dimension": np.arange(len(lowest.value)),
                "minimum": 0.0 - lowest.value,
                "min_x": lowest.x,
                "min_y": lowest.y,
                "maximum": highest.value,
                "max_x": highest.x,
                "max_y": highest.y,
                "size0": sizes.pop(),
            }
        )
    )


def of_all(extrema: pd.DataFrame) -> pd.DataFrame:
    """Extrema over all instances, with the columns repeat, fold and selected."""
    return _labelled(extrema, ALL_PATIENTS, ALL_PATIENTS, selected=False)


def of_selected(extrema: pd.DataFrame, repeat: int, fold: int) -> pd.DataFrame:
    """Extrema over the instances that the selection of a fold keeps."""
    return _labelled(extrema, repeat, fold, selected=True)


def of_fold(
    extrema: pd.DataFrame,
    repeat: int = ALL_PATIENTS,
    fold: int = ALL_PATIENTS,
    selection: bool = True,
) -> pd.DataFrame:
    """The extrema of a slide that the model of a fold reads, by default the final model's.

    Of a level with a selection of the fold those of the kept instances, of other levels (of all
    without `selection`) those of all instances.

    Parameters
    ----------
    extrema
        `of_all` and `of_selected` of the slide, one below the other.

    Returns
    -------
    Columns as from `encode_extrema`.
    """
    chosen = extrema["selected"] & (extrema["repeat"] == repeat) & (extrema["fold"] == fold)
    kept = extrema[chosen & selection]
    whole = extrema[~extrema["selected"] & ~extrema["level"].isin(kept["level"].unique())]
    return pd.concat([whole, kept], ignore_index=True).drop(columns=FOLD_COLUMNS)


def _labelled(extrema: pd.DataFrame, repeat: int, fold: int, selected: bool) -> pd.DataFrame:
    return extrema.assign(repeat=np.int32(repeat), fold=np.int32(fold), selected=selected)


def of_slide(extrema: pd.DataFrame, slide_id: str) -> pd.DataFrame:
    """A slide's extrema with the columns that `combine` needs: slide id and size of each."""
    return extrema.drop(columns="size0").assign(
        min_slide=slide_id,
        max_slide=slide_id,
        min_size0=extrema["size0"],
        max_size0=extrema["size0"],
    )


def combine(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Extrema of the union of two sets of instances (see `of_slide`); associative, commutative.

    A level or dimension that only one side has is kept as it is.
    """
    keys = ["level", "dimension"]
    rows = pd.concat([first, second], ignore_index=True)
    halves = []
    for side, value, ascending in (("min", "minimum", True), ("max", "maximum", False)):
        columns = [value, f"{side}_x", f"{side}_y", f"{side}_slide", f"{side}_size0"]
        order = rows.sort_values(
            [*keys, value, f"{side}_slide", f"{side}_y", f"{side}_x"],
            ascending=[True, True, ascending, True, True, True],
        )
        halves.append(order.drop_duplicates(keys)[[*keys, *columns]].set_index(keys))
    return pd.concat(halves, axis=1).reset_index()[list(first.columns)]


def patient_extrema(
    by_slide: Mapping[str, pd.DataFrame], manifest: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Extrema of every patient over the patient's slides, with `min_slide` and `max_slide`.

    Parameters
    ----------
    by_slide
        `encode_extrema` of each slide (levels concatenated), by slide id.
    manifest
        Columns `slide_id` and `patient_id`; slides that `by_slide` lacks are left out.
    """
    have = manifest[manifest["slide_id"].isin(list(by_slide))]
    return {
        str(patient): reduce(combine, [of_slide(by_slide[slide], slide) for slide in slides])
        for patient, slides in have.sort_values("slide_id").groupby("patient_id")["slide_id"]
    }


def patient_matrix(by_slide: Mapping[str, pd.DataFrame], manifest: pd.DataFrame) -> pd.DataFrame:
    """One row a patient, one float32 column an extremum feature (`tile:min:0000` and so on).

    Parameters are those of `patient_extrema`. Patients without any slide in `by_slide` have no
    row; levels that a patient lacks are missing values.
    """
    owner = manifest.set_index("slide_id")["patient_id"]
    rows: dict[str, pd.Series] = {}
    for slide in sorted(set(by_slide) & set(owner.index)):
        row = _as_row(by_slide[slide])
        patient = str(owner[slide])
        rows[patient] = _merge_rows(rows[patient], row) if patient in rows else row
    matrix = pd.DataFrame(rows, dtype=np.float32).T.sort_index().sort_index(axis=1)
    matrix.index.name = "patient_id"
    return matrix


def places_of(patient: pd.DataFrame) -> Places:
    """One patient's extrema (from `patient_extrema`) by level and dimension, for `locate`."""
    keys = zip(patient["level"], patient["dimension"], strict=True)
    return dict(zip(keys, patient.to_dict("records"), strict=True))


def locate(places: Places, feature: str) -> Evidence:
    """Slide, coordinate and value behind a patient's feature.

    Parameters
    ----------
    feature
        Feature name, as in `patient_matrix`.

    Raises
    ------
    KeyError
        If the patient has no such level or dimension.
    """
    parsed = parse_feature(feature)
    found = places.get((parsed.level, parsed.dimension))
    if found is None:
        raise KeyError(f"the patient has no extremum for feature {feature}")
    side = parsed.extremum
    return Evidence(
        slide_id=str(found[f"{side}_slide"]),
        x=int(found[f"{side}_x"]),
        y=int(found[f"{side}_y"]),
        size0=int(found[f"{side}_size0"]),
        value=float(found[f"{side}imum"]),
    )


@dataclass(frozen=True)
class _Running:
    """Largest value so far of each dimension and the coordinate of its first instance."""

    value: NDArray[np.float32]
    x: NDArray[np.int32]
    y: NDArray[np.int32]


def _update(
    best: _Running | None,
    values: NDArray[np.float32],
    x: NDArray[np.int32],
    y: NDArray[np.int32],
    sign: Literal[-1, 1],
) -> _Running:
    """`best` of sign * values after a block in grid order: values [n, D], x and y [n]."""
    top = values.max(axis=0) if sign > 0 else -values.min(axis=0)
    if best is None:
        at = values.argmax(axis=0) if sign > 0 else values.argmin(axis=0)
        return _Running(top, x[at], y[at])
    earlier = (y[0] < best.y) | ((y[0] == best.y) & (x[0] < best.x))
    # The coordinate is searched only where the value grew (rare after the first blocks) or where
    # a tie could lie earlier in the grid (never when blocks come in grid order).
    columns = np.flatnonzero((top > best.value) | np.isnan(top) | ((top == best.value) & earlier))
    at = (sign * values[:, columns]).argmax(axis=0)
    new_x, new_y = x[at], y[at]
    wins = (top[columns] != best.value[columns]) | (new_y < best.y[columns])
    wins |= (new_y == best.y[columns]) & (new_x < best.x[columns])
    changed = columns[wins]
    result = _Running(np.maximum(top, best.value), best.x.copy(), best.y.copy())
    result.x[changed] = new_x[wins]
    result.y[changed] = new_y[wins]
    return result


def _blocks(
    chunks: Iterable[pa.Table | pa.RecordBatch],
) -> Iterable[tuple[NDArray[Any], ...]]:
    """Blocks of at most `CHUNK_ROWS` instances in grid order: values, x, y, size0."""
    for chunk in chunks:
        table = pa.Table.from_batches([chunk]) if isinstance(chunk, pa.RecordBatch) else chunk
        for batch in table.to_batches(max_chunksize=CHUNK_ROWS):
            if not batch.num_rows:
                continue
            x, y, size0 = (batch.column(name).to_numpy() for name in ("x", "y", "size0"))
            values = batch.column("embedding").flatten().to_numpy()
            values = values.reshape(batch.num_rows, -1).astype(np.float32)
            order = np.lexsort((x, y))
            if (order[1:] < order[:-1]).any():
                values, x, y, size0 = values[order], x[order], y[order], size0[order]
            yield values, x, y, size0


def _typed(extrema: pd.DataFrame) -> pd.DataFrame:
    kinds = dict.fromkeys(SLIDE_COLUMNS, np.int32) | {
        "level": str,
        "minimum": np.float32,
        "maximum": np.float32,
    }
    return extrema.astype(kinds)


def _as_row(extrema: pd.DataFrame) -> pd.Series:
    """All values of a slide in one series, by feature name."""
    names = extrema["level"] + ":{}:" + extrema["dimension"].astype(str).str.zfill(4)
    sides = [
        pd.Series(extrema[value].to_numpy(), index=names.str.replace("{}", side))
        for side, value in (("min", "minimum"), ("max", "maximum"))
    ]
    return pd.concat(sides)


def _merge_rows(first: pd.Series, second: pd.Series) -> pd.Series:
    """Elementwise extrema of two rows; a feature of only one of them is kept."""
    first, second = first.align(second)
    smallest = first.index.str.contains(":min:", regex=False)
    values = np.where(smallest, np.fmin(first, second), np.fmax(first, second))
    return pd.Series(values, index=first.index)
