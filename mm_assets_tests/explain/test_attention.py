"""Attention as evidence."""

import numpy as np
import pytest

from mm_assets.explain.attention import Bag, attention_evidence, rank_tiles
from mm_assets.explain.document import EvidenceDocument, Model
from mm_assets.models.porpoise.fitting import PorpoiseParameters, fit_porpoise
from mm_assets.models.porpoise.model import PorpoiseModel
from mm_assets.models.porpoise.training import TrainingParameters
from mm_assets_tests.models.porpoise.made_up import WIDTH, make_cohort, outcomes

QUICK = PorpoiseParameters(training=TrainingParameters(epochs=1))


def make_bag(seed: int, tiles: int) -> Bag:
    """Tiles in a row."""
    values = np.random.default_rng(seed).normal(size=(tiles, WIDTH)).astype(np.float16)
    x = (256 * np.arange(tiles)).astype(np.int32)
    return Bag(values, x, np.zeros_like(x), np.full_like(x, 256))


@pytest.fixture(scope="module")
def model() -> PorpoiseModel:
    endpoint = outcomes("classification", 12)
    names = endpoint.table.index.tolist()
    return fit_porpoise("amil", make_cohort(12), endpoint, names, parameters=QUICK)


def test_tiles_of_all_slides_are_ranked_by_attention(model: PorpoiseModel) -> None:
    slides = {"S1": make_bag(1, 30), "S2": make_bag(2, 20), "S3": make_bag(3, 0)}
    found = rank_tiles(model, slides, 1000)
    assert [place.rank for place in found] == list(range(1, 51))
    assert sum(place.score for place in found) == pytest.approx(1, abs=1e-5)
    weights = model.attention(np.concatenate([bag.embeddings for bag in slides.values()]))
    for place in (found[0], found[-1]):
        row = place.x // 256 + (30 if place.slide_id == "S2" else 0)
        assert place.score == pytest.approx(float(weights[row]))
    assert found[0].score == pytest.approx(float(weights.max()))
    assert rank_tiles(model, slides, 5) == found[:5]
    assert rank_tiles(model, {"S3": make_bag(3, 0)}, 5) == []


def test_the_document_is_read_like_any_other(model: PorpoiseModel) -> None:
    slides = {"S1": make_bag(1, 30)}
    facts = {
        "cohort": "demo",
        "task": "subtype",
        "registered": Model(name="demo.subtype.porpoise_amil", version=2),
        "weights": "resnet50 random:0",
        "seen_in_training": True,
    }
    document = attention_evidence(model, slides, None, "P1", most=10, **facts)
    assert EvidenceDocument.from_json(document.to_json()) == document
    assert document.method == "porpoise_amil"
    assert document.prediction.keys() == {"probability_A", "probability_B", "threshold"}
    likelier = max(("probability_A", "probability_B"), key=document.prediction.__getitem__)
    assert likelier == f"probability_{document.towards}"
    assert len(document.on_slide("S1")) == 10
    with pytest.raises(ValueError, match="porpoise_amil cannot read patient 'P1': no tiles"):
        attention_evidence(model, {}, None, "P1", **facts)


def test_the_fused_network_shows_its_attention_and_predicts_with_omics() -> None:
    endpoint, cohort = outcomes("survival", 12), make_cohort(12)
    names = endpoint.table.index.tolist()
    model = fit_porpoise("mmf", cohort, endpoint, names, parameters=QUICK)
    slides = {"S1": make_bag(1, 30), "S2": make_bag(2, 20)}
    assert cohort.omics is not None
    facts = {
        "cohort": "demo",
        "task": "survival",
        "registered": Model(name="demo.survival.porpoise_mmf", version=1),
        "weights": "resnet50 random:0",
        "seen_in_training": False,
    }
    both, alone = (
        attention_evidence(model, slides, omics, names[0], most=10, **facts)
        for omics in (cohort.omics, None)
    )
    assert both.method == "porpoise_mmf"
    assert both.towards == "risk"
    # Tiles are weighed before omics come in; the prediction reads both.
    assert both.instances == alone.instances == tuple(rank_tiles(model, slides, 10))
    assert both.prediction["risk"] != alone.prediction["risk"]
