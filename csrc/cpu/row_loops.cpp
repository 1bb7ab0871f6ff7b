// The loops over a row of an image, for each instruction set.
#include <cstdint>

#include "rows.h"

#define DAFAST_KERNELS "row_loops_kernels.h"
#include "each_isa.h"

namespace dafast::cpu {

const RowLoops& row_loops() { return DAFAST_FOR_ISA(kLoops); }

}  // namespace dafast::cpu
