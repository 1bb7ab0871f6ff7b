#include <cmath>
#include <limits>

#include "dafast/quantise.h"
#include "rows.h"

namespace dafast::cpu {
namespace {

template <typename T>
void resize(const Postprocess& call, const Map& map, float* target) {
  const LinearAxis y = linear_axis(map.height, map.target_height, call.align_corners, false);
  const LinearAxis x = linear_axis(map.width, map.target_width, call.align_corners, false);
  const HostTaps rows(map.target_height, most_linear_taps(y));
  const HostTaps columns(map.target_width, most_linear_taps(x));
  for (int64_t i = 0; i < rows.targets(); ++i) fill_taps(y, i, rows.table(), i);
  for (int64_t i = 0; i < columns.targets(); ++i) fill_taps(x, i, columns.table(), i);
  parallel_for(
      map.target_height, grain_of(map.width + map.target_width), [&](int64_t begin, int64_t end) {
        Resampler<T> row(rows.table(), columns.table(), map.width, map.target_width, 1,
                         map.target_height > map.height);
        for (int64_t i = begin; i < end; ++i) {
          row(static_cast<const T*>(map.source), call.stride_y, i, 0, map.target_width,
              target + i * map.target_width);
        }
      });
}

}  // namespace

void postprocess(const Postprocess& call) {
  for (int64_t i = 0; i < call.count; ++i) {
    const Map& map = call.maps[i];
    const int64_t pixels = static_cast<int64_t>(map.target_height) * map.target_width;
    std::vector<float> whole(call.target_dtype == Dtype::uint16 ? static_cast<size_t>(pixels) : 0);
    float* resized = whole.empty() ? static_cast<float*>(map.target) : whole.data();
    with_type(call.dtype, [&](auto type) { resize<decltype(type)>(call, map, resized); });
    if (whole.empty()) continue;
    Range range;
    for (const float value : whole) range.add(value);
    uint16_t* target = static_cast<uint16_t*>(map.target);
    parallel_for(pixels, 32768, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) target[j] = range.quantise(whole[j]);
    });
  }
}

}  // namespace dafast::cpu
