// The part of vectors16.h for AVX2, with and without AVX-VNNI.

struct Floats16 {
  __m256 low, high;
};
struct Ints16 {
  __m256i low, high;
};
#ifdef DAFAST_IN_AVX_VNNI
using Level = uint8_t;
#else
using Level = uint16_t;  // products are those of 16 bits
#endif

inline Floats16 all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Ints16 all(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Floats16 floats_at(const float* from) {
  return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}
inline __m256i load_ints(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline void store_ints(void* to, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }
inline Ints16 ints_at(const int32_t* from) { return {load_ints(from), load_ints(from + 8)}; }
inline void put(float* to, Floats16 x) {
  _mm256_storeu_ps(to, x.low);
  _mm256_storeu_ps(to + 8, x.high);
}
inline void put(int32_t* to, Ints16 x) {
  store_ints(to, x.low);
  store_ints(to + 8, x.high);
}

#define DAFAST_BOTH(type, name, intrinsic)               \
  inline type name(type a, type b) {                     \
    return {intrinsic(a.low, b.low), intrinsic(a.high, b.high)}; \
  }
DAFAST_BOTH(Floats16, add, _mm256_add_ps)
DAFAST_BOTH(Floats16, sub, _mm256_sub_ps)
DAFAST_BOTH(Floats16, mul, _mm256_mul_ps)
DAFAST_BOTH(Floats16, div, _mm256_div_ps)
DAFAST_BOTH(Floats16, min, _mm256_min_ps)  // b if one is NaN
DAFAST_BOTH(Floats16, max, _mm256_max_ps)
DAFAST_BOTH(Ints16, add, _mm256_add_epi32)
DAFAST_BOTH(Ints16, sub, _mm256_sub_epi32)
DAFAST_BOTH(Ints16, mul, _mm256_mullo_epi32)
DAFAST_BOTH(Ints16, max, _mm256_max_epi32)
#undef DAFAST_BOTH

inline Floats16 fmadd(Floats16 a, Floats16 b, Floats16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats16 root(Floats16 x) { return {_mm256_sqrt_ps(x.low), _mm256_sqrt_ps(x.high)}; }
inline Floats16 nearest(Floats16 x) {
  return {_mm256_round_ps(x.low, 0x08), _mm256_round_ps(x.high, 0x08)};
}
inline Floats16 floor(Floats16 x) {
  return {_mm256_round_ps(x.low, 0x09), _mm256_round_ps(x.high, 0x09)};
}

inline Ints16 rounded(Floats16 x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline int32_t rounded(float x) { return _mm_cvtss_si32(_mm_set_ss(x)); }
inline Floats16 to_floats(Ints16 x) {
  return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)};
}
// Bits of the magnitudes: as integers they compare like these, and NaN is the largest.
inline Ints16 magnitudes(Floats16 x) {
  const __m256i most = _mm256_set1_epi32(0x7fffffff);
  return {_mm256_and_si256(_mm256_castps_si256(x.low), most),
          _mm256_and_si256(_mm256_castps_si256(x.high), most)};
}

inline float total(Floats16 x) {
  const __m256 eight = _mm256_add_ps(x.low, x.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float least(Floats16 x) {
  const __m256 eight = _mm256_min_ps(x.low, x.high);
  const __m128 four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
}
inline float most(Floats16 x) {
  const __m256 eight = _mm256_max_ps(x.low, x.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline int32_t total(Ints16 x) {
  const __m256i eight = _mm256_add_epi32(x.low, x.high);
  const __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
inline int32_t most(Ints16 x) {
  const __m256i eight = _mm256_max_epi32(x.low, x.high);
  const __m128i four =
      _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

inline __m256 scaled(__m256 y, __m256 x) {
  // The exponent is that of floor(x); results below the smallest normal number are 0.
  const __m256 bottom = _mm256_set1_ps(-126.0f);
  const __m256i floors = _mm256_cvtps_epi32(_mm256_round_ps(_mm256_max_ps(x, bottom), 0x09));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(floors, _mm256_set1_epi32(127)), 23);
  const __m256 product = _mm256_mul_ps(y, _mm256_castsi256_ps(power));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, bottom, _CMP_LT_OQ), product);
}
// 2^floor(x) y, for x up to 127
inline Floats16 scaled(Floats16 y, Floats16 x) {
  return {scaled(y.low, x.low), scaled(y.high, x.high)};
}
inline Floats16 fraction(Floats16 x) { return sub(x, floor(x)); }

struct Mask16 {
  int count;
};
inline Mask16 first_of(int64_t count) {
  return {count >= 16 ? 16 : count < 0 ? 0 : static_cast<int>(count)};
}
// The places of eight, from `first` on, that a mask has.
inline __m256i lanes_of(Mask16 mask, int first) {
  const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(mask.count - first), places);
}
// The others are `other`.
inline Floats16 only(Mask16 mask, Floats16 x, Floats16 other) {
  return {_mm256_blendv_ps(other.low, x.low, _mm256_castsi256_ps(lanes_of(mask, 0))),
          _mm256_blendv_ps(other.high, x.high, _mm256_castsi256_ps(lanes_of(mask, 8)))};
}
// The others are 0.
inline Floats16 only(Mask16 mask, Floats16 x) {
  return mask.count == 16 ? x : only(mask, x, all(0.0f));
}
inline Floats16 floats_at(const float* from, Mask16 mask) {
  if (mask.count == 16) return floats_at(from);
  return {_mm256_maskload_ps(from, lanes_of(mask, 0)),
          _mm256_maskload_ps(from + 8, lanes_of(mask, 8))};
}
inline Ints16 ints_at(const int32_t* from, Mask16 mask) {
  return {_mm256_maskload_epi32(from, lanes_of(mask, 0)),
          _mm256_maskload_epi32(from + 8, lanes_of(mask, 8))};
}
inline void put(float* to, Floats16 x, Mask16 mask) {
  if (mask.count == 16) return put(to, x);
  _mm256_maskstore_ps(to, lanes_of(mask, 0), x.low);
  _mm256_maskstore_ps(to + 8, lanes_of(mask, 8), x.high);
}

// Of 0 to 65535, as 16 bits.
inline __m256i narrowed(Ints16 x) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(x.low, x.high), 0xd8);
}
inline void put_halves(uint16_t* to, __m256i x, Mask16 mask) {
  if (mask.count == 16) return store_ints(to, x);
  alignas(32) uint16_t all[16];
  store_ints(all, x);
  memcpy(to, all, static_cast<size_t>(mask.count) * 2);
}
// Of 0 or more; more than 255 becomes 255.
inline void put_levels(Level* to, Ints16 x, Mask16 mask) {
  const __m256i halves = _mm256_min_epu16(narrowed(x), _mm256_set1_epi16(255));
#ifdef DAFAST_IN_AVX_VNNI
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(halves),
                                         _mm256_extracti128_si256(halves, 1));
  if (mask.count == 16) return _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
  alignas(16) uint8_t all[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(all), bytes);
  memcpy(to, all, static_cast<size_t>(mask.count));
#else
  put_halves(to, halves, mask);
#endif
}
inline void put_levels(Level* to, Ints16 x) { put_levels(to, x, first_of(16)); }
// Of -128 to 127.
inline void put_bytes(int8_t* to, Ints16 x) {
  const __m256i halves = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packs_epi16(_mm256_castsi256_si128(halves),
                                   _mm256_extracti128_si256(halves, 1)));
}

inline __m256i append_byte(__m256i x, __m256i y) {
  return _mm256_or_si256(_mm256_slli_epi32(x, 8), _mm256_and_si256(y, _mm256_set1_epi32(255)));
}
// x << 8 | the low byte of y
inline Ints16 append_byte(Ints16 x, Ints16 y) {
  return {append_byte(x.low, y.low), append_byte(x.high, y.high)};
}

inline Floats16 widened(const uint16_t* from, Mask16 mask) {
  alignas(32) uint16_t part[16] = {};
  if (mask.count < 16) memcpy(part, from, static_cast<size_t>(mask.count) * 2);
  const auto* const at = reinterpret_cast<const __m128i*>(mask.count < 16 ? part : from);
  const auto wide = [&](int half) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(at + half));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  };
  return {wide(0), wide(1)};
}
inline __m256i bfloat16_bits(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  return _mm256_srli_epi32(_mm256_blendv_epi8(near, quiet, nan), 16);
}
// Rounds to nearest, ties to even; NaN keeps its upper bits and becomes quiet.
inline void put_bfloat16(uint16_t* to, Floats16 x, Mask16 mask) {
  put_halves(to, narrowed({bfloat16_bits(x.low), bfloat16_bits(x.high)}), mask);
}
