// The kernels of attention_int8.cpp, from AVX2 or ARM's dot products on.
//
// The products are those of unsigned and signed numbers. Queries are stored with 128 added, which
// the offsets of the keys subtract again; probabilities are never negative. The mean of the keys is
// subtracted from them, which removes the part that all keys share and does not change softmax.

#if defined(DAFAST_IN_AVX512) || defined(DAFAST_IN_AVX2) || defined(DAFAST_IN_DOTPROD)

#include "vectors16.h"
#include "tile_int8.h"

constexpr int64_t kQueryTile = kWideTile;
#ifdef DAFAST_IN_AVX512
constexpr int64_t kTogether = 2;    // rows of logits
#else
constexpr int64_t kTogether = 1;
#endif
constexpr int64_t kPanel = 64;      // keys, or dimensions, of a tile: 4 vectors
constexpr int64_t kKeys = 768;      // keys of a block; its probabilities share one maximum
constexpr int64_t kLogits = kKeys + 16;  // floats in a row of logits: not a power of two
// The probability of the largest logit. 255 is left for a rounding error that is passed on.
constexpr float kWhole = 254.0f;
constexpr int64_t kInt8Scratch =
    (kQueryTile * kLogits + kInt8Queries * kInt8HeadDim) * (4 + sizeof(Level)) + kInt8Queries * 8;

// The largest magnitude; NaN if it is not finite.
inline float largest(Ints16 magnitudes) {
  const float value = float_from_bits(most(magnitudes));
  return value - value == 0.0f ? value : value - value;
}

inline Ints16 rounded(Floats16 x, float steps) { return rounded(mul(x, all(steps))); }

inline float steps_of(float range) {
  const float steps = 127.0f * inverse_of(range);
  return steps <= 3.40282347e38f ? steps : 3.40282347e38f;
}

