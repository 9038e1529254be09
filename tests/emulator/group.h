// What threads of a threadgroup do together: threadgroup memory, barriers, simdgroup operations, atomics.
//
// Operations where threads meet take the line of the kernel that calls them, as a default argument, so
// that two calls of one operation at different places do not meet.
#pragma once

#include "memory.h"

namespace emulator {

constexpr uint64_t kThreadgroupBytes = 32 * 1024;  // Metal's limit on Apple GPUs
constexpr int kMaxArrays = 64;

struct ThreadgroupMemory {
  Region arrays[kMaxArrays];
  uint64_t bytes;
};
static ThreadgroupMemory threadgroup_memory;

// The threadgroup array declared `number`th. It is made once, and no value outlives a threadgroup: what
// was written before machine.start counts as never written (memory.h).
template <typename T>
inline Pointer<T> threadgroup_array(int number, const char* name, uint64_t size) {
  Region& r = threadgroup_memory.arrays[number];
  if (!r.data) {
    threadgroup_memory.bytes += size * sizeof(T);
    if (threadgroup_memory.bytes > kThreadgroupBytes)
      fault("%llu bytes of threadgroup memory with %s, more than Metal's %llu",
            (unsigned long long)threadgroup_memory.bytes, name, (unsigned long long)kThreadgroupBytes);
    r = {name,
         static_cast<char*>(aligned_alloc(16, (size * sizeof(T) + 15) / 16 * 16)),
         size * sizeof(T),
         sizeof(T),
         kShared,
         0,
         0,
         new Access[size](),
         new Readers[size]()};
  }
  return {&r, 0};
}

template <typename T>
inline Ref<T> threadgroup_scalar(int number, const char* name) {
  return threadgroup_array<T>(number, name, 1)[0];
}

inline void release_threadgroup_memory() {
  for (Region& r : threadgroup_memory.arrays) {
    free(r.data);
    delete[] r.writes;
    delete[] r.readers;
  }
  threadgroup_memory = {};
}

inline void pass_barrier(Meeting& m, const char* operation, int flags, int line) {
  meet(m, operation, line, [&] {
    machine.clock++;
    if (flags & 1) m.fences[kDevice] = machine.clock;
    if (flags & 2) m.fences[kThreadgroup] = machine.clock;
  });
}

// Every lane brings a value and leaves with another: combine(values, sources, lanes) turns the ones into the
// others.
template <typename T, typename Combine>
inline T exchange(const char* operation, int line, T value, uint32_t source, Combine combine) {
  Thread* self = machine.current;
  Simdgroup& s = *self->simdgroup;
  memcpy(&s.values[self->lane], &value, sizeof value);
  s.sources[self->lane] = source;
  meet(s.meeting, operation, line, [&] {
    T values[kSimdWidth];
    for (uint32_t i = 0; i < s.meeting.members; i++) memcpy(&values[i], &s.values[i], sizeof(T));
    combine(values, s.sources, s.meeting.members);
    for (uint32_t i = 0; i < s.meeting.members; i++) memcpy(&s.values[i], &values[i], sizeof(T));
  });
  memcpy(&value, &s.values[self->lane], sizeof value);
  return value;
}

// All lanes get the values combined pairwise: as a tree, which rounds differently than one after another.
template <typename T, typename Both>
inline T reduce(const char* operation, int line, T value, Both both) {
  return exchange(operation, line, value, 0, [both](T* values, const uint32_t*, uint32_t lanes) {
    for (uint32_t step = kSimdWidth / 2; step; step /= 2)
      for (uint32_t i = 0; i < step && i + step < lanes; i++) values[i] = both(values[i], values[i + step]);
    for (uint32_t i = 1; i < lanes; i++) values[i] = values[0];
  });
}

template <typename T>
inline T prefix_sum(const char* operation, int line, T value, bool inclusive) {
  return exchange(operation, line, value, 0, [inclusive](T* values, const uint32_t*, uint32_t lanes) {
    for (uint32_t step = 1; step < lanes; step *= 2)
      for (uint32_t i = lanes - 1; i >= step; i--) values[i] = values[i - step] + values[i];
    if (inclusive) return;
    for (uint32_t i = lanes - 1; i; i--) values[i] = values[i - 1];
    values[0] = T(0);
  });
}

// Each lane gets the value of lane `source`; of a lane that a short last simdgroup lacks, all bits set.
template <typename T>
inline T gather(const char* operation, int line, T value, uint32_t source) {
  if (source >= kSimdWidth) fault("%s at line %d: lane %u of %u", operation, line, source, kSimdWidth);
  return exchange(operation, line, value, source, [](T* values, const uint32_t* sources, uint32_t lanes) {
    T before[kSimdWidth];
    memset(before, 0xff, sizeof before);
    for (uint32_t i = 0; i < lanes; i++) before[i] = values[i];
    for (uint32_t i = 0; i < lanes; i++) values[i] = before[sources[i]];
  });
}

}  // namespace emulator

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }

inline void threadgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  emulator::pass_barrier(emulator::machine.meeting, "threadgroup_barrier", int(flags), line);
}
inline void simdgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  emulator::pass_barrier(emulator::machine.current->simdgroup->meeting, "simdgroup_barrier", int(flags),
                         line);
}

