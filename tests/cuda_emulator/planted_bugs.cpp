// Kernels with one bug each, and the same kernels without it: the emulator must find the bug, and accept the other.
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/shared/portability.h"
#include "cuda/shared/reduce.cuh"

namespace {

using namespace lapal_ext;

constexpr int kBlockSize = 128;
constexpr int kBlocks = 3;
constexpr int kRounds = 4;

// out[round] = sum of in[round][thread], over and over in the same shared memory.
template <bool kReadAfterWrite, bool kWriteAfterRead>
__global__ void sum_kernel(const float* in, float* out) {
  LAPAL_SHARED(float, values, kBlockSize);
  const int thread = int(threadIdx.x);
  for (int round = 0; round < kRounds; ++round) {
    values[thread] = in[round * kBlockSize + thread];
    if (kReadAfterWrite) {
      __syncthreads();
    }
    float sum = 0.0f;
    for (int i = 0; i < kBlockSize; ++i) {
      sum += values[i];
    }
    if (thread == round) {
      out[round] = sum;
    }
    if (kWriteAfterRead) {
      __syncthreads();
    }
  }
}

// out[0] = sum over all blocks.
template <bool kAtomic>
__global__ void add_kernel(const float* in, float* out) {
  LAPAL_SHARED(float, scratch, kBlockSize / kWarpSize);
  const float sum = block_reduce<kBlockSize>(in[blockIdx.x * kBlockSize + threadIdx.x], 0.0f, Sum(), scratch);
  if (threadIdx.x == 0) {
    if (kAtomic) {
      atomicAdd(out, sum);
    } else {
      *out += sum;
    }
  }
}

// out[0] = in[0], through the last of `kBlockSize` values of dynamic shared memory.
template <bool kInside>
__global__ void bounds_kernel(const float* in, float* out) {
  LAPAL_DYN_SHARED(float, values);
  values[threadIdx.x + (kInside ? 0 : 1)] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    out[0] = values[kInside ? 0 : 1];
  }
}

template <bool kSame>
__global__ void barrier_kernel(const float* in, float* out) {
  if (kSame || threadIdx.x < kWarpSize) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    out[0] = in[0];
  }
}

template <bool kSame>
__global__ void shuffle_kernel(const float* in, float* out) {
  const float value = in[threadIdx.x];
  float other;
  if (kSame || threadIdx.x % 2 == 0) {
    other = __shfl_xor_sync(kFullWarp, value, 1);
  } else {
    other = __shfl_xor_sync(kFullWarp, value, 1);
  }
  if (threadIdx.x == 1) {
    out[0] = other;
  }
}

// out[0] = in[0], from lane 0 to lane 1 through shared memory. Both wait at a shuffle, which does not order memory.
template <bool kOrdered>
__global__ void shuffle_order_kernel(const float* in, float* out) {
  LAPAL_SHARED(float, values, kBlockSize);
  values[threadIdx.x] = in[threadIdx.x];
  const float first = __shfl_sync(kFullWarp, in[threadIdx.x], 0);
  if (kOrdered) {
    __syncwarp();
  }
  if (threadIdx.x == 1) {
    out[0] = values[0] == first ? first : 0.0f;
  }
}

template <bool kAll>
__global__ void exit_kernel(const float* in, float* out) {
  if (!kAll && threadIdx.x == 5) {
    return;
  }
  const float first = __shfl_sync(kFullWarp, in[threadIdx.x], 0);
  if (threadIdx.x == 0) {
    out[0] = first;
  }
}

// The bug: one lane waits at the barrier of the block, the rest of its warp at that of the warp.
template <bool kSame>
__global__ void deadlock_kernel(const float* in, float* out) {
  if (kSame || threadIdx.x == 3) {
    __syncthreads();
  }
  __syncwarp();
  if (threadIdx.x == 0) {
    out[0] = in[0];
  }
}

