"""What of a mime bundle a terminal shows, as text."""

from __future__ import annotations

import json
import re
import struct
from base64 import b64decode
from binascii import Error as Base64Error
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from cobnut.render.glyphs import Glyphs

# What objects without a text of their own have as text/plain: it says less than any of their other formats.
_PLACEHOLDER: Final = re.compile(r"<[\w.]+ object(?: at 0x[0-9a-fA-F]+)?>")

_HEAD: Final = 1 << 16
"""Characters of a picture that are decoded to find its dimensions, a multiple of four."""

_SOURCES: Final = ("text/markdown", "text/latex", "application/json")


def text_of(data: dict[str, Any], glyphs: Glyphs) -> str:
    """Choose what to show: text where there is some, else a readable source, else a line that describes the content."""
    plain = _joined(data.get("text/plain"))
    if plain and not _PLACEHOLDER.fullmatch(plain):
        return plain
    for mime in _SOURCES:
        if mime in data:
            return _joined(data[mime])
    others = sorted((mime for mime in data if mime != "text/plain"), key=_rank)
    return describe(others[0], _joined(data[others[0]]), glyphs) if others else plain


def describe(mime: str, content: str, glyphs: Glyphs) -> str:
    """Describe content that is not shown, such as `image 640×480 png, 66 kB`."""
    kind, _, subtype = mime.partition("/")
    if kind != "image" or subtype.startswith("svg"):
        name = subtype if kind == "text" else "image svg" if kind == "image" else mime
        return f"{name}, {_size(len(content.encode(errors='replace')))}"
    encoded = "".join(content.split())
    dimensions = _dimensions(_decoded(encoded[:_HEAD]))
    shape = f"{dimensions[0]}{glyphs.times}{dimensions[1]} " if dimensions else ""
    return f"image {shape}{subtype}, {_size(len(encoded.rstrip('=')) * 3 // 4)}"


def _decoded(encoded: str) -> bytes:
    try:
        return b64decode(encoded)
    except Base64Error:
        return b""


def _joined(content: object) -> str:
    """Give content as text; notebooks may hold it as a list of lines, and JSON as what it means."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        lines = cast("list[object]", content)
        texts = [line for line in lines if isinstance(line, str)]
        if len(texts) == len(lines):
            return "".join(texts)
    return "" if content is None else json.dumps(content, indent=2, ensure_ascii=False)


def _rank(mime: str) -> tuple[int, str]:
    return (0 if mime.startswith("image/") else 1 if mime.startswith("text/") else 2), mime


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.0f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


def _dimensions(head: bytes) -> tuple[int, int] | None:
    """Read width and height from the beginning of a PNG, GIF or JPEG file."""
    try:
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            return struct.unpack_from(">II", head, 16)
        if head[:6] in (b"GIF87a", b"GIF89a"):
            return struct.unpack_from("<HH", head, 6)
        return _jpeg_dimensions(head) if head.startswith(b"\xff\xd8") else None
    except struct.error:
        return None


def _jpeg_dimensions(head: bytes) -> tuple[int, int] | None:
    """Walk the segments of a JPEG file to the frame header (SOF0 to SOF15, save the three that are none)."""
    position = 2
    while position + 4 <= len(head) and head[position] == 0xFF:
        marker, length = head[position + 1], int.from_bytes(head[position + 2 : position + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", head, position + 5)
            return width, height
        position += 2 + length
    return None
