"""Places365: photographs of 365 kinds of scenes.

`data_large` (or `data_256`) has LETTER/CATEGORY/NUMBER.jpg, with one folder more for some
categories; validation and test pictures are Places365_val_NUMBER.jpg and Places365_test_NUMBER.jpg.
The challenge's training set contains the standard one: use one of them. Depth Anything has 6.5M,
which is neither; it does not say which.

Source: https://github.com/zhoubolei/places_devkit (README: folders, names, counts).
"""

from __future__ import annotations

from dafast.data.readers._pictures import PictureReader, by_name

_SPLITS = 36_500 + 328_500

READER = PictureReader(
    name="places365",
    license="not found stated",
    published="1,803,460 (standard) or 8,026,628 (challenge) for training, 36,500 for validation, "
    "328,500 for testing; 6.5M (Depth Anything)",
    counts=(
        (1_803_460, 1_803_460),
        (8_026_628, 8_026_628),
        (1_803_460 + _SPLITS, 1_803_460 + _SPLITS),
        (8_026_628 + _SPLITS, 8_026_628 + _SPLITS),
        (6_450_000, 6_549_999),
    ),
    layout="""
data_large/a/airfield/00000001.jpg
val_large/Places365_val_00000001.jpg
test_large/Places365_test_00000001.jpg
""",
    find=by_name(r"(?:[a-z]/[\w-]+(?:/[\w-]+)?/\d{8}|Places365_(?:val|test)_\d{8})\.jpg"),
)
