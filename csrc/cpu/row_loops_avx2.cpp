#include "isa.h"
#include "rows.h"

#ifdef DAFAST_X86
#pragma GCC target("avx2,fma,f16c")
#include "row_loops.h"

namespace dafast::cpu {

extern const RowLoops row_loops_avx2 = kLoops;

}  // namespace dafast::cpu
#endif
