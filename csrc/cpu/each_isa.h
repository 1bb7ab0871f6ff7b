// Compiles the file DAFAST_KERNELS for each instruction set of isa.h, each time in a namespace with
// the name of the set. DAFAST_FOR_ISA(name) is the function, or the constant, of that name for the
// set in use. Define DAFAST_KERNELS_FOR_BF16 as well where the set avx512_bf16 has kernels of its
// own; elsewhere the kernels of avx512 serve it.
//
// Include this once in a file, after the types and headers that the kernels need.
//
// The compiler vectorises; where that is not enough, the kernels ask which set they are compiled
// for: DAFAST_IN_AVX2, DAFAST_IN_AVX512, DAFAST_IN_AVX512_BF16 (where DAFAST_IN_AVX512 is defined
// too).
//
// The kernels file must not use templates or inline functions of headers, except those of
// include/dafast that are inlined always (DAFAST_HOST_DEVICE). The linker keeps one copy of an
// inline function that several files share. If that copy holds instructions of a wider set,
// every caller executes them, and older processors crash. Therefore everything here is in an
// unnamed namespace, and tests/ops/test_instruction_sets.py checks the built extension.
#include "dafast/numbers.h"
#include "isa.h"

#ifdef DAFAST_X86
#include <immintrin.h>
#ifndef __clang__
// False ones, in the headers of GCC 12.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
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
#else
#pragma GCC pop_options
#endif

#ifdef __clang__
#pragma clang attribute push(                                                              \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#pragma GCC target("prefer-vector-width=512")
#endif
#define DAFAST_IN_AVX512 1
namespace avx512 {
#include DAFAST_KERNELS
}
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#ifdef DAFAST_KERNELS_FOR_BF16
#ifdef __clang__
#pragma clang attribute push(                                                                   \
    __attribute__((target(                                                                      \
        "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"))),            \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")
#pragma GCC target("prefer-vector-width=512")
#endif
#define DAFAST_IN_AVX512_BF16 1
namespace avx512_bf16 {
#include DAFAST_KERNELS
}
#undef DAFAST_IN_AVX512_BF16
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
namespace avx512_bf16 = avx512;
#endif
#undef DAFAST_IN_AVX512

#define DAFAST_FOR_ISA(name)                                             \
  (::dafast::cpu::isa() >= Isa::avx512_bf16 ? avx512_bf16::name          \
   : ::dafast::cpu::isa() >= Isa::avx512    ? avx512::name               \
   : ::dafast::cpu::isa() >= Isa::avx2      ? avx2::name                 \
                                            : portable::name)
#else
#define DAFAST_FOR_ISA(name) portable::name
#endif

}  // namespace
}  // namespace dafast::cpu
