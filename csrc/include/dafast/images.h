// The ops on images without torch: their arguments, and their functions for the CPU and for CUDA.
// The caller allocates the results.
#pragma once

#include <cstdint>

#include "dafast/numbers.h"
#include "dafast/padding.h"
#include "dafast/taps.h"

namespace dafast {

// A batch of images with any strides, which are in elements.
struct View {
  void* data;
  Dtype dtype;
  int64_t batch, channels, height, width;
  int64_t stride_n, stride_c, stride_y, stride_x;

  DAFAST_HOST_DEVICE int64_t plane(int64_t image, int64_t channel) const {
    return image * stride_n + channel * stride_c;
  }
};

struct Resize {
  View source;
  View target;
  bool align_corners;
  bool antialias;
  bool backward;  // source is the gradient of the result, target that of the input

  LinearAxis axis(int64_t source_size, int64_t target_size) const {
    return backward ? linear_axis(target_size, source_size, align_corners, antialias)
                    : linear_axis(source_size, target_size, align_corners, antialias);
  }
  LinearAxis rows() const { return axis(source.height, target.height); }
  LinearAxis columns() const { return axis(source.width, target.width); }
  int64_t most(const LinearAxis& axis) const {
    return backward ? most_linear_users(axis) : most_linear_taps(axis);
  }
};

struct Pad {
  View source;
  View target;
  Padding mode;
  int64_t left, top;  // negative: that much is cropped
  float value;
};

// A photo to preprocess, read in place.
struct Photo {
  const void* data;
  int64_t stride_y, stride_x, stride_c;
  int32_t height, width;    // of the photo
  int32_t resized_height, resized_width;
  int32_t left, top;        // padding
};

struct Preprocess {
  const Photo* photos;
  Dtype dtype;  // of the photos: float32 or uint8
  View target;
  float scale[3], shift[3];  // of a channel: scale * value + shift
  Padding padding;
  bool cubic;
  bool antialias;
};

// A prediction without its padding, and the map of the photo's size to write.
struct Map {
  const void* source;
  void* target;  // contiguous
  int32_t height, width;
  int32_t target_height, target_width;
};

struct Postprocess {
  const Map* maps;
  int64_t count;
  Dtype dtype;         // of the predictions
  Dtype target_dtype;  // float32, or uint16: the range of each map scaled to 0..65535
  int64_t stride_y, stride_x;
  bool align_corners;
};

namespace cpu {
void resize_bilinear(const Resize& call);
void pad(const Pad& call);
void pad_backward(const Pad& call);
void preprocess(const Preprocess& call);
void postprocess(const Postprocess& call);
}  // namespace cpu

// These only launch kernels, on a stream (a cudaStream_t) of the current device, and return a
// cudaError_t.
namespace cuda {
int64_t resize_bilinear_workspace(const Resize& call);  // 32-bit words
int resize_bilinear(const Resize& call, void* workspace, void* stream);
int pad(const Pad& call, void* stream);
int pad_backward(const Pad& call, void* stream);
int preprocess(const Preprocess& call, void* stream);
int64_t postprocess_workspace(const Postprocess& call);
int postprocess(const Postprocess& call, void* workspace, void* stream);
}  // namespace cuda

}  // namespace dafast
