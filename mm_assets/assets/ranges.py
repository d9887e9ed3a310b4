"""Ranges of slides: Dagster's range runs hold partition keys that follow each other."""

from collections.abc import Sequence


def contiguous_ranges(
    wanted: Sequence[str], order: Sequence[str], chunk: int
) -> list[tuple[str, str]]:
    """First and last key of the runs that cover `wanted` and nothing else, `chunk` keys at most.

    Dagster's range runs hold contiguous partition keys in the order `order`.
    """
    chosen = set(wanted)
    ranges: list[tuple[str, str]] = []
    size = 0
    for position, key in enumerate(order):
        if key not in chosen:
            continue
        adjoins = size and order[position - 1] == ranges[-1][1]
        if adjoins and size < chunk:
            ranges[-1] = (ranges[-1][0], key)
            size += 1
        else:
            ranges.append((key, key))
            size = 1
    return ranges


def range_tags(first: str, last: str) -> dict[str, str]:
    """Run tags of a range of slides."""
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
