"""Artefacts that a model can read, and those that were made otherwise."""

from dataclasses import replace

import pytest

from mm_assets.resources.lineage import LineageNode
from mm_assets.resources.recipe import Recipe

SCORER = LineageNode("tile_scorer_t", "cohort", "d1", "1", {"method": "nnpu"})


def tiles(slide: str, digest: str, weights: str = "random:0", code: str = "2") -> LineageNode:
    file = LineageNode("source", slide, f"file {slide}")
    settings = {"mpp": 0.5, "weights": weights}
    return LineageNode("tile_embeddings", slide, digest, code, settings, inputs=(file,))


def extrema(slide: str, digest: str, of: LineageNode, scorer: LineageNode = SCORER) -> LineageNode:
    return LineageNode("extremum_vectors_t", slide, digest, "2", {}, inputs=(of, scorer))


CLINICAL = LineageNode("clinical", "cohort", "c1", "1", {"covariates": ["age"]})
MODEL = LineageNode(
    "heec_t",
    "cohort",
    "",
    "4",
    inputs=(CLINICAL, *(extrema(f"S{n}", f"e{n}", tiles(f"S{n}", f"t{n}")) for n in range(3))),
)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe(MODEL)


def test_what_was_made_alike_is_read(recipe: Recipe) -> None:
    assert recipe.objection(extrema("S9", "e9", tiles("S9", "t9"))) == ""
    assert recipe.objection(MODEL.inputs[1]) == ""
    assert recipe.reads("extremum_vectors_t")
    assert not recipe.reads("nucleus_graph")


def test_other_weights_are_named(recipe: Recipe) -> None:
    reason = recipe.objection(extrema("S9", "e9", tiles("S9", "t9", weights="random:1")))
    assert reason == (
        "tile_embeddings of S9 was made with weights random:1, the model's with random:0"
    )


def test_other_code_is_named(recipe: Recipe) -> None:
    reason = recipe.objection(extrema("S9", "e9", tiles("S9", "t9", code="3")))
    assert "code version 3, the model's with 2" in reason


def test_another_scorer_is_refused_though_it_was_made_alike(recipe: Recipe) -> None:
    other = replace(SCORER, digest="d2")
    assert "tile_scorer_t" in recipe.objection(extrema("S9", "e9", tiles("S9", "t9"), other))


def test_stale_artefacts_are_refused(recipe: Recipe) -> None:
    stale = replace(tiles("S9", "t9"), current="t10")
    assert "made again" in recipe.objection(extrema("S9", "e9", stale))


def test_a_table_may_have_got_more_patients_but_no_other_columns(recipe: Recipe) -> None:
    more = replace(CLINICAL, digest="c2")
    assert recipe.objection(more, table=True) == ""
    other = replace(more, parameters={"covariates": ["age", "sex"]})
    assert "covariates" in recipe.objection(other, table=True)
