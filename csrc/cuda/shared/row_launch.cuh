// Which kernel takes the rows of a matrix [N, C]: one for tiles, one for warps that keep their row in registers, one
// for rows of any length.
#pragma once

#include "cuda/shared/launch.cuh"
#include "cuda/shared/row_tile.cuh"

namespace lapal_ext {

template <class T>
LogitRows<T> rows_of_logits(const torch::stable::Tensor& logits) {
  return {logits.const_data_ptr<T>(), logits.stride(0), logits.stride(1), logits.size(0), logits.size(1)};
}

// Calls launch_tile(grid, block, shared_bytes), launch_warp(grid, block, Constant<classes per lane>) or
// launch_long(grid, block).
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

template <class T, class Tile, class Warp, class Long>
void launch_rows(const Launch& launch, int64_t n_rows, int64_t n_classes, Tile&& tile, Warp&& warp, Long&& longer) {
  const unsigned warp_grid = launch.grid((n_rows + kRowWarps - 1) / kRowWarps);
  constexpr unsigned kWarpBlock = kRowWarps * kWarpSize;
  if (n_classes <= kFewClasses) {
    const size_t shared_bytes = size_t(kTileRows) * size_t(tile_row_length(int(n_classes))) * sizeof(T);
    tile(launch.grid((n_rows + kTileRows - 1) / kTileRows), unsigned(kTileRows), shared_bytes);
  } else if (n_classes <= 4 * kWarpSize) {
    warp(warp_grid, kWarpBlock, Constant<4>());
  } else if (n_classes <= 12 * kWarpSize) {
    warp(warp_grid, kWarpBlock, Constant<12>());
  } else if (n_classes <= 32 * kWarpSize) {
    warp(warp_grid, kWarpBlock, Constant<32>());
  } else {
    longer(warp_grid, kWarpBlock);
  }
}

}  // namespace lapal_ext
