"""Objects365: photographs of everyday scenes, from Flickr.

`train/patchN` and `val/patchN` hold objects365_v1_NUMBER.jpg and objects365_v2_NUMBER.jpg, NUMBER
of eight digits.

Sources: the publisher's page (https://www.objects365.org) could not be read; the contents of its
storage follow the scripts that download it: ultralytics/cfg/datasets/Objects365.yaml of
https://github.com/ultralytics/ultralytics at 002363f (51 archives of pictures for training, 44 for
validation, of which 0 to 15 are v1 and the others v2; counts) and mmdet/datasets/objects365.py of
https://github.com/open-mmlab/mmdetection at 394f758 (names, and three pictures that the annotations
of the training part name and that do not exist). The license is quoted from others.
"""

from __future__ import annotations

from dafast.data.readers._pictures import PictureReader, by_name

READER = PictureReader(
    name="objects365",
    license="academic use; the pictures are under Flickr's terms",
    published="1,742,289 for training, 80,000 for validation",
    counts=((1_742_289, 1_742_292), (1_822_289, 1_822_292)),
    layout="""
train/patch0/objects365_v1_00000000.jpg, to patch50
val/patch0/objects365_v1_00000016.jpg, to patch43
""",
    find=by_name(r"objects365_v[12]_\d{8}\.jpg"),
)
