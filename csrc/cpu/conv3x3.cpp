// A 3x3 convolution in float32 on the CPU and its gradients, by Winograd's F(2x2, 3x3); see
// conv3x3_kernels.h.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "../registry.h"
#include "aten_pieces.h"
#include "tensors.h"
#include "weights_float.h"

namespace dafast::cpu {

constexpr int64_t kPlaces = 16;  // of a transformed tile
constexpr int64_t kTiles = 48;   // that are computed together

// A map (B, height, width, channels) in tiles of 2x2 pixels, `down` times `across` in an image.
struct TiledMap {
  const float* data;
  int64_t height, width, channels, down, across;
  const float* zeros;  // of a pixel
};

// In the gradient of the weights `result` is the gradient of the result.
struct Conv3x3 {
  TiledMap map, result;
  bool relu;  // negative values of the map count as 0
  const float *weights, *bias, *zeros;
  const float* add[2];  // added to the result, or null
  const float* gate;    // the result becomes 0 where this is not above 0, or null
  float* out;
};

// Floats of kTiles tiles at one place. Places are not a multiple of 4 KiB apart, so that those of a
// tile are not all in the same set of the first-level cache.
inline int64_t place_floats(int64_t channels) { return kTiles * channels + 16; }

// Channels that whole tiles of a product cover.
inline int64_t whole_rows(int64_t channels) {
  return (channels + kRowUnit - 1) / kRowUnit * kRowUnit;
}

// `count` tiles from `first` on.
using Conv3x3Tiles = void (*)(const Conv3x3& call, int64_t first, int64_t count, float* scratch);
using Conv3x3Gradient = void (*)(const Conv3x3& call, int64_t first, int64_t count, float* scratch,
                                 float* sums);

}  // namespace dafast::cpu

#define DAFAST_KERNELS "conv3x3_kernels.h"
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::stable::Tensor;

constexpr const char* kOp = "conv3x3";
constexpr int64_t kChannelUnit = 16;
constexpr int64_t kMostParts = 32;  // of the tiles, whose gradients are summed separately

TiledMap map_of(const Tensor& x, const float* zeros) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(3) % kChannelUnit == 0, kOp,
                  ": expected maps (B, h, w, C) with a multiple of ", kChannelUnit, " channels");
  return {float_data_of(x, x.numel(), kOp), x.size(1), x.size(2), x.size(3),
          (x.size(1) + 1) / 2, (x.size(2) + 1) / 2, zeros};
}

const float* like_result(const std::optional<Tensor>& x, const Tensor& out) {
  return x.has_value() ? float_data_of(*x, out.numel(), kOp) : nullptr;
}

// G g G' for weights (N, C, 3, 3), as the right side of products: to[place][panel][depth][kColumns].
// With `flipped` they are those of the gradient of the input: turned by 180 degrees, and the result
// has C channels.
std::vector<float> transform_weights(const Tensor& weight, bool flipped) {
  const auto* const data = static_cast<const float*>(weight.const_data_ptr());
  const int64_t columns = weight.size(flipped), depth = weight.size(!flipped);
  const int64_t column_stride = weight.stride(flipped), depth_stride = weight.stride(!flipped);
  const int64_t sign = flipped ? -1 : 1;
  const int64_t down = sign * weight.stride(2), across = sign * weight.stride(3);
  const float* const start = flipped ? data - 2 * down - 2 * across : data;
  const int64_t pitch = whole_panels(columns) * depth;
  std::vector<float> out(static_cast<size_t>(kPlaces * pitch));
  for_aten_pieces(whole_panels(columns) / kColumns, [&](Pieces& pieces) {
    int64_t panel;
    while (pieces.take(panel)) {
      const int64_t count = std::min(kColumns, columns - panel * kColumns);
      for (int64_t d = 0; d < depth; ++d) {
        float* const to = out.data() + (panel * depth + d) * kColumns;
        for (int64_t n = 0; n < count; ++n) {
          const float* const from =
              start + (panel * kColumns + n) * column_stride + d * depth_stride;
          float rows[4][3];
          for (int j = 0; j < 3; ++j) {
            const float a = from[j * across], b = from[down + j * across];
            const float c = from[2 * down + j * across];
            rows[0][j] = a, rows[1][j] = 0.5f * (a + c + b), rows[2][j] = 0.5f * (a + c - b);
            rows[3][j] = c;
          }
          for (int i = 0; i < 4; ++i) {
            const float ends = rows[i][0] + rows[i][2];
            to[4 * i * pitch + n] = rows[i][0];
            to[(4 * i + 1) * pitch + n] = 0.5f * (ends + rows[i][1]);
            to[(4 * i + 2) * pitch + n] = 0.5f * (ends - rows[i][1]);
            to[(4 * i + 3) * pitch + n] = rows[i][2];
          }
        }
      }
    }
  });
  return out;
}

