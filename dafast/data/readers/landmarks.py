"""Google Landmarks v2: photographs of landmarks, from Wikimedia Commons.

`train/images_000.tar` to `images_499.tar` hold A/B/C/ID.jpg, ID of 16 hexadecimal digits that begin
with A, B and C. The archives are read as they are, packed or unpacked.

Source: https://github.com/cvdfoundation/google-landmark (README of version 2.1: archives,
folders, names, counts, licenses).
"""

from __future__ import annotations

from dafast.data.readers._pictures import PictureReader, by_name

READER = PictureReader(
    name="landmarks",
    license="CC BY without ND each for training; CC0 or public domain the others",
    published="4,132,914 for training, 761,757 as index, 117,577 for testing",
    counts=((4_132_914, 4_132_914), (5_012_248, 5_012_248)),
    layout="""
train/images_000.tar with A/B/C/ID.jpg, to images_499.tar (or unpacked)
""",
    find=by_name(r"([0-9a-f])/([0-9a-f])/([0-9a-f])/\1\2\3[0-9a-f]{13}\.jpg"),
)
