// The kernels of conv3x3.cpp, for one instruction set.
//
// Winograd's F(2x2, 3x3): with d a tile of 4x4 pixels and g the 3x3 weights, a tile of 2x2 results
// is A' [(G g G') * (B' d B)] A, where * is elementwise. With
//
//       1  0 -1  0          1   0   0          1  1  1  0
//  B' = 0  1  1  0     G = 1/2 1/2 1/2    A' = 0  1 -1 -1
//       0 -1  1  0         1/2-1/2 1/2
//       0  1  0 -1          0   0   1
//
// this is 16 multiplications for 4 results and a pair of channels, not 36. The sums over channels
// are 16 products of matrices. The gradient of the weights is G' [(A y A') * (B' d B)] G, summed
// over the tiles, where y is a tile of the gradient of the result.
#include "tile_float.h"

// The 4x4 pixels of a tile, zeros outside of the image.
inline void find_window(const TiledMap& map, int64_t tile, const float** pixels) {
  const int64_t across = tile % map.across, down = tile / map.across % map.down;
  const int64_t top = tile / map.across / map.down * map.height;
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t y = 2 * down - 1 + i;
    for (int64_t j = 0; j < 4; ++j) {
      const int64_t x = 2 * across - 1 + j;
      const bool inside = y >= 0 && y < map.height && x >= 0 && x < map.width;
      pixels[4 * i + j] =
          inside ? map.data + ((top + y) * map.width + x) * map.channels : map.zeros;
    }
  }
}

// The 2x2 pixels of a tile at `places`, -1 outside of the image: offsets of the first channel.
inline void find_results(const TiledMap& map, int64_t tile, int64_t* places) {
  const int64_t across = tile % map.across, down = tile / map.across % map.down;
  const int64_t top = tile / map.across / map.down * map.height;
  for (int64_t i = 0; i < 2; ++i) {
    const int64_t y = 2 * down + i;
    for (int64_t j = 0; j < 2; ++j) {
      const int64_t x = 2 * across + j;
      const bool inside = y < map.height && x < map.width;
      places[2 * i + j] = inside ? ((top + y) * map.width + x) * map.channels : -1;
    }
  }
}

inline Floats positive(Floats x) { return x < 0.0f ? Floats{} : x; }

// B' d B of `count` tiles: to[place][tile][channel].
template <bool RELU>
void transform_windows(const TiledMap& map, int64_t first, int64_t count, float* to) {
  const int64_t channels = map.channels, pitch = place_floats(channels);
  for (int64_t tile = 0; tile < count; ++tile, to += channels) {
    const float* pixels[16];
    find_window(map, first + tile, pixels);
    for (int64_t c = 0; c < channels; c += LANES) {
      Floats rows[4][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        Floats d[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          d[i] = load(pixels[4 * i + j] + c);
          if constexpr (RELU) d[i] = positive(d[i]);
        }
        rows[0][j] = d[0] - d[2], rows[1][j] = d[1] + d[2];
        rows[2][j] = d[2] - d[1], rows[3][j] = d[1] - d[3];
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        float* const out = to + 4 * i * pitch + c;
        store(out, rows[i][0] - rows[i][2]);
        store(out + pitch, rows[i][1] + rows[i][2]);
        store(out + 2 * pitch, rows[i][2] - rows[i][1]);
        store(out + 3 * pitch, rows[i][1] - rows[i][3]);
      }
    }
  }
}

// A y A' of `count` tiles, as the right side of products: to[place][panel][tile][kColumns].
void transform_gradients(const TiledMap& map, int64_t first, int64_t count, float* to) {
  const int64_t panel = kTiles * kColumns, pitch = place_floats(whole_panels(map.channels));
  for (int64_t tile = 0; tile < count; ++tile) {
    int64_t places[4];
    find_results(map, first + tile, places);
    const float* pixels[4];
    for (int i = 0; i < 4; ++i) pixels[i] = places[i] < 0 ? map.zeros : map.data + places[i];
    for (int64_t c = 0; c < map.channels; c += LANES) {
      Floats rows[4][2];
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const Floats y0 = load(pixels[j] + c), y1 = load(pixels[2 + j] + c);
        rows[0][j] = y0, rows[1][j] = y0 + y1, rows[2][j] = y0 - y1, rows[3][j] = -y1;
      }
      float* const out = to + c / kColumns * panel + tile * kColumns + c % kColumns;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        store(out + 4 * i * pitch, rows[i][0]);
        store(out + (4 * i + 1) * pitch, rows[i][0] + rows[i][1]);
        store(out + (4 * i + 2) * pitch, rows[i][0] - rows[i][1]);
        store(out + (4 * i + 3) * pitch, -rows[i][1]);
      }
    }
  }
}

