#include "row_loops.h"

#include "isa.h"

namespace dafast::cpu {

const RowLoops& row_loops() {
#ifdef DAFAST_X86
  if (isa() >= Isa::avx512) return row_loops_avx512;
  if (isa() >= Isa::avx2) return row_loops_avx2;
#endif
  return kLoops;
}

}  // namespace dafast::cpu
