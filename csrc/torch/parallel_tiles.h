// A parallel loop in which every worker has memory of its own.
//
// The body may not throw, because an exception inside parallel_for would cross a C boundary. So the memory of a worker
// converts to false if it could not be allocated, and this loop raises the error at the end.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <cstdint>

namespace lapal_ext {

// Calls body(begin, end, memory) for ranges that together are [0, n_tiles), each of at least `grain` tiles unless it is
// the last. `make_memory` is called once in each range and returns a Scratch, or a struct of several with an
// `explicit operator bool`.
template <class MakeMemory, class Body>
void parallel_tiles(int64_t n_tiles, int64_t grain, const char* op, MakeMemory&& make_memory, Body&& body) {
  std::atomic<bool> out_of_memory{false};
  torch::stable::parallel_for(0, n_tiles, grain, [&](int64_t begin, int64_t end) {
    const auto memory = make_memory();
    if (!memory) {
      out_of_memory = true;
      return;
    }
    body(begin, end, memory);
  });
  STD_TORCH_CHECK(!out_of_memory, op, ": out of memory");
}

}  // namespace lapal_ext
