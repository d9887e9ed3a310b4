"""Nucleus graphs of demo patients from the anatomy that their slides are painted from.

Nodes get what detection would measure, with its errors, and an embedding that mixes the same
traits with the site's stain; no slide is painted. `in_lesion` of every nucleus is kept beside.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import Delaunay, cKDTree

from mm_assets.cohort.clinical import Endpoint
from mm_assets.nuclei.sampling import Graph
from mm_assets.synthetic.anatomy import draw_anatomy
from mm_assets.synthetic.latents import CLASSES, SITES, draw_patients
from mm_assets.synthetic.phenotype import phenotype
from mm_assets_tests.models.simulation import make_endpoint

MPP = 0.5
DIMENSION = 64
LONGEST_UM = 30.0


@dataclass(frozen=True)
class Planted:
    """A cohort of graphs.

    Attributes
    ----------
    graphs
        Node and edge table by slide id.
    in_lesion
        Which nuclei are tumour, by slide id.
    """

    graphs: dict[str, Graph]
    in_lesion: dict[str, NDArray[np.bool_]]
    manifest: pd.DataFrame
    survival: Endpoint
    classification: Endpoint

    def endpoint(self, kind: str) -> Endpoint:
        """One of the endpoints."""
        return self.survival if kind == "survival" else self.classification


def plant(patients: int, seed: int = 0, slides_px: tuple[int, int] = (1500, 3000)) -> Planted:
    """Graphs of the first patients of the demo cohort of a seed; one slide each."""
    latents = draw_patients(patients, seed)
    graphs, in_lesion = {}, {}
    for number, (patient, row) in enumerate(latents.iterrows()):
        rng = np.random.default_rng([seed, number, 50])
        size = tuple(int(edge) for edge in rng.integers(slides_px[0], slides_px[1] + 1, 2))
        anatomy = draw_anatomy(rng, (size[0], size[1]), phenotype(float(row["image"])))
        slide = f"{patient}-S1"
        nuclei = anatomy.nuclei.sort_values(["y", "x"], ignore_index=True)
        graphs[slide] = make_graph(nuclei, SITES.index(row["site"]), rng)
        in_lesion[slide] = nuclei["in_lesion"].to_numpy(bool)
    label = latents["subtype"].map(CLASSES.index).astype("int64")
    times = latents[["survival_months", "event"]].set_axis(["time", "event"], axis=1)
    manifest = pd.DataFrame({"slide_id": list(graphs), "patient_id": latents.index})
    return Planted(
        graphs,
        in_lesion,
        manifest,
        make_endpoint("survival", times),
        make_endpoint("classification", label.to_frame("label")),
    )


def make_graph(nuclei: pd.DataFrame, site: int, rng: np.random.Generator) -> Graph:
    """Graph of the nuclei of one slide (columns of `anatomy.NUCLEUS_COLUMNS`)."""
    count = len(nuclei)
    stain = np.random.default_rng(site).normal(1, 0.08, 2)
    radius = nuclei["radius"].to_numpy() * MPP * rng.lognormal(0, 0.08, count)
    stretch = np.sqrt(nuclei["aspect"].to_numpy() * rng.lognormal(0, 0.08, count))
    dark = nuclei["darkness"].to_numpy() * stain[0] * rng.lognormal(0, 0.08, count)
    centres = nuclei[["x", "y"]].to_numpy()
    near = cKDTree(centres).query(centres, k=min(6, count))[0][:, 1:].mean(axis=1) * MPP
    eosin = stain[1] * rng.lognormal(-1, 0.2, count)
    traits = np.stack([radius - 3.5, stretch - 1, dark - 1.3, near / 10 - 1, eosin - 0.4], axis=1)
    mix = np.random.default_rng(7).normal(size=(2, traits.shape[1], DIMENSION))
    embedding = np.tanh(traits @ mix[0]) + 0.3 * np.sin(traits @ mix[1])
    embedding += rng.normal(0, 0.5, embedding.shape)
    morphology = {
        "area_um2": np.pi * radius**2,
        "perimeter_um": np.pi * radius * (stretch + 1 / stretch),
        "major_um": 2 * radius * stretch,
        "minor_um": 2 * radius / stretch,
        "eccentricity": np.sqrt(np.maximum(0, 1 - stretch**-4.0)),
        "solidity": np.clip(rng.normal(0.95, 0.02, count), 0, 1),
        "hematoxylin_mean": dark,
        "hematoxylin_sd": 0.2 * dark * rng.lognormal(0, 0.1, count),
        "eosin_mean": eosin,
    }
    return make_tables(centres, morphology, embedding)


def make_tables(
    centres: NDArray[np.float64],
    morphology: dict[str, NDArray[np.float64]],
    embedding: NDArray[np.float64],
) -> Graph:
    """Node and edge table as `nucleus_graph` stores them; edges are Delaunay's short ones."""
    columns: dict[str, object] = {
        "x": centres[:, 0].astype(np.int32) - 32,
        "y": centres[:, 1].astype(np.int32) - 32,
        "size0": np.full(len(centres), 64, np.int32),
        "centroid_x": centres[:, 0].astype(np.float32),
        "centroid_y": centres[:, 1].astype(np.float32),
    }
    columns |= {name: values.astype(np.float32) for name, values in morphology.items()}
    values = pa.array(embedding.astype(np.float16).ravel())
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(values, embedding.shape[1])
    pairs = np.empty((0, 2), np.int64)
    if len(centres) > 3:
        corners = Delaunay(centres).simplices
        pairs = np.sort(
            np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]])
        )
        pairs = np.unique(pairs, axis=0)
    length = np.hypot(*(centres[pairs[:, 0]] - centres[pairs[:, 1]]).T) * MPP
    short = length <= LONGEST_UM
    edges = {
        "source": pairs[short, 0].astype(np.int32),
        "target": pairs[short, 1].astype(np.int32),
        "length_um": length[short].astype(np.float32),
    }
    return pa.table(columns), pa.table(edges)


def plant_population(patients: int, seed: int = 0, nuclei: int = 300) -> Planted:
    """Alike nuclei everywhere, and in every second patient one cluster of large, dark ones.

    Patients with the cluster are of class 1 and die ten times as early.
    """
    rng = np.random.default_rng(seed)
    index = pd.Index([f"P{number:03d}" for number in range(patients)], name="patient_id")
    label = np.arange(patients) % 2
    graphs, member = {}, {}
    for patient, ill in zip(index, label, strict=True):
        place = rng.uniform(0, 600, (nuclei, 2))
        near = np.hypot(*(place - rng.uniform(150, 450, 2)).T)
        cluster = (near < np.quantile(near, 0.2)) & bool(ill)
        table = pd.DataFrame({"x": place[:, 0], "y": place[:, 1]})
        table["radius"] = np.where(cluster, 8.0, 6.0) * rng.lognormal(0, 0.12, nuclei)
        table["aspect"] = 1.3
        table["darkness"] = np.where(cluster, 1.5, 1.2) * rng.lognormal(0, 0.1, nuclei)
        graphs[f"{patient}-S1"] = make_graph(table, 0, rng)
        member[f"{patient}-S1"] = cluster
    death = rng.exponential(np.where(label, 6.0, 60.0)) + 0.1
    censoring = rng.uniform(10, 90, patients)
    times = {"time": np.minimum(death, censoring), "event": (death <= censoring).astype(int)}
    return Planted(
        graphs,
        member,
        pd.DataFrame({"slide_id": list(graphs), "patient_id": index}),
        make_endpoint("survival", pd.DataFrame(times, index)),
        make_endpoint("classification", pd.DataFrame({"label": label}, index)),
    )
