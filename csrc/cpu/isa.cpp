#include "isa.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#ifdef DAFAST_X86
#include <cpuid.h>
#endif
#if defined(DAFAST_X86_TILES) && defined(__linux__) && !defined(DAFAST_EMULATED)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef DAFAST_ARM
#ifdef __APPLE__
#include <sys/sysctl.h>
#else
#include <sys/auxv.h>
#endif
#endif

namespace dafast::cpu {
namespace {

constexpr std::array kAll = {Isa::portable,    Isa::avx2,       Isa::avx_vnni, Isa::avx512,
                             Isa::avx512_bf16, Isa::avx512_amx, Isa::dotprod,  Isa::i8mm};

#ifdef DAFAST_X86

// Before clang 18, __builtin_cpu_supports does not take "f16c".
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}

// These builtins also check that the operating system saves the wide registers.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

#if defined(DAFAST_EMULATED)  // see each_isa.h

bool has_avx_vnni() { return has_avx512(); }
bool has_amx() { return true; }

#elif defined(DAFAST_X86_TILES)

bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

// Whether the processor has tiles of int8 and bfloat16 and the system saves them (XCR0). Linux also
// has to be asked for their data.
bool has_amx() {
#ifdef __linux__
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kFeatures = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, AMX-TILE, AMX-INT8
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kFeatures) != kFeatures) return false;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kStates = 3u << 17;  // the settings and the data of tiles
  if ((low & kStates) != kStates) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#else

bool has_avx_vnni() { return false; }
bool has_amx() { return false; }

#endif
#endif

#ifdef DAFAST_ARM

#ifdef __APPLE__

bool has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value;
}
bool has_dotprod() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_feature("hw.optional.arm.FEAT_I8MM"); }

#else

bool has_dotprod() { return getauxval(AT_HWCAP) & 1ul << 20; }  // HWCAP_ASIMDDP
bool has_i8mm() { return getauxval(AT_HWCAP2) & 1ul << 13; }    // HWCAP2_I8MM

#endif
#endif

// Whether this machine has each set of `kAll`.
std::array<bool, kAll.size()> detect() {
  std::array<bool, kAll.size()> has{true};
#ifdef DAFAST_X86
  __builtin_cpu_init();
  has[1] = has_avx2();
  has[2] = has[1] && has_avx_vnni();
  has[3] = has[1] && has_avx512();
  has[4] = has[3] && __builtin_cpu_supports("avx512bf16");
  has[5] = has[4] && has_amx();
#endif
#ifdef DAFAST_ARM
  has[6] = has_dotprod();
  has[7] = has[6] && has_i8mm();
#endif
  return has;
}

// The best set up to `most` that this machine has.
Isa best(Isa most) {
  static const auto has = detect();
  Isa found = Isa::portable;
  for (const Isa isa : kAll) {
    if (isa <= most && has[static_cast<size_t>(isa)]) found = isa;
  }
  return found;
}

Isa parse(const std::string& name) {
  if (name.empty()) return kAll.back();
  for (const Isa isa : kAll) {
    if (name == name_of(isa)) return isa;
  }
  throw std::invalid_argument(
      "DAFAST_CPU_CAPABILITY: unknown instruction set \"" + name +
      "\"; use portable, avx2, avx_vnni, avx512, avx512_bf16 or avx512_amx; on ARM portable, dotprod "
      "or i8mm");
}

Isa best_of_environment() {
  const char* name = std::getenv("DAFAST_CPU_CAPABILITY");
  return best(parse(name ? name : ""));
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> value{best_of_environment()};
  return value;
}

}  // namespace

Isa isa() { return current().load(std::memory_order_relaxed); }

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx_vnni:
      return "avx_vnni";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::avx512_amx:
      return "avx512_amx";
    case Isa::dotprod:
      return "dotprod";
    case Isa::i8mm:
      return "i8mm";
    default:
      return "portable";
  }
}

void limit_isa(const std::string& name) { current() = best(parse(name)); }

}  // namespace dafast::cpu
