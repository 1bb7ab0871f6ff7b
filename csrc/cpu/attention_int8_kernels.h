// The kernels of attention_int8.cpp, only for AVX-512 with VNNI.
//
// The instruction multiplies unsigned by signed numbers. Queries are stored with 128 added, which
// the offsets of the keys subtract again; probabilities are never negative. The mean of the keys is
// subtracted from them, which removes the part that all keys share and does not change softmax.

#ifdef DAFAST_IN_AVX512

#include "vectors16.h"
#include "tile_int8.h"

constexpr int64_t kQueryTile = 6;   // 24 sums, 4 vectors of the right side, 1 of the left
constexpr int64_t kPanel = 64;      // keys, or dimensions, of a tile: 4 vectors
constexpr int64_t kKeys = 768;      // keys of a block; its probabilities share one maximum
constexpr int64_t kLogits = kKeys + 16;  // floats in a row of logits: not a power of two
// The probability of the largest logit. 255 is left for a rounding error that is passed on.
constexpr float kWhole = 254.0f;
constexpr int64_t kInt8Scratch =
    kQueryTile * kLogits * 5 + kInt8Queries * kInt8HeadDim * 5 + kInt8Queries * 8;

// Magnitudes, compared by their bits: NaN is the largest.
inline __m512i magnitudes(__m512 x) { return _mm512_castps_si512(_mm512_abs_ps(x)); }

// The largest magnitude; NaN if it is not finite.
inline float largest(__m512i magnitudes) {
  const float value = float_from_bits(_mm512_reduce_max_epi32(magnitudes));
  return value - value == 0.0f ? value : value - value;
}

inline __m512i rounded(__m512 x, float steps) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(steps)));
}

inline float steps_of(float range) {
  const float steps = 127.0f * inverse_of(range);
  return steps <= 3.40282347e38f ? steps : 3.40282347e38f;
}

void pack_keys(const Int8Head& head, const PackedHead& packed) {
  const int64_t dims = head.head_dim, tokens = head.tokens;
  const int64_t padded = (tokens + 15) / 16 * 16;
  __m512 mean[kInt8HeadDim / 16];
  for (int64_t j = 0; j < dims / 16; ++j) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t t = 0; t < tokens; ++t) {
      sum = _mm512_add_ps(sum, load(head.k, head.bfloat16, t * head.stride + 16 * j, 0xffff));
    }
    mean[j] = _mm512_div_ps(sum, _mm512_set1_ps(static_cast<float>(tokens)));
  }
  for (int64_t first = 0; first < padded; first += kPanel) {
    const int64_t columns = padded - first < kPanel ? padded - first : kPanel;
    int8_t* const panel = packed.keys + first * dims;
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t t = first + c;
      __m512 x[kInt8HeadDim / 16];
      __m512i most = _mm512_setzero_si512();
      for (int64_t j = 0; j < dims / 16; ++j) {
        const int64_t at = t * head.stride + 16 * j;
        x[j] = t < tokens ? _mm512_sub_ps(load(head.k, head.bfloat16, at, 0xffff), mean[j])
                          : _mm512_setzero_ps();
        most = _mm512_max_epi32(most, magnitudes(x[j]));
      }
      const float range = largest(most), steps = steps_of(range);
      int32_t total = 0;
      for (int64_t j = 0; j < dims / 16; ++j) {
        const __m512i q = rounded(x[j], steps);
        total += _mm512_reduce_add_epi32(q);
        alignas(16) int32_t fours[4];
        _mm_store_si128(reinterpret_cast<__m128i*>(fours), _mm512_cvtepi32_epi8(q));
        for (int64_t i = 0; i < 4; ++i) {
          memcpy(panel + ((4 * j + i) * columns + c) * 4, &fours[i], 4);
        }
      }
      packed.key_scales[t] = range / 127.0f;
      packed.key_offsets[t] = -128 * total;
    }
  }
}

void pack_values(const Int8Head& head, const PackedHead& packed) {
  const int64_t dims = head.head_dim, tokens = head.tokens;
  const int64_t padded = (tokens + 15) / 16 * 16;
  for (int64_t first = 0; first < dims; first += kPanel) {
    const int64_t columns = dims - first < kPanel ? dims - first : kPanel;
    int8_t* const panel = packed.values + first * padded;
    for (int64_t d = 0; d < columns; d += 16) {
      __m512i most = _mm512_setzero_si512();
      const auto value = [&](int64_t t) {
        return t < tokens ? load(head.v, head.bfloat16, t * head.stride + first + d, 0xffff)
                          : _mm512_setzero_ps();
      };
      for (int64_t t = 0; t < tokens; ++t) most = _mm512_max_epi32(most, magnitudes(value(t)));
      alignas(64) int32_t bits[16];
      alignas(64) float steps[16];
      _mm512_store_si512(bits, most);
      for (int64_t i = 0; i < 16; ++i) {
        float range = float_from_bits(bits[i]);
        range = range - range == 0.0f ? range : range - range;
        packed.value_scales[first + d + i] = range / 127.0f;
        steps[i] = steps_of(range);
      }
      const __m512 factors = _mm512_load_ps(steps);
      for (int64_t t = 0; t < padded; t += 4) {
        // Bytes of four keys next to each other.
        __m512i four = _mm512_setzero_si512();
        for (int64_t i = 3; i >= 0; --i) {
          const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(value(t + i), factors));
          four = _mm512_or_si512(_mm512_slli_epi32(four, 8),
                                 _mm512_and_si512(q, _mm512_set1_epi32(255)));
        }
        _mm512_storeu_si512(panel + t * columns + d * 4, four);
      }
    }
  }
}

