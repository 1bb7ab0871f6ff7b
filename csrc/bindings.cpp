// The module dafast._C and the schemas of the ops that it brings. The ops themselves register with
// PyTorch's dispatcher from cpu/ and cuda/, through the stable ABI: one build of the extension
// serves every release of PyTorch from the one it was built against on.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/version.h>

#include <string>
#include <vector>

STABLE_TORCH_LIBRARY(dafast_C, m) {
  m.def("resize_bicubic(Tensor x, int height, int width) -> Tensor");
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
  m.attr("cuda") = false;
  m.attr("ops") = std::vector<std::string>{"resize_bicubic"};
}
