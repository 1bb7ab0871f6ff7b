#include "rows.h"

namespace dafast::cpu {
namespace {

// Taps of an axis whose targets include the padding; pixels of constant padding have no taps.
template <typename Fill>
void fill_padded(const HostTaps& taps, Padding padding, int64_t resized, int64_t before,
                 const Fill& fill) {
  const TapTable& table = taps.table();
  for (int64_t i = 0; i < taps.targets(); ++i) {
    const int64_t index = padded_source(padding, i - before, resized);
    if (index >= 0) fill(index, table, i);  // a new table holds zeros
  }
}

template <typename S, typename T>
void photo_rows(const Preprocess& call, const Photo& photo, const TapTable& rows,
                const TapTable& columns, int64_t image) {
  const View& target = call.target;
  const bool planar = photo.stride_x == 1 || (photo.width == 1 && photo.stride_c != 1);
  const int64_t channels = planar ? 1 : 3;
  // The columns without constant padding.
  const bool constant = call.padding == Padding::constant;
  const int64_t begin_x = constant ? photo.left : 0;
  const int64_t end_x = constant ? photo.left + photo.resized_width : target.width;
  parallel_for(target.height, grain_of(3 * photo.width), [&](int64_t begin, int64_t end) {
    const bool enlarges = photo.resized_height > photo.height;
    std::vector<Resampler<S>> of_plane(
        planar ? 3 : 1,
        Resampler<S>(rows, columns, photo.width, target.width, channels, enlarges));
    std::vector<float> result(static_cast<size_t>(target.width * channels));
    std::vector<float> plane(static_cast<size_t>(target.width));
    const S* from = static_cast<const S*>(photo.data);
    for (int64_t y = begin; y < end; ++y) {
      for (int c = 0; c < 3; ++c) {
        if (planar || c == 0) {
          of_plane[c](from + c * photo.stride_c, photo.stride_y, y, begin_x, end_x, result.data());
        }
        const float* values = result.data() + (planar ? 0 : c);
        std::fill(plane.begin(), plane.end(), 0.0f);
        if (rows.count[y] > 0) {
          const float scale = call.scale[c], shift = call.shift[c];
          for (int64_t x = begin_x; x < end_x; ++x) plane[x] = values[x * channels] * scale + shift;
        }
        T* to = static_cast<T*>(target.data) + target.plane(image, c) + y * target.stride_y;
        store(plane.data(), target.width, to, target.stride_x);
      }
    }
  });
}

}  // namespace

void preprocess(const Preprocess& call) {
  const View& target = call.target;
  for (int64_t image = 0; image < target.batch; ++image) {
    const Photo& photo = call.photos[image];
    const LinearAxis y =
        linear_axis(photo.height, photo.resized_height, false, call.antialias && !call.cubic);
    const LinearAxis x =
        linear_axis(photo.width, photo.resized_width, false, call.antialias && !call.cubic);
    const auto most = [&](const LinearAxis& axis) {
      return call.cubic ? std::min<int64_t>(4, axis.source) : most_linear_taps(axis);
    };
    const auto fill = [&](const LinearAxis& axis) {
      return [&call, axis](int64_t index, const TapTable& table, int64_t row) {
        if (call.cubic) return fill_cubic(axis.source, axis.target, index, table, row);
        fill_taps(axis, index, table, row);
      };
    };
    const HostTaps rows(target.height, most(y));
    const HostTaps columns(target.width, most(x));
    fill_padded(rows, call.padding, photo.resized_height, photo.top, fill(y));
    fill_padded(columns, call.padding, photo.resized_width, photo.left, fill(x));
    with_type(target.dtype, [&](auto type) {
      using T = decltype(type);
      if (call.dtype == Dtype::uint8) {
        photo_rows<uint8_t, T>(call, photo, rows.table(), columns.table(), image);
      } else {
        photo_rows<float, T>(call, photo, rows.table(), columns.table(), image);
      }
    });
  }
}

}  // namespace dafast::cpu
