"""mm_assets: a Dagster asset platform for multi-modal cancer cohorts."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_assets.component import CohortComponent

__all__ = ["CohortComponent"]


def __getattr__(name: str) -> Any:
    # Lazy, so that science modules can be imported without Dagster.
    if name == "CohortComponent":
        from mm_assets.component import CohortComponent

        return CohortComponent
    raise AttributeError(f"module 'mm_assets' has no attribute {name!r}")
