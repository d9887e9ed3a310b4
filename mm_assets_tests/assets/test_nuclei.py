"""Nucleus graphs and their networks through Dagster."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import feather

from mm_assets.assets.graph import cohort_stages
from mm_assets.cohort.loading import load_config
from mm_assets.nuclei.gnn import load_gnns
from mm_assets_tests.cohorts import Cohort, make_cohort

PATIENTS = 12


def test_nuclei_only_where_they_are_asked_for(tmp_path: Path) -> None:
    config = load_config(make_cohort(tmp_path / "tiny", patients=4, slides=1))
    assert not [stage.name for stage in cohort_stages(config) if "nucleus" in stage.name]


def test_graphs_and_networks_of_a_cohort(home: Path, tmp_path: Path) -> None:
    yaml = make_cohort(tmp_path / "cohorts" / "tiny", PATIENTS, nuclei={"tiles": 2})
    cohort = Cohort(yaml, home)
    wanted = ["slide", "tissue", "nucleus_graph", "clinical", "splits_subtype"]
    options = [option for asset in wanted for option in ("--select", asset)]
    cohort.mm("materialize", "tiny", *options, "--select", "nucleus_gnn_subtype")
    store = home / "store" / "tiny"
    graphs = sorted((store / "nucleus_graph").glob("*.arrow"))
    assert len(graphs) == PATIENTS
    for path in graphs:
        nodes = feather.read_table(path)
        edges = pd.read_parquet(path.with_suffix(".parquet"))
        assert nodes.num_rows > 50
        assert edges["target"].max() < nodes.num_rows
        assert nodes.schema.field("embedding").type.list_size == 1024
    networks = load_gnns(store / "nucleus_gnn_subtype" / "cohort.pt")
    assert set(networks) == {(0, 0), (0, 1), (-1, -1)}
    kept = networks[-1, -1].keep(nodes, pa.Table.from_pandas(edges))
    assert kept.dtype == np.bool_
    assert 0 < kept.sum() < nodes.num_rows
