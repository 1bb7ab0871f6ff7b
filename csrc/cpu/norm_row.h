// LayerNorm of a row of float32, for kernels files, after lanes.h.

// Sum of (s - mean)^2 of a padded row. The mean of squares minus the square of the mean would be
// mostly rounding error if the mean is large.
inline float squares_around(float mean, const float* s, int64_t channels) {
  float negative[kWide];
  for (int j = 0; j < kWide; ++j) negative[j] = -mean;
  Lanes shift;
  get(negative, shift);
  Sum sum;
  const int64_t full = channels / kLanes * kLanes;
  for (int64_t i = 0; i < full; i += kLanes) {
    for (int part = 0; part < kRegisters; ++part) {
      Lanes value;
      get(s + i + kWide * part, value);
      value += shift;
      sum.parts[part] += value * value;
    }
  }
  float rest = 0.0f;
  for (int64_t i = full; i < channels; ++i) rest += (s[i] - mean) * (s[i] - mean);
  return sum.total() + rest;
}

struct RowMoments {
  float mean, rstd;
};

// Normalises a padded row, whose sum is known; weight and bias are padded too.
inline RowMoments normalise(const float* DAFAST_RESTRICT s, float sum, int64_t channels,
                            const float* DAFAST_RESTRICT weight, const float* DAFAST_RESTRICT bias,
                            float eps, float* DAFAST_RESTRICT n) {
  const float size = static_cast<float>(channels), mean = sum / size;
  const float rstd = 1.0f / __builtin_sqrtf(squares_around(mean, s, channels) / size + eps);
  const int64_t padded = whole(channels);
  for (int64_t i = 0; i < padded; ++i) n[i] = (s[i] - mean) * rstd * weight[i] + bias[i];
  return {mean, rstd};
}
