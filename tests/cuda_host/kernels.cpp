// The .cu files as one library for the host, and the ops for ctypes. Arrays of integers are the
// fields of the structs in dafast/images.h, in their order.
#include <vector>

#include "../../csrc/cuda/affine_invariant_loss.cu"
#include "../../csrc/cuda/pad.cu"
#include "../../csrc/cuda/postprocess.cu"
#include "../../csrc/cuda/preprocess.cu"
#include "../../csrc/cuda/resize_bilinear.cu"

namespace {

using namespace dafast;

View view(void* data, int dtype, const int64_t* n) {
  return {data, static_cast<Dtype>(dtype), n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7]};
}

// A workspace of exactly the requested size, so that a sanitizer checks its bounds. No kernel may use
// its initial values.
std::vector<int32_t> workspace(int64_t words) {
  return std::vector<int32_t>(static_cast<size_t>(words), 0x7fffffff);
}

}  // namespace

extern "C" {

// The order in which threads run; what the device has to answer.
void set_order(unsigned order) { shim::order = order; }

void set_device(int max_shared, int max_cluster) {
  shim::max_shared = max_shared;
  shim::max_cluster = max_cluster;
}

int affine_invariant_loss_cluster(int64_t pixels, int regions) {
  return cuda::affine_invariant_loss_cluster(pixels, regions).blocks;
}

// Without `out` the forward, which writes the loss and the coefficients; else the backward.
int affine_invariant_loss(void** tensors, const int* dtypes, const int64_t* strides, int64_t count,
                          int64_t pixels, float min_scale, float* loss, float* coefficients,
                          void* out, int blocks, int threads) {
  const LossMaps maps{{tensors[0], tensors[1]},
                      {static_cast<Dtype>(dtypes[0]), static_cast<Dtype>(dtypes[1])},
                      static_cast<const uint8_t*>(tensors[2]),
                      static_cast<const uint8_t*>(tensors[3]),
                      {strides[0], strides[1], strides[2], strides[3]},
                      count,
                      pixels};
  if (out) return cuda::affine_invariant_loss_backward(maps, loss, coefficients, out, nullptr);
  std::vector<int32_t> words = workspace(cuda::affine_invariant_loss_workspace(count));
  return cuda::affine_invariant_loss(maps, min_scale, {loss, coefficients, words.data()},
                                     {blocks, threads}, nullptr);
}

int resize_bilinear(void* source, const int64_t* source_view, void* target,
                    const int64_t* target_view, int dtype, int align_corners, int antialias,
                    int backward) {
  const Resize call{view(source, dtype, source_view), view(target, dtype, target_view),
                    align_corners != 0, antialias != 0, backward != 0};
  std::vector<int32_t> words = workspace(cuda::resize_bilinear_workspace(call));
  return cuda::resize_bilinear(call, words.data(), nullptr);
}

int pad(void* source, const int64_t* source_view, void* target, const int64_t* target_view,
        int dtype, int mode, int64_t left, int64_t top, float value, int backward) {
  const Pad call{view(source, dtype, source_view), view(target, dtype, target_view),
                 static_cast<Padding>(mode), left, top, value};
  return backward ? cuda::pad_backward(call, nullptr) : cuda::pad(call, nullptr);
}

int preprocess(void** images, const int64_t* photos, int photo_dtype, void* target,
               const int64_t* target_view, int dtype, const float* scale, const float* shift,
               int padding, int cubic, int antialias) {
  std::vector<Photo> all;
  for (int64_t i = 0; i < target_view[0]; ++i) {
    const int64_t* n = photos + 9 * i;
    const auto at = [n](int k) { return static_cast<int32_t>(n[k]); };
    all.push_back({images[i], n[0], n[1], n[2], at(3), at(4), at(5), at(6), at(7), at(8)});
  }
  const Preprocess call{all.data(),
                        static_cast<Dtype>(photo_dtype),
                        view(target, dtype, target_view),
                        {scale[0], scale[1], scale[2]},
                        {shift[0], shift[1], shift[2]},
                        static_cast<Padding>(padding),
                        cubic != 0,
                        antialias != 0};
  return cuda::preprocess(call, nullptr);
}

int postprocess(void** sources, void** targets, const int64_t* maps, int64_t count, int dtype,
                int target_dtype, int64_t stride_y, int64_t stride_x, int align_corners) {
  std::vector<Map> all;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* n = maps + 4 * i;
    const auto at = [n](int k) { return static_cast<int32_t>(n[k]); };
    all.push_back({sources[i], targets[i], at(0), at(1), at(2), at(3)});
  }
  const Postprocess call{all.data(), count, static_cast<Dtype>(dtype),
                         static_cast<Dtype>(target_dtype), stride_y, stride_x, align_corners != 0};
  std::vector<int32_t> words = workspace(cuda::postprocess_workspace(call));
  return cuda::postprocess(call, words.empty() ? nullptr : words.data(), nullptr);
}

}  // extern "C"
