"""What a model's card says."""

from mm_assets.evaluation.comparison import evaluate
from mm_assets.evaluation.model_card import ModelCard, render_model_card
from mm_assets_tests.evaluation.made_up import class_task


def test_a_card_says_how_good_for_what_and_what_not() -> None:
    task = class_task(120, {"heec": 0.5})
    metrics = evaluate(*task.arguments, bootstrap=100).metrics
    card = render_model_card(
        ModelCard("c.t.heec", 3, "boosted trees", "A or B", metrics, "", "champion: first version")
    )
    auc = metrics.set_index("metric").loc["auc"]
    assert f"| auc | {auc.value:.3f} | {auc.low:.3f} to {auc.high:.3f} | 120 |" in card
    assert card.startswith("# c.t.heec version 3\n")
    assert "none, it reads no slides" in card
    assert "champion: first version" in card
    assert "not for the care of patients" in card