void pack_head(const Int8Head& head, const PackedHead& packed) {
  pack_keys(head, packed);
  pack_values(head, packed);
}

// Logits of a tile of queries (up to a factor of their rows) and 16 WIDTH keys.
template <int WIDTH>
void logits(const uint8_t* q, int64_t dims, const int8_t* keys, const float* scales,
            const int32_t* offsets, float* out) {
  alignas(64) int32_t sums[kQueryTile * WIDTH * 16];
  multiply_tile<kQueryTile, WIDTH>(q, dims, 1, 0, dims / 4, keys, offsets, sums);
  for (int r = 0; r < kQueryTile; ++r) {
    for (int w = 0; w < WIDTH; ++w) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + 16 * (r * WIDTH + w)));
      _mm512_storeu_ps(out + r * kLogits + 16 * w,
                       _mm512_mul_ps(sum, _mm512_loadu_ps(scales + 16 * w)));
    }
  }
}

// out = factors * out + p v for a tile of queries and 16 WIDTH dimensions.
template <int WIDTH>
void mix(const uint8_t* p, const int8_t* values, int64_t keys, const float* factors, float* out,
         int64_t dims) {
  constexpr int32_t kZeros[WIDTH * 16] = {};
  alignas(64) int32_t sums[kQueryTile * WIDTH * 16];
  multiply_tile<kQueryTile, WIDTH>(p, kLogits, 1, 0, keys / 4, values, kZeros, sums);
  for (int r = 0; r < kQueryTile; ++r) {
    const __m512 factor = _mm512_set1_ps(factors[r]);
    for (int w = 0; w < WIDTH; ++w) {
      float* const place = out + r * dims + 16 * w;
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + 16 * (r * WIDTH + w)));
      const __m512 before = _mm512_mul_ps(factor, _mm512_loadu_ps(place));
      _mm512_storeu_ps(place, _mm512_add_ps(before, sum));
    }
  }
}

// 2^x by the polynomial of degree 3 of flash_attention_kernels.h; relative error 7.5e-5.
inline __m512 power_of_two(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
  __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(0x1.3f96a4p-4f), f, _mm512_set1_ps(0x1.cefc4cp-3f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0x1.64444cp-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0x1.fff632p-1f));
  return _mm512_scalef_ps(y, x);
}

// Turns a row of logits into probabilities of 8 bits, up to a factor that later blocks of keys
// change. Each rounding error is passed on to the key 16 places further: many small probabilities
// keep their sum. Returns the factor for the results of the blocks before this one.
inline float exponentiate(const float* row, int64_t keys, float scale, uint8_t* p, float& maximum,
                          float& sum) {
  __m512 most = _mm512_set1_ps(-INFINITY);
  for (int64_t i = 0; i < keys; i += 16) {
    most = _mm512_mask_max_ps(most, first_of(keys - i), _mm512_loadu_ps(row + i), most);
  }
  const float block = scale * _mm512_reduce_max_ps(most), before = maximum;
  maximum = block > before ? block : before;
  const __m512 scales = _mm512_set1_ps(scale);
  const __m512 base = _mm512_set1_ps(7.98868469f - maximum);  // log2(kWhole)
  __m512 sums = _mm512_setzero_ps(), error = _mm512_setzero_ps();
  for (int64_t i = 0; i < keys; i += 16) {
    const __m512 logits = _mm512_loadu_ps(row + i);
    const __m512 wanted = _mm512_maskz_add_ps(
        first_of(keys - i), power_of_two(_mm512_fmadd_ps(scales, logits, base)), error);
    const __m512 whole = _mm512_roundscale_ps(wanted, 0x08);  // to nearest, no exceptions
    error = _mm512_sub_ps(wanted, whole);
    sums = _mm512_add_ps(sums, whole);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i),
                     _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(whole)));
  }
  const float factor =
      before == -INFINITY ? 0.0f
                          : _mm512_cvtss_f32(power_of_two(_mm512_set1_ps(before - maximum)));
  sum = factor * sum + _mm512_reduce_add_ps(sums);
  return factor;
}

