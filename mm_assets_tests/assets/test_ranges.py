"""Ranges of slides that one run covers."""

from hypothesis import given
from hypothesis import strategies as st

from mm_assets.assets.ranges import contiguous_ranges

ORDER = [f"s{i:03d}" for i in range(40)]


@given(wanted=st.sets(st.sampled_from(ORDER)), chunk=st.integers(1, 12))
def test_ranges_cover_exactly_the_wanted_slides(wanted: set[str], chunk: int) -> None:
    ranges = contiguous_ranges(sorted(wanted), ORDER, chunk)
    covered = [ORDER[ORDER.index(first) : ORDER.index(last) + 1] for first, last in ranges]
    assert [slide for part in covered for slide in part] == sorted(wanted)
    assert all(len(part) <= chunk for part in covered)


def test_whole_order_in_full_chunks() -> None:
    assert contiguous_ranges(ORDER, ORDER, 25) == [("s000", "s024"), ("s025", "s039")]
