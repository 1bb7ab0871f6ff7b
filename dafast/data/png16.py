"""16-bit gray PNG files of smooth maps, quickly.

Pillow tries the five filters of a PNG on every row. On maps of disparity the difference to the row
above is nearly always the best: trying only this one takes half the time and gives files of the
same size. (PNG specification, W3C, third edition: 5.2 signature, 5.3 chunks, 9.2 filters, 11.2.1.)
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

_LEVEL = 2  # of zlib: more takes longer for a hundredth of the bytes
_GRAY, _UP = 0, 2


def encode_png16(values: np.ndarray) -> bytes:
    """Encodes a map as a standard PNG file.

    Args:
        values: (H, W) uint16, not empty.

    Returns:
        The file; the same values give the same bytes.
    """
    height, width = values.shape
    rows = np.ascontiguousarray(values, ">u2").view(np.uint8)
    filtered = np.empty((height, 1 + 2 * width), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256, as the filter is
    head = struct.pack(">IIBBBBB", width, height, 16, _GRAY, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(filtered.tobytes(), _LEVEL)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
