"""The files of every format, read the way the tools they are for read them."""

import json
import multiprocessing
import resource
import uuid
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mm_assets.wsi.interchange import FORMATS, TileSet, magnification
from mm_assets.wsi.tiling import Grid

SLIDE = "TCGA-3C.a_1"
DIMENSION = 48
LEVELS = {
    0.25: ((40_000, 30_000, 1.0), (20_000, 15_000, 2.0), (5000, 3750, 8.0)),
    0.2525: ((40_000, 30_000, 1.0), (10_000, 7500, 4.0)),
    0.499: ((20_000, 15_000, 1.0), (5000, 3750, 4.0)),
    0.5: ((20_000, 15_000, 1.0),),
}


def tile_set(mpp: float = 0.5, count: int = 400, dimension: int = DIMENSION) -> TileSet:
    """Tiles of 256 px at 0.5 um a pixel, on the grid, with random embeddings."""
    rng = np.random.default_rng(0)
    grid = Grid(256, 0.5, mpp)
    values = rng.standard_normal(count * dimension).astype(np.float16)
    rows, columns = np.divmod(rng.choice(100 * 80, count, replace=False), 100)
    table = pa.table(
        {
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values), dimension),
            "x": pa.array([grid.position(int(c)) for c in columns], pa.int32()),
            "y": pa.array([grid.position(int(r)) for r in rows], pa.int32()),
            "size0": pa.array([grid.size0] * count, pa.int32()),
        }
    )
    return TileSet(
        slide=SLIDE,
        width=LEVELS[mpp][0][0],
        height=LEVELS[mpp][0][1],
        mpp=mpp,
        levels=LEVELS[mpp],
        tile_px=256,
        tile_mpp=0.5,
        encoder="resnet50",
        stamps={"weights": "random:0", "weights_sha256": "ab" * 32},
        code_hash="0123abcd",
        table=table,
        tissue=json.dumps({"type": "FeatureCollection", "features": []}).encode(),
    )


def embeddings(tiles: TileSet) -> np.ndarray:
    return np.array(tiles.table["embedding"].to_pylist(), np.float32)


