"""Aperio's image description: which of its fields are harmless numbers, and it rebuilt of those."""

import math
import re
from dataclasses import dataclass

# Optics, geometry and calibration; a value outside its range is something else in disguise.
NUMERIC_FIELDS: dict[str, tuple[float, float]] = {
    "AppMag": (0.1, 400),
    "MPP": (0.01, 100),
    "StripeWidth": (0, 10_000),
    "Left": (-200, 200),
    "Top": (-200, 200),
    "LineCameraSkew": (-10, 10),
    "LineAreaXOffset": (-10, 10),
    "LineAreaYOffset": (-10, 10),
    "Focus Offset": (-100, 100),
    "Exposure Time": (0, 10_000),
    "Exposure Scale": (0, 1000),
    "DisplayColor": (0, 16),
    "Gamma": (0.01, 10),
    "Filtered": (0, 100),
    "OriginalWidth": (1, 1_000_000),
    "OriginalHeight": (1, 1_000_000),
    "Originalheight": (1, 1_000_000),
}
TITLE = "Aperio Image Library"

_DECIMALS = 6
_NUMBER = re.compile(r"-?\d{1,7}(\.\d{1,17})?")
_PRODUCT = r"Aperio (?:Image Library|Leica Biosystems GT450(?: DX)?) v[\d.]{1,12}"
_SIZES = r"[\d x,>()\[\]-]{0,120}?"
_CODEC = r"(?:(?:JPEG|J2K)/[A-Z0-9]{2,8}(?: Q=\d{1,3})?)?"
_USUAL_HEAD = re.compile(rf"{_PRODUCT}\s*{_SIZES}{_CODEC}(?:;{_PRODUCT}\s*{_SIZES}{_CODEC})*\s*")
_PLAIN_HEAD = re.compile(rf"{TITLE}\r\n\d+x\d+ \(\d+x\d+\)(?: -> \d+x\d+)?")


@dataclass(frozen=True)
class Description:
    """The fields of a description.

    Attributes
    ----------
    head
        What stands before the first field; empty where it is nothing but product, sizes and codec.
    numbers
        Field of `NUMERIC_FIELDS` -> its number as text, at most six decimals.
    others
        Every other field -> its text.
    """

    head: str
    numbers: dict[str, str]
    others: dict[str, str]


def parse_description(text: str) -> Description:
    """Take a description apart; of fields that are there twice the last counts, as in OpenSlide."""
    head, *fields = text.split("|")
    numbers: dict[str, str] = {}
    others: dict[str, str] = {}
    for field in fields:
        key, _, value = (part.strip() for part in field.partition("="))
        number = _number(key, value)
        if number is not None:
            numbers[key] = number
        elif key or value:
            others[key] = value
    usual = _USUAL_HEAD.fullmatch(head) or _PLAIN_HEAD.fullmatch(head)
    return Description("" if usual else head, numbers, others)


def is_plain(text: str) -> bool:
    """Whether a description is one that `build_description` could have written."""
    found = parse_description(text)
    rebuilt = [text.partition("|")[0], *(f"{k} = {v}" for k, v in found.numbers.items())]
    return bool(_PLAIN_HEAD.fullmatch(rebuilt[0])) and text == "|".join(rebuilt)


def build_description(
    base: tuple[int, int],
    level: tuple[int, int],
    tile: tuple[int, int],
    numbers: dict[str, str],
) -> str:
    """Description of a level: sizes as width and height in pixels, then the numbers."""
    size = "" if level == base else f" -> {level[0]}x{level[1]}"
    head = f"{TITLE}\r\n{base[0]}x{base[1]} ({tile[0]}x{tile[1]}){size}"
    return "|".join([head, *(f"{key} = {value}" for key, value in numbers.items())])


def _number(key: str, value: str) -> str | None:
    if key not in NUMERIC_FIELDS or not _NUMBER.fullmatch(value):
        return None
    low, high = NUMERIC_FIELDS[key]
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high):
        return None
    _, _, decimals = value.partition(".")
    return value if len(decimals) <= _DECIMALS else f"{number:.{_DECIMALS}f}"
