// The kernels of decoder_tail.cpp, for one instruction set.
//
// A tap of the 3x3 convolution mixes the channels of a pixel, and the interpolation mixes pixels in
// the same way in every channel, so the two commute: the products of the nine taps are taken on the
// small map and then interpolated. For a block of columns of the result, `band_of` does so for one
// row of the map, along the width, and adds the three taps of a row of the window. A row of the
// result is a sum of six such bands: two rows of the map for each row of the window. Neither the
// upsampled map nor that of 32 channels is ever in memory.

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

// Copies `count` pixels of a row as elements, without steps between them.
inline void copy_pixels(const uint16_t* from, int64_t step, int64_t count, int64_t channels,
                        uint16_t* to) {
  for (int64_t p = 0; p < count; ++p) {
    memcpy(to + p * channels, from + p * step, static_cast<size_t>(channels) * sizeof *to);
  }
}

template <typename T>
void copy_pixels(const T* DAFAST_RESTRICT from, int64_t step, int64_t count, int64_t channels,
                 float* DAFAST_RESTRICT to) {
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t c = 0; c < channels; ++c) to[p * channels + c] = widen(from[p * step + c]);
  }
}

// out = start + the sum of six vectors of kHidden, each times a number.
inline void add_six(const float* start, const float* const terms[6], const float* w,
                    float* DAFAST_RESTRICT out) {
  const float *a = terms[0], *b = terms[1], *c = terms[2], *d = terms[3], *e = terms[4],
              *f = terms[5];
  for (int64_t j = 0; j < kHidden; ++j) {
    out[j] = start[j] + w[0] * a[j] + w[1] * b[j] + w[2] * c[j] + w[3] * d[j] + w[4] * e[j] +
             w[5] * f[j];
  }
}

// A block of columns of the result, and the pixels of the map under it.
struct Block {
  int64_t first, count;   // columns of the result
  int64_t start, pixels;  // columns of the map
  // For each column of the window, where the products of its two neighbours begin, those with the
  // uppermost row of the window, and their weights; -1 outside of the upsampled map.
  int64_t offsets[kBlock][6];
  float factors[kBlock][6];

  int64_t pitch() const { return pixels + kMostPixels; }
};

inline void set_block(const Tail& call, int64_t first, Block& block) {
  const int64_t width = call.out_width;
  const int64_t end = first + kBlock < width ? first + kBlock : width;
  block.first = first;
  block.count = end - first;
  block.start = tap(first > 0 ? first - 1 : 0, width, call.width).first;
  block.pixels = tap(end < width ? end : end - 1, width, call.width).second + 1 - block.start;
  for (int64_t x = 0; x < block.count; ++x) {
    for (int64_t kx = 0; kx < 3; ++kx) {
      const int64_t column = first + x + kx - 1;
      const bool inside = column >= 0 && column < width;
      const Tap t = inside ? tap(column, width, call.width) : Tap{0, 0, 0.0f};
      const int64_t from = kx * block.pitch() - block.start;
      block.offsets[x][2 * kx] = inside ? (from + t.first) * kHidden : -1;
      block.offsets[x][2 * kx + 1] = inside ? (from + t.second) * kHidden : -1;
      block.factors[x][2 * kx] = 1.0f - t.weight;
      block.factors[x][2 * kx + 1] = t.weight;
    }
  }
}

// The interpolated products of row `y` of the map with the three rows of the window.
template <typename Kernel, typename T>
void band_of(const Tail& call, const T* image, int64_t y, const Block& block,
             const TailScratch& scratch, float* band) {
  using Element = typename Kernel::Element;
  constexpr int64_t kPixels = Kernel::kPixels;
  static_assert(kPixels <= kMostPixels, "the scratch counts on it");
  const int64_t channels = call.channels, pitch = block.pitch();
  auto* const row = reinterpret_cast<Element*>(scratch.row);
  copy_pixels(image + y * call.stride_y + block.start * call.stride_x, call.stride_x, block.pixels,
              channels, row);
  const auto* const weights = static_cast<const Element*>(call.weights1);
  for (int64_t k = 0; k < 9; ++k) {
    for (int64_t p = 0; p < block.pixels; p += kPixels) {
      Kernel::multiply(row + p * channels, channels, weights + k * channels * kHidden,
                       scratch.products + (k * pitch + p) * kHidden);
    }
  }
  for (int64_t x = 0; x < block.count; ++x) {
    for (int64_t ky = 0; ky < 3; ++ky) {
      const float* terms[6];
      for (int64_t i = 0; i < 6; ++i) {
        const int64_t offset = block.offsets[x][i];
        terms[i] = offset < 0 ? scratch.zeros : scratch.products + 3 * ky * pitch * kHidden + offset;
      }
      add_six(scratch.zeros, terms, block.factors[x], band + (ky * kBlock + x) * kHidden);
    }
  }
}

