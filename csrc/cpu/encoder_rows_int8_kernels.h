// The kernel of encoder_rows_int8.cpp, from AVX2 or ARM's dot products on.

#if defined(DAFAST_IN_AVX512) || defined(DAFAST_IN_AVX2) || defined(DAFAST_IN_DOTPROD)

#include "rows_int8.h"
#include "gelu_block.h"

// Normalises a row of float32.
void normalise(const float* x, const RowNorm& norm, int64_t channels, float* out) {
  const Floats16 size = all(static_cast<float>(channels));
  Floats16 sum = all(0.0f), squares = all(0.0f);
  for (int64_t i = 0; i < channels; i += 16) sum = add(sum, floats_at(x + i));
  const Floats16 mean = div(all(total(sum)), size);
  for (int64_t i = 0; i < channels; i += 16) {
    const Floats16 centred = sub(floats_at(x + i), mean);
    squares = fmadd(centred, centred, squares);
  }
  const Floats16 variance = div(all(total(squares)), size);
  const Floats16 inverse = div(all(1.0f), root(add(variance, all(norm.eps))));
  for (int64_t i = 0; i < channels; i += 16) {
    const Floats16 centred = sub(floats_at(x + i), mean);
    put(out + i, fmadd(mul(centred, inverse), floats_at(norm.weight + i), floats_at(norm.bias + i)));
  }
}

void encoder_group(const EncoderRows& call, int64_t row, int64_t rows, std::byte* scratch) {
  const int64_t channels = call.channels, hidden = call.hidden;
  float* const wide = reinterpret_cast<float*>(scratch);  // (rows, hidden)
  float* const stream = wide + kInt8Rows * hidden;        // (rows, channels)
  float* const normed = stream + kInt8Rows * channels;    // one row, of either width
  ByteRows narrow_rows, wide_rows;
  narrow_rows.levels = reinterpret_cast<Level*>(normed + widest(call));
  wide_rows.levels = narrow_rows.levels + kInt8Rows * channels;
  const auto from_normed = [&](int64_t k) { return floats_at(normed + k); };

  for (int64_t r = 0; r < rows; ++r) {
    round_row(narrow_rows, r, channels, [&](int64_t k) {
      return load(call.mixed, call.bfloat16, (row + r) * channels + k);
    });
  }
  multiply_rows(narrow_rows, rows, call.proj,
                [&](int64_t r, int64_t column, Floats16 values, Mask16 mask) {
                  const Floats16 x = floats_at(call.x + (row + r) * channels + column, mask);
                  const Floats16 scale = floats_at(call.ls1 + column, mask);
                  put(stream + r * channels + column, fmadd(values, scale, x), mask);
                });
  for (int64_t r = 0; r < rows; ++r) {
    normalise(stream + r * channels, call.norm2, channels, normed);
    round_row(narrow_rows, r, channels, from_normed);
  }
  multiply_rows(narrow_rows, rows, call.fc1,
                [&](int64_t r, int64_t column, Floats16 values, Mask16 mask) {
                  put(wide + r * hidden + column, values, mask);
                });
  for (int64_t r = 0; r < rows; ++r) {
    gelu_block(wide + r * hidden, hidden, normed);
    round_row(wide_rows, r, hidden, from_normed);
  }
  multiply_rows(wide_rows, rows, call.fc2,
                [&](int64_t r, int64_t column, Floats16 values, Mask16 mask) {
                  float* const place = stream + r * channels + column;
                  const Floats16 scale = floats_at(call.ls2 + column, mask);
                  put(place, fmadd(values, scale, floats_at(place, mask)), mask);
                });
  memcpy(call.stream + row * channels, stream,
         static_cast<size_t>(rows * channels) * sizeof(float));
  for (int64_t r = 0; r < rows && call.tap; ++r) {
    normalise(stream + r * channels, call.tap_norm, channels, normed);
    for (int64_t i = 0; i < channels; i += 16) {
      store(from_normed(i), call.tap, call.bfloat16, (row + r) * channels + i, first_of(16));
    }
  }
  if (!call.next) return;
  for (int64_t r = 0; r < rows; ++r) {
    normalise(stream + r * channels, call.next_norm, channels, normed);
    round_row(narrow_rows, r, channels, from_normed);
  }
  multiply_rows(narrow_rows, rows, call.qkv,
                [&](int64_t r, int64_t column, Floats16 values, Mask16 mask) {
                  const int64_t at = (row + r) * call.qkv.columns + column;
                  store(values, call.next, call.bfloat16, at, mask);
                });
}

#else

constexpr EncoderGroup encoder_group = nullptr;

#endif
