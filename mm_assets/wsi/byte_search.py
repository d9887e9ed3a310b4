"""Search of a file's bytes for texts, however they are written."""

import base64
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# Shorter forms turn up in compressed pixels by chance; one of seven letters does so in four of a
# million slides of 2 GB.
SHORTEST_AMONG_PIXELS = 7
SHORTEST_TEXT, LONGEST_TEXT = 4, 200
_CHUNK, _FEW = 16 << 20, 3000
_SHORTEST_TOKEN, _SHORTEST_WORD = 5, 8
_SEPARATORS = re.compile(r"[\s|=;,:^<>\"'/\\()\[\]{}]+")
_GEOMETRY = re.compile(r"[+-]?\d{0,5}(\.\d*)?|\d+x\d+")


def identifiers(texts: Iterable[str]) -> list[str]:
    """What to search for, given the texts that must not remain: they and their telling parts.

    Parts are taken that have a digit or are at least eight characters long. Short numbers and sizes
    such as 240x240 are left out, they cannot be told from the geometry that stays.
    """
    found = set()
    for text in texts:
        parts = _SEPARATORS.split(text)
        found.add(text.strip())
        found |= {p for p in parts if len(p) >= _SHORTEST_TOKEN and any(c.isdigit() for c in p)}
        found |= {part for part in parts if len(part) >= _SHORTEST_WORD}
    return sorted(
        text
        for text in found
        if SHORTEST_TEXT <= len(text) <= LONGEST_TEXT and not _GEOMETRY.fullmatch(text)
    )


def needles(text: str) -> set[bytes]:
    """The text in UTF-8, Latin-1, UTF-16 and base64, as it looks after lowering ASCII letters."""
    cases = (text, text.lower(), text.upper(), text.title())
    codes = ("utf-8", "utf-16-le", "utf-16-be")
    # File names may hold bytes that are no text.
    encoded = {case.encode(code, "surrogatepass") for case in cases for code in codes}
    encoded |= {case.encode("latin-1") for case in cases if max(case) <= "\xff"}
    packed = {part for data in encoded for part in _base64_forms(data)}
    return {needle.lower() for needle in encoded | packed}


class ByteSearch:
    """Finds any of many texts, in any case, in UTF-8, UTF-16 or base64.

    Parameters
    ----------
    texts
        What to search for.
    shortest
        Bytes below which a form of a text is not searched for.
    """

    def __init__(self, texts: Iterable[str], shortest: int) -> None:
        import ahocorasick_rs

        forms = ((text, form) for text in texts for form in sorted(needles(text)))
        usable = [(text, form) for text, form in forms if len(form) >= shortest]
        self._texts = [text for text, _ in usable]
        self._longest = max((len(form) for _, form in usable), default=1)
        # The fastest kind (175 MB/s) takes a kilobyte a byte of text.
        kind = ahocorasick_rs.Implementation.DFA if len(usable) <= _FEW else None
        self._automaton: Any = ahocorasick_rs.BytesAhoCorasick(
            [form for _, form in usable], implementation=kind
        )

    def in_bytes(self, data: bytes) -> Iterator[tuple[str, int]]:
        """Texts found and where they begin."""
        for index, start, _ in self._automaton.find_matches_as_indexes(data.lower()):
            yield self._texts[index], start

    def in_file(self, path: Path) -> Iterator[tuple[str, int]]:
        """Texts found and where they begin; the file is read in pieces."""
        with path.open("rb") as file:
            # Each piece is read on by the length of a form: one may lie across the border.
            for start in range(0, path.stat().st_size, _CHUNK):
                file.seek(start)
                for text, at in self.in_bytes(file.read(_CHUNK + self._longest - 1)):
                    yield text, start + at


def _base64_forms(data: bytes) -> Iterator[bytes]:
    """The characters that the data surely give in base64, at each of the three alignments."""
    for before, encode in itertools.product(range(3), (base64.b64encode, base64.urlsafe_b64encode)):
        whole = encode(bytes(before) + data)
        first = -(-before * 8 // 6)
        last = (before + len(data)) * 8 // 6
        yield whole[first:last]
