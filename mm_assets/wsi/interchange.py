"""Tile embeddings in the files that other tools read: TRIDENT, CLAM, STAMP, and plain Parquet.

Layouts, dataset names, types and attributes follow what those tools write and read themselves.
Nothing in the files names a folder of this machine.

Contents are made in memory: HDF5 and PyTorch do not survive a full disk in good order.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mm_assets.files import publish

MAGNIFICATIONS = (80, 60, 40, 20, 10, 5, 2.5, 1.25)
MPP_AT_1X = 10.0
CHUNK_BYTES = 2**20
# A pyramid level serves as the tiles' resolution when it is at most this far from it.
LEVEL_TOLERANCE = 0.01
# STAMP refuses files newer than itself; these attributes are understood since this version.
STAMP_VERSION = "2.1.0"

Attributes = Mapping[str, Any]
Arrays = dict[str, tuple[NDArray[Any], Attributes]]


@dataclass(frozen=True)
class TileSet:
    """The embedded tiles of one slide, with what other tools want to know of both.

    Attributes
    ----------
    slide
        Slide id.
    width, height, mpp, levels
        Level-0 pixels, micrometres per level-0 pixel; width, height and downsample of each level.
    tile_px, tile_mpp
        Edge and resolution at which tiles were embedded.
    encoder
        Name of the encoder.
    stamps
        What else to write beside the features: weights, digests.
    code_hash
        Eight hexadecimal digits that change with whatever made the embeddings.
    table
        Columns embedding (fixed_size_list<float16>[D]), x, y and size0 (int32, level-0 pixels).
    tissue
        GeoJSON of the tissue.
    """

    slide: str
    width: int
    height: int
    mpp: float
    levels: tuple[tuple[int, int, float], ...]
    tile_px: int
    tile_mpp: float
    encoder: str
    stamps: Mapping[str, str]
    code_hash: str
    table: pa.Table
    tissue: bytes

    @cached_property
    def features(self) -> NDArray[np.float16]:
        """float16 (N, D)."""
        column = self.table["embedding"].combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(values).reshape(len(column), column.type.list_size)

    @property
    def coords(self) -> NDArray[np.int64]:
        """int64 (N, 2): x and y of the top-left corners, level-0 pixels."""
        return np.stack([self.table["x"], self.table["y"]], axis=1).astype(np.int64)

    @property
    def size0(self) -> int:
        """Edge of a tile in level-0 pixels."""
        return int(self.table["size0"][0].as_py())

    @property
    def tile_um(self) -> float:
        """Edge of a tile in micrometres."""
        return self.tile_px * self.tile_mpp


def magnification(mpp: float) -> int | float:
    """The customary magnification nearest (by ratio) to 10 um over `mpp`.

    The resolution decides, not what a header says of the objective: readers take the ratio of two
    magnifications for the ratio of two resolutions, and behind a camera adapter it is not.
    """
    nearest = min(MAGNIFICATIONS, key=lambda times: abs(np.log(times * mpp / MPP_AT_1X)))
    return int(nearest) if nearest == int(nearest) else nearest


def write_trident(tiles: TileSet, out: Path) -> None:
    """Coordinates, features and tissue contours as in a job folder of TRIDENT.

    ``patch_size_level0`` is exact; magnifications are customary ones (see `magnification`). Where
    a pyramid level has the tiles' resolution the attributes by which CLAM reads pixels stand
    beside TRIDENT's; where none has, CLAM would read other areas, and they are left out
    (`write_clam` serves every slide).
    """
    times = magnification(tiles.tile_mpp)
    folder = f"{times}x_{tiles.tile_px}px_0px_overlap"
    patches: dict[str, Any] = {
        "patch_size": tiles.tile_px,
        "patch_size_level0": tiles.size0,
        "level0_magnification": magnification(tiles.mpp),
        "target_magnification": times,
        "overlap": 0,
        "name": tiles.slide,
        "savetodir": folder,
        "level0_width": tiles.width,
        "level0_height": tiles.height,
    }
    level = _level_of_tiles(tiles)
    if level is not None:
        patches = _clam_patches(tiles, level, tiles.tile_px, folder) | patches
    coords: Arrays = {"coords": (tiles.coords, patches)}
    publish(out / folder / "patches" / f"{tiles.slide}_patches.h5", _hdf5(coords))
    features = f"features_{tiles.encoder}"
    stamps = {"name": tiles.slide, "savetodir": f"{folder}/{features}", "encoder": tiles.encoder}
    described = (tiles.features.astype(np.float32), {**tiles.stamps, **stamps})
    content = _hdf5({"features": described, **coords})
    publish(out / folder / features / f"{tiles.slide}.h5", content)
    publish(out / "contours_geojson" / f"{tiles.slide}.geojson", tiles.tissue)


def write_clam(tiles: TileSet, out: Path) -> None:
    """Patches at level 0, and features as HDF5 and as tensors, in the folders CLAM looks into.

    ``patch_size`` is the tiles' edge in level-0 pixels: read at level 0 and resized to the
    encoder's input they are the tiles that were embedded, whatever levels the slide has.
    """
    import torch

    patches = _clam_patches(tiles, 0, tiles.size0, "patches")
    content = _hdf5({"coords": (tiles.coords, patches)})
    publish(out / "patches" / f"{tiles.slide}.h5", content)
    features = tiles.features.astype(np.float32)
    arrays: Arrays = {
        "features": (features, tiles.stamps),
        "coords": (tiles.coords.astype(np.int32), {}),
    }
    publish(out / "h5_files" / f"{tiles.slide}.h5", _hdf5(arrays))
    buffer = io.BytesIO()
    torch.save(torch.from_numpy(features), buffer)
    publish(out / "pt_files" / f"{tiles.slide}.pt", buffer.getbuffer())


def write_stamp(tiles: TileSet, out: Path) -> None:
    """Features as STAMP extracts them, in a folder of the encoder's name.

    Coordinates are micrometres on the exact grid of tiles: level-0 corners were rounded to whole
    pixels, and STAMP takes the smallest step between two for the stride of all.
    """
    corners = np.rint(tiles.coords * (tiles.mpp / tiles.tile_um)) * tiles.tile_um
    arrays: Arrays = {"feats": (tiles.features, {}), "coords": (corners.astype(np.float32), {})}
    attributes = {
        "stamp_version": STAMP_VERSION,
        "extractor": tiles.encoder,
        "unit": "um",
        "tile_size_um": tiles.tile_um,
        "tile_size_px": tiles.tile_px,
        "code_hash": tiles.code_hash,
        "feat_type": "tile",
        **tiles.stamps,
    }
    publish(out / tiles.encoder / f"{tiles.slide}.h5", _hdf5(arrays, attributes))


def write_parquet(tiles: TileSet, out: Path) -> None:
    """The table, after a column `slide_id` so that one query reads all slides.

    float16 lists in Parquet are read by DuckDB, which cannot read them in Arrow.
    """
    import pyarrow.parquet as pq

    names = pa.array([tiles.slide] * tiles.table.num_rows, pa.string())
    table = tiles.table.add_column(0, "slide_id", names)
    table = table.replace_schema_metadata({"encoder": tiles.encoder, **tiles.stamps})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=["slide_id"])
    publish(out / "tile_embeddings" / f"{tiles.slide}.parquet", buffer.getbuffer())


FORMATS: dict[str, Callable[[TileSet, Path], None]] = {
    "trident": write_trident,
    "clam": write_clam,
    "stamp": write_stamp,
    "parquet": write_parquet,
}


def _level_of_tiles(tiles: TileSet) -> int | None:
    wanted = tiles.size0 / tiles.tile_px
    fits = (abs(downsample / wanted - 1) < LEVEL_TOLERANCE for _, _, downsample in tiles.levels)
    return next((level for level, fit in enumerate(fits) if fit), None)


def _clam_patches(tiles: TileSet, level: int, patch_size: int, folder: str) -> dict[str, Any]:
    """CLAM's attributes of coordinates; `patch_size` counts pixels of that level."""
    width, height, downsample = tiles.levels[level]
    return {
        "patch_size": patch_size,
        "patch_level": level,
        "downsample": (float(downsample), float(downsample)),
        "downsampled_level_dim": (width, height),
        "level_dim": (width, height),
        "name": tiles.slide,
        "save_path": folder,
    }


def _hdf5(arrays: Arrays, attributes: Attributes | None = None) -> memoryview:
    """A file of datasets with their attributes, and attributes of the file."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs.update(attributes or {})
        for name, (values, its_attributes) in arrays.items():
            rows = max(1, CHUNK_BYTES // values[0].nbytes)
            dataset = file.create_dataset(
                name,
                data=values,
                chunks=(min(rows, len(values)), *values.shape[1:]),
                maxshape=(None, *values.shape[1:]),
            )
            dataset.attrs.update(its_attributes)
    return buffer.getbuffer()
