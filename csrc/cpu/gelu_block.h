// GELU of blocks of float32, for kernels files, after lanes.h.

// erf(z / sqrt 2) with a relative error of at most 4e-7: z times a minimax polynomial in z^2 up to
// |z| = 5.4. Beyond, erf is 1 to within 7e-8. The polynomial is in powers of 2 (z / 5.4)^2 - 1,
// whose terms do not cancel. At 5.4 it is just above 1, so the final clamp gives exactly 1 from
// there on.
inline float erf_of(float z) {
  constexpr float kEnd = 5.4f;
  constexpr float kCoefficients[] = {
      0.261856228f, -0.130656168f, 0.0969993621f, -0.0784115568f,
      0.0642291605f, -0.0515129268f, 0.0393224582f, -0.0278453492f,
      0.0191853475f, -0.0135884304f, 0.00752949994f, -0.00222803862f,
      0.00156485231f, -0.00210718811f, 0.000847946678f};
  const float under = z < kEnd ? z : kEnd, at = under > -kEnd ? under : -kEnd;
  const float v = at * at * (2.0f / (kEnd * kEnd)) - 1.0f;
  float sum = kCoefficients[14];
#pragma GCC unroll 16
  for (int k = 13; k >= 0; --k) sum = sum * v + kCoefficients[k];
  const float value = at * sum, below = value < 1.0f ? value : 1.0f;
  return below > -1.0f ? below : -1.0f;
}

#ifdef DAFAST_IN_AVX512
#include "gelu_pieces.h"
#else
inline void gelu_block(const float* DAFAST_RESTRICT z, int64_t count, float* DAFAST_RESTRICT out) {
  for (int64_t i = 0; i < count; ++i) out[i] = z[i] * (0.5f + 0.5f * erf_of(z[i]));
}
#endif
