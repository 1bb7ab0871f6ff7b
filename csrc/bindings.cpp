// The module dafast._C. The ops are not here: each registers itself with PyTorch's dispatcher, and
// its name for `_C.ops`, next to its code (registry.h). They use PyTorch's stable ABI, so one build
// of the extension works with the PyTorch that it was built against and with all later releases.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <string>
#include <vector>

#include "affine_invariant_loss.h"
#include "cpu/isa.h"
#include "registry.h"

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

std::vector<std::string> sorted(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled ops of dafast; importing it registers torch.ops.dafast_C.*";
  m.attr("torch_version") = TORCH_VERSION;
  m.attr("compiler") = compiler();
#ifdef DAFAST_CUDA
  m.attr("cuda") = true;
  m.def("affine_invariant_loss_cluster", &dafast::affine_invariant_loss_cluster,
        "Blocks of a cluster that keeps a map in shared memory on a GPU; 0 if none does.");
#else
  m.attr("cuda") = false;
#endif
  dafast::cpu::isa();  // an unknown DAFAST_CPU_CAPABILITY is an error of the import
  m.def("cpu_capability", [] { return dafast::cpu::name_of(dafast::cpu::isa()); },
        "The instruction set that the CPU kernels use.");
  m.def("limit_cpu_capability", &dafast::cpu::limit_isa,
        "Limits the CPU kernels to this instruction set; an empty name removes the limit.");
  m.attr("ops") = sorted(dafast::op_names());
}