// x (B, h, w, C); out, add, other and gate (B, h, w, N), all contiguous; weight (N, C, 3, 3) with any
// strides, or (C, N, 3, 3) if flipped; bias (N). All float32.
void conv3x3(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias,
             std::optional<Tensor> add, std::optional<Tensor> other, std::optional<Tensor> gate,
             bool flipped, bool relu, Tensor out) {
  const int64_t columns = out.size(3), wide = whole_panels(columns);
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(flipped) == columns &&
                      weight.size(!flipped) == x.size(3) && weight.size(2) == 3 &&
                      weight.size(3) == 3 &&
                      weight.scalar_type() == torch::headeronly::ScalarType::Float,
                  kOp, ": expected float32 weights (N, C, 3, 3)");
  STD_TORCH_CHECK(x.size(0) == out.size(0) && x.size(1) == out.size(1) && x.size(2) == out.size(2),
                  kOp, ": expected a result of the size of x");
  if (out.numel() == 0) return;
  const std::vector<float> zeros(static_cast<size_t>(std::max(wide, x.size(3))));
  std::vector<float> padded(static_cast<size_t>(wide));
  if (bias.has_value()) {
    std::copy_n(float_data_of(*bias, columns, kOp), columns, padded.begin());
  }
  const std::vector<float> weights = transform_weights(weight, flipped);
  const Conv3x3 call{map_of(x, zeros.data()), map_of(out, zeros.data()), relu, weights.data(),
                     padded.data(), zeros.data(), {like_result(add, out), like_result(other, out)},
                     like_result(gate, out), float_data_of(out, out.numel(), kOp)};
  const Conv3x3Tiles convolve = DAFAST_FOR_ISA(conv3x3_tiles);
  const int64_t floats = kPlaces * (place_floats(call.map.channels) + place_floats(wide));
  for_aten_ranges(x.size(0) * call.map.down * call.map.across, kRowUnit, kTiles, [&](Ranges& ranges) {
    const std::unique_ptr<float[]> scratch(new float[static_cast<size_t>(floats)]);
    int64_t begin, end;
    while (ranges.take(begin, end)) convolve(call, begin, end - begin, scratch.get());
  });
}

