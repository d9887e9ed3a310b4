"""Crops of the strongest instances, and the documents that name them."""

from collections.abc import Sequence

from mm_assets.explain.document import EvidenceDocument, Instance, Item
from mm_assets.explain.pictures import crop, png_bytes
from mm_assets.wsi.slide import Slide


def with_crops(
    document: EvidenceDocument, slide: Slide, slide_id: str, count: int
) -> tuple[EvidenceDocument, dict[str, bytes]]:
    """Cut out the strongest instances of a slide.

    Parameters
    ----------
    count
        How many at most.

    Returns
    -------
    The document with the crops' file names in its instances and in the items that point to them,
    and the PNG of each by ``crop<rank>.png``; files are named ``<slide>.crop<rank>.png``.
    """
    chosen = document.on_slide(slide_id)[:count]
    parts = {f"crop{found.rank:03d}.png": png_bytes(crop(slide, found)) for found in chosen}
    files = {_place(found): f"{slide_id}.{part}" for found, part in zip(chosen, parts, strict=True)}
    instances = tuple(
        found.model_copy(update={"crop": files.get(_place(found))}) for found in document.instances
    )
    items = tuple(
        item.model_copy(update={"crop": files.get(_place(item))}) for item in document.items
    )
    return document.model_copy(update={"instances": instances, "items": items}), parts


def _place(found: Instance | Item) -> tuple[str | None, str | None, int | None, int | None]:
    return found.slide_id, found.level, found.x, found.y


def joined(documents: Sequence[EvidenceDocument]) -> EvidenceDocument:
    """One document of a patient from those of the slides, each of which names its own crops.

    Raises
    ------
    ValueError
        When they differ in more than that.
    """
    first = documents[0]
    places = [
        [(found.slide_id, found.level, found.x, found.y, found.score) for found in each.instances]
        for each in documents
    ]
    if any(each.model != first.model for each in documents) or places.count(places[0]) < len(
        places
    ):
        raise ValueError(
            f"the evidence of {first.patient_id}'s slides was made at different times; materialize "
            f"it again"
        )
    instances, items = (
        tuple(
            max(same, key=lambda part: part.crop or "")
            for same in zip(*(getattr(document, name) for document in documents), strict=True)
        )
        for name in ("instances", "items")
    )
    return first.model_copy(update={"instances": instances, "items": items, "slide": None})
