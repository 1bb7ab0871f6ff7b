// Which vector instructions the kernels written for them may use on this machine.
//
// Everything is compiled for the baseline of the platform. A kernel that has more to gain is written
// for an instruction set in a file of its own, cpu/<op>_<set>.cpp, under `#pragma GCC target` or a
// `target` attribute, and called only where `isa()` is at least that.
#pragma once

#include <string>

// GCC 10 and clang 9 are the first that know them all.
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)
#define DAFAST_X86 1
#endif

namespace dafast::cpu {

// In order: each has everything that those before it have.
//   avx2         AVX2, FMA, F16C
//   avx512       AVX-512 F, BW, DQ, VL, VNNI
//   avx512_bf16  and BF16
enum class Isa { portable, avx2, avx512, avx512_bf16 };

// What this processor and its system offer, and `limit_isa` allows.
Isa isa();

const char* name_of(Isa isa);

// Uses no more than the set of this name, or all there is for "". The environment variable
// DAFAST_CPU_CAPABILITY does the same from the start. Throws std::invalid_argument.
void limit_isa(const std::string& name);

}  // namespace dafast::cpu
