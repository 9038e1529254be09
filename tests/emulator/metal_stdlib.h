// Stands in for <metal_stdlib>: mathematics, thread attributes, and the entry point that Python calls.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdlib>

#include "types.h"

namespace metal {

// None of these are templates, so that a Ref or a 16-bit float converts to the argument.
#define EMULATOR_ORDER(T)                          \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; } \
  inline T clamp(T v, T low, T high) { return min(max(v, low), high); }
EMULATOR_ORDER(int)
EMULATOR_ORDER(uint)
EMULATOR_ORDER(long)
EMULATOR_ORDER(ulong)
#undef EMULATOR_ORDER
// Of a NaN and a number, the number.
inline float fmin(float a, float b) { return b < a || a != a ? b : a; }
inline float fmax(float a, float b) { return a < b || a != a ? b : a; }
inline float min(float a, float b) { return fmin(a, b); }
inline float max(float a, float b) { return fmax(a, b); }
inline float clamp(float v, float low, float high) { return fmin(fmax(v, low), high); }

#define EMULATOR_MATH(name) \
  inline float name(float v) { return std::name(v); }
EMULATOR_MATH(exp)
EMULATOR_MATH(exp2)
EMULATOR_MATH(log)
EMULATOR_MATH(log2)
EMULATOR_MATH(tanh)
EMULATOR_MATH(sqrt)
EMULATOR_MATH(fabs)
EMULATOR_MATH(floor)
EMULATOR_MATH(ceil)
EMULATOR_MATH(round)
EMULATOR_MATH(rint)
EMULATOR_MATH(trunc)
#undef EMULATOR_MATH
using std::abs;  // of integers as well
inline float rsqrt(float v) { return 1.0f / std::sqrt(v); }
inline float pow(float base, float exponent) { return std::pow(base, exponent); }
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline bool isnan(float v) { return std::isnan(v); }
inline bool isinf(float v) { return std::isinf(v); }
inline bool isfinite(float v) { return std::isfinite(v); }

#define EMULATOR_SELECT(T) \
  inline T select(T otherwise, T then, bool condition) { return condition ? then : otherwise; }
EMULATOR_SELECT(float)
EMULATOR_SELECT(int)
EMULATOR_SELECT(uint)
#undef EMULATOR_SELECT

namespace precise {
using metal::exp, metal::exp2, metal::log, metal::log2, metal::tanh, metal::sqrt, metal::rsqrt, metal::pow;
}
namespace fast {
using metal::exp, metal::exp2, metal::log, metal::log2, metal::tanh, metal::sqrt, metal::rsqrt, metal::pow;
}

}  // namespace metal

#include "group.h"

namespace emulator {

inline metal::uint3 vector(Extent e) { return {e.x, e.y, e.z}; }
inline uint32_t simdgroups_of(Extent e) { return uint32_t((e.count() + kSimdWidth - 1) / kSimdWidth); }

// The values of the parameters that MLX adds when a kernel mentions them.
namespace attribute {
inline metal::uint3 thread_position_in_threadgroup() { return vector(machine.current->position); }
inline metal::uint3 threadgroup_position_in_grid() { return vector(machine.group_position); }
inline metal::uint3 thread_position_in_grid() {
  return threadgroup_position_in_grid() * vector(machine.dispatched) + thread_position_in_threadgroup();
}
inline metal::uint3 threads_per_threadgroup() { return vector(machine.group); }
inline metal::uint3 dispatch_threads_per_threadgroup() { return vector(machine.dispatched); }
inline metal::uint3 threads_per_grid() { return vector(machine.grid); }
inline metal::uint3 threadgroups_per_grid() { return vector(machine.groups); }
inline uint32_t thread_index_in_threadgroup() { return machine.current->index; }
inline uint32_t thread_index_in_simdgroup() { return machine.current->lane; }
inline uint32_t simdgroup_index_in_threadgroup() { return machine.current->index / kSimdWidth; }
inline uint32_t simdgroups_per_threadgroup() { return simdgroups_of(machine.group); }
inline uint32_t dispatch_simdgroups_per_threadgroup() { return simdgroups_of(machine.dispatched); }
inline uint32_t threads_per_simdgroup() { return kSimdWidth; }
inline uint32_t thread_execution_width() { return kSimdWidth; }
}  // namespace attribute

static Region* arguments;
template <typename T>
inline Pointer<T> pointer_argument(int i) {
  return {&arguments[i], 0};
}
template <typename T>
inline T value_argument(int i) {
  return load<T>(arguments[i], 0);
}

inline void check_outputs(int count) {
  for (int a = 0; a < count && !machine.faulted; a++) {
    Region& r = arguments[a];
    for (uint64_t i = 0; r.writes && i < r.bytes / r.item_bytes; i++)
      if (!written(r, i)) return report("%s[%llu] was never written", r.name, (unsigned long long)i);
  }
}

// Called where -fsanitize would call its own library; the libraries are not linked.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_out_of_bounds(SourceLocation* where,
                                                                                   uintptr_t index) {
  fault("index %lld is outside of a thread's own array at line %u", (long long)index, where->line);
}
extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_divrem_overflow(SourceLocation* where,
                                                                                     uintptr_t, uintptr_t) {
  fault("division by zero at line %u", where->line);
}

extern "C" __attribute__((visibility("default"))) int emulator_run(Region* regions, int count,
                                                                   const uint32_t* grid,
                                                                   const uint32_t* threadgroup, uint64_t seed,
                                                                   char* message, uint64_t message_size) {
  machine.grid = {grid[0], grid[1], grid[2]};
  machine.dispatched = {threadgroup[0], threadgroup[1], threadgroup[2]};
  machine.message = message;
  machine.message_size = message_size;
  arguments = regions;
  for (int a = 0; a < count; a++)
    if (regions[a].role != kInput) regions[a].writes = new Access[regions[a].bytes / regions[a].item_bytes]();
  run_grid(seed);
  check_outputs(count);
  for (int a = 0; a < count; a++) delete[] regions[a].writes;
  release_threadgroup_memory();
  return machine.faulted;
}

}  // namespace emulator

using namespace metal;  // as MLX's own prelude does

#define METAL_FUNC inline
#define reinterpret_cast static_cast  // between Pointers; nothing else of a kernel's needs it
