// The kernels of bias_gelu.cpp, for one instruction set.
#include "lanes.h"

constexpr int64_t kBlock = 1024;  // elements

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
// The same function in 32 pieces up to 5.4, each a polynomial of degree 4 in its fraction, with an
// error of at most 2e-7. Two registers hold the coefficients of a power for all pieces, and a
// permutation selects them: half the instructions. From 5.2 on it is 1.
constexpr float kPieces[5][32] = {
    {0.0f, 0.134006709f, 0.264259994f, 0.38731885f, 0.500324249f, 0.601190865f,
     0.688700974f, 0.762496591f, 0.82298404f, 0.871174574f, 0.908492744f, 0.936582088f,
     0.957132638f, 0.971746624f, 0.981847882f, 0.988634348f, 0.993066072f, 0.995879054f,
     0.997614503f, 0.9986552f, 0.999261856f, 0.999605536f, 0.999794781f, 0.999896049f,
     0.9999488f, 0.999975443f, 0.999988556f, 0.999994814f, 0.999997675f, 0.999998987f,
     0.999999583f, 1.0f},
    {0.134643003f, 0.132739291f, 0.127188802f, 0.118448913f, 0.107212678f, 0.0943178833f,
     0.0806444883f, 0.0670174882f, 0.0541295372f, 0.0424925834f, 0.0324208699f, 0.0240418985f,
     0.0173278805f, 0.0121382093f, 0.00826411322f, 0.00546852639f, 0.00351703516f, 0.00219844398f,
     0.00133563066f, 0.000788659439f, 0.000452610664f, 0.000252459722f, 0.000136864692f, 7.21145188e-05f,
     3.69305599e-05f, 1.83814955e-05f, 8.89216608e-06f, 4.18086347e-06f, 1.91053959e-06f, 8.48550485e-07f,
     3.66294842e-07f, 0.0f},
    {6.75272133e-07f, -0.00188814616f, -0.00362057588f, -0.00505885622f, -0.0061061061f, -0.00671522832f,
     -0.00689047063f, -0.00668075914f, -0.00616697734f, -0.00544633484f, -0.00461706752f, -0.00376606849f,
     -0.00296094758f, -0.00224683504f, -0.00164724572f, -0.00116774498f, -0.000800989277f, -0.000531898695f,
     -0.000342096668f, -0.000213181294f, -0.000128755913f, -7.53911736e-05f, -4.28065323e-05f, -2.35734533e-05f,
     -1.25932083e-05f, -6.52704239e-06f, -3.28263377e-06f, -1.60216302e-06f, -7.58954855e-07f, -3.48972975e-07f,
     -1.5576569e-07f, 0.0f},
    {-0.000642410712f, -0.000617245678f, -0.000538686465f, -0.000420068245f, -0.000277059735f, -0.000127316962f,
     1.25184233e-05f, 0.000129311215f, 0.000214959451f, 0.000266782619f, 0.000286884519f, 0.000280813721f,
     0.000255935069f, 0.000219895912f, 0.000179455848f, 0.000139799973f, 0.000104319508f, 7.47519371e-05f,
     5.15343272e-05f, 3.42310741e-05f, 2.19327958e-05f, 1.35681203e-05f, 8.11011978e-06f, 4.68695089e-06f,
     2.62022854e-06f, 1.41764997e-06f, 7.42587019e-07f, 3.76720465e-07f, 1.85144458e-07f, 8.81723849e-08f,
     4.06989002e-08f, 0.0f},
    {5.42749967e-06f, 1.93693504e-05f, 2.93139728e-05f, 3.54017393e-05f, 3.71319802e-05f, 3.47430032e-05f,
     2.90896969e-05f, 2.14080428e-05f, 1.30356621e-05f, 5.15854117e-06f, -1.36395295e-06f, -6.07286938e-06f,
     -8.88876366e-06f, -1.0023753e-05f, -9.86299528e-06f, -8.84915244e-06f, -7.39281586e-06f, -5.81872018e-06f,
     -4.34629692e-06f, -3.09600046e-06f, -2.11040037e-06f, -1.38009409e-06f, -8.67495203e-07f, -5.24917937e-07f,
     -3.06127077e-07f, -1.72234721e-07f, -9.35615532e-08f, -4.91048198e-08f, -2.49142715e-08f, -1.22259145e-08f,
     -5.80505999e-09f, 0.0f}};