// G' s G of the sums of all parts, to the gradient of the weights (N, C, 3, 3) with any strides.
void finish_gradient(const std::vector<float>& sums, int64_t parts, int64_t part_size, Tensor out) {
  const int64_t columns = out.size(0), channels = out.size(1), wide = whole_panels(columns);
  const int64_t pitch = whole_rows(channels) * wide;
  auto* const data = static_cast<float*>(out.mutable_data_ptr());
  for_aten_pieces(channels, [&](Pieces& pieces) {
    std::vector<float> row(static_cast<size_t>(kPlaces * wide));
    int64_t c;
    while (pieces.take(c)) {
      for (int64_t place = 0; place < kPlaces; ++place) {
        sum_parts(sums.data() + place * pitch + c * wide, parts, part_size, columns,
                  row.data() + place * wide);
      }
      for (int64_t n = 0; n < columns; ++n) {
        float down[3][4];
        for (int j = 0; j < 4; ++j) {
          const float* const s = row.data() + j * wide + n;
          const float s1 = 0.5f * s[4 * wide], s2 = 0.5f * s[8 * wide];
          down[0][j] = s[0] + (s1 + s2), down[1][j] = s1 - s2;
          down[2][j] = (s1 + s2) + s[12 * wide];
        }
        float* const to = data + n * out.stride(0) + c * out.stride(1);
        for (int i = 0; i < 3; ++i) {
          const float s1 = 0.5f * down[i][1], s2 = 0.5f * down[i][2];
          const float values[3] = {down[i][0] + (s1 + s2), s1 - s2, (s1 + s2) + down[i][3]};
          for (int j = 0; j < 3; ++j) to[i * out.stride(2) + j * out.stride(3)] = values[j];
        }
      }
    }
  });
}

// grad (B, h, w, N) and x (B, h, w, C), contiguous, to the gradients of weights (N, C, 3, 3) with any
// strides and of a bias (N).
void conv3x3_backward(const Tensor& grad, const Tensor& x, bool relu, Tensor weight, Tensor bias) {
  const int64_t columns = grad.size(3), channels = x.size(3), wide = whole_panels(columns);
  STD_TORCH_CHECK(x.size(0) == grad.size(0) && x.size(1) == grad.size(1) &&
                      x.size(2) == grad.size(2) && weight.dim() == 4 &&
                      weight.size(0) == columns && weight.size(1) == channels &&
                      weight.size(2) == 3 && weight.size(3) == 3 &&
                      weight.scalar_type() == torch::headeronly::ScalarType::Float,
                  kOp, ": expected x of the size of the gradient, and weights (N, C, 3, 3)");
  const std::vector<float> zeros(static_cast<size_t>(std::max(wide, channels)));
  const Conv3x3 call{map_of(x, zeros.data()), map_of(grad, zeros.data()), relu};
  // The parts depend only on the shape, so that the sums do not depend on the number of threads.
  const int64_t tiles = x.size(0) * call.map.down * call.map.across;
  const int64_t blocks = (tiles + kTiles - 1) / kTiles;
  const int64_t per_part = kTiles * std::max<int64_t>(4, (blocks + kMostParts - 1) / kMostParts);
  const int64_t parts = (tiles + per_part - 1) / per_part;
  const int64_t part_size = kPlaces * whole_rows(channels) * wide + wide;
  std::vector<float> sums(static_cast<size_t>(parts * part_size));
  const Conv3x3Gradient add = DAFAST_FOR_ISA(conv3x3_gradient);
  const int64_t floats = kPlaces * (place_floats(channels) + place_floats(wide));
  for_aten_pieces(parts, [&](Pieces& pieces) {
    const std::unique_ptr<float[]> scratch(new float[static_cast<size_t>(floats)]());
    int64_t part;
    while (pieces.take(part)) {
      const int64_t end = std::min(tiles, (part + 1) * per_part);
      for (int64_t tile = part * per_part; tile < end; tile += kTiles) {
        add(call, tile, std::min(kTiles, end - tile), scratch.get(),
            sums.data() + part * part_size);
      }
    }
  });
  finish_gradient(sums, parts, part_size, weight);
  sum_parts(sums.data() + part_size - wide, parts, part_size, columns,
            float_data_of(bias, columns, kOp));
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(conv3x3, m) {
  m.def(
      "conv3x3(Tensor x, Tensor weight, Tensor? bias, Tensor? add, Tensor? other, Tensor? gate,"
      " bool flipped, bool relu, Tensor(a!) out) -> ()");
  m.def(
      "conv3x3_backward(Tensor grad, Tensor x, bool relu, Tensor(a!) weight, Tensor(b!) bias)"
      " -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&dafast::cpu::conv3x3));
  m.impl("conv3x3_backward", TORCH_BOX(&dafast::cpu::conv3x3_backward));
}
