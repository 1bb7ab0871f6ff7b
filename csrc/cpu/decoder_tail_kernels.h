// The kernels of decoder_tail.cpp, for one instruction set.
//
// Three rows of the upsampled map are held at a time, with a border of zeros. The pixels of a row
// are contiguous, so the 3x3 convolution of a few pixels is a product of 3 x 3C numbers, with all
// 32 output channels in registers. The 1x1 convolution is applied to them at once: neither the
// upsampled map nor the 32 channels are ever in memory.

inline float widen(float x) { return x; }

inline float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The neighbours of pixel `position` of `out` among `in` pixels, corners aligned.
struct Tap {
  int64_t first, second;
  float weight;  // of the second
};

inline Tap tap(int64_t position, int64_t out, int64_t in) {
  // The scale and the product are float32, as in PyTorch.
  const float scale = out > 1 ? static_cast<float>(in - 1) / static_cast<float>(out - 1) : 0.0f;
  const float source = scale * static_cast<float>(position);
  int64_t first = static_cast<int64_t>(source);
  first = first < in - 1 ? first : in - 1;
  const float weight = source - static_cast<float>(first);
  return {first, first + (first < in - 1), weight < 1.0f ? weight : 1.0f};
}

template <typename T>
void blend(const T* a, const T* b, float weight, int64_t count, float* __restrict out) {
  const float rest = 1.0f - weight;
  for (int64_t i = 0; i < count; ++i) out[i] = rest * widen(a[i]) + weight * widen(b[i]);
}

// Writes row y of the upsampled map of an image to `row`, whose first pixel is the border.
template <typename Kernel, typename T>
void upsample_row(const Tail& call, const T* image, int64_t y, float* mixed,
                  typename Kernel::Element* row) {
  const int64_t channels = call.channels;
  const Tap rows = tap(y, call.out_height, call.height);
  const T* a = image + rows.first * call.stride_y;
  const T* b = image + rows.second * call.stride_y;
  if (call.stride_x == channels) {
    blend(a, b, rows.weight, call.width * channels, mixed);
  } else {
    for (int64_t x = 0; x < call.width; ++x) {
      blend(a + x * call.stride_x, b + x * call.stride_x, rows.weight, channels,
            mixed + x * channels);
    }
  }
  for (int64_t x = 0; x < call.out_width; ++x) {
    const Tap columns = tap(x, call.out_width, call.width);
    Kernel::mix(mixed + columns.first * channels, mixed + columns.second * channels,
                columns.weight, channels, row + (x + 1) * channels);
  }
}

template <typename Kernel, typename T>
void rows_of(const Tail& call, int64_t begin, int64_t end, void* scratch) {
  using Element = typename Kernel::Element;
  constexpr int64_t kPixels = Kernel::kPixels;
  static_assert(kPixels <= kMostPixels, "scratch_bytes counts on it");
  const int64_t channels = call.channels, height = call.out_height, width = call.out_width;
  const int64_t length = (width + kMostPixels + 2) * channels;  // of a row with its borders
  const auto* weights = static_cast<const Element*>(call.weights1);
  Element* rows = static_cast<Element*>(scratch);
  float* mixed = reinterpret_cast<float*>(rows + 4 * length);
  memset(rows, 0, 4 * length * sizeof(Element));  // the borders; the fourth row stays zero
  int64_t ready = -1;  // the last upsampled row, counted over all images
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / height, y = row - n * height;
    const T* image = static_cast<const T*>(call.x) + n * call.stride_n;
    const Element* window[3];
    for (int64_t ky = 0; ky < 3; ++ky) {
      const int64_t wanted = y + ky - 1;
      if (wanted < 0 || wanted >= height) {
        window[ky] = rows + 3 * length;
        continue;
      }
      const int64_t index = n * height + wanted;
      Element* place = rows + (index % 3) * length;
      if (index > ready) {
        upsample_row<Kernel, T>(call, image, wanted, mixed, place);
        ready = index;
      }
      window[ky] = place;
    }
    float* out = call.out + row * width;
    for (int64_t x = 0; x < width; x += kPixels) {
      float values[kPixels];
      Kernel::convolve(call, window, x * channels, weights, values);
      const int64_t count = width - x < kPixels ? width - x : kPixels;
      for (int64_t p = 0; p < count; ++p) out[x + p] = values[p] + call.bias2;
    }
  }
}

