"""Colour profiles without words: the numbers that convert colours, and nothing else."""

import struct
from collections.abc import Iterator

_HEADER, _ENTRY, _TYPE = 128, 12, 8
_SIGNATURE = slice(36, 40)
# Date; device maker and model with attributes; creator, profile id and reserved bytes.
_BLANKED = (slice(24, 36), slice(48, 64), slice(80, 128))
_KEPT = frozenset(
    b"wtpt bkpt rXYZ gXYZ bXYZ rTRC gTRC bTRC kTRC chad lumi "
    b"A2B0 A2B1 A2B2 B2A0 B2A1 B2A2 gamt D2B0 D2B1 D2B2 B2D0 B2D1 B2D2".split()
)
_NUMERIC_TYPES = frozenset((b"XYZ ", b"curv", b"para", b"sf32", b"mft1", b"mft2", b"mAB ", b"mBA "))
_WORDS = {b"desc": "slide", b"cprt": "none"}


def plain_profile(profile: bytes) -> bytes | None:
    """An ICC profile with the same colour conversion and no text, date, maker or model.

    Only tags that hold numbers are kept; the two texts that the format demands become constants.

    Returns
    -------
    The profile, the same for the same numbers, or None where there is no readable one.
    """
    if len(profile) < _HEADER + 4 or profile[_SIGNATURE] != b"acsp":
        return None
    header = bytearray(profile[:_HEADER])
    for blank in _BLANKED:
        header[blank] = bytes(blank.stop - blank.start)
    # The maker of the platform and of the preferred converter do not change the conversion.
    header[4:8] = header[40:44] = bytes(4)
    version = header[8]
    tags = {name: _text(name, words, version) for name, words in _WORDS.items()} | _numbers(profile)
    table, values = struct.pack(">I", len(tags)), b""
    first = _HEADER + len(table) + _ENTRY * len(tags)
    places: dict[bytes, int] = {}
    for name, value in sorted(tags.items()):
        if value not in places:
            places[value] = first + len(values)
            values += value + bytes(-len(value) % 4)
        table += name + struct.pack(">II", places[value], len(value))
    struct.pack_into(">I", header, 0, first + len(values))
    return bytes(header) + table + values


def worded_tags(profile: bytes) -> list[bytes]:
    """Content, without the type, of the tags that `plain_profile` leaves out or replaces."""
    if len(profile) < _HEADER + 4:
        return [profile]
    numbers = _numbers(profile)
    return [value[_TYPE:] for name, value in _tags(profile) if name not in numbers]


def _numbers(profile: bytes) -> dict[bytes, bytes]:
    return {
        name: value
        for name, value in _tags(profile)
        if name in _KEPT and value[:4] in _NUMERIC_TYPES
    }


def _tags(profile: bytes) -> Iterator[tuple[bytes, bytes]]:
    (count,) = struct.unpack_from(">I", profile, _HEADER)
    for entry in range(_HEADER + 4, min(_HEADER + 4 + _ENTRY * count, len(profile) - 11), _ENTRY):
        name, start, size = struct.unpack_from(">4sII", profile, entry)
        if start + size <= len(profile):
            yield name, profile[start : start + size]


def _text(name: bytes, words: str, version: int) -> bytes:
    plain = words.encode()
    if version >= 4:
        wide = words.encode("utf-16-be")
        return b"mluc" + struct.pack(">III2s2sII", 0, 1, 12, b"en", b"US", len(wide), 28) + wide
    if name == b"cprt":
        return b"text" + bytes(4) + plain + b"\0"
    # Text in ASCII, then none in Unicode and none in Macintosh script.
    return b"desc" + struct.pack(">II", 0, len(plain) + 1) + plain + bytes(1 + 8 + 3 + 67)
