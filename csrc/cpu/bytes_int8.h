// Rounds floats to bytes for products of int8: 256 steps from the smallest to the largest value,
// one of which is 0. For kernels files, after vectors16.h.

struct ByteRange {
  __m512 low, high;
  __m512i most;  // magnitudes, compared by their bits: NaN is the largest
};

inline ByteRange range_of_zero() {
  return {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_si512()};
}

inline void include(ByteRange& range, __m512 x) {
  range.low = _mm512_min_ps(x, range.low);
  range.high = _mm512_max_ps(x, range.high);
  range.most = _mm512_max_epi32(range.most, _mm512_castps_si512(_mm512_abs_ps(x)));
}

struct ByteSteps {
  float step, inverse;  // step is NaN if a value or the range is not finite
  int32_t zero;         // the byte of 0
};

inline ByteSteps steps_of(const ByteRange& range) {
  const float low = _mm512_reduce_min_ps(range.low);
  const float size = _mm512_reduce_max_ps(range.high) - low;
  if (_mm512_reduce_max_epi32(range.most) >= 0x7f800000 || !(size <= 3.40282347e38f)) {
    return {NAN, 0.0f, 0};
  }
  const float quotient = size > 0.0f ? 255.0f / size : 0.0f;
  const float inverse = quotient <= 3.40282347e38f ? quotient : 3.40282347e38f;
  return {size / 255.0f, inverse, _mm_cvtss_si32(_mm_set_ss(-low * inverse))};
}

// The bytes of 16 values; the smallest one is 0, the largest at most 255.
inline __m128i bytes_of(__m512 x, __m512 inverse, __m512i zero) {
  const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
  return _mm512_cvtusepi32_epi8(_mm512_add_epi32(rounded, zero));
}
