// Memory that knows what it holds: bounds, traffic, who wrote an element and who has read it since.
//
// `device T*`, `constant T*` and `threadgroup T*` become Pointer<T>, and what they point at Ref<T>.
#pragma once

#include "types.h"

namespace emulator {

enum Memory { kThreadgroup, kDevice };  // which barriers order accesses to it
enum Role : uint32_t { kInput, kOutput, kInitialisedOutput, kShared };

// An access by thread `thread` (see thread_id) when `clock` barriers had been passed; 0: none yet.
struct Access {
  uint32_t thread, clock;
};

// The latest reads of two threads in each of two simdgroups. If some earlier read is not ordered before
// a write, then one of these is not either: they are no older, and one of them is no closer to the writer.
struct Readers {
  Access latest[4];
};

// One buffer or threadgroup array. Python lays buffers out in the same way (Region in emulation.py).
struct Region {
  const char* name;
  char* data;
  uint64_t bytes;
  uint32_t item_bytes;
  Role role;
  uint64_t loaded, stored;  // bytes
  Access* writes;           // one an element; none for inputs
  Readers* readers;         // one an element; for threadgroup arrays only
};

constexpr uint32_t kAtomically = UINT32_MAX;  // the `thread` of an atomic write

// Whether barriers separate an earlier access from what the current thread does now.
inline bool ordered(Access before, Memory memory) {
  uint32_t self = thread_id();
  if (before.thread == self || before.thread == kAtomically) return true;
  if (before.thread / kMaxThreads != self / kMaxThreads) return false;
  if (before.clock < machine.meeting.fences[memory]) return true;
  return before.thread / kSimdWidth == self / kSimdWidth &&
         before.clock < machine.current->simdgroup->meeting.fences[memory];
}

inline bool written(const Region& r, uint64_t i) {
  if (r.role == kShared) return r.writes[i].clock >= machine.start;
  return r.role == kInitialisedOutput || r.writes[i].clock > 0;
}

inline void note_read(Region& r, uint64_t i) {
  if (!written(r, i)) fault("read of %s[%llu], which nobody has written", r.name, (unsigned long long)i);
  Access write = r.writes[i];
  if (write.clock && !ordered(write, r.role == kShared ? kThreadgroup : kDevice))
    fault("race: read of %s[%llu], written by %s with no barrier since", r.name, (unsigned long long)i,
          ThreadName(write.thread).text);
  if (!r.readers) return;
  Access* latest = r.readers[i].latest;
  Access self = {thread_id(), machine.clock};
  if (latest[0].thread / kSimdWidth != self.thread / kSimdWidth) {
    Access other[2] = {latest[0], latest[1]};
    latest[0] = latest[2], latest[1] = latest[3], latest[2] = other[0], latest[3] = other[1];
    if (latest[0].thread / kSimdWidth != self.thread / kSimdWidth) latest[0] = latest[1] = {};
  }
  if (latest[0].thread != self.thread) latest[1] = latest[0];
  latest[0] = self;
}

inline void note_write(Region& r, uint64_t i) {
  Access write = r.writes[i], self = {thread_id(), machine.clock};
  if (r.role != kShared) {
    if (write.clock && write.thread != self.thread)
      fault("%s[%llu] written by two threads, the first was %s", r.name, (unsigned long long)i,
            write.thread == kAtomically ? "an atomic operation" : ThreadName(write.thread).text);
  } else {
    if (write.clock >= machine.start && !ordered(write, kThreadgroup))
      fault("race: write to %s[%llu], written by %s with no barrier since", r.name, (unsigned long long)i,
            ThreadName(write.thread).text);
    for (Access read : r.readers[i].latest)
      if (read.clock >= machine.start && !ordered(read, kThreadgroup))
        fault("race: write to %s[%llu], read by %s with no barrier since", r.name, (unsigned long long)i,
              ThreadName(read.thread).text);
  }
  r.writes[i] = self;
}

// The address of a T, in bounds.
template <typename T>
inline char* checked(Region& r, int64_t offset, const char* what) {
  if (__builtin_expect(r.bytes < sizeof(T) || uint64_t(offset) > r.bytes - sizeof(T), 0))
    fault("%s outside of %s: index %lld, size %llu", what, r.name, (long long)(offset / int64_t(sizeof(T))),
          (unsigned long long)(r.bytes / sizeof(T)));
  return r.data + offset;
}

template <typename T>
inline T load(Region& r, int64_t offset) {
  std::remove_const_t<T> value;
  memcpy(&value, checked<T>(r, offset, "read"), sizeof value);
  if (r.writes)
    for (uint64_t i = offset / r.item_bytes; i <= (offset + sizeof(T) - 1) / r.item_bytes; i++)
      note_read(r, i);
  r.loaded += sizeof value;
  return value;
}

template <typename T>
inline void store(Region& r, int64_t offset, T value) {
  char* address = checked<T>(r, offset, "write");
  for (uint64_t i = offset / r.item_bytes; i <= (offset + sizeof(T) - 1) / r.item_bytes; i++)
    note_write(r, i);
  memcpy(address, &value, sizeof value);
  r.stored += sizeof value;
}

template <typename T>
struct Pointer;

template <typename T>
struct Ref {
  Region* region;
  int64_t offset;

