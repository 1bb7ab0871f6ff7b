// Compiles the file DAFAST_KERNELS for each instruction set of isa.h, each time in a namespace with
// the name of the set. DAFAST_FOR_ISA(name) is the function, or the constant, of that name for the
// set in use. Define DAFAST_KERNELS_FOR_VNNI, DAFAST_KERNELS_FOR_BF16 or DAFAST_KERNELS_FOR_AMX as
// well where the sets avx_vnni, avx512_bf16 or avx512_amx have kernels of their own; elsewhere the
// kernels of avx2, avx512 and avx512_bf16 serve them. On ARM, DAFAST_KERNELS_FOR_DOTPROD is for the
// sets dotprod and i8mm; elsewhere the portable kernels, which the compiler vectorises for NEON,
// serve them.
//
// Include this once in a file, after the types and headers that the kernels need.
//
// The compiler vectorises; where that is not enough, the kernels ask which set they are compiled
// for: DAFAST_IN_AVX2, DAFAST_IN_AVX_VNNI (where DAFAST_IN_AVX2 is defined too), DAFAST_IN_AVX512,
// DAFAST_IN_AVX512_BF16 and DAFAST_IN_AMX (where those before are defined too), DAFAST_IN_DOTPROD and
// DAFAST_IN_I8MM (where DAFAST_IN_DOTPROD is defined too).
//
// With DAFAST_EMULATED, in builds for tests, a processor with AVX-512 BF16 runs the kernels of
// avx_vnni and avx512_amx: the former use the encoding of AVX-512, the latter an emulator of the
// tiles, tests/emulated/amx_emulated.h. scripts/check_instruction_sets.sh makes such a build.
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
#ifdef DAFAST_EMULATED
#include "amx_emulated.h"
#endif
#endif
#ifdef DAFAST_ARM
#include <arm_neon.h>
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
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(DAFAST_KERNELS_FOR_VNNI) && defined(DAFAST_X86_TILES)
#if defined(__clang__) && defined(DAFAST_EMULATED)
#pragma clang attribute push(                                                             \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512vl,avx512vnni"))), apply_to = function)
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), \
                             apply_to = function)
#elif defined(DAFAST_EMULATED)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512vl,avx512vnni")
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif
#define DAFAST_IN_AVX_VNNI 1
namespace avx_vnni {
#include DAFAST_KERNELS
}
#undef DAFAST_IN_AVX_VNNI
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
namespace avx_vnni = avx2;
#endif
#undef DAFAST_IN_AVX2

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

#if defined(DAFAST_KERNELS_FOR_AMX) && defined(DAFAST_X86_TILES)
#if defined(__clang__) && defined(DAFAST_EMULATED)
#pragma clang attribute push(                                                                   \
    __attribute__((target(                                                                      \
        "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"))),            \
    apply_to = function)
#elif defined(__clang__)
#pragma clang attribute push(                                                                   \
    __attribute__((target(                                                                      \
        "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,"               \
        "amx-tile,amx-int8,amx-bf16"))),                                                        \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")
#pragma GCC target("prefer-vector-width=512")
#ifndef DAFAST_EMULATED
#pragma GCC target("amx-tile,amx-int8,amx-bf16")
#endif
#endif
#define DAFAST_IN_AVX512_BF16 1
#define DAFAST_IN_AMX 1
namespace avx512_amx {
#include DAFAST_KERNELS
}
#undef DAFAST_IN_AMX
#undef DAFAST_IN_AVX512_BF16
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
namespace avx512_amx = avx512_bf16;
#endif
#undef DAFAST_IN_AVX512

#define DAFAST_FOR_ISA(name)                                             \
  (::dafast::cpu::isa() >= Isa::avx512_amx    ? avx512_amx::name         \
   : ::dafast::cpu::isa() >= Isa::avx512_bf16 ? avx512_bf16::name        \
   : ::dafast::cpu::isa() >= Isa::avx512      ? avx512::name             \
   : ::dafast::cpu::isa() >= Isa::avx_vnni    ? avx_vnni::name           \
   : ::dafast::cpu::isa() >= Isa::avx2        ? avx2::name               \
                                              : portable::name)
#elif defined(DAFAST_ARM) && defined(DAFAST_KERNELS_FOR_DOTPROD)

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define DAFAST_IN_DOTPROD 1
namespace dotprod {
#include DAFAST_KERNELS
}
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("dotprod,i8mm"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#endif
#define DAFAST_IN_I8MM 1
namespace i8mm {
#include DAFAST_KERNELS
}
#undef DAFAST_IN_I8MM
#undef DAFAST_IN_DOTPROD
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define DAFAST_FOR_ISA(name)                               \
  (::dafast::cpu::isa() >= Isa::i8mm      ? i8mm::name     \
   : ::dafast::cpu::isa() >= Isa::dotprod ? dotprod::name  \
                                          : portable::name)
#else
#define DAFAST_FOR_ISA(name) portable::name
#endif

}  // namespace
}  // namespace dafast::cpu
