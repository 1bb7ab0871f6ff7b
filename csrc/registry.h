// What an op of the extension registers next to its code.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

namespace dafast {

// Names of the ops that this build has; `dafast._C.ops` in Python.
inline std::vector<std::string>& op_names() {
  static std::vector<std::string> names;
  return names;
}

struct OpName {
  explicit OpName(const char* name) { op_names().push_back(name); }
};

}  // namespace dafast

// The op `name` exists, and the block that follows defines its schemas:
//
//   DAFAST_OP(pad, m) { m.def("pad(Tensor x, ...) -> ()"); }
//
// Next to it, STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) registers the implementations.
#define DAFAST_OP(name, m)                               \
  static const ::dafast::OpName dafast_op_##name(#name); \
  STABLE_TORCH_LIBRARY_FRAGMENT(dafast_C, m)
