"""The demo cohort's omics, carrying the genomic latent, as a cBioPortal study folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

STUDY = "mm_demo"
EXPRESSION_GENES, COPY_NUMBER_GENES, MUTATED_GENES = 1000, 200, 40
GENES_PER_MODULE, GENES_PER_SEGMENT = 25, 8
MODULE_SHARE = 0.3
SIGNAL = 0.75  # correlation of a carrier's expression with the latent

LOST = (
    *("CDH1", "ESR1", "PGR", "SCUBE2", "BAG1", "BCL2", "GATA3"),
    *("FOXA1", "XBP1", "AR", "TFF1", "TFF3", "CTNNB1", "CTNND1"),
)
GAINED = (
    *("ERBB2", "MKI67", "AURKA", "BIRC5", "CCNB1", "MYBL2", "GRB7", "CTSL"),
    *("MMP11", "KRT5", "KRT14", "KRT17", "EGFR", "VIM", "ZEB1", "SNAI2"),
)
DELETED, AMPLIFIED = ("CDH1", "CTCF", "CBFB", "NCOR1"), ("MYC", "CCND1", "FGFR1", "ZNF217")
MUTATIONS = {  # gene: (log odds at a latent of zero, change per unit of the latent)
    "CDH1": (-1.6, 1.3),
    "TBX3": (-2.2, 0.9),
    "TP53": (-0.8, 0.9),
    "PIK3CA": (-0.6, -0.6),
    "GATA3": (-1.9, -0.7),
}
BYSTANDERS = (
    *("MAP3K1", "KMT2C", "PTEN", "ARID1A", "RUNX1"),
    *("AKT1", "NF1", "SF3B1", "BRCA2", "TTN"),
)
DAMAGING = ("Missense_Mutation", "Nonsense_Mutation", "Frame_Shift_Del", "Splice_Site")

CLINICAL_HEADER = """\
#Patient Identifier\tSample Identifier\tSample Type
#Patient of the sample\tSample of the tables\tKind of tissue
#STRING\tSTRING\tSTRING
#1\t1\t1
"""


@dataclass(frozen=True)
class OmicsTables:
    """Samples by genes; expression as z-scores, copy number -2 to 2, mutations 0 or 1."""

    expression: pd.DataFrame
    copy_number: pd.DataFrame
    mutations: pd.DataFrame


def draw_omics(genomic: pd.Series, seed: int) -> OmicsTables:
    """Draw the tables of the patients of `genomic` (latent by patient id, in cohort order).

    Thirty expression genes, eight copy-number genes and five mutated genes depend on the latent.
    Genes share factors, as co-regulated genes and chromosome arms do. One expression value is
    absurdly large and a few are missing, as in public releases.
    """
    rows = [_draw_sample(latent, number, seed) for number, latent in enumerate(genomic)]
    samples = pd.Index([f"{patient}-01" for patient in genomic.index], name="SAMPLE_ID")
    expression, copy_number, mutations = (np.stack(part) for part in zip(*rows, strict=True))
    table = pd.DataFrame(expression, samples, _genes((*LOST, *GAINED), EXPRESSION_GENES))
    table.iloc[:1, -1] = 9_412.5
    table.iloc[1:4, -2] = np.nan
    return OmicsTables(
        expression=table,
        copy_number=pd.DataFrame(
            copy_number, samples, _genes((*DELETED, *AMPLIFIED), COPY_NUMBER_GENES)
        ),
        mutations=pd.DataFrame(
            mutations, samples, _genes((*MUTATIONS, *BYSTANDERS), MUTATED_GENES)
        ),
    )


def _genes(named: tuple[str, ...], count: int) -> list[str]:
    return [*named, *(f"GENE{number:04d}" for number in range(1, count - len(named) + 1))]


def _draw_sample(latent: float, number: int, seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng([seed, number, 31])
    sign = np.concatenate([-np.ones(len(LOST)), np.ones(len(GAINED))])
    modules = rng.standard_normal(EXPRESSION_GENES // GENES_PER_MODULE)
    noise = np.sqrt(MODULE_SHARE) * np.resize(modules, EXPRESSION_GENES)
    noise += np.sqrt(1 - MODULE_SHARE) * rng.standard_normal(EXPRESSION_GENES)
    expression = noise.copy()
    carriers = slice(len(sign))
    expression[carriers] = SIGNAL * sign * latent + np.sqrt(1 - SIGNAL**2) * noise[carriers]

    direction = np.concatenate([-np.ones(len(DELETED)), np.ones(len(AMPLIFIED))])
    arms = rng.standard_normal(COPY_NUMBER_GENES // GENES_PER_SEGMENT)
    dosage = np.repeat(arms, GENES_PER_SEGMENT)
    dosage[: len(direction)] = 0.6 * direction * latent + 0.8 * rng.standard_normal(len(direction))
    copy_number = np.digitize(dosage, [-1.9, -0.9, 0.9, 1.9]) - 2

    odds = np.array(list(MUTATIONS.values()))
    log_odds = np.full(MUTATED_GENES, -2.8)
    log_odds[: len(odds)] = odds[:, 0] + odds[:, 1] * latent
    mutated = rng.random(MUTATED_GENES) < 1 / (1 + np.exp(-log_odds))
    return expression.round(4), copy_number, mutated.astype(int)


def write_study(folder: Path, tables: OmicsTables, seed: int) -> None:
    """Write the tables as a study folder in cBioPortal's file formats."""
    folder.mkdir()
    _write_meta(folder / "meta_study.txt", type_of_cancer="brca", name="Synthetic demo cohort")
    _write_matrix(
        folder,
        "data_mrna_seq_v2_rsem_zscores_ref_all_samples",
        tables.expression,
        genetic_alteration_type="MRNA_EXPRESSION",
        datatype="Z-SCORE",
        stable_id="rna_seq_v2_mrna_median_all_sample_Zscores",
    )
    _write_matrix(
        folder,
        "data_cna",
        tables.copy_number,
        genetic_alteration_type="COPY_NUMBER_ALTERATION",
        datatype="DISCRETE",
        stable_id="gistic",
    )
    _mutation_annotation(tables.mutations, seed).to_csv(
        folder / "data_mutations.txt", sep="\t", index=False
    )
    _write_meta(
        folder / "meta_mutations.txt",
        genetic_alteration_type="MUTATION_EXTENDED",
        datatype="MAF",
        stable_id="mutations",
        data_filename="data_mutations.txt",
    )
    _write_samples(folder, list(tables.expression.index))