#if defined(DAFAST_IN_AVX512)

struct Floats {
  using Element = float;
  static constexpr int64_t kPixels = 12;  // of 2 registers each

  static void mix(const float* a, const float* b, float weight, int64_t count, float* out) {
    blend(a, b, weight, count, out);
  }

  static void convolve(const Tail& call, const float* const window[3], int64_t offset,
                       const float* weights, float* values) {
    __m512 sums[kPixels][2];
    for (int64_t p = 0; p < kPixels; ++p) {
      for (int j = 0; j < 2; ++j) sums[p][j] = _mm512_loadu_ps(call.bias1 + 16 * j);
    }
    const int64_t channels = call.channels;
    for (int ky = 0; ky < 3; ++ky) {
      const float* row = window[ky] + offset;
      for (int64_t k = 0; k < 3 * channels; ++k, weights += kHidden) {
        const __m512 first = _mm512_loadu_ps(weights), second = _mm512_loadu_ps(weights + 16);
#pragma GCC unroll 12
        for (int64_t p = 0; p < kPixels; ++p) {
          const __m512 pixel = _mm512_set1_ps(row[p * channels + k]);
          sums[p][0] = _mm512_fmadd_ps(pixel, first, sums[p][0]);
          sums[p][1] = _mm512_fmadd_ps(pixel, second, sums[p][1]);
        }
      }
    }
    for (int64_t p = 0; p < kPixels; ++p) {
      __m512 sum = _mm512_setzero_ps();
      for (int j = 0; j < 2; ++j) {
        const __m512 hidden = _mm512_max_ps(_mm512_setzero_ps(), sums[p][j]);  // keeps NaN
        sum = _mm512_fmadd_ps(hidden, _mm512_loadu_ps(call.weights2 + 16 * j), sum);
      }
      values[p] = _mm512_reduce_add_ps(sum);
    }
  }
};

#elif defined(DAFAST_IN_AVX2)

struct Floats {
  using Element = float;
  static constexpr int64_t kPixels = 3;  // of 4 registers each

  static void mix(const float* a, const float* b, float weight, int64_t count, float* out) {
    blend(a, b, weight, count, out);
  }

  static void convolve(const Tail& call, const float* const window[3], int64_t offset,
                       const float* weights, float* values) {
    __m256 sums[kPixels][4];
    for (int64_t p = 0; p < kPixels; ++p) {
      for (int j = 0; j < 4; ++j) sums[p][j] = _mm256_loadu_ps(call.bias1 + 8 * j);
    }
    const int64_t channels = call.channels;
    for (int ky = 0; ky < 3; ++ky) {
      const float* row = window[ky] + offset;
      for (int64_t k = 0; k < 3 * channels; ++k, weights += kHidden) {
        __m256 pixel[kPixels];
        for (int64_t p = 0; p < kPixels; ++p) pixel[p] = _mm256_broadcast_ss(row + p * channels + k);
        for (int j = 0; j < 4; ++j) {
          const __m256 weight = _mm256_loadu_ps(weights + 8 * j);
          for (int64_t p = 0; p < kPixels; ++p) {
            sums[p][j] = _mm256_fmadd_ps(pixel[p], weight, sums[p][j]);
          }
        }
      }
    }
    for (int64_t p = 0; p < kPixels; ++p) {
      __m256 sum = _mm256_setzero_ps();
      for (int j = 0; j < 4; ++j) {
        const __m256 hidden = _mm256_max_ps(_mm256_setzero_ps(), sums[p][j]);  // keeps NaN
        sum = _mm256_fmadd_ps(hidden, _mm256_loadu_ps(call.weights2 + 8 * j), sum);
      }
      const __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
      const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
      values[p] = _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
    }
  }
};

