"""The viewer's JSON, QuPath's GeoJSON, pictures and crops."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shapely.geometry import shape

from mm_assets.explain.crops import joined, with_crops
from mm_assets.explain.document import EvidenceDocument, Instance, Item, Model, table_rows
from mm_assets.explain.geojson import instance_features
from mm_assets.explain.pictures import draw_evidence, heat, small_picture, thumbnail
from mm_assets.synthetic.tiff import write_pyramid
from mm_assets.wsi.slide import open_slide

PLACES = [("A", 0, 0, 0.5), ("A", 512, 256, -0.3), ("B", 256, 0, 0.2), ("A", 896, 896, 0.1)]


def document() -> EvidenceDocument:
    instances = tuple(
        Instance(
            rank=rank, slide_id=slide, level="tile", x=x, y=y, size0=256, score=score, features=1
        )
        for rank, (slide, x, y, score) in enumerate(PLACES, start=1)
    )
    items = tuple(
        Item(
            rank=found.rank,
            kind="imaging",
            feature=f"tile:max:{found.rank:04d}",
            value=1.5,
            contribution=found.score,
            level="tile",
            dimension=found.rank,
            extremum="max",
            slide_id=found.slide_id,
            x=found.x,
            y=found.y,
            size0=found.size0,
        )
        for found in instances
    )
    gene = Item(rank=5, kind="omics", feature="mutation:TP53", value=None, contribution=0.01)
    return EvidenceDocument(
        cohort="demo",
        task="survival",
        patient_id="P",
        method="heec",
        model=Model(name="demo.survival.heec", version=3),
        weights="resnet50 random:0",
        seen_in_training=True,
        towards="risk",
        meaning="share of the risk",
        prediction={"risk": 0.91},
        base=0.4,
        score=0.91,
        items=(*items, gene),
        instances=instances,
    )


def test_json_round_trip() -> None:
    made = document()
    assert EvidenceDocument.from_json(made.to_json()) == made
    plain = json.loads(made.to_json())
    assert (plain["schema"], plain["version"]) == ("mm_assets.evidence", 1)
    assert table_rows(made.items)[-1]["value"] == "missing"


def test_attention_needs_no_features() -> None:
    attention = tuple(found.model_copy(update={"features": None}) for found in document().instances)
    made = document().model_copy(
        update={"items": (), "instances": attention, "base": None, "score": None}
    )
    assert EvidenceDocument.from_json(made.to_json()) == made
    shapes = instance_features(made.on_slide("A"), 1000, 1000, "risk")
    assert "features" not in shapes["features"][0]["properties"]["measurements"]


@pytest.mark.parametrize("change", [{"version": 2}, {"schema": "other"}, {"surprise": 1}])
def test_other_documents_are_refused(change: dict[str, object]) -> None:
    plain = json.loads(document().to_json()) | change
    with pytest.raises(ValueError, match=next(iter(change))):
        EvidenceDocument.from_json(json.dumps(plain).encode())


def test_geojson_is_valid_and_inside_the_slide() -> None:
    shapes = json.loads(json.dumps(instance_features(document().on_slide("A"), 1000, 1000, "risk")))
    assert shapes["type"] == "FeatureCollection"
    polygons = [shape(feature["geometry"]) for feature in shapes["features"]]
    assert all(polygon.is_valid for polygon in polygons)
    assert polygons[0].bounds == (0, 0, 256, 256)
    assert polygons[2].bounds == (896, 896, 1000, 1000)
    first, second = (feature["properties"] for feature in shapes["features"][:2])
    assert first["name"] == "1 tile"
    assert first["measurements"] == {"rank": 1, "score": 0.5, "features": 1}
    assert first["classification"]["name"] == "for risk"
    assert second["classification"]["name"] == "against risk"


def test_heat_spreads_a_score_over_its_square() -> None:
    found = document().on_slide("A")[:2]
    field = heat(found, (64, 64), 16.0)
    assert field.sum() * 16 * 16 == pytest.approx(0.5 - 0.3)
    assert field[0, 0] == pytest.approx(0.5 / 256**2)
    assert field[16, 32] == pytest.approx(-0.3 / 256**2)
    assert field[40:].sum() == 0


def test_pictures_show_red_for_and_blue_against(tmp_path: Path) -> None:
    white = np.full((640, 640, 3), 255, np.uint8)
    picture = np.asarray(draw_evidence(white, document().on_slide("A"), 1.6))
    red, blue = picture[120, 120].astype(int), picture[200, 400].astype(int)
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert (picture[500, 100] == 255).all()
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    small = small_picture(noise, document().on_slide("A"), 2.0)
    assert len(base64.b64encode(small)) < 50_000
    assert Image.open(io.BytesIO(small)).format == "PNG"


def test_crops_hold_the_pixels_of_their_places(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    write_pyramid(tmp_path / "A.tiff", image, mpp=0.5)
    with open_slide(tmp_path / "A.tiff") as slide:
        made, crops = with_crops(document(), slide, "A", 2)
        expected = slide.read(512, 256, 256, 256)
        picture, downsample = thumbnail(slide, 256)
    assert set(crops) == {"crop001.png", "crop002.png"}
    shown = np.asarray(Image.open(io.BytesIO(crops["crop002.png"])))
    np.testing.assert_array_equal(shown, expected)
    assert [found.crop for found in made.instances] == [
        "A.crop001.png",
        "A.crop002.png",
        None,
        None,
    ]
    assert made.items[1].crop == "A.crop002.png"
    assert made.items[4].crop is None
    assert (picture.shape, downsample) == ((256, 256, 3), 4)


def test_documents_of_a_patients_slides_are_joined() -> None:
    first, second = document(), document()
    for name, slide in (("A", 0), ("B", 2)):
        instances = list(document().instances)
        instances[slide] = instances[slide].model_copy(update={"crop": f"{name}.crop.png"})
        made = document().model_copy(update={"instances": tuple(instances)})
        first, second = (made, second) if name == "A" else (first, made)
    both = joined([first, second])
    assert [found.crop for found in both.instances] == ["A.crop.png", None, "B.crop.png", None]
    other = second.model_copy(update={"model": Model(name="demo.survival.heec", version=4)})
    with pytest.raises(ValueError, match="different times"):
        joined([first, other])
