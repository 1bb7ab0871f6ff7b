"""ImageNet-21K: pictures by WordNet synset, one tar archive each.

`winter21_whole.tar.gz` unpacks to a folder with `nNNNNNNNN.tar` for each synset, of
`nNNNNNNNN_NUMBER.JPEG`. The synsets' archives are read as they are, packed or unpacked.

Sources: dataset_preprocessing/processing_script.sh of
https://github.com/Alibaba-MIIL/ImageNet21K at 655339d, whose authors made the processed set on the
publisher's page: the whole of fall 2011 is a tar of 21,841 tars, one a synset, of `*.JPEG`; for the
release of winter 2021 (19,167 synsets) the card of timm's copy, `timm/imagenet-w21-webp-wds`. The
publisher's own page (https://image-net.org/download.php) needs an account and could not be read.
"""

from __future__ import annotations

from dafast.data.readers._pictures import PictureReader, by_name

READER = PictureReader(
    name="imagenet21k",
    license="ImageNet terms of access: research and education, not commercial",
    published="13.1M (Depth Anything; the release of winter 2021, of which timm's copy keeps "
    "13,151,276), 14,197,122 (fall 2011)",
    counts=((13_050_000, 13_199_999), (14_197_122, 14_197_122)),
    layout="""
nNNNNNNNN.tar with nNNNNNNNN_NUMBER.JPEG, one for each synset (or unpacked)
""",
    find=by_name(r"n\d{8}_\d+\.JPEG"),
)
