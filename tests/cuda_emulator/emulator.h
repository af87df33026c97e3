// CUDA on the CPU, for tests: the part of CUDA that csrc/cuda/shared/portability.h promises, for g++.
//
// Each CUDA thread is a fiber; blocks run one after the other, in random order. At every barrier and shuffle a seeded
// scheduler chooses the next thread. It lets one warp run far ahead of the rest, since that exposes a missing barrier.
// Shared memory is poisoned (NaN or large numbers) and fenced. Errors of the kernel end the launch with an exception
// that names the line: barriers and shuffles that diverge, deadlocks, writes past the end of shared memory, misaligned
// loads, launches that every GPU rejects. Races that change no result, and accesses outside of tensors, are left to the
// builds for ThreadSanitizer and AddressSanitizer.
//
// The emulator says nothing about speed, memory ordering between blocks that run at once, or a GPU's arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = void*;

namespace emulator {

// The smallest limit of the architectures we compile for (86 and 120).
constexpr int64_t kMaxSharedBytes = 99 << 10;

struct Place {
  const char* file;
  int line;
};

// The coordinates of the running fiber.
struct Coordinates {
  dim3 thread, block, block_size, grid_size;
};
extern Coordinates coordinates;

// Runs body(closure) once for every CUDA thread. Throws std::runtime_error.
void run(dim3 grid, dim3 block, size_t dynamic_shared_bytes, void (*body)(void*), void* closure);

void* shared_array(const void* key, size_t bytes);  // within a block, the same memory for the same key
void* dynamic_shared();
void sync_block(Place place);
void sync_warp(unsigned mask, Place place);
// Every lane gives `bits`, and receives those of lane `source`.
uint64_t exchange(unsigned mask, uint64_t bits, int source, Place place);
unsigned ballot(unsigned mask, bool vote, Place place);
void check_aligned(const void* pointer, size_t bytes, Place place);
int lane();

template <class Kernel, class... Arguments>
void launch(Kernel kernel, dim3 grid, dim3 block, size_t dynamic_shared_bytes, cudaStream_t, Arguments... arguments) {
  auto call = [&] { kernel(arguments...); };
  run(grid, block, dynamic_shared_bytes, [](void* closure) { (*static_cast<decltype(call)*>(closure))(); }, &call);
}

template <class T>
T exchange_value(unsigned mask, T value, int source, Place place) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source, place);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Relaxed, like the atomics of CUDA; the sanitizer knows these builtins.
template <class T, class Update>
T read_modify_write(T* address, Update update) {
  T before, after;
  __atomic_load(address, &before, __ATOMIC_RELAXED);
  do {
    after = update(before);
  } while (!__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

}  // namespace emulator

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#define threadIdx (::emulator::coordinates.thread)
#define blockIdx (::emulator::coordinates.block)
#define blockDim (::emulator::coordinates.block_size)
#define gridDim (::emulator::coordinates.grid_size)

#define EMULATOR_HERE (::emulator::Place{__FILE__, __LINE__})
#define __syncthreads() ::emulator::sync_block(EMULATOR_HERE)
#define __syncwarp() ::emulator::sync_warp(0xffffffffu, EMULATOR_HERE)
#define __shfl_sync(mask, value, source) ::emulator::exchange_value(mask, value, (source) & 31, EMULATOR_HERE)
#define __shfl_xor_sync(mask, value, lane_mask) \
  ::emulator::exchange_value(mask, value, ::emulator::lane() ^ (lane_mask), EMULATOR_HERE)
// Where there is no source lane, a lane keeps its own value.
#define __shfl_down_sync(mask, value, delta) \
  ::emulator::exchange_value(mask, value, ::emulator::lane() + int(delta), EMULATOR_HERE)
#define __shfl_up_sync(mask, value, delta) \
  ::emulator::exchange_value(mask, value, ::emulator::lane() - int(delta), EMULATOR_HERE)
#define __ballot_sync(mask, vote) ::emulator::ballot(mask, vote, EMULATOR_HERE)
#define __any_sync(mask, vote) (::emulator::ballot(mask, vote, EMULATOR_HERE) != 0)
#define __all_sync(mask, vote) (::emulator::ballot(mask, vote, EMULATOR_HERE) == (mask))

template <class T, class U>
T atomicAdd(T* address, U value) {
  return ::emulator::read_modify_write(address, [=](T old) { return T(old + value); });
}
template <class T, class U>
T atomicMax(T* address, U value) {
  return ::emulator::read_modify_write(address, [=](T old) { return old > T(value) ? old : T(value); });
}
template <class T, class U>
T atomicMin(T* address, U value) {
  return ::emulator::read_modify_write(address, [=](T old) { return old < T(value) ? old : T(value); });
}
template <class T>
T atomicCAS(T* address, T expected, T value) {
  return ::emulator::read_modify_write(address, [=](T old) { return old == expected ? value : old; });
}
inline void __threadfence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

#define LAPAL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::emulator::launch(kernel, grid, block, size_t(shared_bytes), stream, __VA_ARGS__)
// The address of the constant identifies the array, and differs between instantiations of a template.
#define LAPAL_SHARED(T, name, n)    \
  static const char name##_key = 0; \
  T* const name = static_cast<T*>(::emulator::shared_array(&name##_key, sizeof(T) * size_t(n)))
#define LAPAL_DYN_SHARED(T, name) T* const name = static_cast<T*>(::emulator::dynamic_shared())
#define LAPAL_CHECK_ALIGNED(pointer, bytes) ::emulator::check_aligned(pointer, bytes, EMULATOR_HERE)
