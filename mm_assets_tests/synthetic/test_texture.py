import numpy as np
import pytest

from mm_assets.synthetic.texture import CoarseField, FibreField


@pytest.fixture(scope="module")
def fibres() -> FibreField:
    return FibreField.draw(np.random.default_rng(2), 900, 700)


def test_strips_join_without_a_seam(fibres: FibreField) -> None:
    whole = fibres.texture(10, 20, 400, 300)
    strip = fibres.texture(10, 140, 400, 60)
    assert whole.std() > 0.5
    assert np.abs(whole[120:180] - strip).max() < 0.5
    assert np.abs(whole[120:180] - strip).mean() < 0.02


def test_fibres_run_in_their_direction(fibres: FibreField) -> None:
    points = np.random.default_rng(0).uniform(60, 640, (300, 2))
    angle = fibres.direction(points)
    step = 6 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    across = np.abs(fibres.across.at(points + step) - fibres.across.at(points))
    turned = np.stack([-step[:, 1], step[:, 0]], axis=1)
    beside = np.abs(fibres.across.at(points + turned) - fibres.across.at(points))
    assert np.median(across) < 0.2 * np.median(beside)


def test_files_lie_on_lines_across_the_fibres(fibres: FibreField) -> None:
    points = np.random.default_rng(0).uniform(60, 640, (300, 2))
    phase = fibres.across.at(fibres.pull_to_files(points, 40.0)) / 40
    assert np.median(np.abs(phase - np.round(phase))) < 0.02


def test_field_is_sampled_where_asked() -> None:
    y, x = np.mgrid[:50, :60].astype(np.float32) * 4
    field = CoarseField(2 * x + y, 4)
    assert field.at(np.array([[10.0, 3.0], [33.0, 90.0]])) == pytest.approx([23.0, 156.0], abs=0.3)
    assert field.gradient(np.array([[40.0, 40.0]])) == pytest.approx(
        np.array([[2.0, 1.0]]), abs=0.1
    )
    assert field.window(8, 12, 5, 4)[1, 2] == pytest.approx(2 * 10 + 13, abs=0.3)
    assert field.at(np.empty((0, 2))).shape == (0,)
