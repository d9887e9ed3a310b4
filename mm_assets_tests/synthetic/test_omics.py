from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mm_assets.synthetic.omics import GAINED, LOST, OmicsTables, draw_omics, write_study


@pytest.fixture(scope="module")
def latent() -> pd.Series:
    values = np.random.default_rng(0).standard_normal(400)
    return pd.Series(values, [f"DEMO-{number:04d}" for number in range(400)])


@pytest.fixture(scope="module")
def tables(latent: pd.Series) -> OmicsTables:
    return draw_omics(latent, seed=1)


def correlations(table: pd.DataFrame, latent: pd.Series) -> pd.Series:
    return table.clip(-6, 6).corrwith(latent.set_axis(table.index))


def test_only_the_carriers_carry_the_latent(tables: OmicsTables, latent: pd.Series) -> None:
    found = correlations(tables.expression, latent)
    assert tables.expression.shape == (400, 1000)
    assert (found[list(GAINED)] > 0.3).all()
    assert (found[list(LOST)] < -0.3).all()
    assert found.drop([*GAINED, *LOST]).abs().max() < 0.3


def test_cdh1_is_lost_with_a_high_latent(tables: OmicsTables, latent: pd.Series) -> None:
    assert correlations(tables.copy_number, latent)["CDH1"] < -0.4
    assert correlations(tables.mutations, latent)["CDH1"] > 0.3
    assert correlations(tables.mutations, latent)["TTN"] < 0.15


def test_values_are_of_their_kind(tables: OmicsTables) -> None:
    assert set(np.unique(tables.copy_number)) == {-2, -1, 0, 1, 2}
    assert set(np.unique(tables.mutations)) == {0, 1}
    assert tables.expression.max().max() > 1000
    assert tables.expression.isna().sum().sum() == 3


def test_study_folder_says_what_was_drawn(tmp_path: Path, tables: OmicsTables) -> None:
    write_study(tmp_path / "omics", tables, seed=1)
    expression = pd.read_csv(
        tmp_path / "omics" / "data_mrna_seq_v2_rsem_zscores_ref_all_samples.txt", sep="\t"
    )
    assert list(expression.columns[:2]) == ["Hugo_Symbol", "Entrez_Gene_Id"]
    by_sample = expression.set_index("Hugo_Symbol").drop(columns="Entrez_Gene_Id").T
    pd.testing.assert_frame_equal(by_sample, tables.expression, check_names=False)

    annotation = pd.read_csv(tmp_path / "omics" / "data_mutations.txt", sep="\t")
    damaging = annotation[annotation["Variant_Classification"] != "Silent"]
    assert len(damaging) == tables.mutations.to_numpy().sum()
    assert 0 < len(annotation) - len(damaging) < len(damaging)
    first = damaging.iloc[0]
    assert tables.mutations.loc[first["Tumor_Sample_Barcode"], first["Hugo_Symbol"]] == 1

    samples = pd.read_csv(tmp_path / "omics" / "data_clinical_sample.txt", sep="\t", comment="#")
    assert (samples["SAMPLE_ID"] == samples["PATIENT_ID"] + "-01").all()
    assert set(samples["SAMPLE_ID"]) == set(tables.expression.index)