// GELU of a padded block.
inline void gelu_block(const float* z, int64_t count, float* out) {
  __m512 low[5], high[5];
  for (int k = 0; k < 5; ++k) {
    low[k] = _mm512_loadu_ps(kPieces[k]);
    high[k] = _mm512_loadu_ps(kPieces[k] + 16);
  }
  const __m512 half = _mm512_set1_ps(0.5f);
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 x = _mm512_loadu_ps(z + i);
    const __m512 scaled = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(32.0f / 5.4f));
    const __m512 place = _mm512_min_ps(scaled, _mm512_set1_ps(31.5f));
    const __m512i piece = _mm512_cvttps_epi32(place);
    const __m512 rest = _mm512_sub_ps(place, _mm512_cvtepi32_ps(piece));
    const auto pick = [&](int k) { return _mm512_permutex2var_ps(low[k], piece, high[k]); };
    __m512 sum = _mm512_fmadd_ps(pick(4), rest, pick(3));
    sum = _mm512_fmadd_ps(sum, rest, pick(2));
    sum = _mm512_fmadd_ps(sum, rest, pick(1));
    sum = _mm512_fmadd_ps(sum, rest, pick(0));
    // Half of x, and half of x times the error function with the sign of x.
    const __m512 scale = _mm512_mul_ps(x, half);
    _mm512_storeu_ps(out + i, _mm512_fmadd_ps(_mm512_abs_ps(scale), sum, scale));
  }
}
#else
inline void gelu_block(const float* DAFAST_RESTRICT z, int64_t count, float* DAFAST_RESTRICT out) {
  for (int64_t i = 0; i < count; ++i) out[i] = z[i] * (0.5f + 0.5f * erf_of(z[i]));
}
#endif

// e^x for x <= 0; 0 where it would be subnormal.
inline float exp_of(float x) {
  const float least = -87.0f, at = x > least ? x : least;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = at * 1.44269504f + kRound, whole_part = shifted - kRound;
  const float rest = (at - whole_part * 0.693359375f) + whole_part * 2.12194440e-4f;
  float sum = 1.0f / 5040.0f;
  sum = sum * rest + 1.0f / 720.0f;
  sum = sum * rest + 1.0f / 120.0f;
  sum = sum * rest + 1.0f / 24.0f;
  sum = sum * rest + 1.0f / 6.0f;
  sum = sum * rest + 0.5f;
  sum = sum * rest + 1.0f;
  sum = sum * rest + 1.0f;
  const float power = float_of((bits_of(shifted) + 127u) << 23);
  return x < least ? 0.0f : sum * power;
}

// Elements [begin, end) of (rows, channels); `bias` is null if x contains it.
void gelu(const GeluTensor& x, const float* bias, int64_t begin, int64_t end, void* out) {
  alignas(64) float x_buffer[kBlock], z_buffer[kBlock], buffer[kBlock];
  int64_t count;
  for (int64_t at = begin; at < end; at += count) {
    // With a bias, a block ends at the end of its row.
    const int64_t column = bias ? at % x.channels : 0;
    const int64_t left = bias && x.channels - column < end - at ? x.channels - column : end - at;
    count = left < kBlock ? left : kBlock;
    const float* z = load(x.data, x.dtype, at, 1, count, x_buffer);
    float* result = place(out, x.dtype, at, count, buffer);
    if (bias) {
      const float* DAFAST_RESTRICT added = bias + column;
      for (int64_t i = 0; i < count; ++i) z_buffer[i] = z[i] + added[i];
      for (int64_t i = count; i < whole(count); ++i) z_buffer[i] = 0.0f;
      z = z_buffer;
    }
    gelu_block(z, whole(count), result);
    store(result, count, out, x.dtype, at);
  }
}

// Rows [begin, end): the gradient of x, and its sums over the rows.
void gelu_gradient(const GeluTensor& x, const GeluTensor& grad, const float* bias, int64_t begin,
                   int64_t end, void* out, float* sums) {
  alignas(64) float x_buffer[kBlock], grad_buffer[kBlock], buffer[kBlock];
  for (int64_t column = 0; column < x.channels; column += kBlock) {
    const int64_t left = x.channels - column, count = left < kBlock ? left : kBlock;
    const float* DAFAST_RESTRICT added = bias + column;
    float* DAFAST_RESTRICT total = sums + column;
    for (int64_t i = 0; i < count; ++i) total[i] = 0.0f;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * x.channels + column;
      const float* DAFAST_RESTRICT from = load(x.data, x.dtype, at, 1, count, x_buffer);
      const float* DAFAST_RESTRICT ahead = load(grad.data, grad.dtype, at, 1, count, grad_buffer);
      float* DAFAST_RESTRICT result = place(out, x.dtype, at, count, buffer);
      for (int64_t i = 0; i < count; ++i) {
        const float z = from[i] + added[i];
        const float below = 0.5f + 0.5f * erf_of(z);  // normal distribution and its density
        const float density = 0.398942280f * exp_of(-0.5f * z * z);
        result[i] = ahead[i] * (below + z * density);
      }
      for (int64_t i = 0; i < count; ++i) total[i] += result[i];
      store(result, count, out, x.dtype, at);
    }
  }
}