// Bands of the last rows of the map that were needed. Rows are needed in ascending order, a row of
// the result needs at most kBands, and each new one replaces the uppermost.
template <typename Kernel, typename T>
struct Bands {
  const Tail& call;
  const TailScratch& scratch;
  const T* image;
  const Block& block;
  int64_t rows[kBands];

  const float* at(int64_t y) {
    int64_t slot = 0;
    for (int64_t i = 0; i < kBands; ++i) {
      if (rows[i] == y) return scratch.bands + i * kBandFloats;
      if (rows[i] < rows[slot]) slot = i;
    }
    rows[slot] = y;
    float* const band = scratch.bands + slot * kBandFloats;
    band_of<Kernel, T>(call, image, y, block, scratch, band);
    return band;
  }
};

// Rows [begin, end) of image n, a block of columns.
template <typename Kernel, typename T>
void block_of(const Tail& call, int64_t n, int64_t begin, int64_t end, const Block& block,
              const TailScratch& scratch) {
  Bands<Kernel, T> bands{call, scratch, static_cast<const T*>(call.x) + n * call.stride_n, block,
                         {-1, -1, -1, -1, -1, -1}};
  for (int64_t y = begin; y < end; ++y) {
    const float* terms[6];
    float factors[6];
    for (int64_t ky = 0; ky < 3; ++ky) {
      const int64_t row = y + ky - 1;
      const bool inside = row >= 0 && row < call.out_height;
      const Tap t = inside ? tap(row, call.out_height, call.height) : Tap{0, 0, 0.0f};
      const int64_t from = ky * kBlock * kHidden;
      terms[2 * ky] = inside ? bands.at(t.first) + from : scratch.zeros;
      terms[2 * ky + 1] = inside ? bands.at(t.second) + from : scratch.zeros;
      factors[2 * ky] = 1.0f - t.weight;
      factors[2 * ky + 1] = t.weight;
    }
    float* const out = call.out + (n * call.out_height + y) * call.out_width + block.first;
    for (int64_t x = 0; x < block.count; ++x) {
      alignas(64) float hidden[kHidden];
      add_six(call.bias1, terms, factors, hidden);
      out[x] = Kernel::last(hidden, call.weights2) + call.bias2;
      for (const float*& term : terms) term += kHidden;
    }
  }
}

template <typename Kernel, typename T>
void rows_of(const Tail& call, int64_t begin, int64_t end, const TailScratch& scratch) {
  while (begin < end) {  // a range can lie in several images
    const int64_t n = begin / call.out_height, y = begin - n * call.out_height;
    const int64_t rest = call.out_height - y, rows = end - begin < rest ? end - begin : rest;
    for (int64_t x = 0; x < call.out_width; x += kBlock) {
      Block block;
      set_block(call, x, block);
      block_of<Kernel, T>(call, n, y, y + rows, block, scratch);
    }
    begin += rows;
  }
}

#if defined(DAFAST_IN_AVX512)

inline float last_of(const float* hidden, const float* weights) {
  __m512 sum = _mm512_setzero_ps();
  for (int j = 0; j < 2; ++j) {
    // In this order NaN is kept.
    const __m512 x = _mm512_max_ps(_mm512_setzero_ps(), _mm512_loadu_ps(hidden + 16 * j));
    sum = _mm512_fmadd_ps(x, _mm512_loadu_ps(weights + 16 * j), sum);
  }
  return _mm512_reduce_add_ps(sum);
}

// Products of kPixels pixels with a tap of the convolution, and the 1x1 convolution.
struct Floats {
  using Element = float;
  static constexpr int64_t kPixels = 12;  // of 2 registers each

  static void multiply(const float* pixels, int64_t channels, const float* weights, float* out) {
    __m512 sums[kPixels][2];
    for (int64_t p = 0; p < kPixels; ++p) sums[p][0] = sums[p][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < channels; ++k, weights += kHidden) {
      const __m512 first = _mm512_loadu_ps(weights), second = _mm512_loadu_ps(weights + 16);
#pragma GCC unroll 12
      for (int64_t p = 0; p < kPixels; ++p) {
        const __m512 pixel = _mm512_set1_ps(pixels[p * channels + k]);
        sums[p][0] = _mm512_fmadd_ps(pixel, first, sums[p][0]);
        sums[p][1] = _mm512_fmadd_ps(pixel, second, sums[p][1]);
      }
    }
    for (int64_t p = 0; p < kPixels; ++p) {
      for (int j = 0; j < 2; ++j) _mm512_storeu_ps(out + p * kHidden + 16 * j, sums[p][j]);
    }
  }

