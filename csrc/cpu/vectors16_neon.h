// The part of vectors16.h for NEON: 16 numbers in four registers.

struct Floats16 {
  float32x4_t q[4];
};
struct Ints16 {
  int32x4_t q[4];
};
using Level = uint8_t;  // with SDOT 128 less, see put_levels

// b if one is NaN
inline float32x4_t smaller(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcltq_f32(a, b), a, b);
}
inline float32x4_t larger(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcgtq_f32(a, b), a, b);
}
inline int32x4_t bits_of_magnitude(float32x4_t x) { return vreinterpretq_s32_f32(vabsq_f32(x)); }

#define DAFAST_EACH(to, from, name, f) \
  inline to name(from a) { return {{f(a.q[0]), f(a.q[1]), f(a.q[2]), f(a.q[3])}}; }
#define DAFAST_PAIRS(type, name, f)                                                        \
  inline type name(type a, type b) {                                                       \
    return {{f(a.q[0], b.q[0]), f(a.q[1], b.q[1]), f(a.q[2], b.q[2]), f(a.q[3], b.q[3])}}; \
  }
DAFAST_PAIRS(Floats16, add, vaddq_f32)
DAFAST_PAIRS(Floats16, sub, vsubq_f32)
DAFAST_PAIRS(Floats16, mul, vmulq_f32)
DAFAST_PAIRS(Floats16, div, vdivq_f32)
DAFAST_PAIRS(Floats16, min, smaller)
DAFAST_PAIRS(Floats16, max, larger)
DAFAST_PAIRS(Ints16, add, vaddq_s32)
DAFAST_PAIRS(Ints16, sub, vsubq_s32)
DAFAST_PAIRS(Ints16, mul, vmulq_s32)
DAFAST_PAIRS(Ints16, max, vmaxq_s32)
DAFAST_EACH(Floats16, Floats16, root, vsqrtq_f32)
DAFAST_EACH(Floats16, Floats16, nearest, vrndnq_f32)
DAFAST_EACH(Floats16, Floats16, floor, vrndmq_f32)
DAFAST_EACH(Ints16, Floats16, rounded, vcvtnq_s32_f32)
DAFAST_EACH(Floats16, Ints16, to_floats, vcvtq_f32_s32)
// Bits of the magnitudes: as integers they compare like these, and NaN is the largest.
DAFAST_EACH(Ints16, Floats16, magnitudes, bits_of_magnitude)
#undef DAFAST_EACH
#undef DAFAST_PAIRS

inline Floats16 all(float x) {
  const float32x4_t four = vdupq_n_f32(x);
  return {{four, four, four, four}};
}
inline Ints16 all(int32_t x) {
  const int32x4_t four = vdupq_n_s32(x);
  return {{four, four, four, four}};
}
inline Floats16 floats_at(const float* from) {
  return {{vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
}
inline Ints16 ints_at(const int32_t* from) {
  return {{vld1q_s32(from), vld1q_s32(from + 4), vld1q_s32(from + 8), vld1q_s32(from + 12)}};
}
inline void put(float* to, Floats16 x) {
  for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, x.q[i]);
}
inline void put(int32_t* to, Ints16 x) {
  for (int i = 0; i < 4; ++i) vst1q_s32(to + 4 * i, x.q[i]);
}

inline Floats16 fmadd(Floats16 a, Floats16 b, Floats16 c) {
  return {{vfmaq_f32(c.q[0], a.q[0], b.q[0]), vfmaq_f32(c.q[1], a.q[1], b.q[1]),
           vfmaq_f32(c.q[2], a.q[2], b.q[2]), vfmaq_f32(c.q[3], a.q[3], b.q[3])}};
}
inline int32_t rounded(float x) { return vcvtns_s32_f32(x); }

inline float total(Floats16 x) {
  return vaddvq_f32(vaddq_f32(vaddq_f32(x.q[0], x.q[2]), vaddq_f32(x.q[1], x.q[3])));
}
inline float least(Floats16 x) {
  return vminvq_f32(smaller(smaller(x.q[0], x.q[2]), smaller(x.q[1], x.q[3])));
}
inline float most(Floats16 x) {
  return vmaxvq_f32(larger(larger(x.q[0], x.q[2]), larger(x.q[1], x.q[3])));
}
inline int32_t total(Ints16 x) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(x.q[0], x.q[2]), vaddq_s32(x.q[1], x.q[3])));
}
inline int32_t most(Ints16 x) {
  return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.q[0], x.q[2]), vmaxq_s32(x.q[1], x.q[3])));
}

