// Settings of AMX tiles, for kernels files, in the set avx512_amx.
//
// A tile is 16 rows of 64 bytes. Tiles 0 to 3 are sums; 4 and 5 are the left and the right side of a
// block of 16 steps (four bytes, or two bfloat16, of each row); 6 and 7 those of the steps that
// remain after whole blocks.

constexpr int kTileBytes = 64, kTileSteps = 16;

// Sets up the tiles of this thread for products of `steps` steps, until it is destroyed.
struct TileSettings {
  explicit TileSettings(int64_t steps) {
    const int rest = static_cast<int>(steps % kTileSteps);
    alignas(64) uint8_t memory[64] = {1};  // the palette; widths from 16 on, rows from 48 on
    for (int tile = 0; tile < 6 + 2 * (rest > 0); ++tile) {
      memory[16 + 2 * tile] = static_cast<uint8_t>(tile == 6 ? 4 * rest : kTileBytes);
      memory[48 + tile] = static_cast<uint8_t>(tile == 7 ? rest : 16);
    }
    // GCC 12 does not know that the instruction reads all of it.
    asm volatile("" : : "r"(memory) : "memory");
    _tile_loadconfig(memory);
  }
  ~TileSettings() { _tile_release(); }
  TileSettings(const TileSettings&) = delete;
  TileSettings& operator=(const TileSettings&) = delete;
};
