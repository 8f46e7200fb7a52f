// Products of small matrices that lie in the cache. The right one is packed into panels of PANEL columns; a tile of
// TILE x PANEL sums stays in registers (Goto & van de Geijn 2008, Anatomy of high-performance matrix multiplication).
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

// Adds a (TILE, inner), with elements (row, i) at row * row_step + i * inner_step, times a panel to c.
inline void add_tile(const float *a, int64_t row_step, int64_t inner_step, const float *panel, int64_t inner, float *c,
                     int64_t c_stride) {
  Vector sums[TILE][2];
#pragma GCC unroll 16
  for (int row = 0; row < TILE; ++row) {
    sums[row][0] = *reinterpret_cast<const Vector *>(c + row * c_stride);
    sums[row][1] = *reinterpret_cast<const Vector *>(c + row * c_stride + LANES);
  }
  for (int64_t i = 0; i < inner; ++i) {
    const Vector left = *reinterpret_cast<const Vector *>(panel + i * PANEL);
    const Vector right = *reinterpret_cast<const Vector *>(panel + i * PANEL + LANES);
#pragma GCC unroll 16
    for (int row = 0; row < TILE; ++row) {
      const float value = a[row * row_step + i * inner_step];
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

// c (rows, columns) += a (rows, inner) times panels. `rows` is a multiple of TILE, c's `columns` of PANEL.
inline void add_product(const float *a, int64_t row_step, int64_t inner_step, const float *panels, int64_t rows,
                        int64_t inner, int64_t columns, float *c) {
  for (int64_t column = 0; column < columns; column += PANEL, panels += inner * PANEL) {
    for (int64_t row = 0; row < rows; row += TILE) {
      add_tile(a + row * row_step, row_step, inner_step, panels, inner, c + row * columns + column, columns);
    }
  }
}