// Results of `count` tiles, from the products [place][tile][columns].
void finish_tiles(const Conv3x3& call, int64_t first, int64_t count, const float* products) {
  const int64_t columns = call.result.channels, wide = whole_panels(columns);
  const int64_t pitch = place_floats(wide);
  for (int64_t tile = 0; tile < count; ++tile, products += wide) {
    int64_t places[4];
    find_results(call.result, first + tile, places);
    for (int64_t c = 0; c < columns; c += LANES) {
      Floats rows[2][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const float* const from = products + j * pitch + c;
        const Floats m1 = load(from + 4 * pitch), m2 = load(from + 8 * pitch);
        rows[0][j] = load(from) + m1 + m2;
        rows[1][j] = m1 - m2 - load(from + 12 * pitch);
      }
      const Floats bias = load(call.bias + c);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Floats* const row = rows[i / 2];
        if (places[i] < 0) continue;
        const int64_t at = places[i] + c;
        Floats value = i % 2 ? row[1] - row[2] - row[3] : row[0] + row[1] + row[2];
        value = value + bias;
        for (const float* more : call.add) {
          if (more) value = value + load(more + at);
        }
        if (call.gate) value = load(call.gate + at) <= 0.0f ? Floats{} : value;
        store(call.out + at, value);
      }
    }
  }
}

void tiles_of(const Conv3x3& call, int64_t first, int64_t count, float* scratch) {
  const int64_t depth = call.map.channels, columns = whole_panels(call.result.channels);
  const int64_t left_pitch = place_floats(depth), pitch = place_floats(columns);
  float* const products = scratch + kPlaces * left_pitch;
  (call.relu ? transform_windows<true> : transform_windows<false>)(call.map, first, count, scratch);
  for (int64_t place = 0; place < kPlaces; ++place) {
    const float* const left = scratch + place * left_pitch;
    const float* const weights = call.weights + place * columns * depth;
    float* const out = products + place * pitch;
    for (int64_t column = 0; column < columns; column += kTileColumns) {
      const float* const right =
          weights + column / kColumns * kColumns * depth + column % kColumns;
      for (int64_t tile = 0; tile < count; tile += kTileRows) {
        multiply_tile<SingleCells>(left + tile * depth, depth, 1, 0, depth, right, call.zeros, 0,
                                   out + tile * columns + column, columns);
      }
    }
  }
  finish_tiles(call, first, count, products);
}

// Adds the products of `count` tiles to sums[place][channel][columns], and the sums of the gradient
// to those of the bias, which follow.
void gradient_of(const Conv3x3& call, int64_t first, int64_t count, float* scratch, float* sums) {
  const int64_t depth = call.map.channels, rows = whole_rows(depth);
  const int64_t columns = whole_panels(call.result.channels);
  const int64_t left_pitch = place_floats(depth), pitch = place_floats(columns);
  float* const gradients = scratch + kPlaces * left_pitch;
  (call.relu ? transform_windows<true> : transform_windows<false>)(call.map, first, count, scratch);
  transform_gradients(call.result, first, count, gradients);
  for (int64_t place = 0; place < kPlaces; ++place) {
    const float* const left = scratch + place * left_pitch;
    for (int64_t column = 0; column < columns; column += kTileColumns) {
      const float* const right = gradients + place * pitch +
                                 column / kColumns * kColumns * kTiles + column % kColumns;
      for (int64_t row = 0; row < depth; row += kTileRows) {
        float* const out = sums + (place * rows + row) * columns + column;
        multiply_tile<SingleCells>(left + row, 1, count, depth, 1, right, out, columns, out,
                                   columns);
      }
    }
  }
  // The second row and column of A y A' is the sum of a tile.
  float* const bias = sums + kPlaces * rows * columns;
  for (int64_t column = 0; column < columns; column += LANES) {
    const float* from = gradients + 5 * pitch + column / kColumns * kColumns * kTiles +
                        column % kColumns;
    Floats sum = load(from);
    for (int64_t tile = 1; tile < count; ++tile) sum = sum + load(from + tile * kColumns);
    store(bias + column, load(bias + column) + sum);
  }
}

constexpr Conv3x3Tiles conv3x3_tiles = tiles_of;
constexpr Conv3x3Gradient conv3x3_gradient = gradient_of;
