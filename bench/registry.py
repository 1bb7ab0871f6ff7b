"""The cases of every op, which the benchmarks time and check."""

from __future__ import annotations

import dataclasses

from bench.case import ALL_DTYPES, HALF, Case
from bench.network_cases import (
    alignment,
    attention,
    enlarge,
    epilogue,
    fp8,
    gelu,
    glue,
    glue_fp8,
    loss,
    mlp,
    quantize,
    separate,
    tail,
    varlen,
)
from bench.packed_cases import (
    attention_int8,
    conv3x3,
    embed_patches,
    encoder_rows,
    int8,
    linear_packed,
    training_conv3x3,
    training_linear,
    training_project,
    transposed,
)
from bench.picture_cases import (
    bicubic,
    bilinear,
    guided,
    pad,
    postprocess,
    preprocess,
    warp,
)

CASES: tuple[Case, ...] = (
    attention(1, 1370, 6),
    attention(1, 1370, 16),
    attention(16, 1370, 16, dtypes=HALF, gpu_only=True),
    attention(8, 1814, 16, dtypes=HALF, gpu_only=True),
    attention(4, 4552, 16, dtypes=HALF, gpu_only=True),
    separate(1, 1370, 6),
    separate(1369, 32, 8, 24, HALF, gpu_only=True),  # of a temporal module
    varlen((1370, 962, 1814), 6),
    loss(8, 518),
    loss(8, 518, regions=True),
    loss(8, 518, smooth=True),
    loss(64, 518, gpu_only=True),
    loss(64, 518, gpu_only=True, smooth=True),
    alignment(4, 384),
    alignment(32, 1024, gpu_only=True),
    attention_int8(1, 1370, 6),
    linear_packed(1370, 384, 384),
    embed_patches(1, 37, 384),
    encoder_rows(1, 1370, 384),
    encoder_rows(1, 1370, 384, int8=True),
    transposed(37, 48, 4),
    training_linear(4 * 362, 384, 1536),
    training_linear(4 * 362, 1536, 384),
    training_conv3x3(4, 76, 64),
    training_conv3x3(4, 266, 32),
    training_project(4, 266),
    conv3x3(148, 64),
    conv3x3(148, 64, int8=True),
    int8(1370, 384, 1536),
    int8(1370, 1536, 384),
    fp8(1370, 384, 1536),
    fp8(16 * 1370, 1024, 4096, gpu_only=True),
    fp8(16 * 1370, 4096, 1024, gpu_only=True),
    quantize(4, 384),
    quantize(4, 1536, gelu=True),
    quantize(16, 1024),
    quantize(16, 4096, gelu=True),
    glue_fp8(4, 384),
    glue_fp8(16, 1024),
    tail(1, 32),
    tail(1, 64),
    tail(1, 128),
    tail(16, 128, gpu_only=True),
    epilogue(1, 64, relu=True),
    epilogue(1, 64, residuals=2),
    epilogue(16, 256, relu=True, gpu_only=True),
    epilogue(16, 256, residuals=1, gpu_only=True),
    epilogue(16, 256, residuals=2, gpu_only=True),
    enlarge(1, 48, 48, 4),
    enlarge(1, 96, 96, 2),
    enlarge(16, 256, 256, 4, gpu_only=True),
    enlarge(16, 512, 512, 2, gpu_only=True),
    glue(4, 384),
    glue(4, 384, autocast=True),
    glue(16, 1024, gpu_only=True),
    glue(16, 1024, autocast=True, gpu_only=True),
    gelu(4, 1536),
    gelu(16, 4096, gpu_only=True),
    mlp(8, 1024, gpu_only=True),
    bicubic(1080, 1920, (518, 924)),
    warp(1080, 1920),
    guided(1080, 1920, (518, 921)),
    bilinear(64, (148, 148), (296, 296)),
    bilinear(32, (296, 296), (518, 518)),
    bilinear(3, (1080, 1920), (518, 921), antialias=True),
    bilinear(256, (148, 148), (296, 296), gpu_only=True),
    pad(3, (518, 921), (1, 2, 0, 0)),
    preprocess(1080, 1920),
    preprocess(1080, 1920, fit="official"),
    postprocess(1080, 1920),
    postprocess(1080, 1920, save=True),
)
"""The shapes of ViT-S and ViT-L at 518x518."""

