// Attention for any processor: vectors of 4, which every 64-bit processor has.
#include "flash_attention.h"

#include <cmath>
#include <cstring>

namespace dafast::cpu {
namespace {

#if defined(__GNUC__) || defined(__clang__)
constexpr int LANES = 4, ROWS = 6, VECTORS = 2;
typedef float Floats __attribute__((vector_size(16)));
typedef int Ints __attribute__((vector_size(16)));
#define CONVERT __builtin_convertvector
#else
constexpr int LANES = 1, ROWS = 4, VECTORS = 2;
using Floats = float;
using Ints = int;
#define CONVERT(value, type) static_cast<type>(value)
#endif

#include "flash_attention_vectors.h"
//
#include "flash_attention_block.h"

}  // namespace

AttentionKernel flash_attention_portable() {
  return {false, ROWS, LANES, VECTORS * LANES, SCRATCH, attend<Float32>};
}

}  // namespace dafast::cpu
