"""Evidence as GeoJSON that QuPath opens: one annotation an instance, level-0 pixels."""

from collections.abc import Sequence
from typing import Any

from mm_assets.explain.document import Instance
from mm_assets.explain.pictures import AGAINST, FOR


def instance_features(
    instances: Sequence[Instance], width: int, height: int, towards: str
) -> dict[str, Any]:
    """FeatureCollection of squares, cut at the slide's edge.

    Parameters
    ----------
    instances
        Of one slide.
    width, height
        The slide's level-0 pixels.
    towards
        What positive scores speak for, ``risk`` or a class.
    """
    features = [_feature(instance, width, height, towards) for instance in instances]
    return {"type": "FeatureCollection", "features": features}


def _feature(instance: Instance, width: int, height: int, towards: str) -> dict[str, Any]:
    left, top = max(instance.x, 0), max(instance.y, 0)
    right = min(instance.x + instance.size0, width)
    bottom = min(instance.y + instance.size0, height)
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    speaks_for = instance.score >= 0
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "annotation",
            "name": f"{instance.rank} {instance.level}",
            "classification": {
                "name": f"{'for' if speaks_for else 'against'} {towards}",
                "color": list(FOR if speaks_for else AGAINST),
            },
            "measurements": {
                "rank": instance.rank,
                "score": instance.score,
                **({} if instance.features is None else {"features": instance.features}),
            },
        },
    }
