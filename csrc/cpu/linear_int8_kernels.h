// The kernel of linear_int8.cpp, from AVX2 or ARM's dot products on.

#if defined(DAFAST_IN_AVX512) || defined(DAFAST_IN_AVX2) || defined(DAFAST_IN_DOTPROD)

#include "rows_int8.h"

void linear_rows(const LinearInt8& call, int64_t row, int64_t rows, uint8_t* scratch) {
  const Int8Layer& layer = call.layer;
  ByteRows group;
  group.levels = reinterpret_cast<Level*>(scratch);
  for (int64_t r = 0; r < rows; ++r) {
    round_row(group, r, layer.depth, [&](int64_t k) {
      const Mask16 mask = first_of(layer.depth - k);
      return load(call.x, call.bfloat16, (row + r) * layer.depth + k, mask);
    });
  }
  multiply_rows(group, rows, layer,
                [&](int64_t r, int64_t column, Floats16 values, Mask16 mask) {
                  const int64_t at = (row + r) * layer.columns + column;
                  store(values, call.out, call.bfloat16, at, mask);
                });
}

#else

constexpr LinearRows linear_rows = nullptr;

#endif
