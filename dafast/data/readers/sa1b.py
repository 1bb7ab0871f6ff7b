"""SA-1B: photographs, with the masks of Segment Anything, in 1000 tar archives.

Each `sa_NNNNNN.tar` has `sa_N.jpg` and `sa_N.json`; the latter, with the masks, is ignored. The
archives are read as they are, packed or unpacked.

Source: the data set's section in https://github.com/facebookresearch/segment-anything (README:
JPEG and JSON under one name), and for the archives' names the data set's list of links as its
users quote it. The count is that of the TensorFlow data sets' catalogue.
"""

from __future__ import annotations

from dafast.data.readers._pictures import PictureReader, by_name

READER = PictureReader(
    name="sa1b",
    license="SA-1B Dataset Research License",
    published="11M (SA-1B); 11,185,362 (TensorFlow Datasets)",
    counts=((11_185_362, 11_185_362),),
    layout="""
sa_000000.tar with sa_NUMBER.jpg and sa_NUMBER.json, to sa_000999.tar (or unpacked)
""",
    find=by_name(r"sa_\d+\.jpg"),
)
