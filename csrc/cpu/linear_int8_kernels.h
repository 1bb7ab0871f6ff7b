// The kernel of linear_int8.cpp, only for AVX-512 with VNNI.

#ifdef DAFAST_IN_AVX512

constexpr int64_t kTile = 12;  // rows of 2 registers each

__m512 load(const void* x, bool bfloat16, int64_t index, __mmask16 mask) {
  if (!bfloat16) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(x) + index);
  const __m256i half = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x) + index);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

void store(__m512 value, void* out, bool bfloat16, int64_t index, __mmask16 mask) {
  if (!bfloat16) return _mm512_mask_storeu_ps(static_cast<float*>(out) + index, mask, value);
  // Rounds to nearest, ties to even; NaN keeps its upper bits and becomes quiet.
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i result = _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out) + index, mask,
                           _mm512_cvtepi32_epi16(result));
}

__mmask16 first_of(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << (count < 0 ? 0 : count)) - 1);
}

// Quantises a row to 1..255, with 128 for 0. Returns the size of a step, or NaN if the row holds
// NaN or infinity.
float quantise(const LinearInt8& call, int64_t row, uint8_t* values) {
  const int64_t depth = call.depth, start = row * depth;
  __m512i most = _mm512_setzero_si512();  // magnitudes, ordered by their bits: NaN is last
  for (int64_t k = 0; k < depth; k += 16) {
    const __m512 x = load(call.x, call.bfloat16, start + k, first_of(depth - k));
    most = _mm512_max_epi32(most, _mm512_castps_si512(_mm512_abs_ps(x)));
  }
  const int32_t bits = _mm512_reduce_max_epi32(most);
  float range;
  memcpy(&range, &bits, sizeof range);
  if (bits >= 0x7f800000) {
    memset(values, 128, static_cast<size_t>(depth));
    return range - range;
  }
  const __m512 steps = _mm512_set1_ps(range > 0.0f ? 127.0f / range : 0.0f);
  for (int64_t k = 0; k < depth; k += 16) {
    const __mmask16 mask = first_of(depth - k);
    const __m512 x = load(call.x, call.bfloat16, start + k, mask);
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(x, steps));
    const __m512i shifted = _mm512_add_epi32(q, _mm512_set1_epi32(128));
    _mm_mask_storeu_epi8(values + k, mask, _mm512_cvtepi32_epi8(shifted));
  }
  return range / 127.0f;
}

// Computes the groups [begin, end) of `kInt8Rows` rows. `scratch` has room for one group's values,
// kInt8Rows * round_up(K, kInt8Depth) bytes.
void multiply_rows(const LinearInt8& call, int64_t begin, int64_t end, uint8_t* scratch) {
  const int64_t depth = round_up(call.depth, kInt8Depth), panels = depth * kInt8Columns;
  float steps[kInt8Rows];
  for (int64_t group = begin; group < end; ++group) {
    const int64_t row = group * kInt8Rows;
    const int64_t rows = call.rows - row < kInt8Rows ? call.rows - row : kInt8Rows;
    memset(scratch, 0, kInt8Rows * depth);
    for (int64_t r = 0; r < rows; ++r) steps[r] = quantise(call, row + r, scratch + r * depth);
    for (int64_t column = 0; column < call.columns; column += kInt8Columns) {
      const int8_t* panel = call.weights + column / kInt8Columns * panels;
      const __mmask16 masks[2] = {first_of(call.columns - column),
                                  first_of(call.columns - column - 16)};
      __m512 scales[2], biases[2];
      __m512i offsets[2];
      for (int j = 0; j < 2; ++j) {
        const int64_t at = column + 16 * j;
        scales[j] = _mm512_maskz_loadu_ps(masks[j], call.scales + at);
        biases[j] = _mm512_maskz_loadu_ps(masks[j], call.bias + at);
        offsets[j] = _mm512_slli_epi32(_mm512_maskz_loadu_epi32(masks[j], call.sums + at), 7);
      }
      for (int64_t tile = 0; tile < rows; tile += kTile) {
        const uint8_t* values = scratch + tile * depth;
        __m512i sums[kTile][2];
#pragma GCC unroll 12
        for (int64_t r = 0; r < kTile; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
        for (int64_t k = 0; k < depth; k += kInt8Depth) {
          const __m512i first = _mm512_loadu_si512(panel + k * kInt8Columns);
          const __m512i second = _mm512_loadu_si512(panel + k * kInt8Columns + 64);
#pragma GCC unroll 12
          for (int64_t r = 0; r < kTile; ++r) {
            int32_t four;
            memcpy(&four, values + r * depth + k, sizeof four);
            const __m512i x = _mm512_set1_epi32(four);
            sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], x, first);
            sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], x, second);
          }
        }
// Unrolled, with a constant bound: otherwise the sums are in memory, not in registers.
#pragma GCC unroll 12
        for (int64_t r = 0; r < kTile; ++r) {
          if (tile + r >= rows) break;
          const __m512 step = _mm512_set1_ps(steps[tile + r]);
#pragma GCC unroll 2
          for (int j = 0; j < 2; ++j) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[r][j], offsets[j]));
            const __m512 y = _mm512_fmadd_ps(sum, _mm512_mul_ps(scales[j], step), biases[j]);
            store(y, call.out, call.bfloat16, (row + tile + r) * call.columns + column + 16 * j,
                  masks[j]);
          }
        }
      }
    }
  }
}

#else

constexpr Int8Rows multiply_rows = nullptr;

#endif
