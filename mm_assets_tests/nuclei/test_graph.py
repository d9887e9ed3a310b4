import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mm_assets.nuclei.graph import neighbour_edges

POINTS = st.integers(0, 30).flatmap(
    lambda n: arrays(float, (n, 2), elements=st.integers(0, 60).map(float), unique=False)
)


@given(POINTS)
def test_edges_are_unique_ordered_and_short(points):
    edges = neighbour_edges(points, longest=20).to_pandas()
    assert (edges["source"] < edges["target"]).all()
    assert not edges.duplicated(["source", "target"]).any()
    assert (edges["length_um"] <= 20).all()
    ends = points[edges["source"]], points[edges["target"]]
    assert np.allclose(np.linalg.norm(ends[0] - ends[1], axis=1), edges["length_um"], atol=1e-4)


@given(POINTS, st.randoms())
def test_order_of_nuclei_does_not_matter(points, random):
    # Four points on a circle have two triangulations: keep them off any grid.
    points = points + np.random.default_rng(len(points)).random(points.shape)
    order = np.array(random.sample(range(len(points)), len(points)), int)

    def as_pairs(table, names):
        ends = zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True)
        return {frozenset((int(names[a]), int(names[b]))) for a, b in ends}

    straight = as_pairs(neighbour_edges(points), np.arange(len(points)))
    assert as_pairs(neighbour_edges(points[order]), order) == straight


def test_points_on_a_line_are_a_chain():
    edges = neighbour_edges(np.array([[30.0, 0], [0, 0], [10, 0], [20, 0]])).to_pandas()
    assert edges[["source", "target"]].to_numpy().tolist() == [[0, 3], [1, 2], [2, 3]]


def test_no_one_or_two_nuclei():
    assert neighbour_edges(np.empty((0, 2))).num_rows == 0
    assert neighbour_edges(np.zeros((1, 2))).num_rows == 0
    assert neighbour_edges(np.array([[0.0, 0], [3, 4]]))["length_um"].to_pylist() == [5.0]
