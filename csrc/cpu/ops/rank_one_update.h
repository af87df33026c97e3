// The downdates of rank_one_update, for kernels that call them on their own memory.
#pragma once

#include <cstdint>

namespace lapal_ext {

// covariance [B, D, D], features [B, D], curvature [B] -> result [B, D, D], direction [B, D].
template <class T>
void update_matrices(const T* covariance, const T* features, const T* curvature, int64_t n_matrices, int64_t size,
                     T* result, T* direction);

}  // namespace lapal_ext
