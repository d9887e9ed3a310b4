import threading
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import tifffile

from mm_assets.encoders.registry import load_encoder
from mm_assets.wsi.embed import BUFFERS, embed_slide
from mm_assets.wsi.slide import DECODE_AHEAD, Slide, SlideError, open_slide
from mm_assets.wsi.tiling import TilePlan, plan_tiles
from mm_assets_tests.wsi import painted


class MeanColour:
    """An encoder whose embedding is the mean colour of each quarter, to follow pixels exactly."""

    dimension = 12
    pass_tiles = 1

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        self.batches.append(len(tiles))
        half = tiles.shape[1] // 2
        quarters = [
            tiles[:, y : y + half, x : x + half].mean((1, 2)) for y in (0, half) for x in (0, half)
        ]
        return np.concatenate(quarters, axis=1).astype(np.float16)


@pytest.fixture(scope="module")
def textured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2200 x 1500 px of smooth random texture."""
    coarse = np.random.default_rng(0).integers(0, 255, (30, 44, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (2200, 1500), interpolation=cv2.INTER_CUBIC)
    return painted.slide_file(tmp_path_factory.mktemp("slides"), image)


def plan_for(slide: Slide, *, target: float = 0.5, tile: int = 64, region: int = 512) -> TilePlan:
    """A plan over a mask with tissue in two corners."""
    mask = np.zeros((-(-slide.height // 16), -(-slide.width // 16)), bool)
    mask[:40, :50] = True
    mask[60:, 90:] = True
    return plan_tiles(
        slide.width, slide.height, slide.mpp, mask, 16, target, tile, region, min_tissue=0.5
    )


def vectors(table: pa.Table) -> np.ndarray:
    column = table["embedding"].combine_chunks()
    return column.values.to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)


@pytest.mark.parametrize("target", [0.5, 0.7, 1.0])
def test_tables_hold_every_planned_square_in_grid_order(textured, target):
    encoder = MeanColour()
    with open_slide(textured) as slide:
        plan = plan_for(slide, target=target)
        tiles = embed_slide(slide, plan, {"tiles": encoder}, {}, 16)["tiles"]
        size0 = plan.tile_grid.size0
        pixels = np.stack([slide.read(x, y, size0, 64) for x, y in plan.tile_corners().tolist()])
    assert tiles.schema.equals(
        pa.schema(
            [("embedding", pa.list_(pa.float16(), 12))]
            + [(name, pa.int32()) for name in ("x", "y", "size0")]
        )
    )
    corners = list(zip(tiles["y"].to_pylist(), tiles["x"].to_pylist(), strict=True))
    assert corners == sorted(set(corners))
    assert corners == [(y, x) for x, y in plan.tile_corners().tolist()]
    assert set(tiles["size0"].to_pylist()) == {size0}
    assert (vectors(tiles) == MeanColour().encode(pixels)).all()
    assert max(encoder.batches[:-1]) == min(encoder.batches[:-1]) == 16


@pytest.mark.parametrize(
    ("tile", "region", "tolerance"), [(64, 512, 1.5), (64, 64, 0.5), (64, 192, 4), (48, 480, 4)]
)
def test_a_regions_canvas_is_the_reduced_region(textured, tile, region, tolerance):
    """In grey levels: the canvas is rounded twice; tiles that do not divide it shift by .5 px."""
    with open_slide(textured) as slide:
        plan = plan_for(slide, tile=tile, region=region)
        regions = embed_slide(slide, plan, {}, {"regions": MeanColour()})["regions"]
        size0 = plan.region_grid.size0
        direct = np.stack(
            [
                cv2.resize(
                    slide.read(x, y, size0, region), (tile, tile), interpolation=cv2.INTER_AREA
                )
                for x, y in plan.region_corners().tolist()
            ]
        )
    assert regions.num_rows == len(plan.regions)
    wanted = MeanColour().encode(direct)
    assert np.abs(vectors(regions).astype(float) - wanted).max() < tolerance
    assert wanted.astype(float).std() > 15


def test_region_embedding_of_the_real_encoder_is_that_of_the_region(textured):
    encoder = load_encoder("resnet50", "random:0", "cpu")
    with open_slide(textured) as slide:
        plan = plan_for(slide, tile=128, region=1024)
        made = embed_slide(slide, plan, {}, {"regions": encoder})
        size0 = plan.region_grid.size0
        direct = encoder.encode(
            np.stack([slide.read(x, y, size0, 128) for x, y in plan.region_corners().tolist()])
        ).astype(float)
    found = vectors(made["regions"]).astype(float)
    error = np.linalg.norm(found - direct, axis=1) / np.linalg.norm(direct, axis=1)
    assert error.max() < 0.03


def test_parts_and_batch_sizes_give_the_same_bytes(textured):
    encoder = load_encoder("resnet50", "random:0", "cpu")
    with open_slide(textured) as slide:
        plan = plan_for(slide, target=1.0, tile=128, region=512)
        both = embed_slide(slide, plan, {"t": encoder}, {"r": encoder}, 32)
        again = embed_slide(slide, plan, {"t": encoder}, {"r": encoder}, 5)
        tiles = embed_slide(slide, plan, {"t": encoder}, {})
        regions = embed_slide(slide, plan, {}, {"r": encoder})
    assert both.keys() == {"t", "r"}
    assert both == again == tiles | regions


def test_several_encoders_share_one_pass(textured, monkeypatch):
    passes = []
    original = Slide.read_squares

    def counted(self, *arguments):
        passes.append(arguments)
        return original(self, *arguments)

    resnet = load_encoder("resnet50", "random:0", "cpu")
    with open_slide(textured) as slide:
        plan = plan_for(slide, target=1.0, tile=128, region=512)
        alone = embed_slide(slide, plan, {"resnet": resnet}, {})
        monkeypatch.setattr(Slide, "read_squares", counted)
        mean = MeanColour()
        made = embed_slide(slide, plan, {"resnet": resnet, "mean": mean}, {"regions": mean})
    assert len(passes) == 1
    assert made["resnet"] == alone["resnet"]
    assert made["mean"].num_rows == made["resnet"].num_rows == len(plan.tiles)
    assert made["regions"].num_rows == len(plan.regions)


def test_a_batch_is_computed_while_the_next_is_read(textured):
    """The first result is held back until the pixels of the second batch have been read."""
    read_on = threading.Event()

    class Waiting(MeanColour):
        def encode(self, tiles):
            assert read_on.wait(30)
            return super().encode(tiles)

    with open_slide(textured) as slide:
        plan = plan_for(slide)
        original = slide.read_squares

        def announcing(*arguments):
            for number, pixels in enumerate(original(*arguments)):
                if number == 9:
                    read_on.set()
                yield pixels

        slide.read_squares = announcing
        made = embed_slide(slide, plan, {"t": Waiting()}, {}, 8)
    assert made["t"].num_rows == len(plan.tiles)


def test_openslide_reads_every_tile_once_and_not_far_ahead(textured, monkeypatch):
    reads: list[tuple[int, int]] = []
    lead: list[int] = []
    lock = threading.Lock()

    class Counting(MeanColour):
        used = 0

        def encode(self, tiles):
            with lock:
                lead.append(len(reads))
            return super().encode(tiles)

    original = Slide.read

    def counted(self, x0, y0, size0, out_px):
        with lock:
            reads.append((x0, y0))
        return original(self, x0, y0, size0, out_px)

    monkeypatch.setattr("mm_assets.wsi.slide.TILED_VENDORS", ())
    monkeypatch.setattr(Slide, "read", counted)
    encoder = Counting()
    with open_slide(textured) as slide:
        plan = plan_for(slide)
        embed_slide(slide, plan, {"t": encoder}, {"r": MeanColour()}, 8)
        under = plan.tiles_under(plan.regions)
    assert len(reads) == len(set(reads)) == len(under)
    assert len(reads) < plan.columns * plan.rows
    position = {tuple(place): number for number, place in enumerate(under.tolist())}
    full = [position[tuple(place)] + 1 for place in plan.tiles.tolist()[7::8]]
    # The device may be so late that every buffer is full before it begins with the first.
    for read, own, latest in zip(lead[:3], full, full[BUFFERS - 1 :], strict=False):
        assert own <= read <= latest + DECODE_AHEAD + 1
    assert lead[0] < len(under) / 2


def test_an_error_while_decoding_is_a_slide_error(textured, tmp_path):
    data = bytearray(textured.read_bytes())
    with tifffile.TiffFile(textured) as file:
        page = file.pages[0].aspage()
        start, count = page.dataoffsets[-2], page.databytecounts[-2]
    data[start : start + count] = b"\xff" * count
    path = tmp_path / "damaged.tiff"
    path.write_bytes(data)
    with open_slide(path) as slide:
        plan = plan_for(slide)
        with pytest.raises(SlideError, match=r"damaged.tiff cannot be decoded near x="):
            embed_slide(slide, plan, {"t": MeanColour()}, {})
    decoders = [t.name for t in threading.enumerate() if t.name.startswith(("decode", "embed"))]
    assert decoders == []


def test_a_real_slide_from_file_to_embeddings(shared_data):
    from mm_assets.wsi.tissue import find_tissue

    encoder = load_encoder("resnet50", "random:0", "cpu")
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        tissue = find_tissue(slide)
        plan = plan_tiles(
            slide.width,
            slide.height,
            slide.mpp,
            tissue.mask,
            tissue.downsample,
            target_mpp=0.5,
            tile_px=256,
            region_px=4096,
            min_tissue=0.5,
        )
        made = embed_slide(slide, plan, {"tiles": encoder}, {"regions": encoder})
    assert 30 < made["tiles"].num_rows < 60
    assert made["regions"].num_rows == 1
    found = vectors(made["tiles"]).astype(np.float32)
    assert np.isfinite(found).all()
    assert (found.std(0) > 0).mean() > 0.9
