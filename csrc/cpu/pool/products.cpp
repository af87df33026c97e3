// Dot products of the rows of a pool with one vector or two: the part of a selection step that reads the pool.
//
// Layout: features are in lanes. The order of the sums is that of cpu/gemm/dots.h on every machine. With AVX-512 the
// sums are compiler vectors: for rows in half precision, GCC compiles plain loops over lanes to half registers and
// keeps the sums in memory, which took twice as long as reading bfloat16. Without AVX-512 such vectors are three times
// as slow as plain loops, so other machines call cpu/gemm/dots.h.
//
// A row is read to its end before the next one. Two rows at a time would share the vectors, but took half as long again
// for a pool that is not in cache.
//
// Limit: memory, one read of the pool; for a pool in cache, loads.
#include "cpu/pool/products.h"

#include <cstring>
#include <type_traits>

#include "cpu/gemm/dots.h"
#include "cpu/simd/lanes.h"

namespace lapal_ext {

namespace {

// Distance of the prefetch. The hardware prefetcher stops at every page, and while the rows of a tile are scored.
// Half-precision pools that are not in cache became a quarter faster; with four times this distance, pools in cache
// became a tenth slower.
constexpr int64_t kPrefetchBytes = 1 << 12;

template <class T, int kCount>
using Vector = typename VectorOf<T, kCount* int(sizeof(T))>::Type;

// As many numbers as T has lanes. Functions take it by reference, because its ABI depends on the instruction set.
template <class T, class Compute>
using Lanes = Vector<T, kLanes<Compute>>;

// The bits of floats from those of half precision: widen() of shared/half_precision.h for all lanes.
template <class T>
LAPAL_HD void widen_bits(Bfloat16Bits, Lanes<uint32_t, T>& bits) {
  bits <<= 16;
}

template <class T>
LAPAL_HD void widen_bits(Float16Bits, Lanes<uint32_t, T>& bits) {
  using Bits = Lanes<uint32_t, T>;
  const Bits magnitude = bits & 0x7fffu, raised = (magnitude << 13) + 0x70000000u, behind_one = magnitude | 0x3f000000u;
  Lanes<float, T> normal, subnormal;
  std::memcpy(&normal, &raised, sizeof(raised));
  std::memcpy(&subnormal, &behind_one, sizeof(behind_one));
  normal *= 0x1p-112f;
  subnormal -= 0.5f;
  Bits normal_bits, subnormal_bits;
  std::memcpy(&normal_bits, &normal, sizeof(normal));
  std::memcpy(&subnormal_bits, &subnormal, sizeof(subnormal));
  const Bits is_subnormal = Bits(magnitude < 0x0400u);  // all bits of a lane, or none
  bits = (subnormal_bits & is_subnormal) | (normal_bits & ~is_subnormal) | (bits & 0x8000u) << 16;
}

// The next numbers of a row, at any alignment and in any storage dtype, converted exactly.
template <class T, class S>
LAPAL_HD void load(const S* from, Lanes<T, T>& to) {
  if constexpr (std::is_floating_point_v<S>) {
    Lanes<S, T> stored;
    std::memcpy(&stored, from, sizeof(stored));
    to = __builtin_convertvector(stored, Lanes<T, T>);
  } else {
    uint32_t lanes[kLanes<T>];  // a plain loop, because GCC splits a conversion of integer vectors
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      lanes[lane] = from[lane].bits;
    }
    Lanes<uint32_t, T> bits;
    std::memcpy(&bits, lanes, sizeof(bits));
    widen_bits<T>(S{}, bits);
    Lanes<float, T> wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    to = __builtin_convertvector(wide, Lanes<T, T>);
  }
}

template <int kPart, int kVectors, class S, class T>
LAPAL_HD void add_products(const S* row, const T* const (&vectors)[kVectors], int64_t i,
                           Lanes<T, T> (&sums)[kVectors][kParts]) {
  Lanes<T, T> features;
  load<T>(row + i, features);
  LAPAL_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    Lanes<T, T> factors;
    load<T>(vectors[k] + i, factors);
    sums[k][kPart] += features * factors;
  }
}

