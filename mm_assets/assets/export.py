"""Export of finished slides, as the receipts have them, to the formats of other tools."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_assets.assets.progress import Progress
from mm_assets.assets.slides import manifest_rows
from mm_assets.assets.stage import Workspace
from mm_assets.assets.tiles import TILES
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import ArtefactRef, StoreError

if TYPE_CHECKING:
    from mm_assets.wsi.interchange import TileSet

SOURCES = ("slide", "tissue", TILES)


def export_slides(
    space: Workspace, kind: str, folder: Path, slides: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Write the tile embeddings of a cohort's slides; files of the same name are replaced.

    Parameters
    ----------
    kind
        A key of `mm_assets.wsi.interchange.FORMATS`.
    slides
        Slide ids; None means all.

    Returns
    -------
    One row a slide: how many tiles were exported, or why it was skipped.

    Raises
    ------
    ValueError
        There is no such format or slide, or the folder is not a local one.
    StoreError
        The folder cannot be written; finished files stay.
    """
    from mm_assets.wsi.interchange import FORMATS

    if kind not in FORMATS:
        raise ValueError(f"no format is named {kind!r}; there are {', '.join(FORMATS)}")
    if folder.parts[:1] == ("s3:",):
        raise ValueError("exports go to a local folder, from where they can be copied to S3")
    names = _chosen(space, slides)
    receipts = {a: space.receipts.read_many(space.config.cohort, a, names) for a in SOURCES}
    progress = Progress(f"{space.config.cohort}/export", len(names), space.log)
    rows = []
    for name in names:
        made = {asset: found[name] for asset, found in receipts.items() if name in found}
        reason, count = _unfinished(name, made), 0
        if not reason:
            try:
                tiles = _tile_set(space, name, made)
            except StoreError as error:
                reason = str(error)
            else:
                _write(FORMATS[kind], tiles, folder)
                count = tiles.table.num_rows
        rows.append({"slide": name, "tiles": count, "skipped": reason})
        progress.advance()
    return rows


def _chosen(space: Workspace, slides: Sequence[str] | None) -> list[str]:
    known = list(manifest_rows(space.config)) if space.config.slides else []
    unknown = sorted(set(slides or ()) - set(known))
    if unknown:
        raise ValueError(f"unknown slides: {', '.join(unknown)}")
    return [name for name in known if slides is None or name in slides]


def _unfinished(name: str, made: Mapping[str, Receipt]) -> str:
    """Why the slide cannot be exported; empty when it can."""
    for asset in SOURCES:
        if asset not in made:
            return f"{asset} has not been made: run `mm materialize`"
        if made[asset].state != "done":
            return f"{asset}: {made[asset].reason}"
    read = made[TILES].provenance.inputs
    for asset in ("slide", "tissue"):
        if read[asset][name] != made[asset].digest:
            return f"{TILES} is older than {asset}: run `mm materialize`"
    return ""


def _tile_set(space: Workspace, name: str, made: Mapping[str, Receipt]) -> "TileSet":
    from mm_assets.wsi.interchange import TileSet

    def ref(asset: str, extension: str) -> ArtefactRef:
        return ArtefactRef(space.config.cohort, asset, name, extension)

    table = space.store.read_arrow(ref(TILES, "arrow"))
    record = json.loads(space.store.read_bytes(ref("slide", "json")))
    stamps = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    # What the tiles were made with; the configuration may have changed since.
    parameters: dict[str, Any] = made[TILES].provenance.parameters
    return TileSet(
        slide=name,
        width=record["width"],
        height=record["height"],
        mpp=record["mpp"],
        levels=tuple(tuple(level) for level in record["levels"]),
        tile_px=parameters["tile_px"],
        tile_mpp=parameters["mpp"],
        encoder=stamps["encoder"],
        stamps={key: stamps[key] for key in ("weights", "weights_sha256")},
        code_hash=made[TILES].fingerprint.removeprefix("sha256:")[:8],
        table=table,
        tissue=space.store.read_bytes(ref("tissue", "geojson")),
    )


def _write(write: Callable[["TileSet", Path], None], tiles: "TileSet", folder: Path) -> None:
    try:
        write(tiles, folder)
    except OSError as error:
        raise StoreError(
            f"{tiles.slide}: cannot write into the export folder: {error.strerror or error}. "
            "Free space or give this user the right to write, then run again."
        ) from error