def _write_meta(path: Path, **fields: str) -> None:
    lines = [f"{key}: {value}\n" for key, value in fields.items()]
    path.write_text(f"cancer_study_identifier: {STUDY}\n" + "".join(lines))


def _write_matrix(folder: Path, name: str, table: pd.DataFrame, **fields: str) -> None:
    by_gene = table.T.rename_axis("Hugo_Symbol").rename_axis(columns=None).reset_index()
    by_gene.insert(1, "Entrez_Gene_Id", range(1, len(by_gene) + 1))
    by_gene.to_csv(folder / f"{name}.txt", sep="\t", index=False, na_rep="NA")
    meta = folder / f"{name.replace('data_', 'meta_', 1)}.txt"
    _write_meta(meta, **fields, data_filename=f"{name}.txt")


def _mutation_annotation(mutations: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One MAF row per mutation, and silent ones that must not count as mutated."""
    rng = np.random.default_rng([seed, 33])
    sample, gene = np.nonzero(mutations.to_numpy())
    silent_sample, silent_gene = np.nonzero(rng.random(mutations.shape) < 0.01)
    kinds = np.concatenate(
        [rng.choice(DAMAGING, len(sample)), np.full(len(silent_sample), "Silent")]
    )
    sample, gene = np.concatenate([sample, silent_sample]), np.concatenate([gene, silent_gene])
    position = 1_000_000 * (gene + 1) + rng.integers(0, 50_000, len(gene))
    return pd.DataFrame(
        {
            "Hugo_Symbol": mutations.columns[gene],
            "Entrez_Gene_Id": gene + 1,
            "Center": "demo",
            "NCBI_Build": "GRCh38",
            "Chromosome": gene % 22 + 1,
            "Start_Position": position,
            "End_Position": position,
            "Strand": "+",
            "Variant_Classification": kinds,
            "Variant_Type": np.where(kinds == "Frame_Shift_Del", "DEL", "SNP"),
            "Reference_Allele": "C",
            "Tumor_Seq_Allele1": "C",
            "Tumor_Seq_Allele2": np.where(kinds == "Frame_Shift_Del", "-", "T"),
            "Tumor_Sample_Barcode": mutations.index[sample],
        }
    )


def _write_samples(folder: Path, samples: list[str]) -> None:
    rows = [f"{sample.removesuffix('-01')}\t{sample}\tPrimary\n" for sample in samples]
    header = "PATIENT_ID\tSAMPLE_ID\tSAMPLE_TYPE\n"
    (folder / "data_clinical_sample.txt").write_text(CLINICAL_HEADER + header + "".join(rows))
    _write_meta(
        folder / "meta_clinical_sample.txt",
        genetic_alteration_type="CLINICAL",
        datatype="SAMPLE_ATTRIBUTES",
        data_filename="data_clinical_sample.txt",
    )
    (folder / "case_lists").mkdir()
    _write_meta(
        folder / "case_lists" / "cases_sequenced.txt",
        stable_id=f"{STUDY}_sequenced",
        case_list_name="Sequenced samples",
        case_list_ids="\t".join(samples),
    )
