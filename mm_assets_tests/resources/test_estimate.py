"""What work took before, from receipts."""

from pathlib import Path

import pytest

from mm_assets.resources.estimate import SAMPLE, seconds_before
from mm_assets.resources.receipts import Receipt, Receipts
from mm_assets.resources.store import ArtefactStore, Provenance

SLIDES = 5 * SAMPLE


def receipts(folder: Path, slides: int) -> Receipts:
    """Every tenth slide failed; the others took as many seconds as their number says."""
    kept = Receipts(ArtefactStore(uri=str(folder)))
    for number in range(slides):
        made = Provenance("tissue", f"S{number:04d}", "1", {}, {})
        state = "failed" if number % 10 == 0 else "done"
        kept.write(Receipt("tiny", "tissue", made.name, state, made, seconds=float(number)))
    return kept


def test_mean_of_finished_slides(tmp_path: Path) -> None:
    assert seconds_before(receipts(tmp_path, 4), "tiny", "tissue") == pytest.approx(2.0)


def test_of_many_slides_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, reads = receipts(tmp_path, SLIDES + 3), []
    read = kept.read
    monkeypatch.setattr(kept, "read", lambda *key: reads.append(key) or read(*key))
    assert seconds_before(kept, "tiny", "tissue") == pytest.approx(SLIDES / 2, rel=0.02)
    assert SAMPLE <= len(reads) < 2 * SAMPLE


def test_nothing_was_done_before(tmp_path: Path) -> None:
    assert seconds_before(receipts(tmp_path, 1), "tiny", "tissue") is None
    assert seconds_before(receipts(tmp_path, 1), "tiny", "slide") is None
