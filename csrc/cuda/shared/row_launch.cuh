// The choice between three kernels for the rows of a matrix [N, C]: tiles, a row in the registers of a warp, or rows of
// any length.
#pragma once

#include "cuda/shared/launch.cuh"
#include "cuda/shared/row_tile.cuh"
#include "torch/rows.h"

namespace lapal_ext {

// A number as a type.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Calls tile(grid, block, shared_bytes), warp(grid, block, Constant<classes per lane>) or
// longer(grid, block).
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
