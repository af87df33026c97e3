// The scheduler of emulator.h, on the state of machine.h. Built without instrumentation even for ThreadSanitizer, which
// therefore does not see the accesses made here; only barriers order the accesses of kernels.
#include "emulator.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "machine.h"

namespace emulator {

Coordinates coordinates;

namespace {

constexpr unsigned kFullMask = 0xffffffffu;

Emulator state;
const char dynamic_key = 0;

std::string text(Place place) {
  const std::string file = place.file;
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(place.line);
}

// Gives up the launch: the scheduler throws. The fibers are never resumed.
[[noreturn]] void fail(const std::string& message) {
  state.error = message;
  state.current->fiber.switch_to(state.scheduler);
  abort();
}

size_t warp_of_current() {
  return size_t(state.current - state.threads.data()) / kLanes;
}

void complete_block_barrier() {
  Barrier& barrier = state.barriers.back()->block;
  if (barrier.arrived > 0 && size_t(barrier.arrived) >= state.n_live) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
}

void meet_at(Barrier& barrier, Place place, const char* what) {
  if (barrier.arrived == 0) {
    barrier.place = place;
  } else if (barrier.place.line != place.line || std::strcmp(barrier.place.file, place.file) != 0) {
    fail(std::string("divergent ") + what + ": some threads are at " + text(barrier.place) + ", others at " +
         text(place));
  }
  ++barrier.arrived;
}

// Yields to the scheduler even if this thread is the last to arrive, so that the order after a barrier is random too.
void wait_at(Barrier& barrier, unsigned generation, bool orders_memory) {
  char* order = &barrier.order[generation & 1];
  if (orders_memory) {
    release(order);
  }
  state.current->waits_at = &barrier;
  state.current->waits_for = generation;
  state.current->fiber.switch_to(state.scheduler);
  state.current->waits_at = nullptr;
  if (orders_memory) {
    acquire(order);
  }
}

// Lanes wait for each other at shuffles and votes too, but only __syncwarp orders their accesses to memory.
void meet_in_warp(unsigned mask, Place place, bool orders_memory) {
  if (mask != kFullMask) {
    fail("the mask at " + text(place) + " is not full: only whole warps are supported");
  }
  const size_t warp = warp_of_current();
  const auto first = state.threads.begin() + std::ptrdiff_t(warp * kLanes);
  if (std::any_of(first, first + kLanes, [](const Thread& thread) { return thread.done; })) {
    fail("a warp synchronizes at " + text(place) + " after one of its lanes has exited");
  }
  Barrier& barrier = state.barriers.back()->warps[warp];
  const unsigned generation = barrier.generation;
  meet_at(barrier, place, "shuffle");
  if (barrier.arrived == kLanes) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
  wait_at(barrier, generation, orders_memory);
}

void thread_main() {
  state.body(state.closure);
  release(&state.launch_end);
  Thread& thread = *state.current;
  const Barrier& warp = state.barriers.back()->warps[warp_of_current()];
  if (warp.arrived > 0) {
    fail("a lane exits while its warp waits for it at " + text(warp.place));
  }
  thread.done = true;
  --state.n_live;
  complete_block_barrier();
  thread.fiber.switch_to(state.scheduler);
  abort();
}

std::string describe_deadlock() {
  std::string where;
  std::vector<std::string> places;
  for (size_t i = 0; i < state.n_threads; ++i) {
    const Thread& thread = state.threads[i];
    if (thread.done) {
      continue;
    }
    const std::string place = text(thread.waits_at->place);
    if (std::find(places.begin(), places.end(), place) == places.end()) {
      places.push_back(place);
      where += (where.empty() ? "" : " and ") + place;
    }
  }
  return "deadlock: " + std::to_string(state.n_live) + " threads wait for each other at " + where;
}

// Runs the ready lanes of one warp, once each and in random order. False if there are none.
bool run_warp(size_t warp, unsigned order) {
  const unsigned factor = (order | 1) & 31, offset = (order >> 5) & 31;  // an odd factor visits every lane
  bool ran = false;
  for (unsigned i = 0; i < kLanes && state.error.empty(); ++i) {
    Thread& thread = state.threads[warp * kLanes + ((i * factor + offset) & 31)];
    if (thread.ready()) {
      ran = true;
      state.current = &thread;
      coordinates.thread = thread.index;
      state.scheduler.switch_to(thread.fiber);
    }
  }
  return ran;
}

// Always runs the first warp of `priority` that is ready, so that it gets ahead until a barrier of the block stops it.
// The priorities change now and then. A fair order would hide most missing barriers.
void run_block(size_t dynamic_shared_bytes) {
  const dim3 size = coordinates.block_size;
  const size_t n_warps = state.n_threads / kLanes;
  state.shared.reset(state.seed);
  state.shared.array(&dynamic_key, dynamic_shared_bytes);
  state.barriers.push_back(std::make_unique<Barriers>());
  state.barriers.back()->warps.resize(n_warps);
  state.n_live = state.n_threads;
  for (unsigned i = 0; i < state.n_threads; ++i) {
    Thread& thread = state.threads[i];
    thread.index = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
    thread.done = false;
    thread.waits_at = nullptr;
    thread.fiber.start(&thread_main);
  }
  std::vector<size_t> priority(n_warps);
  std::iota(priority.begin(), priority.end(), size_t(0));
  while (state.n_live > 0 && state.error.empty()) {
    const uint64_t number = state.random();
    if (number % 16 == 0) {
      std::shuffle(priority.begin(), priority.end(), state.random);
    }
    const bool ran = std::any_of(priority.begin(), priority.end(),
                                 [number](size_t warp) { return run_warp(warp, unsigned(number >> 8)); });
    if (!ran && state.n_live > 0) {
      state.error = describe_deadlock();
    }
  }
  if (state.error.empty() && !state.shared.fences_hold()) {
    state.error = "a write behind the end of shared memory";
  }
}

void check_launch(dim3 grid, dim3 block, size_t dynamic_shared_bytes) {
  const size_t n_threads = size_t(block.x) * block.y * block.z;
  if (n_threads == 0 || n_threads > 1024 || n_threads % kLanes != 0) {
    throw std::runtime_error("emulator: a block must be whole warps, at most 1024 threads, got " +
                             std::to_string(n_threads));
  }
  const size_t n_blocks = size_t(grid.x) * grid.y * grid.z;
  if (n_blocks == 0 || grid.x > 0x7fffffffu || grid.y > 0xffffu || grid.z > 0xffffu) {
    throw std::runtime_error("emulator: a grid must have 1 to 2^31 - 1, 65535, 65535 blocks, got " +
                             std::to_string(n_blocks) + " in all");
  }
  if (dynamic_shared_bytes > size_t(kMaxSharedBytes)) {
    throw std::runtime_error("emulator: " + std::to_string(dynamic_shared_bytes) + " bytes of shared memory");
  }
#if defined(EMULATOR_TSAN)
  constexpr size_t kMaxThreads = 7000;  // ThreadSanitizer has ids for about 8000
  if (n_threads * n_blocks > kMaxThreads) {
    throw std::runtime_error("emulator: too many threads in one launch for ThreadSanitizer");
  }
#endif
}

}  // namespace

void run(dim3 grid, dim3 block, size_t dynamic_shared_bytes, void (*body)(void*), void* closure) {
  check_launch(grid, block, dynamic_shared_bytes);
  state.random.seed(state.seed);
  state.error.clear();
  state.n_threads = size_t(block.x) * block.y * block.z;
  if (state.threads.size() < state.n_threads) {
    state.threads.resize(state.n_threads);
  }
  state.lane_slots.assign(state.n_threads, 0);
  state.body = body;
  state.closure = closure;
  coordinates.grid_size = grid;
  coordinates.block_size = block;
  state.scheduler.adopt_current();
  std::vector<unsigned> order(size_t(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), state.random);
  for (const unsigned i : order) {
    coordinates.block = dim3(i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y));
    run_block(dynamic_shared_bytes);
    if (!state.error.empty()) {
      break;
    }
  }
  acquire(&state.launch_end);
  Sanitized::destroy_all();
  state.barriers.clear();
  if (!state.error.empty()) {
    throw std::runtime_error("emulator: " + state.error);
  }
}

