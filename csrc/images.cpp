// The ops on images, for the CPU and for CUDA: resize, padding, and the steps before and after the
// network. Each checks its tensors, describes them with the structs of dafast/images.h, and calls
// the function for their device. Python allocates the results.
#ifdef DAFAST_CUDA
#define USE_CUDA  // PyTorch's header then declares how to get the current stream
#endif
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "cpu/pieces.h"
#include "cpu/rows.h"
#include "dafast/images.h"
#include "registry.h"

#ifdef DAFAST_CUDA
#include <cuda_runtime_api.h>
#endif

namespace dafast {

void cpu::parallel_for(int64_t size, int64_t grain,
                       const std::function<void(int64_t, int64_t)>& body) {
  for_ranges(size, grain, std::max(grain, size / 8), [&](Ranges& ranges) {
    int64_t begin, end;
    while (ranges.take(begin, end)) body(begin, end);
  });
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::Half:
      return Dtype::float16;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    case ScalarType::Byte:
      return Dtype::uint8;
    case ScalarType::UInt16:
      return Dtype::uint16;
    default:
      STD_TORCH_CHECK(false, "dafast_C: no kernel for this dtype");
  }
}

bool is_float(Dtype dtype) { return dtype != Dtype::uint8 && dtype != Dtype::uint16; }

