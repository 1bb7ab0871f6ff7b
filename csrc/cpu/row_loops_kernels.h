// The loops over a row of row_loops.cpp, for one instruction set; the compiler vectorises them.

// Row `y` of the table from rows of `length` contiguous elements.
template <typename T>
void blend_rows(const T* source, int64_t stride, const TapTable& rows, int64_t y, int64_t length,
                float* DAFAST_RESTRICT out) {
  const T* DAFAST_RESTRICT a = source + rows.first[y] * stride;
  const float* weights = rows.weights + y * rows.most;
  const int count = rows.count[y];
  if (count == 0) {
    for (int64_t i = 0; i < length; ++i) out[i] = 0.0f;
  } else if (count == 1) {
    for (int64_t i = 0; i < length; ++i) out[i] = weights[0] * to_float(a[i]);
  } else {
    const T* DAFAST_RESTRICT b = a + stride;
    const float u = weights[0], v = weights[1];
    for (int64_t i = 0; i < length; ++i) out[i] = u * to_float(a[i]) + v * to_float(b[i]);
  }
  for (int k = 2; k < count; ++k) {
    const T* DAFAST_RESTRICT row = a + k * stride;
    const float weight = weights[k];
    for (int64_t i = 0; i < length; ++i) out[i] += weight * to_float(row[i]);
  }
}

// The columns [begin, end) of the table, each a pixel of `channels` contiguous values.
void blend_columns(const float* DAFAST_RESTRICT row, const TapTable& columns, int64_t begin,
                   int64_t end, int64_t channels, float* DAFAST_RESTRICT out) {
  if (channels == 1 && columns.most == 2) {
    const int32_t* DAFAST_RESTRICT first = columns.first;
    const int32_t* DAFAST_RESTRICT count = columns.count;
    const float* DAFAST_RESTRICT weights = columns.weights;
    for (int64_t x = begin; x < end; ++x) {
      // Where there is only one tap, the other's weight is 0.
      out[x] = weights[2 * x] * row[first[x]] + weights[2 * x + 1] * row[first[x] + (count[x] > 1)];
    }
    return;
  }
  for (int64_t x = begin; x < end; ++x) {
    const float* weights = columns.weights + x * columns.most;
    const int count = columns.count[x];
    const float* taps = row + columns.first[x] * channels;
    float* DAFAST_RESTRICT pixel = out + x * channels;
    if (channels == 1) {
      float sum = 0.0f;
      for (int k = 0; k < count; ++k) sum += weights[k] * taps[k];
      *pixel = sum;
    } else if (channels == 3) {
      float r = 0.0f, g = 0.0f, b = 0.0f;
      for (int k = 0; k < count; ++k) {
        r += weights[k] * taps[3 * k];
        g += weights[k] * taps[3 * k + 1];
        b += weights[k] * taps[3 * k + 2];
      }
      pixel[0] = r, pixel[1] = g, pixel[2] = b;
    } else {
      const float* DAFAST_RESTRICT next = taps + (count > 1 ? channels : 0);
      const float u = count > 0 ? weights[0] : 0.0f, v = count > 1 ? weights[1] : 0.0f;
      for (int64_t c = 0; c < channels; ++c) pixel[c] = u * taps[c] + v * next[c];
      for (int k = 2; k < count; ++k) {
        const float weight = weights[k];
        const float* tap = taps + k * channels;
        for (int64_t c = 0; c < channels; ++c) pixel[c] += weight * tap[c];
      }
    }
  }
}

template <typename T>
void widen(const T* DAFAST_RESTRICT source, int64_t count, float* DAFAST_RESTRICT out) {
  for (int64_t i = 0; i < count; ++i) out[i] = to_float(source[i]);
}

void mix(const float* DAFAST_RESTRICT a, const float* DAFAST_RESTRICT b, float u, float v,
         int64_t count, float* DAFAST_RESTRICT out) {
  for (int64_t i = 0; i < count; ++i) out[i] = u * a[i] + v * b[i];
}

void add(const float* DAFAST_RESTRICT a, float weight, int64_t count, float* DAFAST_RESTRICT out) {
  for (int64_t i = 0; i < count; ++i) out[i] += weight * a[i];
}

template <typename T>
void store_as(const float* DAFAST_RESTRICT values, int64_t count, T* DAFAST_RESTRICT out,
              int64_t stride) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) out[i] = from_float<T>(values[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i * stride] = from_float<T>(values[i]);
  }
}

template <typename T>
constexpr RowLoops::Of<T> kLoopsOf{blend_rows<T>, widen<T>};

constexpr RowLoops kLoops{kLoopsOf<float>, kLoopsOf<float16>, kLoopsOf<bfloat16>,
                          kLoopsOf<uint8_t>, blend_columns, mix, add, store_as<float>,
                          store_as<float16>, store_as<bfloat16>};
