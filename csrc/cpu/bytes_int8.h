// Rounds floats to levels for products of int8: 256 steps from the smallest to the largest value,
// one of which is 0. For kernels files, after vectors16.h.

struct ByteRange {
  Floats16 low, high;
  Ints16 most;  // magnitudes
};

inline ByteRange range_of_zero() { return {all(0.0f), all(0.0f), all(0)}; }

inline void include(ByteRange& range, Floats16 x) {
  range.low = min(x, range.low);
  range.high = max(x, range.high);
  range.most = max(range.most, magnitudes(x));
}

struct ByteSteps {
  float step, inverse;  // step is NaN if a value or the range is not finite
  int32_t zero;         // the level of 0
};

inline ByteSteps steps_of(const ByteRange& range) {
  const float low = least(range.low);
  const float size = most(range.high) - low;
  if (most(range.most) >= 0x7f800000 || !(size <= 3.40282347e38f)) return {NAN, 0.0f, 0};
  const float quotient = size > 0.0f ? 255.0f / size : 0.0f;
  const float inverse = quotient <= 3.40282347e38f ? quotient : 3.40282347e38f;
  return {size / 255.0f, inverse, rounded(-low * inverse)};
}

// The levels of 16 values; the smallest one is 0, the largest at most 255.
inline void put_levels_of(Level* to, Floats16 x, Floats16 inverse, Ints16 zero, Mask16 mask) {
  put_levels(to, add(rounded(mul(x, inverse)), zero), mask);
}
