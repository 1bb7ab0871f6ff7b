// Weights of a layer in float32 or bfloat16, as linear_packed.cpp packs them.
#pragma once

#include <cstdint>

namespace dafast::cpu {

constexpr int64_t kColumns = 32;   // output channels in a panel of the packed weights
constexpr int64_t kRowUnit = 12;   // rows of a tile, or of several; in AMX it has kMostRows
constexpr int64_t kMostRows = 16;
constexpr int64_t kRowLeast = 24;  // rows that pass through a layer together: reading the weights
constexpr int64_t kRowGroup = 48;  // takes longer with fewer, and the caches hold no more

// (M, K) to (M, N). A cell is a float, or two bfloat16 that are neighbours along K. The weights lie
// in panels of 32 columns, [N / 32][cells of K][32]; they and the bias are padded with zeros.
struct FloatLayer {
  int64_t depth, columns;
  const float* weights;
  const float* bias;
};

inline int64_t whole_panels(int64_t columns) {
  return (columns + kColumns - 1) / kColumns * kColumns;
}

inline int64_t cells_of(int64_t depth, bool pairs) { return pairs ? (depth + 1) / 2 : depth; }

}  // namespace dafast::cpu
