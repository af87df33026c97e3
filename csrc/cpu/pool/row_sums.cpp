// One pass over rows of a pool that computes sums over the features of every row: products, or squared distances.
//
// Layout: features are in lanes. The order of the sums is that of cpu/gemm/dots.h on every machine. With AVX-512 the
// sums are compiler vectors: for rows in half precision, GCC compiles plain loops over lanes to half registers and
// keeps the sums in memory, which took twice as long as reading bfloat16. Without AVX-512 such vectors are three times
// as slow as plain loops, so other machines call cpu/gemm/dots.h.
//
// A row is read to its end before the next one. The next one is not its neighbour: kStreams parts of the tile take
// turns, because a processor follows several streams of addresses at once, each of which waits for memory by itself.
// On an AMD EPYC (Zen 4), 200,000 rows of 384 numbers took 8.3 ms in bfloat16 with one stream, 5.9 ms with four and
// 7.5 ms with eight; in float32 12.6, 11.7 and 14.4 ms. For a pool in cache it makes no difference. Prefetches cost
// more than they save.
//
// Limit: memory, one read of the pool; for a pool in cache, loads.
#include "cpu/pool/row_sums.h"

#include <cstring>
#include <type_traits>

#include "cpu/gemm/dots.h"
#include "cpu/simd/half_lanes.h"
#include "cpu/simd/lanes.h"

namespace lapal_ext {

namespace {

constexpr int64_t kStreams = 4;

// As many numbers as T has lanes. Functions take it by reference, because its ABI depends on the instruction set.
template <class T, class Compute>
using Lanes = typename VectorOf<T, kLanes<Compute>* int(sizeof(T))>::Type;

// The next numbers of a row, at any alignment and in any storage dtype, converted exactly.
template <class T, class S>
LAPAL_HD void load(const S* from, Lanes<T, T>& to) {
  if constexpr (std::is_floating_point_v<S>) {
    Lanes<S, T> stored;
    std::memcpy(&stored, from, sizeof(stored));
    to = __builtin_convertvector(stored, Lanes<T, T>);
  } else {
    Lanes<float, T> wide;
#if LAPAL_HAS_CLONES
    avx512_widen(from, wide);
#else
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      wide[lane] = widen<float>(from[lane]);
    }
#endif
    to = __builtin_convertvector(wide, Lanes<T, T>);
  }
}

template <int kPart, int kSums, class S, class Term, class T>
LAPAL_HD void add_vector_terms(const S* row, const Term& term, int64_t i, Lanes<T, T> (&sums)[kSums][kParts]) {
  Lanes<T, T> features;
  load<T>(row + i, features);
  LAPAL_UNROLL
  for (int k = 0; k < kSums; ++k) {
    term.add(k, i, features, sums[k][kPart]);
  }
}

// sum_terms() with registers of 64 bytes.
template <int kSums, class S, class Term, class T>
LAPAL_HD void sum_vector_terms(const S* row, int64_t size, const Term& term, T (&results)[kSums]) {
  constexpr int kL = kLanes<T>;
  Lanes<T, T> sums[kSums][kParts];
  LAPAL_UNROLL
  for (int k = 0; k < kSums; ++k) {
    LAPAL_UNROLL
    for (int part = 0; part < kParts; ++part) {
      sums[k][part] = Lanes<T, T>{};
    }
  }
  int64_t i = 0;
  for (; i + kParts * kL <= size; i += kParts * kL) {
    add_vector_terms<0, kSums, S, Term, T>(row, term, i, sums);
    add_vector_terms<1, kSums, S, Term, T>(row, term, i + kL, sums);
    add_vector_terms<2, kSums, S, Term, T>(row, term, i + 2 * kL, sums);
    add_vector_terms<3, kSums, S, Term, T>(row, term, i + 3 * kL, sums);
  }
  for (; i + kL <= size; i += kL) {
    add_vector_terms<0, kSums, S, Term, T>(row, term, i, sums);
  }
  LAPAL_UNROLL
  for (int k = 0; k < kSums; ++k) {
    const Lanes<T, T> sum = (sums[k][0] + sums[k][1]) + (sums[k][2] + sums[k][3]);
    T total = fold(reinterpret_cast<const T*>(&sum));  // which copies it
    for (int64_t last = i; last < size; ++last) {
      term.add(k, last, widen<T>(row[last]), total);
    }
    results[k] = total;
  }
}

// results[k][i] = sum k of row start + i; lines of `results` are `stride` apart.
template <bool kAvx512, int kSums, class T, class S, class Term>
LAPAL_HD void sum_rows(const PoolRows<S>& pool, int64_t start, int64_t rows, const Term& term, T* results,
                       int64_t stride) {
  const auto sum_row = [&](int64_t i) __attribute__((always_inline)) {
    const S* row = pool.data + (start + i) * pool.stride;
    T found[kSums];
    if constexpr (kAvx512) {
      sum_vector_terms(row, pool.n_features, term, found);
    } else {
      sum_terms(row, pool.n_features, term, found);
    }
    LAPAL_UNROLL
    for (int k = 0; k < kSums; ++k) {
      results[k * stride + i] = found[k];
    }
  };
  const int64_t part = rows / kStreams;
  for (int64_t i = 0; i < part; ++i) {
    for (int64_t stream = 0; stream < kStreams; ++stream) {
      sum_row(stream * part + i);
    }
  }
  for (int64_t i = kStreams * part; i < rows; ++i) {
    sum_row(i);
  }
}

// The terms of squared distances from kPoints points, with every feature scaled. V is T, or a compiler vector of it.
template <int kPoints, class T>
struct DistanceTerms {
  const T* points[kPoints];
  const T* scale;

