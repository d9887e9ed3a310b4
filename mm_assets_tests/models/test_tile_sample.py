"""The one-pass sample of tiles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_assets.models.tile_sample import (
    TILES_A_PATIENT,
    TILES_IN_ALL,
    sample_tiles,
    tiles_a_patient,
)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 50), max_size=6), most=st.integers(1, 60))
def test_chunks_do_not_change_the_sample(cuts: list[int], most: int) -> None:
    tiles = np.arange(100, dtype=np.float16).reshape(50, 2)
    whole = sample_tiles([("A", tiles), ("B", tiles + 1)], most, seed=3)
    pieces = [("A", piece) for piece in np.split(tiles, sorted(cuts))]
    mixed = [pieces[0], ("B", tiles + 1), *pieces[1:]]
    streamed = sample_tiles(iter(mixed), most, seed=3)
    assert list(whole) == list(streamed) == ["A", "B"]
    for patient in whole:
        np.testing.assert_array_equal(whole[patient], streamed[patient])
        assert len(whole[patient]) == min(most, 50)


def test_every_tile_is_equally_likely() -> None:
    tiles = np.arange(40, dtype=np.float16)[:, None]
    count = np.zeros(40)
    for seed in range(2000):
        count[sample_tiles([("A", tiles)], 10, seed)["A"][:, 0].astype(int)] += 1
    # Binomial with mean 500 and standard deviation 19.
    assert abs(count - 500).max() < 80


def test_memory_is_bounded_for_any_number_of_patients() -> None:
    assert tiles_a_patient(3) == TILES_A_PATIENT
    assert 10_000 * tiles_a_patient(10_000) <= TILES_IN_ALL
    assert tiles_a_patient(0) > 0
    assert tiles_a_patient(10**7) == 1


def test_a_sample_holds_no_view_of_what_it_was_drawn_from() -> None:
    tiles = np.ones((5, 2), np.float16)
    drawn = sample_tiles([("A", tiles)], 10, 0)["A"]
    assert not np.shares_memory(drawn, tiles)


def test_patients_without_tiles_are_absent_and_nan_is_refused() -> None:
    assert sample_tiles([("A", np.empty((0, 2), np.float16))], 5, 0) == {}
    assert sample_tiles([], 5, 0) == {}
    with pytest.raises(ValueError, match=r"patient A.*not finite"):
        sample_tiles([("A", np.array([[1.0, np.nan]], np.float16))], 5, 0)
