// A linear layer in int8, as linear_int8.cpp packs it.
#pragma once

#include <cstdint>

namespace dafast::cpu {

constexpr int64_t kInt8Rows = 48;     // tokens of a group, which are quantised together
constexpr int64_t kInt8Unit = 24;     // fewest rows of a group, but for the last one
constexpr int64_t kInt8Columns = 32;  // output channels in a panel of the packed weights
constexpr int64_t kInt8Depth = 4;     // products that one instruction sums

// (M, K) to (M, N). The weights are in panels of 32 channels, [N / 32][K / 4][32][4], padded with
// zeros.
struct Int8Layer {
  int64_t depth, columns;
  const int8_t* weights;
  const int32_t* sums;   // (N), of the weights of a channel
  const float* scales;   // (N)
  const float* bias;     // (N)
};

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Most bytes of a level, which vectors16.h has.
constexpr int64_t kLevelBytes = 2;

// Bytes for a group of rows.
inline int64_t int8_scratch(int64_t depth) {
  return kInt8Rows * round_up(depth, kInt8Depth) * kLevelBytes;
}

}  // namespace dafast::cpu