  static float last(const float* hidden, const float* weights) { return last_of(hidden, weights); }
};

#elif defined(DAFAST_IN_AVX2)

struct Floats {
  using Element = float;
  static constexpr int64_t kPixels = 3;  // of 4 registers each

  static void multiply(const float* pixels, int64_t channels, const float* weights, float* out) {
    __m256 sums[kPixels][4];
    for (int64_t p = 0; p < kPixels; ++p) {
      for (int j = 0; j < 4; ++j) sums[p][j] = _mm256_setzero_ps();
    }
    for (int64_t k = 0; k < channels; ++k, weights += kHidden) {
      __m256 pixel[kPixels];
      for (int64_t p = 0; p < kPixels; ++p) {
        pixel[p] = _mm256_broadcast_ss(pixels + p * channels + k);
      }
      for (int j = 0; j < 4; ++j) {
        const __m256 weight = _mm256_loadu_ps(weights + 8 * j);
        for (int64_t p = 0; p < kPixels; ++p) {
          sums[p][j] = _mm256_fmadd_ps(pixel[p], weight, sums[p][j]);
        }
      }
    }
    for (int64_t p = 0; p < kPixels; ++p) {
      for (int j = 0; j < 4; ++j) _mm256_storeu_ps(out + p * kHidden + 8 * j, sums[p][j]);
    }
  }

  static float last(const float* hidden, const float* weights) {
    __m256 sum = _mm256_setzero_ps();
    for (int j = 0; j < 4; ++j) {
      // In this order NaN is kept.
      const __m256 x = _mm256_max_ps(_mm256_setzero_ps(), _mm256_loadu_ps(hidden + 8 * j));
      sum = _mm256_fmadd_ps(x, _mm256_loadu_ps(weights + 8 * j), sum);
    }
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
  }
};

#else

struct Floats {
  using Element = float;
  static constexpr int64_t kPixels = 1;

  static void multiply(const float* pixels, int64_t channels, const float* weights, float* out) {
    float sums[kHidden] = {};
    for (int64_t k = 0; k < channels; ++k, weights += kHidden) {
      for (int64_t j = 0; j < kHidden; ++j) sums[j] += pixels[k] * weights[j];
    }
    memcpy(out, sums, sizeof sums);
  }

  static float last(const float* hidden, const float* weights) {
    float sum = 0.0f;
    for (int64_t j = 0; j < kHidden; ++j) {
      sum += (hidden[j] < 0.0f ? 0.0f : hidden[j]) * weights[j];  // keeps NaN
    }
    return sum;
  }
};

#endif

#ifdef DAFAST_IN_AVX512_BF16

constexpr bool kPairs = true;  // bfloat16 is multiplied as it is, channels in pairs

struct Pairs {
  using Element = uint16_t;
  static constexpr int64_t kPixels = 12;  // of 2 registers each

  static void multiply(const uint16_t* pixels, int64_t channels, const uint16_t* weights,
                       float* out) {
    __m512 sums[kPixels][2];
    for (int64_t p = 0; p < kPixels; ++p) sums[p][0] = sums[p][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < channels; k += 2, weights += 2 * kHidden) {
      const __m512bh first = (__m512bh)_mm512_loadu_si512(weights);
      const __m512bh second = (__m512bh)_mm512_loadu_si512(weights + kHidden);
#pragma GCC unroll 12
      for (int64_t p = 0; p < kPixels; ++p) {
        int32_t two;  // channels
        memcpy(&two, pixels + p * channels + k, sizeof two);
        const __m512bh pixel = (__m512bh)_mm512_set1_epi32(two);
        sums[p][0] = _mm512_dpbf16_ps(sums[p][0], pixel, first);
        sums[p][1] = _mm512_dpbf16_ps(sums[p][1], pixel, second);
      }
    }
    for (int64_t p = 0; p < kPixels; ++p) {
      for (int j = 0; j < 2; ++j) _mm512_storeu_ps(out + p * kHidden + 16 * j, sums[p][j]);
    }
  }

  static float last(const float* hidden, const float* weights) { return last_of(hidden, weights); }
};

#else

constexpr bool kPairs = false;
using Pairs = Floats;

#endif

void tail_rows(const Tail& call, int64_t begin, int64_t end, const TailScratch& scratch) {
  call.bfloat16 ? rows_of<Pairs, uint16_t>(call, begin, end, scratch)
                : rows_of<Floats, float>(call, begin, end, scratch);
}
