// The instruction sets that kernels are compiled for, and which of them this machine can use.
//
// Everything is compiled for the baseline of the platform. each_isa.h compiles a file
// <op>_kernels.h for the other sets as well, and selects at run time by `isa()`.
#pragma once

#include <string>

// GCC 10 and clang 9 are the first versions that know all of them.
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)
#define DAFAST_X86 1
#endif
// GCC 11 and clang 12 are the first versions that know AVX-VNNI and AMX; clang 16 is the oldest one
// that was tried.
#if defined(DAFAST_X86) && (defined(__clang__) ? __clang_major__ >= 16 : __GNUC__ >= 11)
#define DAFAST_X86_TILES 1
#endif
// Before clang 16, arm_neon.h has these instructions only if the whole file is compiled for them.
#if defined(__aarch64__) && (defined(__linux__) || defined(__APPLE__)) && \
    (defined(__clang__) ? __clang_major__ >= 16 : __GNUC__ >= 10)
#define DAFAST_ARM 1
#endif

namespace dafast::cpu {

// In ascending order: each set includes those before it, but AVX-512 does not include AVX-VNNI.
//   avx2         AVX2, FMA, F16C
//   avx_vnni     AVX-VNNI
//   avx512       AVX-512 F, BW, DQ, VL, VNNI
//   avx512_bf16  AVX-512 BF16
//   avx512_amx   AMX tiles of int8 and bfloat16; on Linux only
//   dotprod      ARM: SDOT and UDOT (Armv8.2), without the sets before
//   i8mm         ARM: products of matrices of bytes (Armv8.6)
enum class Isa { portable, avx2, avx_vnni, avx512, avx512_bf16, avx512_amx, dotprod, i8mm };

// The best set that the processor and the operating system support and `limit_isa` allows. AMX is
// requested from the system at the first call; from then on all threads may use it.
Isa isa();

const char* name_of(Isa isa);

// Limits `isa()` to the set of this name; "" removes the limit. The environment variable
// DAFAST_CPU_CAPABILITY is the initial limit. Throws std::invalid_argument for an unknown name.
void limit_isa(const std::string& name);

}  // namespace dafast::cpu
