// What cpu/flash_attention.cpp, which packs, and the files per instruction set, which compute,
// agree on.
//
// Everything packed is made of cells of 4 bytes: a float, or two bfloat16 that are neighbours along
// the dimension that a product sums over. A product takes its left side by rows of cells, and its
// right side in panels of `panel` columns, the last one narrower: for each cell of the sum in turn,
// the cells of all columns. The columns of K are keys, padded with zeros to a multiple of `lanes`;
// those of V are the head's dimensions.
#pragma once

#include <cstdint>

#include "isa.h"

namespace dafast::cpu {

// Queries of one head, as many as memory near the processor holds, and all of its keys.
struct AttentionBlock {
  const float* q;  // (rows, depth) cells; rows padded to a multiple of `AttentionKernel::rows`
  const float* k;
  const float* v;
  int64_t rows, keys, head_dim;
  float scale;     // of the logits, to the base of 2
  float* out;      // (rows, head_dim)
  float* scratch;  // AttentionKernel::scratch floats
};

struct AttentionKernel {
  bool pairs;  // cells are pairs of bfloat16
  int64_t rows, lanes, panel, scratch;
  void (*run)(const AttentionBlock& block);
};

constexpr int64_t kAttentionRows = 96;  // most rows of a block

AttentionKernel flash_attention_portable();
#ifdef DAFAST_X86
AttentionKernel flash_attention_avx2();
AttentionKernel flash_attention_avx512();
AttentionKernel flash_attention_avx512_bf16();
#endif

}  // namespace dafast::cpu
