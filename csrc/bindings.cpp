// The module dafast._C and the schemas of the ops that it brings. The ops themselves register with
// PyTorch's dispatcher from ops.cpp and cpu/, through the stable ABI: one build of the extension
// serves every release of PyTorch from the one it was built against on.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/version.h>

#include <string>
#include <vector>

#include "cpu/isa.h"

STABLE_TORCH_LIBRARY(dafast_C, m) {
  m.def(
      "decoder_tail(Tensor x, Tensor(a!) out, Tensor weight1, Tensor bias1, Tensor weight2,"
      " Tensor bias2, bool sigmoid) -> ()");
  m.def(
      "flash_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) out, Tensor? cu_seqlens,"
      " float scale) -> ()");
  m.def(
      "linear_int8(Tensor x, Tensor(a!) out, Tensor packed, Tensor sums, Tensor scales,"
      " Tensor bias) -> ()");
  m.def("pack_int8(Tensor weight, Tensor(a!) packed, Tensor(b!) sums) -> ()");
  m.def("resize_bicubic(Tensor x, int height, int width) -> Tensor");
  m.def(
      "resize_bilinear(Tensor x, Tensor(a!) out, bool align_corners, bool antialias) -> ()");
  m.def(
      "resize_bilinear_backward(Tensor grad, Tensor(a!) out, bool align_corners, bool antialias)"
      " -> ()");
  m.def(
      "pad(Tensor x, Tensor(a!) out, int left, int top, int mode, float value) -> ()");
  m.def("pad_backward(Tensor grad, Tensor(a!) out, int left, int top, int mode) -> ()");
  m.def(
      "preprocess(Tensor[] images, Tensor(a!) out, int[] placement, float[] mean, float[] std,"
      " bool cubic, bool antialias, int padding) -> ()");
  m.def(
      "postprocess(Tensor disparity, Tensor(a!)[] outs, int[] crops, bool align_corners) -> ()");
  m.def(
      "affine_invariant_loss(Tensor prediction, Tensor target, Tensor? mask, Tensor? regions,"
      " float min_scale, Tensor(a!) loss, Tensor(b!) coefficients) -> ()");
  m.def(
      "affine_invariant_loss_backward(Tensor grad, Tensor prediction, Tensor target, Tensor? mask,"
      " Tensor? regions, Tensor coefficients, Tensor(a!) out) -> ()");
  m.def(
      "feature_alignment_loss(Tensor student, Tensor teacher, float margin, bool kept_only,"
      " Tensor(a!) loss, Tensor(b!) stats, Tensor(c!) weight) -> ()");
  m.def(
      "feature_alignment_loss_backward(Tensor grad, Tensor student, Tensor teacher, Tensor stats,"
      " Tensor weight, Tensor(a!) out) -> ()");
  m.def(
      "add_layer_norm(Tensor x, Tensor branch, Tensor gamma, Tensor weight, Tensor bias, float eps,"
      " Tensor(a!) s, Tensor(b!) n, Tensor(c!) stats) -> ()");
  m.def(
      "add_layer_norm_backward(Tensor? grad_s, Tensor? grad_n, Tensor s, Tensor branch,"
      " Tensor gamma, Tensor weight, Tensor stats, Tensor(a!) grad_x, Tensor(b!) grad_branch,"
      " Tensor(c!) sums) -> ()");
  m.def("bias_gelu(Tensor x, Tensor bias, bool added, Tensor(a!) out) -> ()");
  m.def(
      "bias_gelu_backward(Tensor grad, Tensor x, Tensor bias, bool added, Tensor(a!) out,"
      " Tensor(b!) sums) -> ()");
}

namespace {

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("gcc ") + __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled ops of dafast; importing it registers torch.ops.dafast_C.*";
  m.attr("torch_version") = TORCH_VERSION;
  m.attr("compiler") = compiler();
#ifdef DAFAST_CUDA
  m.attr("cuda") = true;
#else
  m.attr("cuda") = false;
#endif
  dafast::cpu::isa();  // a DAFAST_CPU_CAPABILITY that is none is an error of the import
  m.def("cpu_capability", [] { return dafast::cpu::name_of(dafast::cpu::isa()); },
        "The instruction set that the CPU kernels use.");
  m.def("limit_cpu_capability", &dafast::cpu::limit_isa,
        "Uses no more than this instruction set, or all there is for an empty name.");
  m.attr("ops") = std::vector<std::string>{
      "add_layer_norm",
      "affine_invariant_loss",
      "bias_gelu",
      "decoder_tail",
      "feature_alignment_loss",
      "flash_attention",
      "linear_int8",
      "pad",
      "postprocess",
      "preprocess",
      "resize_bicubic",
      "resize_bilinear",
  };
}