// 2^floor(x) y, for x up to 127; results below the smallest normal number are 0.
inline Floats16 scaled(Floats16 y, Floats16 x) {
  const float32x4_t bottom = vdupq_n_f32(-126.0f);
  Floats16 out;
  for (int i = 0; i < 4; ++i) {
    const int32x4_t floors = vcvtmq_s32_f32(larger(x.q[i], bottom));
    const int32x4_t power = vshlq_n_s32(vaddq_s32(floors, vdupq_n_s32(127)), 23);
    const float32x4_t product = vmulq_f32(y.q[i], vreinterpretq_f32_s32(power));
    out.q[i] = vbslq_f32(vcltq_f32(x.q[i], bottom), vdupq_n_f32(0.0f), product);
  }
  return out;
}
inline Floats16 fraction(Floats16 x) { return sub(x, floor(x)); }

struct Mask16 {
  int count;
};
inline Mask16 first_of(int64_t count) {
  return {count >= 16 ? 16 : count < 0 ? 0 : static_cast<int>(count)};
}
// The others are `other`.
inline Floats16 only(Mask16 mask, Floats16 x, Floats16 other) {
  constexpr int32_t kPlaces[4] = {0, 1, 2, 3};
  Floats16 out;
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t has = vcltq_s32(vld1q_s32(kPlaces), vdupq_n_s32(mask.count - 4 * i));
    out.q[i] = vbslq_f32(has, x.q[i], other.q[i]);
  }
  return out;
}
// The others are 0.
inline Floats16 only(Mask16 mask, Floats16 x) {
  return mask.count == 16 ? x : only(mask, x, all(0.0f));
}
inline Floats16 floats_at(const float* from, Mask16 mask) {
  if (mask.count == 16) return floats_at(from);
  float part[16] = {};
  memcpy(part, from, static_cast<size_t>(mask.count) * sizeof(float));
  return floats_at(part);
}
inline Ints16 ints_at(const int32_t* from, Mask16 mask) {
  if (mask.count == 16) return ints_at(from);
  int32_t part[16] = {};
  memcpy(part, from, static_cast<size_t>(mask.count) * sizeof(int32_t));
  return ints_at(part);
}
inline void put(float* to, Floats16 x, Mask16 mask) {
  if (mask.count == 16) return put(to, x);
  float part[16];
  put(part, x);
  memcpy(to, part, static_cast<size_t>(mask.count) * sizeof(float));
}

// Of 0 or more; more than 255 becomes 255. SDOT multiplies signed bytes, so that the levels are
// stored with 128 subtracted; tile_int8_neon.h adds it again.
inline void put_levels(Level* to, Ints16 x, Mask16 mask) {
  const uint16x8_t low = vcombine_u16(vqmovun_s32(x.q[0]), vqmovun_s32(x.q[1]));
  const uint16x8_t high = vcombine_u16(vqmovun_s32(x.q[2]), vqmovun_s32(x.q[3]));
  uint8x16_t levels = vcombine_u8(vqmovn_u16(low), vqmovn_u16(high));
#ifndef DAFAST_IN_I8MM
  levels = veorq_u8(levels, vdupq_n_u8(128));
#endif
  if (mask.count == 16) return vst1q_u8(to, levels);
  uint8_t part[16];
  vst1q_u8(part, levels);
  memcpy(to, part, static_cast<size_t>(mask.count));
}
inline void put_levels(Level* to, Ints16 x) { put_levels(to, x, first_of(16)); }
// Of -128 to 127.
inline void put_bytes(int8_t* to, Ints16 x) {
  const int16x8_t low = vcombine_s16(vqmovn_s32(x.q[0]), vqmovn_s32(x.q[1]));
  const int16x8_t high = vcombine_s16(vqmovn_s32(x.q[2]), vqmovn_s32(x.q[3]));
  vst1q_s8(to, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}

// x << 8 | the low byte of y
inline Ints16 append_byte(Ints16 x, Ints16 y) {
  Ints16 out;
  for (int i = 0; i < 4; ++i) {
    out.q[i] = vorrq_s32(vshlq_n_s32(x.q[i], 8), vandq_s32(y.q[i], vdupq_n_s32(255)));
  }
  return out;
}

inline Floats16 widened(const uint16_t* from, Mask16 mask) {
  uint16_t part[16] = {};
  if (mask.count < 16) memcpy(part, from, static_cast<size_t>(mask.count) * sizeof(uint16_t));
  const uint16_t* const at = mask.count < 16 ? part : from;
  Floats16 out;
  for (int i = 0; i < 4; ++i) {
    out.q[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(at + 4 * i), 16));
  }
  return out;
}
// Rounds to nearest, ties to even; NaN keeps its upper bits and becomes quiet.
inline void put_bfloat16(uint16_t* to, Floats16 x, Mask16 mask) {
  uint16_t part[16];
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x.q[i]);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t near = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    const uint32x4_t number = vceqq_f32(x.q[i], x.q[i]);
    vst1_u16(part + 4 * i, vshrn_n_u32(vbslq_u32(number, near, quiet), 16));
  }
  memcpy(to, part, static_cast<size_t>(mask.count) * sizeof(uint16_t));
}
