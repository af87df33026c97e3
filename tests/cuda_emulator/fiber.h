// Fibers: functions, each with its own stack, between which one thread of the CPU switches.
//
// ThreadSanitizer is told about every switch, and treats each fiber as a thread: two fibers that access the same memory
// without a barrier in between are a race, although they never run at the same time.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>
#include <vector>

#if defined(EMULATOR_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

// Zeroed pages; at `place` they replace the pages there, and the sanitizer forgets earlier accesses to them.
inline char* fresh_pages(size_t bytes, void* place = nullptr) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (place != nullptr ? MAP_FIXED : 0);
  void* pages = mmap(place, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (pages == MAP_FAILED) {
    abort();
  }
  return static_cast<char*>(pages);
}

#if defined(__x86_64__)

// Saves the callee-saved registers on the stack, and the stack pointer in *from; then restores those of `to`.
__asm__(R"(
.text
.local lapal_emulator_switch
.type lapal_emulator_switch,@function
lapal_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
extern "C" __attribute__((visibility("hidden"))) void lapal_emulator_switch(void** from, void* to);

class Context {
 public:
  void start(char* stack, size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + bytes) - 8;
    *--top = nullptr;  // no return address: aligns the stack as a call would
    *--top = reinterpret_cast<void*>(entry);
    top -= 6;  // the saved registers
    pointer_ = top;
  }
  void switch_to(Context& other) {
    lapal_emulator_switch(&pointer_, other.pointer_);
  }

 private:
  void* pointer_ = nullptr;
};

#else

// On other processors, some ten times slower: each switch is a system call, for the signal mask.
class Context {
 public:
  void start(char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  void switch_to(Context& other) {
    swapcontext(&context_, &other.context_);
  }

 private:
  ucontext_t context_;
};

#endif

// ThreadSanitizer's view of a fiber; empty in other builds.
#if defined(EMULATOR_TSAN)

class Sanitized {
 public:
  void adopt_current() {
    id_ = __tsan_get_current_fiber();
  }
  void create() {
    id_ = __tsan_create_fiber(0);
    retired().push_back(id_);
  }
  void switch_here() const {
    __tsan_switch_to_fiber(id_, 1);  // 1: a switch orders nothing
  }
  // ThreadSanitizer reuses the id of a destroyed fiber, and would not see races between the old and the new one. So
  // fibers are destroyed only at the end of a launch.
  static void destroy_all() {
    for (void* id : retired()) {
      __tsan_destroy_fiber(id);
    }
    retired().clear();
  }

 private:
  static std::vector<void*>& retired() {
    static std::vector<void*> ids;
    return ids;
  }
  void* id_ = nullptr;
};

inline void acquire(void* address) {
  __tsan_acquire(address);
}
inline void release(void* address) {
  __tsan_release(address);
}

#else

class Sanitized {
 public:
  void adopt_current() {}
  void create() {}
  void switch_here() const {}
  static void destroy_all() {}
};

inline void acquire(void*) {}
inline void release(void*) {}

#endif

class Fiber {
 public:
  Fiber() = default;
  Fiber(Fiber&& other) noexcept {
    *this = std::move(other);
  }
  Fiber& operator=(Fiber&& other) noexcept {
    std::swap(context_, other.context_);
    std::swap(sanitized_, other.sanitized_);
    std::swap(stack_, other.stack_);
    return *this;
  }
  ~Fiber() {
    if (stack_ != nullptr) {
      munmap(stack_, kStackBytes + kGuardBytes);
    }
  }

  // For the thread that runs already, and starts the others.
  void adopt_current() {
    sanitized_.adopt_current();
  }

  // Will call entry(), which must not return.
  void start(void (*entry)()) {
    if (stack_ == nullptr) {
      stack_ = fresh_pages(kStackBytes + kGuardBytes);
      mprotect(stack_, kGuardBytes, PROT_NONE);
    }
#if defined(EMULATOR_TSAN)
    fresh_pages(kStackBytes, stack_ + kGuardBytes);
#endif
    sanitized_.create();
    context_.start(stack_ + kGuardBytes, kStackBytes, entry);
  }

  void switch_to(Fiber& other) {
    other.sanitized_.switch_here();
    context_.switch_to(other.context_);
  }

 private:
  static constexpr size_t kStackBytes = 128 << 10;
  static constexpr size_t kGuardBytes = 4 << 10;  // a stack that overflows ends the process

  Context context_;
  Sanitized sanitized_;
  char* stack_ = nullptr;
};

}  // namespace emulator
