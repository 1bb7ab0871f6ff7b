// An emulator of AMX tiles for tests: the intrinsics of TILECONFIG, loads, stores, TDPBUSD, TDPBSSD
// and TDPBF16PS, as the pseudo code of the Intel 64 and IA-32 manual, volume 2, describes them.
//
// Where the processor raises #UD or #GP (tiles used before they are configured, shapes that do not
// fit, a reserved byte in the settings), the emulator throws std::logic_error.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace amx_emulated {

constexpr int kTiles = 8, kRows = 16, kBytes = 64;

struct Tile {
  int rows, bytes;  // 0: not configured
  uint8_t data[kRows][kBytes];
};

struct Thread {
  bool configured;
  Tile tiles[kTiles];
};

inline Thread& thread() {
  thread_local Thread state{};
  return state;
}

inline void require(bool holds, const std::string& what) {
  if (!holds) throw std::logic_error("AMX: " + what);
}

inline Tile& tile_at(int number) {
  require(number >= 0 && number < kTiles, "there is no tile " + std::to_string(number));
  require(thread().configured, "tiles are used before they are configured");
  Tile& tile = thread().tiles[number];
  require(tile.rows > 0, "tile " + std::to_string(number) + " is not configured");
  return tile;
}

inline void release() { thread() = {}; }

inline void load_settings(const void* memory) {
  uint8_t bytes[64];
  std::memcpy(bytes, memory, sizeof bytes);
  Thread next{};
  next.configured = bytes[0] != 0;
  require(bytes[0] <= 1, "unknown palette");
  if (next.configured) {
    require(bytes[1] == 0, "the emulator starts at row 0 only");
    for (int i = 2; i < 16; ++i) require(bytes[i] == 0, "a reserved byte is set");
    for (int i = 32; i < 48; ++i) require(bytes[i] == 0, "a reserved byte is set");
    for (int i = 56; i < 64; ++i) require(bytes[i] == 0, "a reserved byte is set");
    for (int i = 0; i < kTiles; ++i) {
      Tile& tile = next.tiles[i];
      tile.bytes = bytes[16 + 2 * i] + 256 * bytes[17 + 2 * i];
      tile.rows = bytes[48 + i];
      require(tile.bytes <= kBytes && tile.rows <= kRows, "a tile is too large");
      require((tile.bytes == 0) == (tile.rows == 0), "a tile has rows or columns only");
    }
  }
  thread() = next;
}

inline void load(int number, const void* memory, int64_t stride) {
  Tile& tile = tile_at(number);
  std::memset(tile.data, 0, sizeof tile.data);
  for (int row = 0; row < tile.rows; ++row) {
    std::memcpy(tile.data[row], static_cast<const uint8_t*>(memory) + row * stride,
                static_cast<size_t>(tile.bytes));
  }
}

inline void store(int number, void* memory, int64_t stride) {
  const Tile& tile = tile_at(number);
  for (int row = 0; row < tile.rows; ++row) {
    std::memcpy(static_cast<uint8_t*>(memory) + row * stride, tile.data[row],
                static_cast<size_t>(tile.bytes));
  }
}

inline void zero(int number) {
  Tile& tile = tile_at(number);
  std::memset(tile.data, 0, sizeof tile.data);
}

// Checks the shapes of sum (m, n) += left (m, k) right (k, n).
inline void check_product(int sum, int left, int right) {
  const Tile &c = tile_at(sum), &a = tile_at(left), &b = tile_at(right);
  require(sum != left && sum != right && left != right, "a product of a tile with itself");
  require(a.bytes % 4 == 0 && b.bytes % 4 == 0 && c.bytes % 4 == 0, "a part of four bytes");
  require(a.rows == c.rows && b.bytes == c.bytes && a.bytes / 4 == b.rows,
          "shapes of a product do not fit");
}

template <typename Value>
Value element(const Tile& tile, int row, int index) {
  Value value;
  std::memcpy(&value, tile.data[row] + index * sizeof(Value), sizeof value);
  return value;
}

template <typename Value>
void set_element(Tile& tile, int row, int index, Value value) {
  std::memcpy(tile.data[row] + index * sizeof(Value), &value, sizeof value);
}

// Calls combine(a row, b row, column, c element) for every element of the sum, and clears the rest.
template <typename Sum, typename Combine>
void multiply(int sum, int left, int right, const Combine& combine) {
  check_product(sum, left, right);
  Tile& c = tile_at(sum);
  const Tile &a = tile_at(left), &b = tile_at(right);
  Tile out{c.rows, c.bytes, {}};
  for (int m = 0; m < c.rows; ++m) {
    for (int n = 0; n < c.bytes / 4; ++n) {
      set_element(out, m, n, combine(a, b, m, n, element<Sum>(c, m, n)));
    }
  }
  c = out;
}

// Left is the type of the left side: uint8_t for TDPBUSD, int8_t for TDPBSSD.
template <typename Left>
void multiply_bytes(int sum, int left, int right) {
  multiply<int32_t>(sum, left, right, [](const Tile& a, const Tile& b, int m, int n, int32_t c) {
    uint32_t total = static_cast<uint32_t>(c);  // wraps around
    for (int k = 0; k < a.bytes / 4; ++k) {
      for (int i = 0; i < 4; ++i) {
        const int x = element<Left>(a, m, 4 * k + i), y = element<int8_t>(b, k, 4 * n + i);
        total += static_cast<uint32_t>(x * y);
      }
    }
    return static_cast<int32_t>(total);
  });
}

// Subnormal numbers are zeros, with their sign.
inline float flushed(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

inline float widened(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return flushed(value);
}

// Even and odd products have sums of their own, by fused multiply-adds; the processor adds these
// two, and the result to the tile. All round to nearest, and inputs and results are flushed.
inline void multiply_bfloat16(int sum, int left, int right) {
  multiply<float>(sum, left, right, [](const Tile& a, const Tile& b, int m, int n, float c) {
    float parts[2] = {0.0f, 0.0f};
    for (int k = 0; k < a.bytes / 4; ++k) {
      for (int i = 0; i < 2; ++i) {
        const float x = widened(element<uint16_t>(a, m, 2 * k + i));
        const float y = widened(element<uint16_t>(b, k, 2 * n + i));
        parts[i] = flushed(std::fma(x, y, parts[i]));
      }
    }
    return flushed(flushed(c) + flushed(parts[0] + parts[1]));
  });
}

}  // namespace amx_emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbusd
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#define _tile_loadconfig amx_emulated::load_settings
#define _tile_release amx_emulated::release
#define _tile_loadd amx_emulated::load
#define _tile_stored amx_emulated::store
#define _tile_zero amx_emulated::zero
#define _tile_dpbusd amx_emulated::multiply_bytes<uint8_t>
#define _tile_dpbssd amx_emulated::multiply_bytes<int8_t>
#define _tile_dpbf16ps amx_emulated::multiply_bfloat16
