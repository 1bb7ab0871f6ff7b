// Vectors of 16 floats in AVX-512, loaded from and stored to float32 or bfloat16. Included by the
// kernels files that each_isa.h compiles, within DAFAST_IN_AVX512.

inline __m512 load(const void* x, bool bfloat16, int64_t index, __mmask16 mask) {
  if (!bfloat16) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(x) + index);
  const __m256i half = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x) + index);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline void store(__m512 value, void* out, bool bfloat16, int64_t index, __mmask16 mask) {
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

inline __mmask16 first_of(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << (count < 0 ? 0 : count)) - 1);
}

inline float float_from_bits(int32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// 1 / x where x > 0, at most the largest float; 0 otherwise, also for NaN and infinity.
inline float inverse_of(float x) {
  if (!(x > 0.0f && x <= 3.40282347e38f)) return 0.0f;
  const float inverse = 1.0f / x;
  return inverse <= 3.40282347e38f ? inverse : 3.40282347e38f;
}
