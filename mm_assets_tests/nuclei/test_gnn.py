"""Graph networks of nuclei: what they learn, what they keep, and that they read no test label."""

import io
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mm_assets.nuclei.gnn import GnnParameters, NucleusGnn, load_gnns, save_gnns
from mm_assets.nuclei.importance import top_nuclei
from mm_assets.nuclei.training import fit_folds, fit_gnn
from mm_assets_tests.benchmarks.nucleus_gnn import unseen_slides
from mm_assets_tests.models.simulation import make_endpoint, shuffled, split
from mm_assets_tests.nuclei.planted import Planted, make_tables, plant, plant_population

KINDS = ("classification", "survival")
QUICK = GnnParameters(nuclei=256, window=64, epochs=4, members=2, steps=8)
LEARNING = replace(QUICK, epochs=60, rate=3e-3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    # Tests run two at a time; small matrices gain nothing from more threads.
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def population() -> Planted:
    return plant_population(40)


def fit(planted: Planted, kind: str, parameters: GnnParameters, patients: int = 30) -> NucleusGnn:
    """A model of the first patients."""
    endpoint = planted.endpoint(kind)
    train = endpoint.table.index[:patients].tolist()
    return fit_gnn(planted.graphs, planted.manifest, endpoint, train, parameters)


def severity(model: NucleusGnn, planted: Planted, patient: str) -> float:
    """Log hazard, or log odds of the last class."""
    scores = model.scores(*planted.graphs[f"{patient}-S1"])
    return float(scores[-1] - (scores[0] if len(scores) > 1 else 0))


@pytest.mark.parametrize("kind", KINDS)
def test_finds_the_one_population_that_carries_the_outcome(population: Planted, kind: str) -> None:
    model = fit(population, kind, LEARNING)
    ill = population.classification.table["label"].iloc[30:] == 1
    assert roc_auc_score(ill, [severity(model, population, p) for p in ill.index]) > 0.9
    for patient in ill.index[ill]:
        graph = population.graphs[f"{patient}-S1"]
        member = population.in_lesion[f"{patient}-S1"]
        assert roc_auc_score(member, model.importance(*graph)) > 0.85
        assert member[model.keep(*graph)].mean() > 2 * member.mean()


def test_important_nuclei_of_unseen_demo_patients_lie_in_lesions() -> None:
    planted = plant(60, slides_px=(900, 1200))
    parameters = GnnParameters(nuclei=512, members=2, epochs=30)
    model = fit(planted, "survival", parameters, patients=45)
    found = [
        roc_auc_score(planted.in_lesion[slide], model.importance(*planted.graphs[slide]))
        for slide in planted.manifest["slide_id"].iloc[45:]
    ]
    assert np.mean(found) > 0.85


@pytest.mark.stress
@pytest.mark.parametrize("kind", KINDS)
def test_important_nuclei_of_the_demo_cohort_lie_in_lesions(kind: str) -> None:
    found = pd.DataFrame(unseen_slides(plant(120), kind, folds=3))
    assert found["importance"].mean() > 0.85
    assert (found["kept in lesion"] - found["all in lesion"]).mean() > 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_outcomes_leave_nothing_to_find(population: Planted, kind: str) -> None:
    ill = population.classification.table["label"].iloc[30:] == 1
    found = []
    parameters = replace(LEARNING, epochs=8)
    for seed in range(4):
        dealt = shuffled(population.endpoint(kind), seed)
        train = dealt.table.index[:30].tolist()
        model = fit_gnn(population.graphs, population.manifest, dealt, train, parameters)
        tested = dealt.table.loc[ill.index]
        outcome = tested["label"] if kind == KINDS[0] else tested["time"] < tested["time"].median()
        found.append(roc_auc_score(outcome, [severity(model, population, p) for p in ill.index]))
    # Ten patients a draw: the mean of four has a standard error near .1.
    assert abs(np.mean(found) - 0.5) < 0.25


def test_outcomes_and_graphs_of_test_patients_change_nothing(population: Planted) -> None:
    endpoint = population.survival
    turned = endpoint.table.copy()
    turned.loc[turned.index[30:], "time"] *= 7
    turned.loc[turned.index[30:], "event"] = 1 - turned["event"]
    other = replace(population, survival=make_endpoint("survival", turned))
    other.graphs.pop("P039-S1", None)
    models = [save_gnns({(0, 0): fit(p, "survival", QUICK)}) for p in (population, other)]
    splits = split(endpoint.table.index, 4).assign(
        role=lambda t: np.where(t["patient_id"] < "P030", "train", "test")
    )
    folds = fit_folds(
        population.graphs, population.manifest, endpoint, splits[splits["fold"] == 0], QUICK
    )
    assert models[0] == models[1] == save_gnns({(0, 0): folds[0, 0]})


def test_every_fold_and_all_patients_have_a_model(population: Planted) -> None:
    endpoint = population.classification
    few = [s for s in population.graphs if s < "P008"]
    graphs = {slide: population.graphs[slide] for slide in few}
    splits = split(endpoint.table.index, 2).query("fold == 0")
    # Of the other fold no training patient has a graph.
    absent = splits.assign(fold=1, role=np.where(splits["patient_id"] < "P010", "test", "train"))
    seen: list[tuple[int, int]] = []
    models = fit_folds(
        graphs,
        population.manifest,
        endpoint,
        pd.concat([splits, absent]),
        QUICK,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert set(models) == {(0, 0), (-1, -1)}
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_file_holds_values_only_and_gives_the_same_model(population: Planted) -> None:
    model = fit(population, "classification", QUICK)
    content = save_gnns({(0, 1): model, (-1, -1): model})
    again = load_gnns(content)
    assert set(again) == {(0, 1), (-1, -1)}
    graph = population.graphs["P035-S1"]
    for result in ("importance", "attribution", "attention", "keep", "scores"):
        expected = getattr(model, result)(*graph)
        np.testing.assert_array_equal(getattr(again[0, 1], result)(*graph), expected)
    buffer = io.BytesIO()
    torch.save({"0 0": os.system}, buffer)
    with pytest.raises(Exception, match="Weights only"):
        load_gnns(buffer.getvalue())


def test_attributions_add_up_to_the_score(population: Planted) -> None:
    model = fit(population, "survival", replace(QUICK, steps=64, members=1))
    graph = population.graphs["P035-S1"]
    member = model.members[0]
    features = torch.from_numpy(member.reference).expand(len(graph[0]), -1)
    edges = torch.empty((2, 0), dtype=torch.int64)
    with torch.no_grad():
        start = member.network(features, edges, torch.zeros(len(features), dtype=torch.int64), 1)
    alike = make_tables(np.zeros((0, 2)), {}, np.zeros((0, 64)))[1]
    lone = (graph[0], alike)
    moved = model.scores(*lone)[0] - float(start)
    assert model.attribution(*lone).sum() == pytest.approx(moved, abs=2e-3)
    assert (model.importance(*graph) >= 0).all()
    assert model.attention(*graph).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_graphs_and_rare_classes(population: Planted, kind: str) -> None:
    endpoint = population.endpoint(kind)
    if kind == "classification":
        rare = endpoint.table.assign(label=(np.arange(40) == 3).astype(int))
    else:
        rare = endpoint.table.assign(event=0)
    graphs = dict(population.graphs)
    for number, slide in enumerate(list(graphs)[:4]):
        nodes, edges = graphs[slide]
        graphs[slide] = (nodes[:number], edges[:0])
    endpoint = make_endpoint(kind, rare)
    train = endpoint.table.index[:12].tolist()
    model = fit_gnn(graphs, population.manifest, endpoint, train, QUICK)
    for number, slide in enumerate(list(graphs)[:4]):
        importance, kept = model.importance(*graphs[slide]), model.keep(*graphs[slide])
        assert importance.dtype == np.float32
        assert importance.shape == kept.shape == (number,)
        assert np.isfinite(importance).all()
        assert kept.all()
    assert model.attention(*graphs["P000-S1"]).shape == (0,)


def test_no_patient_with_nuclei_is_said_so(population: Planted) -> None:
    nodes, edges = population.graphs["P000-S1"]
    empty = dict.fromkeys(population.graphs, (nodes[:0], edges[:0]))
    with pytest.raises(ValueError, match="no patient has the endpoint and a nucleus graph"):
        fit(replace(population, graphs=empty), "survival", QUICK)


def test_graphs_of_another_layout_are_named(population: Planted) -> None:
    nodes, edges = population.graphs["P003-S1"]
    graphs = {**population.graphs, "P003-S1": (nodes.drop_columns(["solidity"]), edges)}
    with pytest.raises(ValueError, match="P003-S1: its nucleus graph has 8 measures"):
        fit(replace(population, graphs=graphs), "survival", QUICK)


def test_unmeasured_morphology_counts_as_average(population: Planted) -> None:
    model = fit(population, "survival", QUICK)
    nodes, edges = population.graphs["P035-S1"]
    place = nodes.column_names.index("solidity")
    empty = np.full(len(nodes), np.nan, np.float32)
    holed = nodes.set_column(place, "solidity", [empty])
    assert np.isfinite(model.importance(holed, edges)).all()
    with pytest.raises(ValueError, match="no column solidity"):
        model.importance(nodes.drop_columns(["solidity"]), edges)


def test_top_nuclei() -> None:
    importance = np.array([0.1, 0.5, 0.5, 0.9])
    assert top_nuclei(importance, 0.5, 1).tolist() == [False, True, False, True]
    assert top_nuclei(importance, 0.0, 1).tolist() == [False, False, False, True]
    assert top_nuclei(importance, 0.1, 50).all()
    assert top_nuclei(importance[:0], 0.5, 1).shape == (0,)
