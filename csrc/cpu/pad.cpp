#include "rows.h"

namespace dafast::cpu {
namespace {

// Calls body(image, channel, y) for all rows of a view; body(image, 0, y) if a row holds all
// channels of its pixels.
template <typename Body>
void for_rows(const View& view, bool planar, const Body& body) {
  const int64_t planes = planar ? view.channels : 1;
  const int64_t length = view.width * (planar ? 1 : view.channels);
  parallel_for(view.batch * planes * view.height, grain_of(length),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   body(i / view.height / planes, i / view.height % planes, i % view.height);
                 }
               });
}

bool is_planar(const View& view) { return view.stride_c != 1 || view.channels == 1; }

template <typename T>
void pad(const Pad& call) {
  const View& source = call.source;
  const View& target = call.target;
  const T value = from_float<T>(call.value);
  const bool planar = is_planar(target);
  const int64_t channels = planar ? 1 : target.channels;
  // The columns of the image itself are contiguous.
  const int64_t inner = std::min(std::max<int64_t>(call.left, 0), target.width);
  const int64_t outer =
      std::max(inner, std::min(target.width, call.left + source.width));
  for_rows(target, planar, [&](int64_t image, int64_t plane, int64_t y) {
    T* to = static_cast<T*>(target.data) + target.plane(image, plane) + y * target.stride_y;
    const int64_t row = padded_source(call.mode, y - call.top, source.height);
    if (row < 0) {
      std::fill(to, to + target.width * channels, value);
      return;
    }
    const T* from =
        static_cast<const T*>(source.data) + source.plane(image, plane) + row * source.stride_y;
    const auto pixel = [&](int64_t x) {
      const int64_t column = padded_source(call.mode, x - call.left, source.width);
      for (int64_t c = 0; c < channels; ++c) {
        to[x * channels + c] =
            column < 0 ? value : from[column * source.stride_x + c * source.stride_c];
      }
    };
    for (int64_t x = 0; x < inner; ++x) pixel(x);
    if (source.stride_x == channels && (channels == 1 || source.stride_c == 1)) {
      const T* run = from + (inner - call.left) * channels;
      std::copy(run, run + (outer - inner) * channels, to + inner * channels);
    } else {
      for (int64_t x = inner; x < outer; ++x) pixel(x);
    }
    for (int64_t x = outer; x < target.width; ++x) pixel(x);
  });
}

template <typename T>
void pad_backward(const Pad& call) {
  const View& source = call.source;
  const View& target = call.target;
  const bool planar = is_planar(target);
  const int64_t channels = planar ? 1 : target.channels;
  std::vector<PaddedUsers> columns(static_cast<size_t>(target.width));
  for (int64_t x = 0; x < target.width; ++x) {
    columns[x] = padded_users(call.mode, x, target.width, call.left, source.width);
  }
  for_rows(target, planar, [&](int64_t image, int64_t plane, int64_t y) {
    const T* from = static_cast<const T*>(source.data) + source.plane(image, plane);
    T* to = static_cast<T*>(target.data) + target.plane(image, plane) + y * target.stride_y;
    const PaddedUsers rows = padded_users(call.mode, y, target.height, call.top, source.height);
    for (int64_t x = 0; x < target.width; ++x) {
      for (int64_t c = 0; c < channels; ++c) {
        float sum = 0.0f;
        for (int64_t j = 0; j < rows.count; ++j) {
          const T* line = from + rows.at(j) * source.stride_y + c * source.stride_c;
          for (int64_t k = 0; k < columns[x].count; ++k) {
            sum += to_float(line[columns[x].at(k) * source.stride_x]);
          }
        }
        to[x * channels + c] = from_float<T>(sum);
      }
    }
  });
}

}  // namespace

void pad(const Pad& call) {
  with_type(call.source.dtype, [&](auto type) { pad<decltype(type)>(call); });
}

void pad_backward(const Pad& call) {
  with_type(call.source.dtype, [&](auto type) { pad_backward<decltype(type)>(call); });
}

}  // namespace dafast::cpu
