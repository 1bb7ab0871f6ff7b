#include <type_traits>

#include "rows.h"

namespace dafast::cpu {
namespace {

template <typename T>
void resample(const Resize& call, const TapTable& rows, const TapTable& columns) {
  const View& source = call.source;
  const View& target = call.target;
  // A row holds all channels of its pixels, or one channel.
  const bool planar = source.stride_x == 1 || (source.width == 1 && source.stride_c != 1);
  const int64_t channels = planar ? 1 : source.channels;
  const int64_t planes = planar ? source.channels : 1;
  parallel_for(
      source.batch * planes * target.height, grain_of((source.width + target.width) * channels),
      [&](int64_t begin, int64_t end) {
        Resampler<T> row(rows, columns, source.width, target.width, channels,
                         target.height > source.height);
        std::vector<float> result(static_cast<size_t>(target.width * channels));
        for (int64_t i = begin; i < end; ++i) {
          const int64_t y = i % target.height;
          const int64_t plane = i / target.height % planes;
          const int64_t image = i / target.height / planes;
          const T* from = static_cast<const T*>(source.data) + source.plane(image, plane);
          T* to = static_cast<T*>(target.data) + target.plane(image, plane) + y * target.stride_y;
          const bool run = channels == 1 ? target.stride_x == 1
                                         : target.stride_c == 1 && target.stride_x == channels;
          if constexpr (std::is_same_v<T, float>) {
            if (run) {
              row(from, source.stride_y, y, 0, target.width, to);
              continue;
            }
          }
          row(from, source.stride_y, y, 0, target.width, result.data());
          if (run) {
            store(result.data(), target.width * channels, to, 1);
          } else if (channels == 1) {
            store(result.data(), target.width, to, target.stride_x);
          } else {
            for (int64_t x = 0; x < target.width; ++x) {
              store(result.data() + x * channels, channels, to + x * target.stride_x,
                    target.stride_c);
            }
          }
        }
      });
}

}  // namespace

void resize_bilinear(const Resize& call) {
  const LinearAxis y = call.rows(), x = call.columns();
  const HostTaps rows(call.target.height, call.most(y));
  const HostTaps columns(call.target.width, call.most(x));
  const auto fill = call.backward ? fill_users : fill_taps;
  for (int64_t i = 0; i < rows.targets(); ++i) fill(y, i, rows.table(), i);
  for (int64_t i = 0; i < columns.targets(); ++i) fill(x, i, columns.table(), i);
  with_type(call.source.dtype, [&](auto type) {
    resample<decltype(type)>(call, rows.table(), columns.table());
  });
}

}  // namespace dafast::cpu
