"""What of a mime bundle is shown."""

from __future__ import annotations

import struct
from base64 import b64encode
from typing import Any

import pytest

from cobnut.render.glyphs import ASCII, UNICODE
from cobnut.render.mime import text_of

PNG = b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 640, 480) + bytes(66_000)).decode()
GIF = b64encode(b"GIF89a" + struct.pack("<HH", 3, 4) + bytes(30)).decode()
JPEG = b64encode(
    b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc4\x00\x03x\xff\xc2\x00\x11\x08" + struct.pack(">HH", 200, 100) + bytes(900)
).decode()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"text/plain": "1", "text/html": "<b>1</b>"}, "1"),
        ({"text/plain": ["a\n", "b"]}, "a\nb"),
        ({"text/plain": "<Figure size 640x480 with 1 Axes>", "image/png": PNG}, "<Figure size 640x480 with 1 Axes>"),
        ({"text/plain": "<IPython.core.display.Markdown object>", "text/markdown": "# Title"}, "# Title"),
        ({"text/plain": "<a.B object at 0x7f00>", "text/latex": "$x$"}, "$x$"),
        ({"text/plain": "<a.B object at 0x7f00>"}, "<a.B object at 0x7f00>"),
        ({"text/plain": "<IPython.core.display.HTML object>", "text/html": "é" * 1000}, "html, 2 kB"),
        ({"application/json": {"a": [1]}}, '{\n  "a": [\n    1\n  ]\n}'),
        ({"image/png": PNG}, "image 640×480 png, 66 kB"),
        ({"image/png": PNG.replace("iVBOR", "iVBOR\n")}, "image 640×480 png, 66 kB"),
        ({"image/gif": GIF}, "image 3×4 gif, 40 B"),
        ({"image/jpeg": JPEG}, "image 100×200 jpeg, 922 B"),
        ({"image/png": "no base64!"}, "image png, 6 B"),
        ({"image/png": "abc"}, "image png, 2 B"),
        ({"image/png": "iVBORw0KGgo="}, "image png, 8 B"),
        ({"image/jpeg": "/9j/4AAQ"}, "image jpeg, 6 B"),
        ({"image/png": None}, "image png, 0 B"),
        ({"image/svg+xml": "<svg/>"}, "image svg, 6 B"),
        ({"application/pdf": "x" * 2_500_000}, "application/pdf, 2.5 MB"),
        ({"application/vnd.x+json": {}, "text/html": "", "image/gif": GIF}, "image 3×4 gif, 40 B"),
        ({"text/plain": ""}, ""),
        ({}, ""),
        ({"text/plain": 5}, "5"),
    ],
)
def test_text_first_then_sources_then_a_description(data: dict[str, Any], text: str) -> None:
    """Text is shown where it says something, else a source that people read, else a line that describes the content."""
    assert text_of(data, UNICODE) == text


def test_the_description_is_ascii_where_the_terminal_is() -> None:
    """The multiplication sign has a twin."""
    assert text_of({"image/png": PNG}, ASCII) == "image 640x480 png, 66 kB"
