"""A cohort with one slide on which a red square is known to lie, and evidence that points at it."""

import logging
from pathlib import Path

import numpy as np
import pytest

from mm_assets.assets.stage import Workspace
from mm_assets.explain.document import EvidenceDocument, Instance, Item, Model, SlideFrame
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import ArtefactRef, Provenance
from mm_assets.synthetic.tiff import write_pyramid
from mm_assets_tests.cohorts import make_cohort, slide_name

SLIDE, BAD = "P000-S1", "P001-S1"
WIDTH, HEIGHT = 3000, 2200
SQUARE = (1792, 1280, 256)  # left, top, edge; level-0 pixels
PATCH = 16
RED, PALE = (200, 20, 30), (236, 214, 226)


def paint_square(path: Path) -> None:
    """A pale slide, darker to the right, with the red square."""
    ramp = np.linspace(0, 40, WIDTH).astype(np.uint8)
    image = np.broadcast_to(np.array(PALE, np.uint8), (HEIGHT, WIDTH, 3)) - ramp[None, :, None]
    x, y, edge = SQUARE
    image[y : y + edge, x : x + edge] = RED
    write_pyramid(path, image, mpp=0.5)


def document() -> EvidenceDocument:
    """Evidence of two imaging features at the square, one elsewhere, a gene and an age."""
    x, y, edge = SQUARE
    place = {"slide_id": SLIDE, "x": x, "y": y, "size0": edge, "level": "tile"}
    other = place | {"slide_id": "P000-S2", "x": 0, "y": 0}
    imaging = {"kind": "imaging", "extremum": "max"}
    first = {"rank": 1, "feature": "tile:max:0007", "dimension": 7, "value": 3.5}
    last = {"rank": 4, "feature": "tile:max:0009", "dimension": 9, "value": 1.5}
    items = (
        Item(contribution=0.4, **first, **imaging, **place),
        Item(rank=2, kind="omics", feature="TP53_mut", value=1, contribution=-0.3),
        Item(rank=3, kind="clinical", feature="age", value=None, contribution=0.1),
        Item(contribution=0.05, **last, **imaging, **other),
    )
    far = place | {"x": 256, "y": 512}
    patch = far | {"level": "patch", "size0": PATCH}
    return EvidenceDocument(
        cohort="tiny",
        task="subtype",
        patient_id="P000",
        method="heec",
        model=Model(name="tiny.subtype.heec", version=3),
        weights="resnet50 random:0",
        seen_in_training=True,
        towards="ILC",
        meaning="log odds of ILC",
        prediction={"probability_ILC": 0.7},
        slide=SlideFrame(slide_id=SLIDE, width=WIDTH, height=HEIGHT, mpp=0.5),
        items=items,
        instances=(
            Instance(rank=1, score=0.4, features=1, **place),
            Instance(rank=2, score=-0.2, features=1, **far),
            Instance(rank=3, score=0.1, **patch),
            Instance(rank=4, score=0.05, **patch | {"x": far["x"] + PATCH}),
        ),
    )


def put_evidence(space: Workspace, slide: str = SLIDE) -> None:
    """The slide taken in, and `document` as its evidence of the task subtype."""
    taken = Provenance("slide", slide, "1", {}, {})
    ref = ArtefactRef("tiny", "slide", slide, "json")
    digest = space.store.write_bytes(ref, b"{}", taken)
    space.receipts.write(Receipt("tiny", "slide", slide, "done", taken, {"json": digest}))
    made_of = Provenance("evidence_subtype", slide, "1", {}, {})
    ref = ArtefactRef("tiny", "evidence_subtype", slide, "json")
    digest = space.store.write_bytes(ref, document().to_json(), made_of)
    facts = {"score": 0.85, "towards": "ILC", "model": "tiny.subtype.heec version 3"}
    facts |= {"seen_in_training": True}
    receipt = Receipt(
        "tiny", "evidence_subtype", slide, "done", made_of, {"json": digest}, "", facts
    )
    space.receipts.write(receipt)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """`MM_HOME` and the YAML of the cohort; the second slide was refused."""
    from mm_assets.cohort.loading import load_config
    from mm_assets.resources.store import ArtefactStore
    from mm_assets.resources.tracking import Tracking

    folder = tmp_path_factory.mktemp("viewer")
    yaml = make_cohort(folder / "cohorts" / "tiny", patients=4, slides=2)
    paint_square(yaml.parent / "slides" / slide_name("P000"))
    home = folder / "mm"
    store = ArtefactStore(uri=str(home / "store"))
    space = Workspace(load_config(yaml), store, Tracking(), logging.getLogger())
    put_evidence(space)
    refused = Provenance("slide", BAD, "1", {}, {})
    space.receipts.write(
        Receipt("tiny", "slide", BAD, "failed", refused, reason="the file is cut off")
    )
    return home, yaml