void pack_keys(const Int8Head& head, const PackedHead& packed) {
  const int64_t dims = head.head_dim, tokens = head.tokens;
  const int64_t padded = (tokens + 15) / 16 * 16;
  Floats16 mean[kInt8HeadDim / 16];
  for (int64_t j = 0; j < dims / 16; ++j) {
    Floats16 sum = all(0.0f);
    for (int64_t t = 0; t < tokens; ++t) {
      sum = add(sum, load(head.k, head.bfloat16, t * head.stride + 16 * j));
    }
    mean[j] = div(sum, all(static_cast<float>(tokens)));
  }
  for (int64_t first = 0; first < padded; first += kPanel) {
    const int64_t columns = padded - first < kPanel ? padded - first : kPanel;
    int8_t* const panel = packed.keys + first * dims;
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t t = first + c;
      Floats16 x[kInt8HeadDim / 16];
      Ints16 size = all(0);
      for (int64_t j = 0; j < dims / 16; ++j) {
        const int64_t at = t * head.stride + 16 * j;
        x[j] = t < tokens ? sub(load(head.k, head.bfloat16, at), mean[j]) : all(0.0f);
        size = max(size, magnitudes(x[j]));
      }
      const float range = largest(size), steps = steps_of(range);
      int32_t sum = 0;
      for (int64_t j = 0; j < dims / 16; ++j) {
        const Ints16 q = rounded(x[j], steps);
        sum += total(q);
        int8_t bytes[16];
        put_bytes(bytes, q);
        for (int64_t i = 0; i < 4; ++i) {
          memcpy(panel + ((4 * j + i) * columns + c) * 4, bytes + 4 * i, 4);
        }
      }
      packed.key_scales[t] = range / 127.0f;
      packed.key_offsets[t] = -128 * sum;
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
      Ints16 size = all(0);
      const auto value = [&](int64_t t) {
        return t < tokens ? load(head.v, head.bfloat16, t * head.stride + first + d) : all(0.0f);
      };
      for (int64_t t = 0; t < tokens; ++t) size = max(size, magnitudes(value(t)));
      alignas(64) int32_t bits[16];
      alignas(64) float steps[16];
      put(bits, size);
      for (int64_t i = 0; i < 16; ++i) {
        float range = float_from_bits(bits[i]);
        range = range - range == 0.0f ? range : range - range;
        packed.value_scales[first + d + i] = range / 127.0f;
        steps[i] = steps_of(range);
      }
      const Floats16 factors = floats_at(steps);
      for (int64_t t = 0; t < padded; t += 4) {
        // Bytes of four keys next to each other.
        Ints16 four = all(0);
        for (int64_t i = 3; i >= 0; --i) {
          four = append_byte(four, rounded(mul(value(t + i), factors)));
        }
        alignas(64) int32_t fours[16];
        put(fours, four);
        memcpy(panel + t * columns + d * 4, fours, sizeof fours);
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
void logits(const Level* q, int64_t dims, const int8_t* keys, const float* scales,
            const int32_t* offsets, float* out) {
  alignas(64) int32_t sums[kQueryTile * WIDTH * 16];
  multiply_tile<kQueryTile, WIDTH>(q, dims, 1, 0, dims / 4, keys, offsets, sums);
  for (int r = 0; r < kQueryTile; ++r) {
    for (int w = 0; w < WIDTH; ++w) {
      const Floats16 sum = to_floats(ints_at(sums + 16 * (r * WIDTH + w)));
      put(out + r * kLogits + 16 * w, mul(sum, floats_at(scales + 16 * w)));
    }
  }
}

// out = factors * out + p v for a tile of queries and 16 WIDTH dimensions.
template <int WIDTH>
void mix(const Level* p, const int8_t* values, int64_t keys, const float* factors, float* out,
         int64_t dims) {
  constexpr int32_t kZeros[WIDTH * 16] = {};
  alignas(64) int32_t sums[kQueryTile * WIDTH * 16];
  multiply_tile<kQueryTile, WIDTH>(p, kLogits, 1, 0, keys / 4, values, kZeros, sums);
  for (int r = 0; r < kQueryTile; ++r) {
    const Floats16 factor = all(factors[r]);
    for (int w = 0; w < WIDTH; ++w) {
      float* const place = out + r * dims + 16 * w;
      const Floats16 sum = to_floats(ints_at(sums + 16 * (r * WIDTH + w)));
      put(place, add(mul(factor, floats_at(place)), sum));
    }
  }
}

// 2^x by the polynomial of degree 3 of flash_attention_kernels.h; relative error 7.5e-5.
inline Floats16 power_of_two(Floats16 x) {
  const Floats16 f = fraction(x);
  Floats16 y = fmadd(all(0x1.3f96a4p-4f), f, all(0x1.cefc4cp-3f));
  y = fmadd(y, f, all(0x1.64444cp-1f));
  return scaled(fmadd(y, f, all(0x1.fff632p-1f)), x);
}

// Turns rows of logits into probabilities of 8 bits, up to a factor that later blocks of keys change.
// Each rounding error is passed on to the key 16 places further: many small probabilities keep their
// sum. `factors` are those for the results of the blocks before this one. Several rows at once,
// because a row waits for the error of its last 16 keys.
inline void exponentiate(const float* rows, int64_t keys, const float* scales, Level* p,
                         float* maxima, float* sums, float* factors) {
  Floats16 scale[kTogether], base[kTogether], total_of[kTogether], error[kTogether];
  for (int64_t r = 0; r < kTogether; ++r) {
    Floats16 highest = all(-INFINITY);
    for (int64_t i = 0; i < keys; i += 16) {
      const Floats16 x = floats_at(rows + r * kLogits + i);
      highest = only(first_of(keys - i), max(x, highest), highest);
    }
    const float block = scales[r] * most(highest), before = maxima[r];
    maxima[r] = block > before ? block : before;
    factors[r] = before == -INFINITY ? 0.0f : most(power_of_two(all(before - maxima[r])));
    scale[r] = all(scales[r]);
    base[r] = all(7.98868469f - maxima[r]);  // log2(kWhole)
    total_of[r] = error[r] = all(0.0f);
  }
  for (int64_t i = 0; i < keys; i += 16) {
    const Mask16 mask = first_of(keys - i);
#pragma GCC unroll 4
    for (int64_t r = 0; r < kTogether; ++r) {
      const Floats16 x = fmadd(scale[r], floats_at(rows + r * kLogits + i), base[r]);
      const Floats16 wanted = only(mask, add(power_of_two(x), error[r]));
      const Floats16 whole = nearest(wanted);
      error[r] = sub(wanted, whole);
      total_of[r] = add(total_of[r], whole);
      put_levels(p + r * kLogits + i, rounded(whole));
    }
  }
  for (int64_t r = 0; r < kTogether; ++r) sums[r] = factors[r] * sums[r] + total(total_of[r]);
}

// The queries [begin, end) with 128 added, padded to whole tiles; their scales, with that of the
// logits.
void quantise_queries(const Int8Head& head, int64_t begin, int64_t end, Level* to,
                      float* scales) {
  const int64_t dims = head.head_dim, tiles = (end - begin + kQueryTile - 1) / kQueryTile;
  for (int64_t r = 0; r < tiles * kQueryTile; ++r) {
    const int64_t t = begin + r;
    const auto part = [&](int64_t d) {
      return t < end ? load(head.q, head.bfloat16, t * head.stride + d) : all(0.0f);
    };
    Ints16 size = all(0);
    for (int64_t d = 0; d < dims; d += 16) size = max(size, magnitudes(part(d)));
    const float range = largest(size), steps = steps_of(range);
    for (int64_t d = 0; d < dims; d += 16) {
      put_levels(to + r * dims + d, add(rounded(part(d), steps), all(128)), first_of(16));
    }
    scales[r] = range / 127.0f * head.scale;
  }
}

// Logits of a tile of queries and the keys [first, first + keys), a multiple of 16.
void logits_of(const PackedHead& packed, const Level* q, int64_t dims, int64_t first, int64_t keys,
               float* out) {
  const TileSettings settings(dims / 4);
  for (int64_t k = 0; k < keys; k += kPanel) {
    const int8_t* const panel = packed.keys + (first + k) * dims;
    const float* const scales = packed.key_scales + first + k;
    const int32_t* const offsets = packed.key_offsets + first + k;
    switch (keys - k < kPanel ? (keys - k) / 16 : 4) {
      case 1: logits<1>(q, dims, panel, scales, offsets, out + k); break;
      case 2: logits<2>(q, dims, panel, scales, offsets, out + k); break;
      case 3: logits<3>(q, dims, panel, scales, offsets, out + k); break;
      default: logits<4>(q, dims, panel, scales, offsets, out + k);
    }
  }
}

// out = factors * out + p v for a tile of queries, with the values of these keys.
void mix_values(const PackedHead& packed, const Level* p, int64_t dims, int64_t padded_tokens,
                int64_t first, int64_t keys, const float* factors, float* out) {
  const TileSettings settings(keys / 4);
  for (int64_t d = 0; d < dims; d += kPanel) {
    const int64_t columns = dims - d < kPanel ? dims - d : kPanel;
    const int8_t* const panel = packed.values + d * padded_tokens + first * columns;
    switch (columns / 16) {
      case 1: mix<1>(p, panel, keys, factors, out + d, dims); break;
      case 2: mix<2>(p, panel, keys, factors, out + d, dims); break;
      case 3: mix<3>(p, panel, keys, factors, out + d, dims); break;
      default: mix<4>(p, panel, keys, factors, out + d, dims);
    }
  }
}

void attend_queries(const Int8Head& head, const PackedHead& packed, int64_t begin, int64_t end,
                    std::byte* scratch) {
  const int64_t dims = head.head_dim, tokens = head.tokens;
  const int64_t padded_tokens = (tokens + 15) / 16 * 16;
  float* const row_logits = reinterpret_cast<float*>(scratch);
  float* const out = row_logits + kQueryTile * kLogits;
  float* const scales = out + kInt8Queries * kInt8HeadDim;
  Level* const q = reinterpret_cast<Level*>(scales + kInt8Queries);
  Level* const p = q + kInt8Queries * kInt8HeadDim;
  quantise_queries(head, begin, end, q, scales);
  for (int64_t row = begin; row < end; row += kQueryTile) {
    const int64_t tile = row - begin;
    float maxima[kQueryTile], sums[kQueryTile], factors[kQueryTile];
    for (int r = 0; r < kQueryTile; ++r) maxima[r] = -INFINITY, sums[r] = 0.0f;
    for (int64_t i = 0; i < kQueryTile * dims; ++i) out[i] = 0.0f;
    for (int64_t first = 0; first < tokens; first += kKeys) {
      const int64_t keys = tokens - first < kKeys ? tokens - first : kKeys;
      const int64_t padded = (keys + 15) / 16 * 16;
      logits_of(packed, q + tile * dims, dims, first, padded, row_logits);
      for (int64_t r = 0; r < kQueryTile; r += kTogether) {
        exponentiate(row_logits + r * kLogits, keys, scales + tile + r, p + r * kLogits, maxima + r,
                     sums + r, factors + r);
      }
      mix_values(packed, p, dims, padded_tokens, first, padded, factors, out);
    }
    for (int64_t r = 0; r < kQueryTile && row + r < end; ++r) {
      const Floats16 inverse = all(1.0f / sums[r]);
      for (int64_t d = 0; d < dims; d += 16) {
        const Floats16 scale = mul(floats_at(packed.value_scales + d), inverse);
        store(mul(floats_at(out + r * dims + d), scale), head.out, head.bfloat16,
              (row + r) * head.out_stride + d, first_of(16));
      }
    }
  }
}

#else

constexpr int64_t kQueryTile = 1, kInt8Scratch = 0;
constexpr PackHead pack_head = nullptr;
constexpr AttendQueries attend_queries = nullptr;

#endif