template <bool kInitialised>
__global__ void poison_kernel(const float* in, float* out) {
  LAPAL_SHARED(float, sum, 1);
  if (threadIdx.x == 0) {
    if (kInitialised) {
      sum[0] = 0.0f;
    }
    sum[0] += in[0];
    out[0] = sum[0];
  }
}

// out[0] = in[0], the better of in[0] and "none" in shared memory. The bug leaves that unwritten: the poison must win.
template <bool kInitialised>
__global__ void poison_candidate_kernel(const float* in, float* out) {
  LAPAL_SHARED(Candidate<float>, other, 1);
  if (threadIdx.x == 0) {
    if (kInitialised) {
      other[0] = no_candidate<float>();
    }
    out[0] = Better()(Candidate<float>{in[0], 0}, other[0]).value;
  }
}

template <bool kAligned>
__global__ void pack_kernel(const float* in, float* out) {
  if (threadIdx.x == 0) {
    out[0] = load_pack<4>(in + (kAligned ? 0 : 1)).values[kAligned ? 0 : 3];
  }
}

// The bug reads a block of values past the end of `in`.
template <bool kInside>
__global__ void global_bounds_kernel(const float* in, float* out) {
  const float value = in[kInside ? threadIdx.x : kRounds * kBlockSize + threadIdx.x];
  if (threadIdx.x == 0) {
    out[0] = kInside ? value : in[0] + 0.0f * value;
  }
}

template <class Kernel>
void launch(Kernel kernel, int blocks, const float* in, float* out) {
  LAPAL_LAUNCH(kernel, blocks, kBlockSize, kBlockSize * sizeof(float), nullptr, in, out);
}

void run(const std::string& name, bool healthy, const float* in, float* out) {
  if (name == "read after write") {
    launch(healthy ? sum_kernel<true, true> : sum_kernel<false, true>, 1, in, out);
  } else if (name == "write after read") {
    launch(healthy ? sum_kernel<true, true> : sum_kernel<true, false>, 1, in, out);
  } else if (name == "add") {
    launch(healthy ? add_kernel<true> : add_kernel<false>, kBlocks, in, out);
  } else if (name == "bounds") {
    launch(healthy ? bounds_kernel<true> : bounds_kernel<false>, 1, in, out);
  } else if (name == "global bounds") {
    launch(healthy ? global_bounds_kernel<true> : global_bounds_kernel<false>, 1, in, out);
  } else if (name == "barrier") {
    launch(healthy ? barrier_kernel<true> : barrier_kernel<false>, 1, in, out);
  } else if (name == "shuffle") {
    launch(healthy ? shuffle_kernel<true> : shuffle_kernel<false>, 1, in, out);
  } else if (name == "shuffle order") {
    launch(healthy ? shuffle_order_kernel<true> : shuffle_order_kernel<false>, 1, in, out);
  } else if (name == "exit") {
    launch(healthy ? exit_kernel<true> : exit_kernel<false>, 1, in, out);
  } else if (name == "deadlock") {
    launch(healthy ? deadlock_kernel<true> : deadlock_kernel<false>, 1, in, out);
  } else if (name == "poison") {
    launch(healthy ? poison_kernel<true> : poison_kernel<false>, 1, in, out);
  } else if (name == "poison candidate") {
    launch(healthy ? poison_candidate_kernel<true> : poison_candidate_kernel<false>, 1, in, out);
  } else if (name == "pack") {
    launch(healthy ? pack_kernel<true> : pack_kernel<false>, 1, in, out);
  } else if (name == "no blocks") {
    launch(barrier_kernel<true>, healthy ? 1 : 0, in, out);
  } else {
    throw std::runtime_error("no such kernel: " + name);
  }
}

}  // namespace

// The error of the launch, or an empty string; valid until the next call. `in` holds kBlockSize * kRounds values,
// `out` kRounds.
extern "C" __attribute__((visibility("default"))) const char* run_planted_bug(const char* name, bool healthy,
                                                                              const float* in, float* out) {
  static std::string error;
  error.clear();
  try {
    run(name, healthy, in, out);
  } catch (const std::exception& caught) {
    error = caught.what();
  }
  return error.c_str();
}