SMALL_CASES: tuple[Case, ...] = (
    attention(1, 50, 2),
    separate(2, 33, 1),
    varlen((17, 1, 30), 2),
    loss(2, 30),
    loss(2, 30, regions=True),
    loss(2, 30, smooth=True),
    alignment(2, 48, tokens=9),
    tail(1, 12, 5, 9),
    epilogue(1, 12, 5, relu=True),
    epilogue(1, 12, 5, residuals=2),
    enlarge(1, 12, 8, 2, 3),
    glue(2, 48, tokens=9),
    gelu(2, 96, tokens=9),
    mlp(2, 32, tokens=9),
    attention_int8(2, 9, 2),
    linear_packed(9, 30, 20),
    embed_patches(2, 3, 32),
    encoder_rows(2, 9, 32),
    encoder_rows(2, 9, 32, int8=True),
    transposed(5, 8, 2),
    training_linear(9, 32, 64),
    training_conv3x3(2, 9, 16),
    training_project(2, 9),
    conv3x3(9, 8),
    conv3x3(9, 8, int8=True),
    int8(9, 30, 33),
    fp8(9, 32, 48),
    quantize(2, 96, tokens=9, gelu=True),
    glue_fp8(2, 48, tokens=9),
    bicubic(40, 60, (28, 42)),
    warp(40, 60),
    guided(40, 60, (14, 21)),
    bilinear(4, (9, 10), (18, 20)),
    bilinear(3, (40, 60), (28, 42), antialias=True),
    pad(4, (9, 10), (1, 2, 3, 4)),
    preprocess(40, 60, 28),
    postprocess(40, 60, 28),
)
"""The same ops at sizes for tests."""


def forward(case: Case) -> Case:
    """The case without its backward, where PyTorch's own operators compute that."""
    return dataclasses.replace(case, differentiable=())


_LOSS_OPTIONS = ((False, True), (False, False), (True, True))  # regions, masked

STATIC_CASES: tuple[Case, ...] = (
    *(attention(1, 1370, 6, head_dim, ALL_DTYPES) for head_dim in (64, 32, 48, 80, 96, 128)),
    *(attention(10, 1370, 6, head_dim, ALL_DTYPES[1:]) for head_dim in (64, 32, 48, 80, 96, 128)),
    separate(1, 1370, 6),
    # Temporal modules of videos: sequences of at most 32 frames, heads of 8 to 128 channels.
    *(separate(64, 32, 8, head_dim, ALL_DTYPES) for head_dim in (8, 24, 32, 48, 64, 96, 128)),
    *(varlen((1370, 962), 6, head_dim) for head_dim in (64, 32, 48, 80, 96, 128)),
    *(varlen((32, 17), 8, head_dim) for head_dim in (24, 64, 128)),
    *(varlen((6850, 6850), 6, head_dim) for head_dim in (64, 128)),
    *(loss(1, 518, *options, dtypes=ALL_DTYPES) for options in _LOSS_OPTIONS),
    *(loss(16, 518, *options, dtypes=ALL_DTYPES) for options in _LOSS_OPTIONS),
    loss(1, 512, dtypes=ALL_DTYPES),
    *(alignment(2, channels, dtypes=ALL_DTYPES) for channels in (384, 768, 1024)),
    tail(1, 32, 64, 112),  # the first case's bytes are counted, interpreted: small
    *(tail(1, channels) for channels in (32, 64, 128)),
    tail(1, 12, 96, 168),
    *(epilogue(1, channels, relu=True) for channels in (64, 24, 128, 256)),
    *(epilogue(1, channels, residuals=n) for channels in (64, 24, 256) for n in (1, 2)),
    *(forward(enlarge(1, channels, channels, 4)) for channels in (48, 16, 96, 256)),
    *(forward(enlarge(1, channels, channels, 2)) for channels in (96, 24, 192, 512)),
    forward(enlarge(16, 256, 256, 4)),
    *(glue(1, channels) for channels in (384, 192, 768, 1024)),
    *(glue(1, channels, autocast=True) for channels in (384, 192, 768, 1024)),
    gelu(1, 1536),
    gelu(1, 1536, added=False),
    mlp(1, 384, tokens=64),
    *(quantize(1, channels) for channels in (384, 768, 1024)),
    *(quantize(1, channels, gelu=True) for channels in (1536, 3072, 4096)),
    *(glue_fp8(1, channels) for channels in (384, 768, 1024)),
)
"""Every configuration of every Triton kernel that a call can choose, for one image.

Attention also for ten images and the loss for sixteen, where their tiles are larger, and the loss
at 512x512, where its loads are wider.
"""
