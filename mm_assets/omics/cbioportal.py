"""Omics files of a cBioPortal study folder.

File formats: https://docs.cbioportal.org/file-formats/. Genes are rows and samples columns, in
contrast to the result here. Where a gene has several rows, the first counts, as in cBioPortal.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from mm_assets.cohort.problems import CohortError, Problem
from mm_assets.cohort.tables import listing, non_numeric, read_table, table_columns

_GENE, _SAMPLE, _EFFECT = "Hugo_Symbol", "Tumor_Sample_Barcode", "Variant_Classification"
_GENE_COLUMNS = {_GENE, "Entrez_Gene_Id", "Cytoband", "Composite.Element.REF"}
# In order of preference: z-scores against all samples first, discrete copy number first.
EXPRESSION_FILES = (
    "data_mrna_seq_v2_rsem_zscores_ref_all_samples.txt",
    "data_mrna_seq_rsem_zscores_ref_all_samples.txt",
    "data_mrna_seq_fpkm_zscores_ref_all_samples.txt",
    "data_mrna_seq_v2_rsem_zscores_ref_diploid_samples.txt",
    "data_RNA_Seq_v2_mRNA_median_all_sample_Zscores.txt",
    "data_RNA_Seq_v2_mRNA_median_Zscores.txt",
    "data_mrna_affymetrix_microarray_zscores_ref_all_samples.txt",
    "data_mrna_agilent_microarray_zscores_ref_all_samples.txt",
    "data_mrna_illumina_microarray_zscores_ref_all_samples.txt",
)
COPY_NUMBER_FILES = ("data_cna.txt", "data_CNA.txt")
MUTATION_FILES = ("data_mutations.txt", "data_mutations_extended.txt", "data_mutations_mskcc.txt")
# Alteration type and data type in a meta file, tried where no known file name exists.
_META = {
    "expression": ("MRNA_EXPRESSION", "Z-SCORE"),
    "copy_number": ("COPY_NUMBER_ALTERATION", "DISCRETE"),
    "mutation": ("MUTATION_EXTENDED", "MAF"),
}
_SILENT = {"Silent", "Intron", "IGR", "RNA", "3'UTR", "5'UTR", "3'Flank", "5'Flank"}
_TCGA_SAMPLE = r"^(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})-\d{2}"


def read_study(folder: Path) -> tuple[pd.DataFrame, list[Problem]]:
    """Read the omics of a study folder.

    Expression and copy number are taken as they are. A mutation is 1 where a gene has a
    non-silent variant, 0 where a sequenced patient has none and NaN where a patient was not
    sequenced (`case_lists/cases_sequenced.txt`; without it, patients with any variant count as
    sequenced). Of several samples of a patient the first by id counts: in TCGA, the primary
    tumour.

    Returns
    -------
    DataFrame
        Indexed by patient_id, columns as from `read_omics`.
    list of Problem
        Errors and warnings.

    Raises
    ------
    CohortError
        When the folder has none of the files, or one of them is not of its format.
    """
    if not folder.is_dir():
        raise CohortError([Problem(str(folder), "no such folder", "check omics.path")])
    patients = _sample_patients(folder)
    tables, problems = [], []
    for modality, names in (
        ("expression", EXPRESSION_FILES),
        ("copy_number", COPY_NUMBER_FILES),
        ("mutation", MUTATION_FILES),
    ):
        path = _find(folder, names, *_META[modality])
        if path is None:
            continue
        read = _read_mutations if modality == "mutation" else _read_matrix
        by_sample, found = read(path)
        by_patient, merged = _to_patients(by_sample, patients, path)
        tables.append(by_patient.add_prefix(f"{modality}:"))
        problems += found + merged
    if not tables:
        what = "holds no expression, copy number or mutation file"
        fix = f"e.g. {EXPRESSION_FILES[0]}, {COPY_NUMBER_FILES[0]}, {MUTATION_FILES[0]}"
        raise CohortError([Problem(str(folder), what, fix)])
    return pd.concat(tables, axis=1).rename_axis("patient_id"), problems


def _find(folder: Path, names: tuple[str, ...], alteration: str, datatype: str) -> Path | None:
    """The first known file, else the first that a meta file describes as wanted."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    for meta in sorted(folder.glob("meta_*.txt")):
        lines = (line.partition(":") for line in meta.read_text("utf-8").splitlines())
        facts = {key.strip(): value.strip() for key, _, value in lines}
        described = (facts.get("genetic_alteration_type"), facts.get("datatype"))
        data = folder / facts.get("data_filename", "?")
        if described == (alteration, datatype) and data.is_file():
            return data
    return None


