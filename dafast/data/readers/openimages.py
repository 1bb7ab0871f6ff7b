"""Open Images V7: photographs of Flickr.

`train_0.tar.gz` to `train_f.tar.gz`, `validation.tar.gz` and `test.tar.gz` unpack to folders of
ID.jpg, ID of 16 hexadecimal digits. Those hold the pictures with boxes; for the others only URLs
are published, some of them dead: Depth Anything has 7.8M.

Source: https://storage.googleapis.com/openimages/web/download_v7.html and
https://github.com/cvdfoundation/open-images-dataset (archives, folders, counts).
"""

from __future__ import annotations

from dafast.data.readers._pictures import PictureReader, by_name

READER = PictureReader(
    name="openimages",
    license="listed as CC BY 2.0 each, not verified by the publisher",
    published="9,178,275 (Open Images V7), 1,743,042 + 41,620 + 125,436 with boxes, "
    "7.8M (Depth Anything)",
    counts=(
        (9_178_275, 9_178_275),
        (1_743_042, 1_743_042),
        (1_910_098, 1_910_098),
        (7_750_000, 7_849_999),
    ),
    layout="""
train_0/ID.jpg to train_f/ID.jpg (or train/ID.jpg)
validation/ID.jpg
test/ID.jpg
""",
    find=by_name(r"[0-9a-f]{16}\.jpg"),
)
