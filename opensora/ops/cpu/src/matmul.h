// Products of matrices, the right one packed into panels of PANEL columns; a tile of TILE x PANEL sums stays in
// registers (Goto & van de Geijn 2008, Anatomy of high-performance matrix multiplication).
#pragma once

#include "common.h"

#ifdef __AVX512F__
constexpr int LANES = 16, TILE = 12;
#else
constexpr int LANES = 8, TILE = 6;
#endif
constexpr int PANEL = 2 * LANES;

typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4)));

inline int64_t round_up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

// Rows of `from` (rows, columns), `stride` apart, times `scale` -> panels [columns / PANEL][rows][PANEL], zeros behind
// the last column.
inline void pack(const float *from, int64_t stride, int64_t rows, int64_t columns, float scale, float *panels) {
  for (int64_t first = 0; first < columns; first += PANEL) {
    const int64_t size = std::min<int64_t>(PANEL, columns - first);
    for (int64_t row = 0; row < rows; ++row, panels += PANEL) {
      for (int64_t i = 0; i < size; ++i) panels[i] = from[row * stride + first + i] * scale;
      for (int64_t i = size; i < PANEL; ++i) panels[i] = 0;
    }
  }
}

// The same of the transpose: `from` (columns, rows) -> panels [columns / PANEL][rows][PANEL].
inline void pack_transposed(const float *from, int64_t stride, int64_t rows, int64_t columns, float *panels) {
  for (int64_t first = 0; first < columns; first += PANEL, panels += rows * PANEL) {
    const int64_t size = std::min<int64_t>(PANEL, columns - first);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = size; i < PANEL; ++i) panels[row * PANEL + i] = 0;
    }
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t row = 0; row < rows; ++row) panels[row * PANEL + i] = from[(first + i) * stride + row];
    }
  }
}

// Rows of `from` (rows, inner), `stride` apart, times `scale` -> [tile][i][TILE], zeros behind the last row.
inline void pack_rows(const float *from, int64_t stride, int64_t rows, int64_t inner, float scale, float *tiles) {
  for (int64_t first = 0; first < rows; first += TILE, tiles += inner * TILE) {
    const int64_t size = std::min<int64_t>(TILE, rows - first);
    if (size < TILE) std::fill_n(tiles, inner * TILE, 0.0f);
    for (int64_t row = 0; row < size; ++row) {
      for (int64_t i = 0; i < inner; ++i) tiles[i * TILE + row] = from[(first + row) * stride + i] * scale;
    }
  }
}

// Adds a (TILE, inner), with elements (row, i) at row * ROW_STEP + i * inner_step, times a panel to c.
template <int64_t ROW_STEP>
inline void add_tile(const float *a, int64_t inner_step, const float *panel, int64_t inner, float *c, int64_t c_stride) {
  Vector sums[TILE][2];
#pragma GCC unroll 16
  for (int row = 0; row < TILE; ++row) {
    sums[row][0] = *reinterpret_cast<const Vector *>(c + row * c_stride);
    sums[row][1] = *reinterpret_cast<const Vector *>(c + row * c_stride + LANES);
  }
  for (int64_t i = 0; i < inner; ++i, a += inner_step, panel += PANEL) {
    const Vector left = *reinterpret_cast<const Vector *>(panel);
    const Vector right = *reinterpret_cast<const Vector *>(panel + LANES);
#pragma GCC unroll 16
    for (int row = 0; row < TILE; ++row) {
      const float value = a[row * ROW_STEP];
      sums[row][0] += value * left;
      sums[row][1] += value * right;
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < TILE; ++row) {
    *reinterpret_cast<Vector *>(c + row * c_stride) = sums[row][0];
    *reinterpret_cast<Vector *>(c + row * c_stride + LANES) = sums[row][1];
  }
}

// c (rows, columns) += a (rows, inner) times panels. `rows` is a multiple of TILE, `columns` of PANEL; a's tiles lie
// tile_step apart, c's rows c_stride.
template <int64_t ROW_STEP>
inline void add_product(const float *a, int64_t tile_step, int64_t inner_step, const float *panels, int64_t rows,
                        int64_t inner, int64_t columns, float *c, int64_t c_stride) {
  for (int64_t column = 0; column < columns; column += PANEL, panels += inner * PANEL) {
    for (int64_t row = 0; row < rows; row += TILE) {
      add_tile<ROW_STEP>(a + row / TILE * tile_step, inner_step, panels, inner, c + row * c_stride + column, c_stride);
    }
  }
}
