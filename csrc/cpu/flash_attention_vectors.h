// What flash_attention_block.h asks of a vector, in the vector types of GCC and Clang; with Floats
// and Ints plain numbers it is C++. Included as that is.

// floor(x) + 127, the exponent of 2^floor(x); x + 127 may round up to the next integer.
inline Ints exponent(Floats x) {
  const Floats biased = x + 127.0f;
  return CONVERT(biased < 1.0f ? 1.0f + Floats{} : biased, Ints);
}

inline Floats fraction(Floats x) { return x - (CONVERT(exponent(x), Floats) - 127.0f); }

inline Floats scaled(Floats y, Floats x) {
  const Ints bits = exponent(x) << 23;
  Floats power;
  memcpy(&power, &bits, sizeof power);
  return x < -126.0f ? Floats{} : y * power;
}

inline float largest(Floats x) {
  float lanes[LANES];
  memcpy(lanes, &x, sizeof lanes);
  for (int half = LANES / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      if (lanes[i + half] > lanes[i]) lanes[i] = lanes[i + half];
    }
  }
  return lanes[0];
}
