"""Ops: for each a specification in plain PyTorch, the public function, and its backends."""

from ..geometry import Geometry, plan_geometry
from ._dispatch import (
    BACKENDS,
    OPS,
    BackendError,
    available_backends,
    forced_backend,
    use_backend,
)
from .add_layer_norm import add_layer_norm, add_layer_norm_reference
from .add_layer_norm_fp8 import add_layer_norm_fp8, add_layer_norm_fp8_reference
from .affine_invariant_loss import affine_invariant_loss, affine_invariant_loss_reference
from .attention_int8 import attention_int8, attention_int8_reference
from .bias_gelu import bias_gelu, bias_gelu_reference
from .bias_relu_add import bias_relu_add, bias_relu_add_reference
from .conv3x3 import conv3x3, conv3x3_reference
from .conv3x3_int8 import conv3x3_int8, conv3x3_int8_reference, quantize_conv3x3
from .conv3x3_packed import conv3x3_packed, conv3x3_packed_reference, pack_conv3x3
from .conv_transpose import conv_transpose, conv_transpose_reference
from .decoder_tail import decoder_tail, decoder_tail_reference
from .embed_patches import embed_patches, embed_patches_reference
from .encoder_rows import PackedRows, encoder_rows, encoder_rows_reference
from .encoder_rows_int8 import (
    EncoderRows,
    Int8Linear,
    RowNorm,
    encoder_rows_int8,
    encoder_rows_int8_reference,
)
from .feature_alignment_loss import feature_alignment_loss, feature_alignment_loss_reference
from .flash_attention import (
    flash_attention,
    flash_attention_qkvpacked,
    flash_attention_qkvpacked_reference,
    flash_attention_reference,
    flash_attention_varlen,
    flash_attention_varlen_reference,
)
from .forward_warp import forward_warp, forward_warp_reference
from .guided_upsample import guided_upsample, guided_upsample_reference
from .linear import linear, linear_reference
from .linear_fp8 import linear_fp8, linear_fp8_reference
from .linear_int8 import Int8Weight, linear_int8, linear_int8_reference, quantize_weight
from .linear_packed import PackedWeight, linear_packed, linear_packed_reference, pack_linear
from .pad import pad, pad_reference
from .postprocess import postprocess, postprocess_reference
from .preprocess import preprocess, preprocess_reference
from .quantize_fp8 import Fp8Rows, quantize_fp8, quantize_fp8_reference
from .relu_project import relu_project, relu_project_reference
from .resize_bicubic import resize_bicubic, resize_bicubic_reference
from .resize_bilinear import resize_bilinear, resize_bilinear_reference
from .transpose_rows import transpose_rows, transpose_rows_reference

__all__ = [
    "BACKENDS",
    "OPS",
    "BackendError",
    "EncoderRows",
    "Fp8Rows",
    "Geometry",
    "Int8Linear",
    "Int8Weight",
    "PackedRows",
    "PackedWeight",
    "RowNorm",
    "add_layer_norm",
    "add_layer_norm_fp8",
    "add_layer_norm_fp8_reference",
    "add_layer_norm_reference",
    "affine_invariant_loss",
    "affine_invariant_loss_reference",
    "attention_int8",
    "attention_int8_reference",
    "available_backends",
    "bias_gelu",
    "bias_gelu_reference",
    "bias_relu_add",
    "bias_relu_add_reference",
    "conv3x3",
    "conv3x3_int8",
    "conv3x3_int8_reference",
    "conv3x3_packed",
    "conv3x3_packed_reference",
    "conv3x3_reference",
    "conv_transpose",
    "conv_transpose_reference",
    "decoder_tail",
    "decoder_tail_reference",
    "embed_patches",
    "embed_patches_reference",
    "encoder_rows",
    "encoder_rows_int8",
    "encoder_rows_int8_reference",
    "encoder_rows_reference",
    "feature_alignment_loss",
    "feature_alignment_loss_reference",
    "flash_attention",
    "flash_attention_qkvpacked",
    "flash_attention_qkvpacked_reference",
    "flash_attention_reference",
    "flash_attention_varlen",
    "flash_attention_varlen_reference",
    "forced_backend",
    "forward_warp",
    "forward_warp_reference",
    "guided_upsample",
    "guided_upsample_reference",
    "linear",
    "linear_fp8",
    "linear_fp8_reference",
    "linear_int8",
    "linear_int8_reference",
    "linear_packed",
    "linear_packed_reference",
    "linear_reference",
    "pack_conv3x3",
    "pack_linear",
    "pad",
    "pad_reference",
    "plan_geometry",
    "postprocess",
    "postprocess_reference",
    "preprocess",
    "preprocess_reference",
    "quantize_conv3x3",
    "quantize_fp8",
    "quantize_fp8_reference",
    "quantize_weight",
    "relu_project",
    "relu_project_reference",
    "resize_bicubic",
    "resize_bicubic_reference",
    "resize_bilinear",
    "resize_bilinear_reference",
    "transpose_rows",
    "transpose_rows_reference",
    "use_backend",
]
