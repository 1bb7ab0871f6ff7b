// The kernel of encoder_rows_int8.cpp, only for AVX-512 with VNNI.

#ifdef DAFAST_IN_AVX512

#include "rows_int8.h"
#include "gelu_pieces.h"

// Normalises a row of float32.
void normalise(const float* x, const RowNorm& norm, int64_t channels, float* out) {
  const __m512 size = _mm512_set1_ps(static_cast<float>(channels));
  __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < channels; i += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + i));
  const __m512 mean = _mm512_div_ps(_mm512_set1_ps(_mm512_reduce_add_ps(sum)), size);
  for (int64_t i = 0; i < channels; i += 16) {
    const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
    squares = _mm512_fmadd_ps(centred, centred, squares);
  }
  const __m512 variance = _mm512_div_ps(_mm512_set1_ps(_mm512_reduce_add_ps(squares)), size);
  const __m512 inverse = _mm512_div_ps(
      _mm512_set1_ps(1.0f), _mm512_sqrt_ps(_mm512_add_ps(variance, _mm512_set1_ps(norm.eps))));
  for (int64_t i = 0; i < channels; i += 16) {
    const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
    _mm512_storeu_ps(out + i, _mm512_fmadd_ps(_mm512_mul_ps(centred, inverse),
                                              _mm512_loadu_ps(norm.weight + i),
                                              _mm512_loadu_ps(norm.bias + i)));
  }
}

void encoder_group(const EncoderRows& call, int64_t row, int64_t rows, std::byte* scratch) {
  const int64_t channels = call.channels, hidden = call.hidden;
  float* const wide = reinterpret_cast<float*>(scratch);  // (rows, hidden)
  float* const stream = wide + kInt8Rows * hidden;        // (rows, channels)
  float* const normed = stream + kInt8Rows * channels;    // one row, of either width
  ByteRows narrow_bytes, wide_bytes;
  narrow_bytes.bytes = reinterpret_cast<uint8_t*>(normed + widest(call));
  wide_bytes.bytes = narrow_bytes.bytes + kInt8Rows * channels;
  const auto from_normed = [&](int64_t k) { return _mm512_loadu_ps(normed + k); };

  for (int64_t r = 0; r < rows; ++r) {
    round_row(narrow_bytes, r, channels, [&](int64_t k) {
      return load(call.mixed, call.bfloat16, (row + r) * channels + k, 0xffff);
    });
  }
  multiply_rows(narrow_bytes, rows, call.proj,
                [&](int64_t r, int64_t column, __m512 values, __mmask16 mask) {
                  const __m512 x =
                      _mm512_maskz_loadu_ps(mask, call.x + (row + r) * channels + column);
                  const __m512 scale = _mm512_maskz_loadu_ps(mask, call.ls1 + column);
                  _mm512_mask_storeu_ps(stream + r * channels + column, mask,
                                        _mm512_fmadd_ps(values, scale, x));
                });
  for (int64_t r = 0; r < rows; ++r) {
    normalise(stream + r * channels, call.norm2, channels, normed);
    round_row(narrow_bytes, r, channels, from_normed);
  }
  multiply_rows(narrow_bytes, rows, call.fc1,
                [&](int64_t r, int64_t column, __m512 values, __mmask16 mask) {
                  _mm512_mask_storeu_ps(wide + r * hidden + column, mask, values);
                });
  for (int64_t r = 0; r < rows; ++r) {
    gelu_block(wide + r * hidden, hidden, normed);
    round_row(wide_bytes, r, hidden, from_normed);
  }
  multiply_rows(wide_bytes, rows, call.fc2,
                [&](int64_t r, int64_t column, __m512 values, __mmask16 mask) {
                  float* const place = stream + r * channels + column;
                  const __m512 x = _mm512_maskz_loadu_ps(mask, place);
                  const __m512 scale = _mm512_maskz_loadu_ps(mask, call.ls2 + column);
                  _mm512_mask_storeu_ps(place, mask, _mm512_fmadd_ps(values, scale, x));
                });
  memcpy(call.stream + row * channels, stream,
         static_cast<size_t>(rows * channels) * sizeof(float));
  for (int64_t r = 0; r < rows && call.tap; ++r) {
    normalise(stream + r * channels, call.tap_norm, channels, normed);
    for (int64_t i = 0; i < channels; i += 16) {
      store(from_normed(i), call.tap, call.bfloat16, (row + r) * channels + i, 0xffff);
    }
  }
  if (!call.next) return;
  for (int64_t r = 0; r < rows; ++r) {
    normalise(stream + r * channels, call.next_norm, channels, normed);
    round_row(narrow_bytes, r, channels, from_normed);
  }
  multiply_rows(narrow_bytes, rows, call.qkv,
                [&](int64_t r, int64_t column, __m512 values, __mmask16 mask) {
                  const int64_t at = (row + r) * call.qkv.columns + column;
                  store(values, call.next, call.bfloat16, at, mask);
                });
}

#else

constexpr EncoderGroup encoder_group = nullptr;

#endif
