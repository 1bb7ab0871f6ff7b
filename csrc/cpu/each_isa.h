// Compiles the file DAFAST_KERNELS for every instruction set of isa.h that more than the baseline
// has something to gain from, each in a namespace of its own; DAFAST_FOR_ISA(name) is the function
// of that name for the set in use.
//
// The compiler vectorises; where that is not enough, DAFAST_IN_AVX2 and DAFAST_IN_AVX512 say which
// set it is. What that file defines, it defines here, in an unnamed namespace. It uses no templates or inline functions from headers except those
// of dafast/numbers.h, which are compiled for the baseline wherever they are not inlined: a function
// that the linker merges with that of another file must not hold instructions of a wider set.
#include "isa.h"
#include "dafast/numbers.h"

#ifdef DAFAST_X86
#include <immintrin.h>
#endif

namespace dafast::cpu {

constexpr int kPadding = 32;  // float32 that blocks of data are padded to a multiple of

namespace {

namespace portable {
#include DAFAST_KERNELS
}

#ifdef DAFAST_X86

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define DAFAST_IN_AVX2 1
namespace avx2 {
#include DAFAST_KERNELS
}
#undef DAFAST_IN_AVX2
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(                                                              \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
    apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#pragma GCC target("prefer-vector-width=512")
#endif
#define DAFAST_IN_AVX512 1
namespace avx512 {
#include DAFAST_KERNELS
}
#undef DAFAST_IN_AVX512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define DAFAST_FOR_ISA(name)                                                          \
  (::dafast::cpu::isa() >= Isa::avx512 ? avx512::name                                 \
                                       : ::dafast::cpu::isa() >= Isa::avx2 ? avx2::name \
                                                                           : portable::name)
#else
#define DAFAST_FOR_ISA(name) portable::name
#endif

}  // namespace
}  // namespace dafast::cpu