  template <class V>
  LAPAL_HD void add(int k, int64_t i, const V& values, V& sum) const {
    V point, scale_of;
    load_values(points[k] + i, point);
    load_values(scale + i, scale_of);
    const V gap = (values - point) * scale_of;
    sum += gap * gap;
  }
};

#define LAPAL_SUM_ROWS_KERNELS(T, S, kSums, Terms)                                                                   \
  LAPAL_AVX512 void avx512_kernel(const PoolRows<S>& pool, int64_t start, int64_t rows, const Terms<kSums, T>& term, \
                                  T* results, int64_t stride) {                                                      \
    sum_rows<true, kSums>(pool, start, rows, term, results, stride);                                                 \
  }                                                                                                                  \
  LAPAL_NOT_AVX512 void portable_kernel(const PoolRows<S>& pool, int64_t start, int64_t rows,                        \
                                        const Terms<kSums, T>& term, T* results, int64_t stride) {                   \
    sum_rows<false, kSums>(pool, start, rows, term, results, stride);                                                \
  }
#define LAPAL_SUM_ROWS_OF_POOL(T, S)             \
  LAPAL_SUM_ROWS_KERNELS(T, S, 1, ProductTerms)  \
  LAPAL_SUM_ROWS_KERNELS(T, S, 2, ProductTerms)  \
  LAPAL_SUM_ROWS_KERNELS(T, S, 1, DistanceTerms) \
  LAPAL_SUM_ROWS_KERNELS(T, S, kPointsAtOnce, DistanceTerms)
LAPAL_FOR_POOL_TYPES(LAPAL_SUM_ROWS_OF_POOL)
#undef LAPAL_SUM_ROWS_OF_POOL
#undef LAPAL_SUM_ROWS_KERNELS

#if LAPAL_HAS_CLONES
#define LAPAL_SUM_F16C_ROWS(T, kSums, Terms)                                                                   \
  LAPAL_F16C void f16c_kernel(const PoolRows<Float16Bits>& pool, int64_t start, int64_t rows,                  \
                              const Terms<kSums, T>& term, T* results, int64_t stride) {                       \
    const PoolRows<F16cBits> same{reinterpret_cast<const F16cBits*>(pool.data), pool.stride, pool.n_features}; \
    sum_rows<false, kSums>(same, start, rows, term, results, stride);                                          \
  }
#define LAPAL_SUM_F16C_ROWS_OF_POOL(T)     \
  LAPAL_SUM_F16C_ROWS(T, 1, ProductTerms)  \
  LAPAL_SUM_F16C_ROWS(T, 2, ProductTerms)  \
  LAPAL_SUM_F16C_ROWS(T, 1, DistanceTerms) \
  LAPAL_SUM_F16C_ROWS(T, kPointsAtOnce, DistanceTerms)
LAPAL_SUM_F16C_ROWS_OF_POOL(float)
LAPAL_SUM_F16C_ROWS_OF_POOL(double)
#undef LAPAL_SUM_F16C_ROWS_OF_POOL
#undef LAPAL_SUM_F16C_ROWS
#endif

// Calls the kernel for this processor.
template <class T, class S, class Terms>
void sum_rows_of_pool(const PoolRows<S>& pool, int64_t start, int64_t rows, const Terms& term, T* results,
                      int64_t stride) {
  if (has_avx512()) {
    return avx512_kernel(pool, start, rows, term, results, stride);
  }
#if LAPAL_HAS_CLONES
  if constexpr (std::is_same_v<S, Float16Bits>) {
    if (has_f16c()) {
      return f16c_kernel(pool, start, rows, term, results, stride);
    }
  }
#endif
  portable_kernel(pool, start, rows, term, results, stride);
}

}  // namespace

template <int kDirections, class T, class S>
void multiply_rows(const PoolRows<S>& pool, int64_t start, int64_t rows, const Direction<T> (&directions)[kDirections],
                   T* products, int64_t stride) {
  ProductTerms<kDirections, T> term;
  for (int k = 0; k < kDirections; ++k) {
    term.vectors[k] = directions[k].vector;
  }
  sum_rows_of_pool(pool, start, rows, term, products, stride);
  for (int k = 0; k < kDirections; ++k) {
    for (int64_t i = 0; i < rows; ++i) {
      products[k * stride + i] += directions[k].offset;
    }
  }
}

template <int kPoints, class T, class S>
void square_distances(const PoolRows<S>& pool, int64_t start, int64_t rows, const T* const (&points)[kPoints],
                      const T* scale, T* squares, int64_t stride) {
  DistanceTerms<kPoints, T> term;
  for (int k = 0; k < kPoints; ++k) {
    term.points[k] = points[k];
  }
  term.scale = scale;
  sum_rows_of_pool(pool, start, rows, term, squares, stride);
}

#define LAPAL_PRODUCTS(T, S, kDirections) \
  template void multiply_rows(const PoolRows<S>&, int64_t, int64_t, const Direction<T>(&)[kDirections], T*, int64_t);
#define LAPAL_DISTANCES(T, S, kPoints)                                                                           \
  template void square_distances(const PoolRows<S>&, int64_t, int64_t, const T* const(&)[kPoints], const T*, T*, \
                                 int64_t);
#define LAPAL_INSTANCES(T, S) \
  LAPAL_PRODUCTS(T, S, 1) LAPAL_PRODUCTS(T, S, 2) LAPAL_DISTANCES(T, S, 1) LAPAL_DISTANCES(T, S, kPointsAtOnce)
LAPAL_FOR_POOL_TYPES(LAPAL_INSTANCES)
#undef LAPAL_INSTANCES
#undef LAPAL_DISTANCES
#undef LAPAL_PRODUCTS

}  // namespace lapal_ext
