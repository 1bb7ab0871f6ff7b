// What the module dafast._C says about the affine-invariant loss on CUDA.
#pragma once

#include <cstdint>

namespace dafast {

// Blocks of a cluster that keeps a map in shared memory on this GPU; 0 if none does.
int affine_invariant_loss_cluster(int device, int64_t pixels, int regions);

}  // namespace dafast
