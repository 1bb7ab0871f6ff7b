// The decoder's tail on the CPU: what its parts, one for each instruction set, are called with.
#pragma once

#include <cstdint>

namespace dafast::cpu {

constexpr int64_t kHidden = 32;  // channels between the two convolutions; fewer are padded with 0

// Weights of the 3x3 convolution: [ky][kx][c][kHidden] in float32, or in bfloat16 with the
// channels in pairs, [ky][kx][c / 2][kHidden][2], as the instruction for their product wants them.
struct Tail {
  const void* x;  // (B, h, w, C), C a multiple of 16
  bool bfloat16;  // of x; otherwise float32
  int64_t channels, height, width;
  int64_t stride_n, stride_y, stride_x;
  int64_t out_height, out_width;
  const void* weights1;
  const float* bias1;    // kHidden
  const float* weights2;  // kHidden
  float bias2;
  float* out;  // (B, H, W), before the activation
};

// Bytes that computing a range of rows takes beside the call: `padded_width` pixels of the output
// are computed in a row.
int64_t tail_scratch(const Tail& call);

// Computes the rows [begin, end) of all images, counted through. `scratch` is aligned to 64 bytes.
using TailRows = void (*)(const Tail& call, int64_t begin, int64_t end, void* scratch);
void tail_rows_portable(const Tail& call, int64_t begin, int64_t end, void* scratch);
void tail_rows_avx2(const Tail& call, int64_t begin, int64_t end, void* scratch);
void tail_rows_avx512(const Tail& call, int64_t begin, int64_t end, void* scratch);
// Takes bfloat16 alone, its weights in pairs.
void tail_rows_avx512_bf16(const Tail& call, int64_t begin, int64_t end, void* scratch);

}  // namespace dafast::cpu