void* shared_array(const void* key, size_t bytes) {
  void* array = state.shared.array(key, bytes);
  if (array == nullptr) {
    fail("out of shared memory");
  }
  return array;
}

void* dynamic_shared() {
  return shared_array(&dynamic_key, 0);
}

void sync_block(Place place) {
  Barrier& barrier = state.barriers.back()->block;
  const unsigned generation = barrier.generation;
  meet_at(barrier, place, "barrier");
  complete_block_barrier();
  wait_at(barrier, generation, true);
}

void sync_warp(unsigned mask, Place place) {
  meet_in_warp(mask, place, true);
}

uint64_t exchange(unsigned mask, uint64_t bits, int source, Place place) {
  const size_t first = warp_of_current() * kLanes;
  state.lane_slots[first + size_t(lane())] = bits;
  meet_in_warp(mask, place, false);
  const uint64_t received = source >= 0 && source < kLanes ? state.lane_slots[first + size_t(source)] : bits;
  meet_in_warp(mask, place, false);  // before any lane writes into a slot again
  return received;
}

unsigned ballot(unsigned mask, bool vote, Place place) {
  const size_t first = warp_of_current() * kLanes;
  state.lane_slots[first + size_t(lane())] = vote;
  meet_in_warp(mask, place, false);
  unsigned votes = 0;
  for (int i = 0; i < kLanes; ++i) {
    votes |= unsigned(state.lane_slots[first + size_t(i)]) << i;
  }
  meet_in_warp(mask, place, false);
  return votes;
}

void check_aligned(const void* pointer, size_t bytes, Place place) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
    fail("a misaligned access of " + std::to_string(bytes) + " bytes at " + text(place));
  }
}

int lane() {
  return int(size_t(state.current - state.threads.data()) % kLanes);
}

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) void emulator_set_seed(uint64_t seed) {
  emulator::state.seed = seed;
}