def corners(tiles: TileSet) -> np.ndarray:
    return np.array([tiles.table["x"].to_pylist(), tiles.table["y"].to_pylist()]).T


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mpp", LEVELS)
class TestTrident:
    def test_slide_encoders_read_their_batch(self, tmp_path, mpp):
        tiles = tile_set(mpp)
        FORMATS["trident"](tiles, tmp_path)
        with h5py.File(tmp_path / "20x_256px_0px_overlap/features_resnet50" / f"{SLIDE}.h5") as h5:
            features, coords = h5["features"][:], h5["coords"][:]
            attributes, stamps = dict(h5["coords"].attrs), dict(h5["features"].attrs)
        assert (features.dtype, coords.dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(features, embeddings(tiles))
        np.testing.assert_array_equal(coords, corners(tiles))
        batch = {"features": torch.from_numpy(features).float()[None], "coords": coords[None]}
        assert batch["features"].shape == (1, 400, DIMENSION)
        assert int(attributes["patch_size_level0"]) == tiles.table["size0"][0].as_py()
        assert stamps["name"] == SLIDE
        assert stamps["encoder"] == "resnet50"
        assert stamps["weights"] == "random:0"

    def test_patches_give_the_area_on_level_0(self, tmp_path, mpp):
        tiles = tile_set(mpp)
        FORMATS["trident"](tiles, tmp_path)
        patches = tmp_path / "20x_256px_0px_overlap/patches" / f"{SLIDE}_patches.h5"
        with h5py.File(patches) as h5:
            np.testing.assert_array_equal(h5["coords"][:], corners(tiles))
            found = dict(h5["coords"].attrs)
        assert (found["level0_width"], found["level0_height"]) == (tiles.width, tiles.height)
        assert (found["patch_size"], found["overlap"], found["name"]) == (256, 0, SLIDE)
        edge = found["patch_size"] * found["level0_magnification"] / found["target_magnification"]
        # The tool takes the ratio of magnifications for that of resolutions: off by up to 1 %.
        assert edge == pytest.approx(found["patch_size_level0"], rel=0.011)

    def test_clam_reads_the_same_area_or_is_told_nothing(self, tmp_path, mpp):
        tiles = tile_set(mpp)
        FORMATS["trident"](tiles, tmp_path)
        patches = tmp_path / "20x_256px_0px_overlap/patches" / f"{SLIDE}_patches.h5"
        with h5py.File(patches) as h5:
            found = dict(h5["coords"].attrs)
        assert ("patch_level" in found) == (mpp != 0.2525)
        if "patch_level" in found:
            edge = found["patch_size"] * found["downsample"][0]
            assert edge == pytest.approx(found["patch_size_level0"], rel=0.011)
            level = tiles.levels[found["patch_level"]]
            assert tuple(found["level_dim"]) == tuple(found["downsampled_level_dim"]) == level[:2]


class Bags(Dataset):
    """Features by slide id from a folder of features, as tensors or from HDF5."""

    def __init__(self, folder: Path, use_h5: bool):
        self.folder, self.use_h5 = folder, use_h5

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        if not self.use_h5:
            path = self.folder / "pt_files" / f"{SLIDE}.pt"
            return torch.load(path, weights_only=True), 1
        with h5py.File(self.folder / "h5_files" / f"{SLIDE}.h5") as h5:
            return torch.from_numpy(h5["features"][:]), 1, h5["coords"][:]


@pytest.mark.parametrize("mpp", LEVELS)
def test_clam_trains_and_reads_patches(tmp_path, mpp):
    tiles = tile_set(mpp)
    FORMATS["clam"](tiles, tmp_path)
    for use_h5 in (False, True):
        loader = DataLoader(Bags(tmp_path, use_h5), collate_fn=lambda bags: bags[0])
        for features, label, *coords in loader:
            assert (features.dtype, label) == (torch.float32, 1)
            np.testing.assert_array_equal(features.numpy(), embeddings(tiles))
            if use_h5:
                assert coords[0].dtype == np.int32
                np.testing.assert_array_equal(coords[0], corners(tiles))
    with h5py.File(tmp_path / "patches" / f"{SLIDE}.h5") as h5:
        coords, found = h5["coords"], h5["coords"].attrs
        assert coords.dtype == np.int64
        np.testing.assert_array_equal(coords[:], corners(tiles))
        width, height, downsample = tiles.levels[found["patch_level"]]
        assert found["patch_size"] * downsample == tiles.table["size0"][0].as_py()
        assert tuple(found["downsample"]) == (downsample, downsample)
        assert tuple(found["level_dim"]) == tuple(found["downsampled_level_dim"])
        assert tuple(found["level_dim"]) == (width, height)
        assert (found["name"], found["save_path"]) == (SLIDE, "patches")


@pytest.mark.parametrize("mpp", LEVELS)
def test_stamp_finds_units_and_stride(tmp_path, mpp):
    tiles = tile_set(mpp)
    FORMATS["stamp"](tiles, tmp_path)
    with h5py.File(tmp_path / "resnet50" / f"{SLIDE}.h5") as h5:
        features, coords, found = h5["feats"][:], h5["coords"][:], dict(h5.attrs)
    assert (features.dtype, coords.dtype) == (np.float16, np.float32)
    np.testing.assert_array_equal(torch.from_numpy(features).float().numpy(), embeddings(tiles))
    # Corners were rounded to whole level-0 pixels, half of one at most.
    np.testing.assert_allclose(coords, corners(tiles) * mpp, rtol=0, atol=0.51 * mpp)
    assert (found["unit"], found["feat_type"], found["extractor"]) == ("um", "tile", "resnet50")
    assert found["tile_size_um"] / found["tile_size_px"] == 0.5
    assert tuple(int(part) for part in found["stamp_version"].split(".")) <= (2, 1, 0)
    stride = min(np.diff(np.unique(axis)).min() for axis in coords.T)
    assert stride == found["tile_size_um"]
    cells = np.rint(coords / stride).astype(int)
    assert len({tuple(cell) for cell in cells}) == len(cells)


def test_parquet_answers_sql_over_all_slides(tmp_path):
    import duckdb

    tiles = tile_set()
    FORMATS["parquet"](tiles, tmp_path)
    query = f"from '{tmp_path}/tile_embeddings/*.parquet' select slide_id, x, y, size0, embedding"
    names, x, y, size0, vectors = zip(*duckdb.sql(query).fetchall(), strict=True)
    assert set(names) == {SLIDE}
    assert set(size0) == {256}
    np.testing.assert_array_equal(np.array([x, y]).T, corners(tiles))
    np.testing.assert_array_equal(np.array(vectors, np.float32), embeddings(tiles))


@pytest.mark.parametrize(
    ("mpp", "expected"),
    [(0.12, 80), (0.2428, 40), (0.25, 40), (0.46, 20), (0.5, 20), (1, 10), (2, 5), (4, 2.5)],
)
def test_magnification_follows_the_resolution(mpp, expected):
    assert magnification(mpp) == expected
    assert type(magnification(mpp)) is type(expected)


def test_chunks_are_about_a_mebibyte(tmp_path):
    FORMATS["trident"](tile_set(count=900, dimension=1024), tmp_path)
    with h5py.File(tmp_path / "20x_256px_0px_overlap/features_resnet50" / f"{SLIDE}.h5") as h5:
        assert h5["features"].chunks == (256, 1024)
        assert h5["coords"].chunks == (900, 2)
        assert h5["features"].maxshape == (None, 1024)


@pytest.mark.parametrize("kind", FORMATS)
def test_same_tiles_give_the_same_bytes_and_name_no_folder(tmp_path, kind):
    first, second = tmp_path / f"Dr-{uuid.uuid4().hex}", tmp_path / "second"
    FORMATS[kind](tile_set(), first)
    FORMATS[kind](tile_set(), second)
    assert files(first) == files(second)
    for name in files(first):
        content = (first / name).read_bytes()
        assert content == (second / name).read_bytes()
        assert first.name.encode() not in content


def _write_with_little_room(kind: str, folder: Path, sender) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        FORMATS[kind](tile_set(count=2000), folder)
    except OSError as error:
        sender.send(str(error))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_failed_write_keeps_what_was_there(tmp_path, kind):
    FORMATS[kind](tile_set(count=3), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=_write_with_little_room, args=(kind, tmp_path, sender)
    )
    before = files(tmp_path)
    child.start()
    child.join(60)
    assert receiver.poll(), f"ended with {child.exitcode}"
    assert "File too large" in receiver.recv()
    assert files(tmp_path) == before
    for path in tmp_path.rglob("*.h5"):
        with h5py.File(path) as h5:
            assert len(h5["coords"]) in (3, 2000)
