// The kernels of affine_invariant_loss.cpp, for one instruction set.
#include "lanes.h"

constexpr int kBlock = 1024;  // at most kBins

// A block of pixels of one map.
struct Pixels {
  alignas(64) float buffers[2][kBlock];
  alignas(64) int32_t slots[kBlock];  // the region of a valid pixel, 0 or 1; 2: an invalid one
  const float* values[2];
  int64_t count;  // padded with invalid pixels
};

inline void load_slots(const LossMaps& maps, int64_t map, int64_t at, int64_t count, int32_t* out) {
  int32_t* DAFAST_RESTRICT slots = out;
  for (int64_t i = 0; i < count; ++i) slots[i] = 0;
  if (maps.regions) {
    const uint8_t* DAFAST_RESTRICT first = maps.regions + map * maps.strides[3] + at;
    for (int64_t i = 0; i < count; ++i) slots[i] = first[i] == 0;
  }
  if (maps.mask) {
    const uint8_t* DAFAST_RESTRICT valid = maps.mask + map * maps.strides[2] + at;
    for (int64_t i = 0; i < count; ++i) slots[i] = valid[i] ? slots[i] : 2;
  }
  for (int64_t i = count; i < whole(count); ++i) slots[i] = 2;
}

// Loads the pixels from `at` to at most `end` of the values [first, last].
inline void load_pixels(const LossMaps& maps, int64_t map, int64_t at, int64_t end, int first,
                        int last, Pixels& out) {
  const int64_t count = static_cast<int>(end - at < kBlock ? end - at : kBlock);
  for (int which = first; which <= last; ++which) {
    out.values[which] = load(maps.values[which], maps.dtypes[which],
                             map * maps.strides[which] + at, 1, count, out.buffers[which]);
  }
  load_slots(maps, map, at, count, out.slots);
  out.count = whole(count);
}

// Finds the counters of digit kPass (the first 11 bits, the next 11, the last 10) of the keys in a
// block. A key takes part if its bits before the digit are the prefix of its region; all others use
// the counters of slot 2 in turn. Returns whether any key takes part.
template <int kPass>
inline bool find_counters(const Pixels& pixels, const float* DAFAST_RESTRICT x,
                          const int32_t* prefixes, int32_t* DAFAST_RESTRICT places) {
  const int32_t one = prefixes[0], two = prefixes[1];
  int32_t any = 0;
  const int32_t* DAFAST_RESTRICT slots = pixels.slots;
  for (int64_t i = 0; i < pixels.count; ++i) {
    const int32_t key = key_of(x[i]), slot = slots[i];
    // Masks instead of branches, so that the loop is vectorised.
    int32_t digit = (key >> 21) + 1024, taken = -(slot != 2);
    if constexpr (kPass > 0) {
      const int32_t prefix = one ^ ((one ^ two) & -(slot & 1));
      taken &= -((key >> (kPass == 1 ? 21 : 10)) == prefix);
      digit = kPass == 1 ? (key >> 10) & 2047 : key & 1023;
    }
    const int32_t mine = slot * kBins + digit, other = 2 * kBins + static_cast<int32_t>(i);
    places[i] = (other ^ ((other ^ mine) & taken)) * kCopies;
    any |= taken;
  }
  return any != 0;
}

template <int kPass>
inline void count_digits(const LossMaps& maps, int which, int64_t map, const int32_t* prefixes,
                         uint32_t* counters) {
  Pixels pixels;
  alignas(64) int32_t places[kBlock];
  for (int64_t i = 0; i < kCounters; ++i) counters[i] = 0;
  for (int64_t at = 0; at < maps.pixels; at += kBlock) {
    load_pixels(maps, map, at, maps.pixels, which, which, pixels);
    // Few blocks hold a pixel that shares all digits but the last with the median.
    if (!find_counters<kPass>(pixels, pixels.values[which], prefixes, places)) continue;
    // Neighbours often fall into the same bin, where an addition waits for the previous one. So
    // four neighbours have four counters.
    for (int64_t i = 0; i < pixels.count; i += kCopies) {
      for (int copy = 0; copy < kCopies; ++copy) ++counters[places[i + copy] + copy];
    }
  }
}

inline int64_t count_in(const uint32_t* counters, int bin) {
  int64_t count = 0;
  for (int copy = 0; copy < kCopies; ++copy) count += counters[bin * kCopies + copy];
  return count;
}

