// A linear layer in int8 on the CPU: weights quantised beforehand per output channel, inputs per
// token as they are read.
#pragma once

#include <cstdint>

namespace dafast::cpu {

constexpr int64_t kInt8Rows = 48;    // tokens whose quantised values are held at a time
constexpr int64_t kInt8Columns = 32;  // output channels of one panel of the packed weights
constexpr int64_t kInt8Depth = 4;     // products that one instruction adds up

// x (M, K) to out (M, N), both contiguous and of one dtype. The weights lie in panels of 32
// channels, [N / 32][K / 4][32][4], with zeros to fill them up.
struct LinearInt8 {
  const void* x;
  void* out;
  bool bfloat16;  // of both; otherwise float32
  int64_t rows, depth, columns;
  const int8_t* weights;
  const int32_t* sums;   // (N) of the weights of a channel
  const float* scales;   // (N)
  const float* bias;     // (N)
};

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Computes the groups [begin, end) of `kInt8Rows` rows. `scratch` has room for one group's values,
// kInt8Rows * round_up(K, kInt8Depth) bytes.
void linear_int8_avx512(const LinearInt8& call, int64_t begin, int64_t end, uint8_t* scratch);

}  // namespace dafast::cpu
