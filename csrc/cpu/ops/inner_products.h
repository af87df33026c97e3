// The product of inner_products, for kernels that call it on their own memory.
#pragma once

#include <cstdint>

#include "cpu/gemm/matrix.h"

namespace lapal_ext {

enum class Part { all, lower };

// out [N, E] = rows points^T, contiguous. With Part::lower, values above the diagonal may be left as they were.
template <class T>
void multiply(const Matrix<T>& rows, const Matrix<T>& points, int64_t depth, T* out, Part part = Part::all);

}  // namespace lapal_ext