// The lower medians of one map's values, by a radix select, and their deviations.
void find_medians(const LossMaps& maps, int which, int64_t map, uint32_t* counters, Segment* out) {
  const int regions = maps.region_count();
  int32_t prefixes[2] = {0, 0};
  int64_t ranks[2];
  // 16-bit values have no digits in the last ten bits.
  const int passes = maps.dtypes[which] == Dtype::float32 ? 3 : 2;
  for (int pass = 0; pass < passes; ++pass) {
    if (pass == 0) count_digits<0>(maps, which, map, prefixes, counters);
    if (pass == 1) count_digits<1>(maps, which, map, prefixes, counters);
    if (pass == 2) count_digits<2>(maps, which, map, prefixes, counters);
    for (int r = 0; r < regions; ++r) {
      const int first = r * kBins;
      if (pass == 0) {
        int64_t valid = 0;
        for (int bin = 0; bin < kBins; ++bin) valid += count_in(counters, first + bin);
        out[r] = {valid, 0, 0, 0.0f, 0.0};
        ranks[r] = (valid - 1) / 2;
      }
      if (out[r].valid == 0) continue;
      int digit = 0;
      int64_t count = count_in(counters, first);
      while (count <= ranks[r]) {
        ranks[r] -= count;
        out[r].below += count;
        count = count_in(counters, first + ++digit);
      }
      out[r].ties = count;
      prefixes[r] = pass == 0 ? digit - 1024 : prefixes[r] * (pass == 1 ? 2048 : 1024) + digit;
    }
  }
  for (int r = 0; r < regions; ++r) {
    if (out[r].valid == 0) continue;
    const int32_t rest = prefixes[r] < 0 ? 1023 : 0;
    out[r].median = value_of(passes == 3 ? prefixes[r] : prefixes[r] * 1024 + rest);
  }

  Pixels pixels;
  alignas(64) float deviations[kBlock];
  for (int64_t at = 0; at < maps.pixels; at += kBlock) {
    load_pixels(maps, map, at, maps.pixels, which, which, pixels);
    const float* DAFAST_RESTRICT x = pixels.values[which];
    const int32_t* DAFAST_RESTRICT slots = pixels.slots;
    for (int r = 0; r < regions; ++r) {
      const float median = out[r].median;
      for (int64_t i = 0; i < pixels.count; ++i) {
        const float deviation = __builtin_fabsf(x[i] - median);
        deviations[i] = slots[i] == r ? deviation : 0.0f;
      }
      out[r].deviation += sum_of(deviations, pixels.count);
    }
  }
}

// Forward and backward share this arithmetic, so that they find the same signs. Contraction to
// fused multiply-adds is off in the file that includes this: equal maps must normalise to equal
// values.
inline float normalised(float x, float median, float inverse) { return (x - median) * inverse; }

inline float sign_of(float x) {
  return static_cast<float>(static_cast<int>(x > 0.0f) - static_cast<int>(x < 0.0f));
}

// Sums over the pixels [begin, end) of one map.
void sum_differences(const LossMaps& maps, int64_t map, int64_t begin, int64_t end,
                     const float* coefficients, Sums* out) {
  Pixels pixels;
  alignas(64) float losses[kBlock], signs[kBlock], along[kBlock];
  *out = {};
  for (int64_t at = begin; at < end; at += kBlock) {
    load_pixels(maps, map, at, end, 0, 1, pixels);
    const float* DAFAST_RESTRICT p = pixels.values[0];
    const float* DAFAST_RESTRICT t = pixels.values[1];
    const int32_t* DAFAST_RESTRICT slots = pixels.slots;
    for (int r = 0; r < maps.region_count(); ++r) {
      const float* c = coefficients + r * kCoefficients;
      const float p_median = c[0], p_inverse = c[1], t_median = c[2], t_inverse = c[3];
      for (int64_t i = 0; i < pixels.count; ++i) {
        const float p_hat = normalised(p[i], p_median, p_inverse);
        const float ahead = p_hat - normalised(t[i], t_median, t_inverse);
        const float e = sign_of(ahead);
        const bool here = slots[i] == r;
        losses[i] = here ? __builtin_fabsf(ahead) : 0.0f;
        signs[i] = here ? e : 0.0f;
        along[i] = here ? e * p_hat : 0.0f;
      }
      out->loss[r] += sum_of(losses, pixels.count);
      out->signs[r] += sum_of(signs, pixels.count);
      out->along[r] += sum_of(along, pixels.count);
    }
    if (maps.regions) {
      const uint8_t* first = maps.regions + map * maps.strides[3] + at;
      const int64_t count = static_cast<int>(end - at < kBlock ? end - at : kBlock);
      int area = 0;
      for (int64_t i = 0; i < count; ++i) area += first[i] != 0;
      out->area += area;
    }
  }
}

// The gradient of the pixels [begin, end) of one map.
void write_gradient(const LossMaps& maps, int64_t map, int64_t begin, int64_t end,
                    const float* coefficients, float grad, void* out) {
  Pixels pixels;
  alignas(64) float buffer[kBlock];
  const Dtype dtype = maps.dtypes[0];
  for (int64_t at = begin; at < end; at += kBlock) {
    load_pixels(maps, map, at, end, 0, 1, pixels);
    const int64_t count = static_cast<int>(end - at < kBlock ? end - at : kBlock);
    const float* DAFAST_RESTRICT p = pixels.values[0];
    const float* DAFAST_RESTRICT t = pixels.values[1];
    const int32_t* DAFAST_RESTRICT slots = pixels.slots;
    float* DAFAST_RESTRICT result = place(out, dtype, map * maps.pixels + at, count, buffer);
    for (int r = 0; r < maps.region_count(); ++r) {
      const float* c = coefficients + r * kCoefficients;
      const float p_median = c[0], p_inverse = c[1], t_median = c[2], t_inverse = c[3];
      const float by_sign = c[4], by_tie = c[5], by_scale = c[6];
      for (int64_t i = 0; i < pixels.count; ++i) {
        const float p_hat = normalised(p[i], p_median, p_inverse);
        const float e = sign_of(p_hat - normalised(t[i], t_median, t_inverse));
        const float above = p[i] - p_median;
        const float value =
            e * by_sign + (above == 0.0f ? by_tie : 0.0f) + sign_of(above) * by_scale;
        const float other = r == 0 ? 0.0f : result[i];
        result[i] = slots[i] == r ? value * grad : other;
      }
    }
    store(result, count, out, dtype, map * maps.pixels + at);
  }
}
