#include "isa.h"
#include "rows.h"

#ifdef DAFAST_X86
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#include "row_loops.h"

namespace dafast::cpu {

extern const RowLoops row_loops_avx512 = kLoops;

}  // namespace dafast::cpu
#endif
