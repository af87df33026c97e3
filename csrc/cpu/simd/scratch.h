// Memory that one worker needs while it runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include "cpu/simd/lanes.h"

namespace lapal_ext {

// Uninitialised memory, aligned to a vector register. It is null if there was no memory: code inside parallel_for
// may not throw. torch/parallel_tiles.h turns that into an error.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : data_(static_cast<T*>(::operator new(size_t(size) * sizeof(T), kAlignment, std::nothrow))) {}
  ~Scratch() {
    ::operator delete(data_, kAlignment);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  explicit operator bool() const {
    return data_ != nullptr;
  }
  T* data() const {
    return data_;
  }

 private:
  static constexpr std::align_val_t kAlignment{kBlockBytes};
  T* data_;
};

}  // namespace lapal_ext