// dots() with registers of 64 bytes.
template <int kVectors, class S, class T>
LAPAL_HD void vector_dots(const S* row, const T* const (&vectors)[kVectors], int64_t size, T (&products)[kVectors]) {
  constexpr int kL = kLanes<T>;
  Lanes<T, T> sums[kVectors][kParts];
  LAPAL_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    LAPAL_UNROLL
    for (int part = 0; part < kParts; ++part) {
      sums[k][part] = Lanes<T, T>{};
    }
  }
  int64_t i = 0;
  for (; i + kParts * kL <= size; i += kParts * kL) {
    add_products<0>(row, vectors, i, sums);
    add_products<1>(row, vectors, i + kL, sums);
    add_products<2>(row, vectors, i + 2 * kL, sums);
    add_products<3>(row, vectors, i + 3 * kL, sums);
  }
  for (; i + kL <= size; i += kL) {
    add_products<0>(row, vectors, i, sums);
  }
  LAPAL_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    const Lanes<T, T> sum = (sums[k][0] + sums[k][1]) + (sums[k][2] + sums[k][3]);
    T total = fold(reinterpret_cast<const T*>(&sum));  // which copies it
    for (int64_t last = i; last < size; ++last) {
      total += widen<T>(row[last]) * vectors[k][last];
    }
    products[k] = total;
  }
}

template <bool kAvx512, int kDirections, class T, class S>
LAPAL_HD void multiply_all(const PoolRows<S>& pool, int64_t start, int64_t rows,
                           const Direction<T> (&directions)[kDirections], T* products, int64_t stride) {
  const int64_t row_bytes = pool.n_features * int64_t(sizeof(S));
  const int64_t ahead = pool.stride * (kPrefetchBytes / (row_bytes + 1) + 1);
  const T* vectors[kDirections];
  for (int k = 0; k < kDirections; ++k) {
    vectors[k] = directions[k].vector;
  }
  for (int64_t i = 0; i < rows; ++i) {
    const S* row = pool.data + (start + i) * pool.stride;
    const char* later = reinterpret_cast<const char*>(row + ahead);
    for (int64_t byte = 0; byte < row_bytes; byte += kBlockBytes) {
      __builtin_prefetch(later + byte);
    }
    T found[kDirections];
    if constexpr (kAvx512) {
      vector_dots<kDirections>(row, vectors, pool.n_features, found);
    } else {
      dots<kDirections>(row, vectors, pool.n_features, found);
    }
    for (int k = 0; k < kDirections; ++k) {
      products[k * stride + i] = found[k] + directions[k].offset;
    }
  }
}

#define LAPAL_ROWS_KERNELS(T, S, kDirections)                                                                        \
  LAPAL_AVX512 void avx512_kernel(const PoolRows<S>& pool, int64_t start, int64_t rows,                              \
                                  const Direction<T>(&directions)[kDirections], T* products, int64_t stride) {       \
    multiply_all<true>(pool, start, rows, directions, products, stride);                                             \
  }                                                                                                                  \
  LAPAL_NOT_AVX512 void portable_kernel(const PoolRows<S>& pool, int64_t start, int64_t rows,                        \
                                        const Direction<T>(&directions)[kDirections], T* products, int64_t stride) { \
    multiply_all<false>(pool, start, rows, directions, products, stride);                                            \
  }
#define LAPAL_ROWS_KERNEL_PAIRS(T, S) LAPAL_ROWS_KERNELS(T, S, 1) LAPAL_ROWS_KERNELS(T, S, 2)
LAPAL_FOR_POOL_TYPES(LAPAL_ROWS_KERNEL_PAIRS)
#undef LAPAL_ROWS_KERNEL_PAIRS
#undef LAPAL_ROWS_KERNELS

}  // namespace

template <int kDirections, class T, class S>
void multiply_rows(const PoolRows<S>& pool, int64_t start, int64_t rows, const Direction<T> (&directions)[kDirections],
                   T* products, int64_t stride) {
  if (has_avx512()) {
    avx512_kernel(pool, start, rows, directions, products, stride);
  } else {
    portable_kernel(pool, start, rows, directions, products, stride);
  }
}

#define LAPAL_INSTANCE(T, S, kDirections) \
  template void multiply_rows(const PoolRows<S>&, int64_t, int64_t, const Direction<T>(&)[kDirections], T*, int64_t);
#define LAPAL_INSTANCES(T, S) LAPAL_INSTANCE(T, S, 1) LAPAL_INSTANCE(T, S, 2)
LAPAL_FOR_POOL_TYPES(LAPAL_INSTANCES)
#undef LAPAL_INSTANCES
#undef LAPAL_INSTANCE

}  // namespace lapal_ext