// The queries [begin, end) with 128 added, padded to whole tiles; their scales, with that of the
// logits.
void quantise_queries(const Int8Head& head, int64_t begin, int64_t end, uint8_t* to,
                      float* scales) {
  const int64_t dims = head.head_dim, tiles = (end - begin + kQueryTile - 1) / kQueryTile;
  for (int64_t r = 0; r < tiles * kQueryTile; ++r) {
    const int64_t t = begin + r;
    const auto part = [&](int64_t d) {
      return t < end ? load(head.q, head.bfloat16, t * head.stride + d, 0xffff)
                     : _mm512_setzero_ps();
    };
    __m512i most = _mm512_setzero_si512();
    for (int64_t d = 0; d < dims; d += 16) most = _mm512_max_epi32(most, magnitudes(part(d)));
    const float range = largest(most), steps = steps_of(range);
    for (int64_t d = 0; d < dims; d += 16) {
      const __m512i q = _mm512_add_epi32(rounded(part(d), steps), _mm512_set1_epi32(128));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + r * dims + d), _mm512_cvtepi32_epi8(q));
    }
    scales[r] = range / 127.0f * head.scale;
  }
}

void attend_queries(const Int8Head& head, const PackedHead& packed, int64_t begin, int64_t end,
                    std::byte* scratch) {
  const int64_t dims = head.head_dim, tokens = head.tokens;
  const int64_t padded_tokens = (tokens + 15) / 16 * 16;
  float* const row_logits = reinterpret_cast<float*>(scratch);
  float* const out = row_logits + kQueryTile * kLogits;
  float* const scales = out + kInt8Queries * kInt8HeadDim;
  uint8_t* const q = reinterpret_cast<uint8_t*>(scales + kInt8Queries);
  uint8_t* const p = q + kInt8Queries * kInt8HeadDim;
  quantise_queries(head, begin, end, q, scales);
  for (int64_t row = begin; row < end; row += kQueryTile) {
    const int64_t tile = row - begin;
    float maxima[kQueryTile], sums[kQueryTile], factors[kQueryTile];
    for (int r = 0; r < kQueryTile; ++r) maxima[r] = -INFINITY, sums[r] = 0.0f;
    for (int64_t i = 0; i < kQueryTile * dims; ++i) out[i] = 0.0f;
    for (int64_t first = 0; first < tokens; first += kKeys) {
      const int64_t keys = tokens - first < kKeys ? tokens - first : kKeys;
      const int64_t padded = (keys + 15) / 16 * 16;
      for (int64_t k = 0; k < padded; k += kPanel) {
        const int8_t* const panel = packed.keys + (first + k) * dims;
        const float* const key_scales = packed.key_scales + first + k;
        const int32_t* const offsets = packed.key_offsets + first + k;
        const uint8_t* const left = q + tile * dims;
        float* const to = row_logits + k;
        switch (padded - k < kPanel ? (padded - k) / 16 : 4) {
          case 1: logits<1>(left, dims, panel, key_scales, offsets, to); break;
          case 2: logits<2>(left, dims, panel, key_scales, offsets, to); break;
          case 3: logits<3>(left, dims, panel, key_scales, offsets, to); break;
          default: logits<4>(left, dims, panel, key_scales, offsets, to);
        }
      }
      for (int r = 0; r < kQueryTile; ++r) {
        factors[r] = exponentiate(row_logits + r * kLogits, keys, scales[tile + r], p + r * kLogits,
                                  maxima[r], sums[r]);
      }
      for (int64_t d = 0; d < dims; d += kPanel) {
        const int64_t columns = dims - d < kPanel ? dims - d : kPanel;
        const int8_t* const panel = packed.values + d * padded_tokens + first * columns;
        switch (columns / 16) {
          case 1: mix<1>(p, panel, padded, factors, out + d, dims); break;
          case 2: mix<2>(p, panel, padded, factors, out + d, dims); break;
          case 3: mix<3>(p, panel, padded, factors, out + d, dims); break;
          default: mix<4>(p, panel, padded, factors, out + d, dims);
        }
      }
    }
    for (int64_t r = 0; r < kQueryTile && row + r < end; ++r) {
      const __m512 inverse = _mm512_set1_ps(1.0f / sums[r]);
      for (int64_t d = 0; d < dims; d += 16) {
        const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(packed.value_scales + d), inverse);
        store(_mm512_mul_ps(_mm512_loadu_ps(out + r * dims + d), scale), head.out, head.bfloat16,
              (row + r) * head.out_stride + d, 0xffff);
      }
    }
  }
}

#else

constexpr int64_t kInt8Scratch = 0;
constexpr PackHead pack_head = nullptr;
constexpr AttendQueries attend_queries = nullptr;

#endif