View view_of(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "dafast_C: expected a tensor (B, C, H, W)");
  constexpr int64_t most = 2147483647;  // taps count in 32 bits
  STD_TORCH_CHECK(x.size(2) <= most && x.size(3) <= most, "dafast_C: the image is too large");
  const Dtype dtype = dtype_of(x);
  return {const_cast<void*>(x.const_data_ptr()), dtype, x.size(0), x.size(1), x.size(2), x.size(3),
          x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// Whether the pixels of a row are contiguous, in one channel or with all channels.
bool has_dense_rows(const View& view) {
  return view.stride_x == 1 || (view.stride_c == 1 && view.stride_x == view.channels) ||
         view.width == 1;
}

// Whether the strides are those of a new tensor, contiguous or channels_last.
bool is_dense(const View& view) {
  const int64_t width = view.width, pixels = view.width * view.height;
  const auto is = [&](int64_t n, int64_t c, int64_t y, int64_t x) {
    return (view.batch == 1 || view.stride_n == n) && (view.channels == 1 || view.stride_c == c) &&
           (view.height == 1 || view.stride_y == y) && (view.width == 1 || view.stride_x == x);
  };
  const int64_t all = view.channels * pixels;
  return is(all, pixels, width, 1) || is(all, 1, width * view.channels, view.channels);
}

void check_pair(const View& source, const View& target) {
  STD_TORCH_CHECK(source.dtype == target.dtype && is_float(source.dtype),
                  "dafast_C: expected float32, float16 or bfloat16, the same for input and output");
  STD_TORCH_CHECK(source.batch == target.batch && source.channels == target.channels,
                  "dafast_C: batch sizes or channels differ");
  STD_TORCH_CHECK(source.height > 0 && source.width > 0, "dafast_C: the image is empty");
  STD_TORCH_CHECK(has_dense_rows(source) && is_dense(target), "dafast_C: unsupported strides");
}

bool is_empty(const View& view) {
  return view.batch == 0 || view.channels == 0 || view.height == 0 || view.width == 0;
}

// Calls `on_cpu()` or `on_cuda(workspace, stream)`, depending on the device of the tensor. The
// workspace has `words` 32-bit words; the stream is the current one. A failed launch raises.
template <typename OnCpu, typename OnCuda>
void run(const Tensor& where, int64_t words, const OnCpu& on_cpu, const OnCuda& on_cuda) {
  if (where.is_cpu()) return on_cpu();
#ifdef DAFAST_CUDA
  const auto device = where.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  // PyTorch's allocator reuses this memory only for later work on the same stream.
  const Tensor workspace = torch::stable::new_empty(where, {words}, ScalarType::Int);
  const int error = on_cuda(words > 0 ? workspace.mutable_data_ptr() : nullptr, stream);
  STD_TORCH_CHECK(error == cudaSuccess, "dafast_C: the launch failed: ",
                  cudaGetErrorString(static_cast<cudaError_t>(error)));
#else
  STD_TORCH_CHECK(false, "dafast_C: built without CUDA");
#endif
}

#ifdef DAFAST_CUDA
#define DAFAST_ON_CUDA(call) [&](void* workspace, void* stream) { return cuda::call; }
#define DAFAST_WORDS(call) (cuda::call)
#else
#define DAFAST_ON_CUDA(call) nullptr
#define DAFAST_WORDS(call) 0
#endif

void resize(const Tensor& x, const Tensor& out, bool align_corners, bool antialias, bool backward) {
  const Resize call{view_of(x), view_of(out), align_corners, antialias, backward};
  if (is_empty(call.target)) return;
  check_pair(call.source, call.target);
  run(x, x.is_cpu() ? 0 : DAFAST_WORDS(resize_bilinear_workspace(call)),
      [&] { cpu::resize_bilinear(call); },
      DAFAST_ON_CUDA(resize_bilinear(call, workspace, stream)));
}

void resize_bilinear(const Tensor& x, Tensor out, bool align_corners, bool antialias) {
  resize(x, out, align_corners, antialias, false);
}

void resize_bilinear_backward(const Tensor& grad, Tensor out, bool align_corners, bool antialias) {
  resize(grad, out, align_corners, antialias, true);
}

// `inner` is the image, `outer` the image with its padding.
void check_padding(const View& inner, const View& outer, Padding mode, int64_t left, int64_t top) {
  if (mode != Padding::reflect) return;
  const int64_t right = outer.width - inner.width - left;
  const int64_t bottom = outer.height - inner.height - top;
  STD_TORCH_CHECK(std::max(left, right) < inner.width && std::max(top, bottom) < inner.height,
                  "dafast_C: the reflection is wider than the image");
}

Padding padding_of(int64_t mode) {
  STD_TORCH_CHECK(mode >= 0 && mode <= 2, "dafast_C: unknown padding");
  return static_cast<Padding>(mode);
}

void pad(const Tensor& x, Tensor out, int64_t left, int64_t top, int64_t mode, double value) {
  const Pad call{view_of(x), view_of(out), padding_of(mode), left, top, static_cast<float>(value)};
  if (is_empty(call.target)) return;
  check_pair(call.source, call.target);
  check_padding(call.source, call.target, call.mode, left, top);
  run(x, 0, [&] { cpu::pad(call); }, DAFAST_ON_CUDA(pad(call, stream)));
}

void pad_backward(const Tensor& grad, Tensor out, int64_t left, int64_t top, int64_t mode) {
  const Pad call{view_of(grad), view_of(out), padding_of(mode), left, top, 0.0f};
  if (is_empty(call.target)) return;
  check_pair(call.source, call.target);
  check_padding(call.target, call.source, call.mode, left, top);
  run(grad, 0, [&] { cpu::pad_backward(call); }, DAFAST_ON_CUDA(pad_backward(call, stream)));
}

// placement: for each image (3, H, W) its resized height and width, and the padding left and top.
void preprocess(std::vector<Tensor> images, Tensor out, std::vector<int64_t> placement,
                std::vector<double> mean, std::vector<double> std, bool cubic, bool antialias,
                int64_t padding) {
  const View target = view_of(out);
  STD_TORCH_CHECK(is_float(target.dtype) && is_dense(target) && target.channels == 3,
                  "dafast_C: preprocess writes (B, 3, H, W) in floating point");
  STD_TORCH_CHECK(static_cast<int64_t>(images.size()) == target.batch &&
                      placement.size() == 4 * images.size() && mean.size() == 3 && std.size() == 3,
                  "dafast_C: preprocess: the lengths of the lists differ");
  if (is_empty(target)) return;
  std::vector<Photo> photos;
  for (size_t i = 0; i < images.size(); ++i) {
    const Tensor& image = images[i];
    STD_TORCH_CHECK(image.dim() == 3 && image.size(0) == 3 && image.size(1) > 0 &&
                        image.size(2) > 0 && std::max(image.size(1), image.size(2)) < 2147483647,
                    "dafast_C: expected an image (3, H, W)");
    STD_TORCH_CHECK(image.scalar_type() == images[0].scalar_type() &&
                        image.get_device_index() == out.get_device_index() &&
                        image.is_cpu() == out.is_cpu(),
                    "dafast_C: the images have several dtypes or devices");
    STD_TORCH_CHECK(image.stride(2) == 1 || image.size(2) == 1 ||
                        (image.stride(0) == 1 && image.stride(2) == 3),
                    "dafast_C: unsupported strides");
    const int64_t* place = placement.data() + 4 * i;
    STD_TORCH_CHECK(place[0] > 0 && place[1] > 0 && place[2] >= 0 && place[3] >= 0 &&
                        place[3] + place[0] <= target.height && place[2] + place[1] <= target.width,
                    "dafast_C: a resized image does not fit");
    const View inner{nullptr, target.dtype, 1, 3, place[0], place[1], 0, 0, 0, 0};
    check_padding(inner, target, padding_of(padding), place[2], place[3]);
    photos.push_back({image.const_data_ptr(), image.stride(1), image.stride(2), image.stride(0),
                      static_cast<int32_t>(image.size(1)), static_cast<int32_t>(image.size(2)),
                      static_cast<int32_t>(place[0]), static_cast<int32_t>(place[1]),
                      static_cast<int32_t>(place[2]), static_cast<int32_t>(place[3])});
  }
  Preprocess call{photos.data(), dtype_of(images[0]), target, {}, {}, padding_of(padding),
                  cubic,         antialias};
  STD_TORCH_CHECK(call.dtype == Dtype::uint8 || call.dtype == Dtype::float32,
                  "dafast_C: expected images in uint8 or float32");
  for (int c = 0; c < 3; ++c) {
    const double unit = call.dtype == Dtype::uint8 ? 255.0 : 1.0;
    call.scale[c] = static_cast<float>(1.0 / (unit * std[c]));
    call.shift[c] = static_cast<float>(-mean[c] / std[c]);
  }
  run(out, 0, [&] { cpu::preprocess(call); }, DAFAST_ON_CUDA(preprocess(call, stream)));
}

// crops: top, left, height and width of the kept part of each prediction.
void postprocess(const Tensor& disparity, std::vector<Tensor> outs, std::vector<int64_t> crops,
                 bool align_corners) {
  STD_TORCH_CHECK(disparity.dim() == 3 && static_cast<int64_t>(outs.size()) == disparity.size(0) &&
                      crops.size() == 4 * outs.size(),
                  "dafast_C: postprocess: the lengths of the lists differ");
  if (outs.empty()) return;
  STD_TORCH_CHECK(disparity.stride(2) == 1 || disparity.size(2) == 1,
                  "dafast_C: unsupported strides");
  Postprocess call{nullptr, disparity.size(0), dtype_of(disparity), dtype_of(outs[0]),
                   disparity.stride(1), disparity.stride(2), align_corners};
  STD_TORCH_CHECK(is_float(call.dtype) && (call.target_dtype == Dtype::float32 ||
                                           call.target_dtype == Dtype::uint16),
                  "dafast_C: postprocess writes float32 or uint16");
  const int64_t size = call.dtype == Dtype::float32 ? 4 : 2;
  std::vector<Map> maps;
  for (size_t i = 0; i < outs.size(); ++i) {
    const Tensor& out = outs[i];
    const int64_t* crop = crops.data() + 4 * i;
    STD_TORCH_CHECK(out.dim() == 2 && out.numel() > 0 && out.is_contiguous() &&
                        out.scalar_type() == outs[0].scalar_type() &&
                        out.is_cpu() == disparity.is_cpu() &&
                        out.get_device_index() == disparity.get_device_index() &&
                        std::max(out.size(0), out.size(1)) < 2147483647,
                    "dafast_C: expected contiguous maps (H, W) of one dtype and device");
    STD_TORCH_CHECK(crop[0] >= 0 && crop[1] >= 0 && crop[2] > 0 && crop[3] > 0 &&
                        crop[0] + crop[2] <= disparity.size(1) &&
                        crop[1] + crop[3] <= disparity.size(2),
                    "dafast_C: a crop is outside of the prediction");
    const int64_t offset = static_cast<int64_t>(i) * disparity.stride(0) +
                           crop[0] * disparity.stride(1) + crop[1] * disparity.stride(2);
    maps.push_back({static_cast<const char*>(disparity.const_data_ptr()) + offset * size,
                    out.mutable_data_ptr(), static_cast<int32_t>(crop[2]),
                    static_cast<int32_t>(crop[3]), static_cast<int32_t>(out.size(0)),
                    static_cast<int32_t>(out.size(1))});
  }
  call.maps = maps.data();
  run(disparity, disparity.is_cpu() ? 0 : DAFAST_WORDS(postprocess_workspace(call)),
      [&] { cpu::postprocess(call); }, DAFAST_ON_CUDA(postprocess(call, workspace, stream)));
}

void register_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("resize_bilinear", TORCH_BOX(&resize_bilinear));
  m.impl("resize_bilinear_backward", TORCH_BOX(&resize_bilinear_backward));
  m.impl("pad", TORCH_BOX(&pad));
  m.impl("pad_backward", TORCH_BOX(&pad_backward));
  m.impl("preprocess", TORCH_BOX(&preprocess));
  m.impl("postprocess", TORCH_BOX(&postprocess));
}

}  // namespace
}  // namespace dafast

DAFAST_OP(resize_bilinear, m) {
  m.def(
      "resize_bilinear(Tensor x, Tensor(a!) out, bool align_corners, bool antialias) -> ()");
  m.def(
      "resize_bilinear_backward(Tensor grad, Tensor(a!) out, bool align_corners, bool antialias)"
      " -> ()");
}

DAFAST_OP(pad, m) {
  m.def(
      "pad(Tensor x, Tensor(a!) out, int left, int top, int mode, float value) -> ()");
  m.def("pad_backward(Tensor grad, Tensor(a!) out, int left, int top, int mode) -> ()");
}

DAFAST_OP(preprocess, m) {
  m.def(
      "preprocess(Tensor[] images, Tensor(a!) out, int[] placement, float[] mean, float[] std,"
      " bool cubic, bool antialias, int padding) -> ()");
}

DAFAST_OP(postprocess, m) {
  m.def(
      "postprocess(Tensor disparity, Tensor(a!)[] outs, int[] crops, bool align_corners) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) { dafast::register_ops(m); }
#ifdef DAFAST_CUDA
STABLE_TORCH_LIBRARY_IMPL(dafast_C, CUDA, m) { dafast::register_ops(m); }
#endif
