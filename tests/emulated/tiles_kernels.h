// The functions of tiles.cpp for one instruction set.

#if defined(DAFAST_IN_AVX_VNNI) || defined(DAFAST_IN_AMX)

namespace bytes {

#include "vectors16.h"
#include "tile_int8.h"

template <int ROWS, int WIDTH>
int product(const uint8_t* left, int64_t row_stride, int64_t runs, int64_t run_stride,
            int64_t steps, const int8_t* right, const int32_t* start, int32_t* out) {
  const TileSettings settings(steps);
  multiply_tile<ROWS, WIDTH>(left, row_stride, runs, run_stride, steps, right, start, out);
  return ROWS;
}

}  // namespace bytes

int bytes_product(int width, const uint8_t* left, int64_t row_stride, int64_t runs,
                  int64_t run_stride, int64_t steps, const int8_t* right, const int32_t* start,
                  int32_t* out) {
  using namespace bytes;
  const auto function = width == 1   ? product<kWideTile, 1>
                        : width == 2 ? product<kRowTile, 2>
                        : width == 3 ? product<kWideTile, 3>
                                     : product<kWideTile, 4>;
  return function(left, row_stride, runs, run_stride, steps, right, start, out);
}

#endif

#ifdef DAFAST_IN_AMX

namespace pairs {

#include "tile_float.h"

void product(const float* left, int64_t row_stride, int64_t runs, int64_t run_stride,
             int64_t steps, const float* right, const float* start, int64_t start_stride,
             float* out) {
  const PairCells::Settings settings(steps);
  multiply_tile<PairCells>(left, row_stride, runs, run_stride, steps, right, start, start_stride,
                           out, kColumns);
}

}  // namespace pairs

#endif
