"""Do the nuclei that the graph networks keep lie in lesions, from pixels to importance?

    python -m mm_assets_tests.benchmarks.detected_nuclei COHORT [--tiles 6] [--patients 120]

COHORT is a folder of `mm demo create`. As the assets do: nuclei are found in some tiles of every
good slide, embedded (ResNet50, random weights) and joined; networks are fitted to the training
patients of three folds drawn at random; every figure is of slides of test patients. A nucleus lies
in a lesion when its centroid does, by the planted outlines. Means over slides, with bootstrap
intervals over them; slides all or none of whose nuclei lie in lesions are left out.

Measured on the demo cohort (117 slides, 31,812 nuclei in 6 tiles each): AUROC of importance .881
(.846 to .914) for classes and .900 (.871 to .926) for survival, of attention .817 and .885; of the
nuclei kept 92 and 93 % lie in lesions, of all 70 %.
"""

import argparse
from pathlib import Path

import pandas as pd
import shapely
import torch

from mm_assets.cohort.clinical import make_endpoint, read_clinical
from mm_assets.cohort.config import ClinicalConfig
from mm_assets.encoders.registry import load_encoder
from mm_assets.nuclei.sampling import Graph
from mm_assets.nuclei.search import choose_tiles, find_nuclei
from mm_assets.synthetic.truth import read_slide_plans, read_slide_truth
from mm_assets.wsi.slide import open_slide
from mm_assets_tests.benchmarks.nucleus_gnn import interval, unseen_slides
from mm_assets_tests.benchmarks.pu_selection import TASKS
from mm_assets_tests.nuclei.planted import Planted
from mm_assets_tests.nuclei.test_search import plan_for

FOLDS = 3
COLUMNS = ("importance", "attention", "kept in lesion", "all in lesion")


def detect(cohort: Path, patients: int, tiles: int) -> Planted:
    """Graphs of the first slides of the first patients, and which nuclei lie in lesions."""
    encoder = load_encoder("resnet50", "random:0")
    graphs: dict[str, Graph] = {}
    in_lesion = {}
    clinical, _ = read_clinical(ClinicalConfig(table=str(cohort / "clinical.csv")))
    good = read_slide_plans(cohort).query("state == 'good'").index
    names = [f"{patient}-S1" for patient in clinical.index[:patients]]
    for name in [name for name in names if name in good]:
        with open_slide(cohort / "slides" / f"{name}.tiff") as slide:
            plan, tissue = plan_for(slide)
            chosen = choose_tiles(plan, tiles)
            nodes, edges, _ = find_nuclei(slide, plan, *tissue, encoder, chosen)
        places = [nodes[column].to_numpy() for column in ("centroid_x", "centroid_y")]
        lesion = shapely.contains_xy(read_slide_truth(cohort, name).lesions, *places)
        if 0 < lesion.sum() < len(lesion):
            graphs[name], in_lesion[name] = (nodes, edges), lesion
    manifest = pd.DataFrame({"slide_id": list(graphs)})
    manifest["patient_id"] = manifest["slide_id"].str.removesuffix("-S1")
    have = clinical.loc[manifest["patient_id"]]
    subtype, survival = (make_endpoint(have, task) for task in TASKS)
    return Planted(graphs, in_lesion, manifest, survival, subtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--tiles", type=int, default=6)
    parser.add_argument("--patients", type=int, default=120)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    planted = detect(arguments.cohort, arguments.patients, arguments.tiles)
    count = sum(nodes.num_rows for nodes, _ in planted.graphs.values())
    print(f"{len(planted.graphs)} slides with {count} nuclei", flush=True)
    for kind in ("classification", "survival"):
        table = pd.DataFrame(unseen_slides(planted, kind, FOLDS))
        print(kind)
        for column in COLUMNS:
            print(f"  {column:15} {interval(table[column])}", flush=True)


if __name__ == "__main__":
    main()
