#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace dafast::cpu {
namespace {

constexpr Isa kAll[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16};

Isa detect() {
#ifdef DAFAST_X86
  // These builtins also check that the operating system saves the wide registers.
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c")) {
    return Isa::portable;
  }
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512vnni")) {
    return Isa::avx2;
  }
  return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
#else
  return Isa::portable;
#endif
}

Isa parse(const std::string& name) {
  for (const Isa isa : kAll) {
    if (name.empty() || name == name_of(isa)) return name.empty() ? kAll[3] : isa;
  }
  throw std::invalid_argument("DAFAST_CPU_CAPABILITY: unknown instruction set \"" + name +
                              "\"; use portable, avx2, avx512 or avx512_bf16");
}

Isa most_from_environment() {
  const char* name = std::getenv("DAFAST_CPU_CAPABILITY");
  return parse(name ? name : "");
}

std::atomic<Isa>& most() {
  static std::atomic<Isa> value{most_from_environment()};
  return value;
}

}  // namespace

Isa isa() {
  static const Isa found = detect();
  return std::min(found, most().load(std::memory_order_relaxed));
}

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512_bf16";
    default:
      return "portable";
  }
}

void limit_isa(const std::string& name) { most() = parse(name); }

}  // namespace dafast::cpu
