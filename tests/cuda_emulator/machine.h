// What the emulator keeps of a launch: threads, the barriers at which they wait, shared memory. For emulator.cpp alone.
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
// What unwritten shared memory repeats, from one schedule to the next: NaN in every floating-point type, which sums
// keep; or large numbers, which a maximum keeps. As an index both are far behind the end of everything, and the second
// kind even times the rows of a tile: never negative, which stands for "none".
constexpr unsigned char kPoisons[][2] = {{0xff, 0x7f}, {0x7a, 0x7a}};

struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
  Place place{};  // of the first to arrive
  char order[2];  // what the sanitizer orders by, one generation and the next
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

// Shared memory of one block: arrays, each with a fence behind it.
class Arena {
 public:
  void reset(uint64_t seed) {
    // The sanitizer has to forget the last block, whose shared memory was another.
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
  // Of every block so far, the last one's at the end: at the same address, those of two blocks would be one to the
  // sanitizer, and order what the blocks do.
  std::vector<std::unique_ptr<Barriers>> barriers;
  std::vector<uint64_t> lane_slots;  // one per thread
  Arena shared;
  void (*body)(void*) = nullptr;
  void* closure = nullptr;
  char launch_end = 0;  // what the sanitizer orders the end of a launch by
  std::string error;
};

}  // namespace emulator
