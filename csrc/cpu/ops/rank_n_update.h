// The update of rank_n_update, for kernels that call it on their own memory.
#pragma once

#include <cstdint>

namespace lapal_ext {

template <class T>
struct RankNUpdate {
  const T* matrix;    // [D, D]
  const T* rows;      // [b, D]
  const T* weights;   // [b]
  const T* triangle;  // [b, b], null: the identity
  int64_t size;
  int64_t n_rows;
  T* out;  // [D, D]
};

template <class T>
void update_matrix(const RankNUpdate<T>& update);

}  // namespace lapal_ext