#else

struct Floats {
  using Element = float;
  static constexpr int64_t kPixels = 1;

  static void mix(const float* a, const float* b, float weight, int64_t count, float* out) {
    blend(a, b, weight, count, out);
  }

  static void convolve(const Tail& call, const float* const window[3], int64_t offset,
                       const float* weights, float* values) {
    float sums[kHidden];
    memcpy(sums, call.bias1, sizeof sums);
    for (int ky = 0; ky < 3; ++ky) {
      const float* row = window[ky] + offset;
      for (int64_t k = 0; k < 3 * call.channels; ++k, weights += kHidden) {
        for (int64_t j = 0; j < kHidden; ++j) sums[j] += row[k] * weights[j];
      }
    }
    float sum = 0.0f;
    for (int64_t j = 0; j < kHidden; ++j) {
      sum += (sums[j] < 0.0f ? 0.0f : sums[j]) * call.weights2[j];  // keeps NaN
    }
    values[0] = sum;
  }
};

#endif

#ifdef DAFAST_IN_AVX512_BF16

constexpr bool kPairs = true;  // bfloat16 is multiplied as it is, channels in pairs

struct Pairs {
  using Element = uint16_t;
  static constexpr int64_t kPixels = 12;  // of 2 registers each

  static void mix(const float* a, const float* b, float weight, int64_t count, uint16_t* out) {
    const __m512 second = _mm512_set1_ps(weight), first = _mm512_set1_ps(1.0f - weight);
    for (int64_t i = 0; i < count; i += 16) {
      const __m512 sum = _mm512_fmadd_ps(second, _mm512_loadu_ps(b + i),
                                         _mm512_mul_ps(first, _mm512_loadu_ps(a + i)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), (__m256i)_mm512_cvtneps_pbh(sum));
    }
  }

  static void convolve(const Tail& call, const uint16_t* const window[3], int64_t offset,
                       const uint16_t* weights, float* values) {
    __m512 sums[kPixels][2];
    for (int64_t p = 0; p < kPixels; ++p) {
      for (int j = 0; j < 2; ++j) sums[p][j] = _mm512_loadu_ps(call.bias1 + 16 * j);
    }
    const int64_t channels = call.channels;
    for (int ky = 0; ky < 3; ++ky) {
      const uint16_t* row = window[ky] + offset;
      for (int64_t k = 0; k < 3 * channels; k += 2, weights += 2 * kHidden) {
        const __m512bh first = (__m512bh)_mm512_loadu_si512(weights);
        const __m512bh second = (__m512bh)_mm512_loadu_si512(weights + kHidden);
#pragma GCC unroll 12
        for (int64_t p = 0; p < kPixels; ++p) {
          int32_t two;  // channels
          memcpy(&two, row + p * channels + k, sizeof two);
          const __m512bh pixel = (__m512bh)_mm512_set1_epi32(two);
          sums[p][0] = _mm512_dpbf16_ps(sums[p][0], pixel, first);
          sums[p][1] = _mm512_dpbf16_ps(sums[p][1], pixel, second);
        }
      }
    }
    for (int64_t p = 0; p < kPixels; ++p) {
      __m512 sum = _mm512_setzero_ps();
      for (int j = 0; j < 2; ++j) {
        const __m512 hidden = _mm512_max_ps(_mm512_setzero_ps(), sums[p][j]);  // keeps NaN
        sum = _mm512_fmadd_ps(hidden, _mm512_loadu_ps(call.weights2 + 16 * j), sum);
      }
      values[p] = _mm512_reduce_add_ps(sum);
    }
  }
};

#else

constexpr bool kPairs = false;
using Pairs = Floats;

#endif

void tail_rows(const Tail& call, int64_t begin, int64_t end, void* scratch) {
  call.bfloat16 ? rows_of<Pairs, uint16_t>(call, begin, end, scratch)
                : rows_of<Floats, float>(call, begin, end, scratch);
}
