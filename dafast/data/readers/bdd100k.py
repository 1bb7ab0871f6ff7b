"""BDD100K: photographs from cars; frames of 100,000 videos.

`images/100k` has one frame of each video, VIDEO.jpg with VIDEO of twice eight hexadecimal digits.
Depth Anything has 8.2M pictures of the set, so frames of the videos; it does not say how they were
drawn. Frames called VIDEO-NUMBER.jpg are read, as the tracking part of the set names them; for two
a second: `ffmpeg -i VIDEO.mov -r 2 -q:v 2 VIDEO-%07d.jpg`. Videos are not read.

Source: https://doc.bdd100k.com/usage.html (folders, one frame of each video) and the description of
its tracking frames (https://bdd-data.berkeley.edu/wad-2020.html).
"""

from __future__ import annotations

from dafast.data.readers._pictures import PictureReader, by_name

READER = PictureReader(
    name="bdd100k",
    license="not found stated",
    published="100,000 key frames (BDD100K), 8.2M frames of the videos (Depth Anything)",
    counts=((100_000, 100_000), (8_150_000, 8_249_999)),
    layout="""
images/100k/train/VIDEO.jpg
           /val, /test
frames/VIDEO-NUMBER.jpg (any folder; frames of the videos)
""",
    find=by_name(r"[0-9a-f]{8}-[0-9a-f]{8}(-\d+)?\.jpg"),
)