// Not templates, so that a Ref converts.
#define EMULATOR_SIMD(T)                                                                            \
  inline T simd_sum(T v, int line = __builtin_LINE()) {                                             \
    return emulator::reduce("simd_sum", line, v, [](T a, T b) { return a + b; });                   \
  }                                                                                                 \
  inline T simd_max(T v, int line = __builtin_LINE()) {                                             \
    return emulator::reduce("simd_max", line, v, [](T a, T b) { return max(a, b); });               \
  }                                                                                                 \
  inline T simd_min(T v, int line = __builtin_LINE()) {                                             \
    return emulator::reduce("simd_min", line, v, [](T a, T b) { return min(a, b); });               \
  }                                                                                                 \
  inline T simd_prefix_inclusive_sum(T v, int line = __builtin_LINE()) {                            \
    return emulator::prefix_sum("simd_prefix_inclusive_sum", line, v, true);                        \
  }                                                                                                 \
  inline T simd_prefix_exclusive_sum(T v, int line = __builtin_LINE()) {                            \
    return emulator::prefix_sum("simd_prefix_exclusive_sum", line, v, false);                       \
  }                                                                                                 \
  inline T simd_shuffle(T v, ushort from, int line = __builtin_LINE()) {                            \
    return emulator::gather("simd_shuffle", line, v, from);                                         \
  }                                                                                                 \
  inline T simd_broadcast(T v, ushort from, int line = __builtin_LINE()) {                          \
    return emulator::gather("simd_broadcast", line, v, from);                                       \
  }                                                                                                 \
  inline T simd_broadcast_first(T v, int line = __builtin_LINE()) {                                 \
    return emulator::gather("simd_broadcast_first", line, v, 0);                                    \
  }                                                                                                 \
  inline T simd_shuffle_xor(T v, ushort mask, int line = __builtin_LINE()) {                        \
    return emulator::gather("simd_shuffle_xor", line, v, emulator::machine.current->lane ^ mask);   \
  }                                                                                                 \
  inline T simd_shuffle_up(T v, ushort delta, int line = __builtin_LINE()) {                        \
    uint lane = emulator::machine.current->lane;                                                    \
    return emulator::gather("simd_shuffle_up", line, v, lane >= delta ? lane - delta : lane);       \
  }                                                                                                 \
  inline T simd_shuffle_down(T v, ushort delta, int line = __builtin_LINE()) {                      \
    uint lane = emulator::machine.current->lane;                                                    \
    return emulator::gather("simd_shuffle_down", line, v, lane + delta < 32 ? lane + delta : lane); \
  }
EMULATOR_SIMD(float)
EMULATOR_SIMD(int)
EMULATOR_SIMD(uint)
#undef EMULATOR_SIMD

inline bool simd_any(bool v, int line = __builtin_LINE()) {
  return emulator::reduce("simd_any", line, v, [](bool a, bool b) { return a || b; });
}
inline bool simd_all(bool v, int line = __builtin_LINE()) {
  return emulator::reduce("simd_all", line, v, [](bool a, bool b) { return a && b; });
}

enum memory_order { memory_order_relaxed };

template <typename T>
struct atomic {
 private:
  T hidden;  // reached through the atomic_ functions only
};
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_float = atomic<float>;

template <typename T>
struct same {
  using type = T;
};  // keeps an argument from taking part in the deduction of T

// Fibers do not switch in here, so that reading and writing is atomic. Not race-checked.
template <typename T, typename Change>
inline T atomically(emulator::Pointer<atomic<T>> p, bool reads, bool writes, Change change) {
  emulator::Region& r = *p.region;
  char* address = emulator::checked<T>(r, p.offset, "atomic operation");
  uint64_t i = p.offset / r.item_bytes;
  if (reads && !emulator::written(r, i))
    emulator::fault("atomic operation on %s[%llu], which nobody has written", r.name, (unsigned long long)i);
  T old, changed;
  memcpy(&old, address, sizeof old);
  changed = change(old);
  memcpy(address, &changed, sizeof changed);
  if (writes) r.writes[i] = {emulator::kAtomically, emulator::machine.clock};
  r.loaded += reads * sizeof(T);
  r.stored += writes * sizeof(T);
  return old;
}

template <typename T>
inline T atomic_load_explicit(emulator::Pointer<atomic<T>> p, memory_order) {
  return atomically(p, true, false, [](T old) { return old; });
}
template <typename T>
inline void atomic_store_explicit(emulator::Pointer<atomic<T>> p, typename same<T>::type v, memory_order) {
  atomically(p, false, true, [v](T) { return v; });
}
#define EMULATOR_ATOMIC(name, changed)                                                    \
  template <typename T>                                                                   \
  inline T name(emulator::Pointer<atomic<T>> p, typename same<T>::type v, memory_order) { \
    return atomically(p, true, true, [v](T old) { return T(changed); });                  \
  }
EMULATOR_ATOMIC(atomic_exchange_explicit, v)
EMULATOR_ATOMIC(atomic_fetch_add_explicit, old + v)
EMULATOR_ATOMIC(atomic_fetch_sub_explicit, old - v)
EMULATOR_ATOMIC(atomic_fetch_max_explicit, old < v ? v : old)
EMULATOR_ATOMIC(atomic_fetch_min_explicit, v < old ? v : old)
EMULATOR_ATOMIC(atomic_fetch_or_explicit, old | v)
EMULATOR_ATOMIC(atomic_fetch_and_explicit, old& v)
#undef EMULATOR_ATOMIC

}  // namespace metal