def _sample_patients(folder: Path) -> "pd.Series[str]":
    """Patient id by sample id, empty without a sample file."""
    path = folder / "data_clinical_sample.txt"
    if not path.is_file():
        return pd.Series(dtype=str)
    ids = ("SAMPLE_ID", "PATIENT_ID")
    table = read_table(path, wanted=lambda name: name in ids, text=ids)
    if not set(ids) <= set(table):
        raise CohortError([Problem(str(path), "has no columns SAMPLE_ID and PATIENT_ID")])
    return table.dropna().drop_duplicates("SAMPLE_ID").set_index("SAMPLE_ID")["PATIENT_ID"]


def _to_patients(
    by_sample: pd.DataFrame, patients: "pd.Series[str]", path: Path
) -> tuple[pd.DataFrame, list[Problem]]:
    """One row a patient instead of one a sample."""
    samples = by_sample.index.to_series().astype(str)
    known = samples.map(patients).fillna(samples.str.extract(_TCGA_SAMPLE, expand=False))
    problems = []
    if (unknown := samples[known.isna()]).size:
        what = f"{len(unknown)} samples belong to no known patient: {listing(unknown)}"
        problems.append(Problem(str(path), what, "list them in data_clinical_sample.txt"))
    table = by_sample.set_axis(known.to_numpy(), axis=0)[known.notna().to_numpy()]
    table = table.iloc[np.argsort(samples[known.notna()].to_numpy(), kind="stable")]
    repeated = table.index[table.index.duplicated()].unique()
    if len(repeated):
        what = f"{len(repeated)} patients have several samples: {listing(repeated)}"
        problems.append(Problem(str(path), what, "the first by sample id counts", "warning"))
    return table[~table.index.duplicated()], problems


def _read_matrix(path: Path) -> tuple[pd.DataFrame, list[Problem]]:
    """Samples by genes, float32, from a file of genes by samples."""
    columns = table_columns(path)
    if _GENE not in columns:
        raise CohortError([Problem(str(path), f"has no column {_GENE}", "see cBioPortal's docs")])
    described = _GENE_COLUMNS - {_GENE}
    raw = read_table(path, wanted=lambda name: name not in described, text=(_GENE,))
    raw, problems = _one_row_a_gene(raw, path)
    values = raw.drop(columns=_GENE)
    for column in values.columns[[not pd.api.types.is_numeric_dtype(t) for t in values.dtypes]]:
        cells = non_numeric(values[column])
        for line, gene, cell in zip(cells.index, raw.loc[cells.index, _GENE], cells, strict=True):
            where = f"{path}, line {line} ({gene}), column {column}"
            problems.append(Problem(where, f"{cell!r} is not a number", "a number or empty"))
        values[column] = pd.to_numeric(values[column], errors="coerce")
    numbers = values.to_numpy(np.float32)
    if np.isinf(numbers).any():
        genes = raw.loc[np.isinf(numbers).any(axis=1), _GENE]
        problems.append(Problem(str(path), f"infinite values, of genes {listing(genes)}"))
    return pd.DataFrame(numbers.T, index=values.columns, columns=raw[_GENE].to_list()), problems


def _one_row_a_gene(raw: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[Problem]]:
    problems = []
    unnamed = raw[_GENE].isna()
    if unnamed.any():
        what = f"{int(unnamed.sum())} rows have no {_GENE}"
        problems.append(Problem(str(path), what, "they are left out", "warning"))
    repeated = raw[_GENE].duplicated() & ~unnamed
    if repeated.any():
        genes = raw.loc[repeated, _GENE].unique()
        what = f"{len(genes)} genes have several rows: {listing(genes)}"
        problems.append(Problem(str(path), what, "the first of each counts", "warning"))
    return raw[~unnamed & ~repeated], problems


def _read_mutations(path: Path) -> tuple[pd.DataFrame, list[Problem]]:
    """Samples by genes, 1 where a gene has a non-silent variant, from a MAF file."""
    wanted = (_GENE, _SAMPLE, _EFFECT)
    absent = [column for column in wanted if column not in table_columns(path)]
    if absent:
        raise CohortError([Problem(str(path), f"has no column {listing(absent)}")])
    maf = read_table(path, wanted=lambda name: name in wanted, text=wanted)
    variants = maf[~maf[_EFFECT].isin(_SILENT)].dropna(subset=[_GENE, _SAMPLE])
    genes = np.unique(variants[_GENE])
    sequenced = _sequenced(path.parent) or list(maf[_SAMPLE].dropna().unique())
    samples = pd.Index(sequenced).union(pd.Index(variants[_SAMPLE].unique()))
    mutated = np.zeros((len(samples), len(genes)), np.float32)
    mutated[
        samples.get_indexer(pd.Index(variants[_SAMPLE])), np.searchsorted(genes, variants[_GENE])
    ] = 1
    return pd.DataFrame(mutated, index=samples, columns=genes), []


def _sequenced(folder: Path) -> list[str]:
    """Ids of the samples that were sequenced, as far as the study says."""
    path = folder / "case_lists" / "cases_sequenced.txt"
    if not path.is_file():
        return []
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("case_list_ids:"):
            return line.removeprefix("case_list_ids:").split()
    return []
