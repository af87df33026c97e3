// The state of a launch: threads, the barriers at which they wait, shared memory. Only for emulator.cpp.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "emulator.h"
#include "fiber.h"

namespace emulator {

constexpr int kLanes = 32;
constexpr size_t kFenceBytes = 64;
constexpr size_t kArenaBytes = 256 << 10;
// The bytes that unwritten shared memory repeats; schedules alternate between both pairs. The first is NaN in every
// floating-point type, which sums keep; the second is a large number, which a maximum keeps. As an index both are far
// past every end, the second also times the rows of a tile. Neither is negative, because that means "none".
constexpr unsigned char kPoisons[][2] = {{0xff, 0x7f}, {0x7a, 0x7a}};

struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
  Place place{};  // of the first to arrive
  char order[2];  // addresses that the sanitizer orders by, for even and odd generations
};

struct Barriers {
  Barrier block;
  std::vector<Barrier> warps;
};

struct Thread {
  Fiber fiber;
  dim3 index;
  bool done = true;
  Barrier* waits_at = nullptr;
  unsigned waits_for = 0;

  bool ready() const {
    return !done && (waits_at == nullptr || waits_at->generation != waits_for);
  }
};

// Shared memory of one block: arrays, each followed by a fence.
class Arena {
 public:
  void reset(uint64_t seed) {
    // The sanitizer has to forget the accesses of the block before, which had its own shared memory.
    start_ = fresh_pages(kArenaBytes, start_);
    used_ = 0;
    poison_ = kPoisons[seed % 2];
    arrays_.clear();
  }

  void* array(const void* key, size_t bytes) {
    const auto found = arrays_.find(key);
    if (found != arrays_.end()) {
      return start_ + found->second.offset;
    }
    const size_t offset = used_;
    const size_t whole = (bytes + kFenceBytes + 15) / 16 * 16;
    if (offset + whole > kArenaBytes) {
      return nullptr;
    }
    used_ += whole;
    for (size_t i = offset; i < offset + whole; ++i) {
      start_[i] = poison_at(i);
    }
    arrays_[key] = {offset, bytes};
    return start_ + offset;
  }

  bool fences_hold() const {
    for (const auto& [key, array] : arrays_) {
      const size_t fence = array.offset + array.bytes;
      for (size_t i = fence; i < fence + kFenceBytes; ++i) {
        if (start_[i] != poison_at(i)) {
          return false;
        }
      }
    }
    return true;
  }

 private:
  struct Array {
    size_t offset, bytes;
  };

  char poison_at(size_t i) const {
    return static_cast<char>(poison_[i % 2]);
  }

  char* start_ = nullptr;
  size_t used_ = 0;
  const unsigned char* poison_ = kPoisons[0];
  std::map<const void*, Array> arrays_;
};

struct Emulator {
  uint64_t seed = 0;
  std::mt19937_64 random;
  Fiber scheduler;
  std::vector<Thread> threads;
  size_t n_threads = 0;  // of a block
  Thread* current = nullptr;
  size_t n_live = 0;
  // Those of every block so far, the current block last. If barriers of two blocks had the same address, the sanitizer
  // would take them for one barrier that orders the accesses of both blocks.
  std::vector<std::unique_ptr<Barriers>> barriers;
  std::vector<uint64_t> lane_slots;  // one per thread
  Arena shared;
  void (*body)(void*) = nullptr;
  void* closure = nullptr;
  char launch_end = 0;  // the address by which the sanitizer orders the end of a launch
  std::string error;
};

}  // namespace emulator