  // An implicit conversion of a float to an integer is an error (build.py), for C++ would take
  // `condition ? place : 0` for an int.
  operator T() const { return load<T>(*region, offset); }
  // A 16-bit float's own conversion to float would be a second one, and C++ takes only one.
  struct Nothing {};
  operator std::conditional_t<metal::is_small_float<T>, float, Nothing>() const {
    if constexpr (metal::is_small_float<T>)
      return load<T>(*region, offset);
    else
      return {};
  }
  template <typename U, typename = std::enable_if_t<metal::is_small_float<U>>>
  explicit operator U() const {
    return U(load<T>(*region, offset));
  }
  Ref(Region* r, int64_t o) : region(r), offset(o) {}
  Ref(const Ref&) = default;
  Ref& operator=(T value) {
    store<T>(*region, offset, value);
    return *this;
  }
  Ref& operator=(const Ref& other) { return *this = load<T>(*other.region, other.offset); }
  Pointer<T> operator&() const { return {region, offset}; }
#define EMULATOR_COMPOUND(op)                            \
  template <typename U>                                  \
  Ref& operator op## = (U value) {                       \
    return *this = T(load<T>(*region, offset) op value); \
  }
  EMULATOR_COMPOUND(+)
  EMULATOR_COMPOUND(-)
  EMULATOR_COMPOUND(*)
  EMULATOR_COMPOUND(/)
  EMULATOR_COMPOUND(%)
  EMULATOR_COMPOUND(&)
  EMULATOR_COMPOUND(|)
  EMULATOR_COMPOUND(^)
  EMULATOR_COMPOUND(<<)
  EMULATOR_COMPOUND(>>)
#undef EMULATOR_COMPOUND
  Ref& operator++() { return *this += 1; }
  Ref& operator--() { return *this -= 1; }
  T operator++(int) {
    T old = load<T>(*region, offset);
    *this += 1;
    return old;
  }
  T operator--(int) {
    T old = load<T>(*region, offset);
    *this -= 1;
    return old;
  }
};

// What `auto` stands for where it is initialised with an element: its value, not its place.
template <typename T>
inline T value(Ref<T> place) {
  return load<T>(*place.region, place.offset);
}
template <typename T>
inline T value(T other) {
  return other;
}

template <typename T>
struct Pointer {
  Region* region = nullptr;
  int64_t offset = 0;  // in bytes; may lie outside until it is used

  Pointer() = default;
  Pointer(Region* r, int64_t o) : region(r), offset(o) {}
  template <typename U, std::enable_if_t<std::is_same_v<const U, T>, int> = 0>
  Pointer(Pointer<U> other) : region(other.region), offset(other.offset) {}
  template <typename U, std::enable_if_t<!std::is_same_v<const U, const T>, int> = 0>
  explicit Pointer(Pointer<U> other) : region(other.region), offset(other.offset) {
    static_assert(std::is_const_v<T> || !std::is_const_v<U>, "a cast may not drop const");
    if (offset % int64_t(alignof(T))) fault("misaligned cast of a pointer into %s", region->name);
  }

  decltype(auto) operator[](int64_t i) const {
    if (!region) fault("%s", "use of a pointer to nothing");
    int64_t bytes;  // an index too large to multiply is as wrong as any other outside
    if (__builtin_mul_overflow(i, int64_t(sizeof(T)), &bytes) ||
        __builtin_add_overflow(offset, bytes, &bytes))
      bytes = -int64_t(sizeof(T));
    if constexpr (std::is_const_v<T>)
      return std::remove_const_t<T>(load<T>(*region, bytes));
    else
      return Ref<T>(region, bytes);
  }
  decltype(auto) operator*() const { return (*this)[0]; }
  Pointer& operator+=(int64_t i) {
    offset += i * int64_t(sizeof(T));
    return *this;
  }
  Pointer& operator-=(int64_t i) { return *this += -i; }
  Pointer& operator++() { return *this += 1; }
  Pointer& operator--() { return *this -= 1; }
  Pointer operator++(int) {
    Pointer old = *this;
    ++*this;
    return old;
  }
  Pointer operator--(int) {
    Pointer old = *this;
    --*this;
    return old;
  }
  friend Pointer operator+(Pointer p, int64_t i) { return p += i; }
  friend Pointer operator+(int64_t i, Pointer p) { return p += i; }
  friend Pointer operator-(Pointer p, int64_t i) { return p -= i; }
  friend int64_t operator-(Pointer a, Pointer b) { return (a.offset - b.offset) / int64_t(sizeof(T)); }
  friend bool operator==(Pointer a, Pointer b) { return a.region == b.region && a.offset == b.offset; }
  friend bool operator!=(Pointer a, Pointer b) { return !(a == b); }
  friend bool operator<(Pointer a, Pointer b) { return a.offset < b.offset; }
};

}  // namespace emulator

namespace metal {
template <typename To, typename From>
inline To as_type(emulator::Ref<From> place) {
  return as_type<To>(emulator::value(place));
}
}  // namespace metal
