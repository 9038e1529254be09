// Threads of a threadgroup as fibers: context switch, seeded scheduler, meeting points, faults.
//
// Fibers switch only where a thread waits for others, so everything between two waits runs undisturbed;
// races are found by bookkeeping (memory.h), not by luck. Nothing here is reentrant: one kernel at a time.
#pragma once

#include <sys/mman.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

// emulator_switch(save, load): pushes the registers a callee must keep, stores the stack pointer in
// *save, and goes on where the stack `load` was left. swapcontext would also make two system calls.
extern "C" void emulator_switch(void** save, void* load) __attribute__((visibility("hidden")));
#define EMULATOR_TEXT_(x) #x
#define EMULATOR_TEXT(x) EMULATOR_TEXT_(x)
#define EMULATOR_LABEL EMULATOR_TEXT(__USER_LABEL_PREFIX__) "emulator_switch"
#if defined(__x86_64__)
asm(".text\n.globl " EMULATOR_LABEL "\n" EMULATOR_LABEL
    ":\n"
    "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
    "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
constexpr int kEntryWord = 6;  // the return address, above the registers
#elif defined(__aarch64__)
asm(".text\n.globl " EMULATOR_LABEL "\n.p2align 2\n" EMULATOR_LABEL
    ":\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n stp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n"
    "stp d12, d13, [sp, #128]\n stp d14, d15, [sp, #144]\n"
    "mov x9, sp\n str x9, [x0]\n mov sp, x1\n"
    "ldp x19, x20, [sp]\n ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n ldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n"
    "ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\n ret\n");
constexpr int kEntryWord = 11;  // x30, among the registers
#else
#error "the emulator knows how to switch fibers on x86-64 and arm64 only"
#endif

namespace emulator {

constexpr uint32_t kSimdWidth = 32;
constexpr uint32_t kMaxThreads = 1024;      // of a threadgroup, in Metal too
constexpr size_t kStackBytes = 256 * 1024;  // g++ refuses frames of more than a quarter of it

struct Extent {
  uint32_t x, y, z;
  uint64_t count() const { return uint64_t(x) * y * z; }
  Extent at(uint64_t i) const { return {uint32_t(i % x), uint32_t(i / x % y), uint32_t(i / x / y)}; }
};

// Where the members of a threadgroup or of a simdgroup wait for each other.
struct Meeting {
  const char* of;  // "threadgroup" or "simdgroup"
  uint32_t first, members, arrived, gone;
  const char* operation;  // what those that have arrived wait at
  int line;
  uint32_t fences[2];  // when this group last passed a barrier, per memory (see Memory in memory.h)
};

struct Simdgroup {
  Meeting meeting;
  uint64_t values[kSimdWidth];  // one a lane: only that lane, and the last to arrive, touch it
  uint32_t sources[kSimdWidth];
};

struct Thread {
  void* stack_pointer;
  uint32_t index, lane;
  Simdgroup* simdgroup;
  Extent position;
  const char* waits_at;  // null: runs, or has returned
  int line;
};

struct Machine {
  Extent grid, dispatched, groups, group, group_position;
  uint32_t group_number, threads_in_group, returned;
  uint32_t start, clock;  // `clock` counts barriers passed; `start` is when this threadgroup began
  Thread threads[kMaxThreads];
  Simdgroup simdgroups[kMaxThreads / kSimdWidth];
  Meeting meeting;
  uint16_t runnable[kMaxThreads];
  uint32_t runnable_count;
  Thread* current;
  void* host_stack;
  uint64_t random;
  char* message;
  size_t message_size;
  bool faulted;
};
static Machine machine;

void run_kernel();  // written by translate.py: calls the kernel with the current thread's arguments

inline uint32_t random_below(uint32_t bound) {
  uint64_t z = machine.random += 0x9e3779b97f4a7c15u;  // splitmix64
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return uint32_t(((z >> 32) * bound) >> 32);
}

inline uint32_t thread_id() { return machine.group_number * kMaxThreads + machine.current->index; }

struct ThreadName {
  char text[96];
  explicit ThreadName(uint32_t id) {
    Extent g = machine.groups.at(id / kMaxThreads);
    snprintf(text, sizeof text, "thread %u of threadgroup (%u, %u, %u)", id % kMaxThreads, g.x, g.y, g.z);
  }
};

__attribute__((noinline, cold, format(printf, 1, 2))) inline void report(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  size_t length = size_t(vsnprintf(machine.message, machine.message_size, format, arguments));
  va_end(arguments);
  machine.faulted = true;
  if (machine.current && length < machine.message_size)
    snprintf(machine.message + length, machine.message_size - length, ": %s", ThreadName(thread_id()).text);
}

// Ends the run. The kernel's fibers are abandoned where they are: kernels own nothing.
template <typename... Values>
[[noreturn]] __attribute__((noinline, cold)) void fault(const char* format, Values... values) {
  report(format, values...);
  void* abandoned;
  emulator_switch(&abandoned, machine.host_stack);
  __builtin_unreachable();
}

inline Thread* take_runnable() {
  uint32_t pick = random_below(machine.runnable_count);
  Thread* taken = &machine.threads[machine.runnable[pick]];
  machine.runnable[pick] = machine.runnable[--machine.runnable_count];
  return taken;
}

inline void switch_away() {
  Thread* from = machine.current;
  if (machine.runnable_count == 0) {  // all have returned, or all wait
    machine.current = nullptr;
    emulator_switch(&from->stack_pointer, machine.host_stack);
    return;
  }
  Thread* next = take_runnable();
  if (next == from) return;
  machine.current = next;
  emulator_switch(&from->stack_pointer, next->stack_pointer);
}

// Waits until all members are here; the last to arrive calls `complete` and wakes the others.
template <typename Complete>
void meet(Meeting& m, const char* operation, int line, Complete complete) {
  Thread* self = machine.current;
  const char* divergent = m.of[0] == 't' ? "barrier divergence" : "divergent simdgroup operation";
  if (m.gone)
    fault("%s: %s at line %d, but %u of %u threads of the %s have returned", divergent, operation, line,
          m.gone, m.members, m.of);
  if (m.arrived && (m.line != line || (m.operation != operation && strcmp(m.operation, operation) != 0)))
    fault("%s: %s at line %d, while others of the %s wait at %s at line %d", divergent, operation, line, m.of,
          m.operation, m.line);
  m.operation = self->waits_at = operation;
  m.line = self->line = line;
  if (++m.arrived == m.members) {
    m.arrived = 0;
    complete();
    for (uint32_t i = m.first; i < m.first + m.members; i++) {
      machine.threads[i].waits_at = nullptr;
      machine.runnable[machine.runnable_count++] = uint16_t(i);
    }
  }
  switch_away();
}

inline void leave(Meeting& m) {
  m.gone++;
  if (m.arrived)
    fault("%s: a thread returned while %u of %u threads of the %s wait at %s at line %d",
          m.of[0] == 't' ? "barrier divergence" : "divergent simdgroup operation", m.arrived, m.members, m.of,
          m.operation, m.line);
}

// The bottom of every fiber's stack: one thread of one threadgroup after another.
[[noreturn]] inline void fiber() {
  for (;;) {
    run_kernel();
    leave(machine.current->simdgroup->meeting);
    leave(machine.meeting);
    machine.returned++;
    switch_away();
  }
}

inline void prepare_group(uint32_t number) {
  Machine& m = machine;
  m.group_number = number;
  m.group_position = m.groups.at(number);
  auto extent = [](uint32_t grid, uint32_t size, uint32_t at) {
    return grid - at * size < size ? grid - at * size : size;
  };
  m.group = {extent(m.grid.x, m.dispatched.x, m.group_position.x),
             extent(m.grid.y, m.dispatched.y, m.group_position.y),
             extent(m.grid.z, m.dispatched.z, m.group_position.z)};
  m.threads_in_group = uint32_t(m.group.count());
  m.returned = 0;
  m.start = ++m.clock;
  m.meeting = {"threadgroup", 0, m.threads_in_group, 0, 0, nullptr, 0, {m.start, m.start}};
  for (uint32_t i = 0; i < m.threads_in_group; i++) {
    Simdgroup& s = m.simdgroups[i / kSimdWidth];
    uint32_t first = i / kSimdWidth * kSimdWidth, left = m.threads_in_group - first;
    s.meeting = {"simdgroup",       first, left < kSimdWidth ? left : kSimdWidth, 0, 0, nullptr, 0,
                 {m.start, m.start}};
    m.threads[i] = {m.threads[i].stack_pointer, i, i % kSimdWidth, &s, m.group.at(i), nullptr, 0};
    m.runnable[i] = uint16_t(i);
  }
  m.runnable_count = m.threads_in_group;
}

inline void report_deadlock() {
  const Thread *first = nullptr, *other = nullptr;
  for (uint32_t i = 0; i < machine.threads_in_group; i++) {
    const Thread& t = machine.threads[i];
    if (!t.waits_at) continue;
    if (!first) first = &t;
    if (t.line != first->line || t.waits_at != first->waits_at) other = &t;
  }
  if (!other) other = first;
  Extent at = machine.group_position;
  report("deadlock in threadgroup (%u, %u, %u): thread %u waits at %s at line %d, thread %u at %s at line %d",
         at.x, at.y, at.z, first->index, first->waits_at, first->line, other->index, other->waits_at,
         other->line);
}

inline void prepare_stacks(char* stacks, uint64_t count) {
  for (uint64_t i = 0; i < count; i++) {
    // Tops are staggered: at equal offsets all stacks would fall into the same few cache sets.
    char* top = stacks + (i + 1) * kStackBytes - i * 192 % 4096;
    void** frame = reinterpret_cast<void**>(top) - 64;
    memset(frame, 0, 64 * sizeof(void*));
    frame[kEntryWord] = reinterpret_cast<void*>(&fiber);
    machine.threads[i].stack_pointer = frame;
  }
}

// Runs all threadgroups, one after another in an order of the seed's; stops at the first fault.
inline void run_grid(uint64_t seed) {
  Machine& m = machine;
  m.random = seed;
  m.clock = 0;
  m.faulted = false;
  m.current = nullptr;
  auto groups = [](uint32_t grid, uint32_t size) { return (grid + size - 1) / size; };
  m.groups = {groups(m.grid.x, m.dispatched.x), groups(m.grid.y, m.dispatched.y),
              groups(m.grid.z, m.dispatched.z)};
  const size_t bytes = m.dispatched.count() * kStackBytes;  // of which only the pages in use cost memory
  void* stacks =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) return report("%s", "no memory for the fibers' stacks");
#ifdef MADV_NOHUGEPAGE
  madvise(stacks, bytes, MADV_NOHUGEPAGE);  // a huge page would span several stacks
#endif
  prepare_stacks(static_cast<char*>(stacks), m.dispatched.count());
  std::vector<uint32_t> order(m.groups.count());
  for (uint32_t i = 0; i < order.size(); i++) {
    uint32_t j = random_below(i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  for (uint32_t number : order) {
    prepare_group(number);
    m.current = take_runnable();
    emulator_switch(&m.host_stack, m.current->stack_pointer);
    if (!m.faulted && m.returned < m.threads_in_group) report_deadlock();
    if (m.faulted) break;
  }
  munmap(stacks, bytes);
}

}  // namespace emulator
