// Slices, splits and concatenations along an axis; tensors are reshaped to (outer, axis, inner).
#include "common.h"

namespace cpu_kernels {
namespace {

// Copies `size` floats per row between matrices with row strides `from_stride` and `to_stride`.
void copy_rows(const float *from, int64_t from_stride, float *to, int64_t to_stride, int64_t rows, int64_t size) {
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(to + row * to_stride, from + row * from_stride, size * sizeof(float));
  }
}

// Rows of two tensors (outer, n, inner) and (outer, m, inner), and of both concatenated.
struct RowSizes {
  int64_t rows, first, second, both;
  bool fit;

  RowSizes(const int64_t *a, const int64_t *b)
      : rows(a[0]), first(a[1] * a[2]), second(b[1] * b[2]), both(first + second), fit(a[0] == b[0] && a[2] == b[2]) {}
};

}  // namespace

// x (outer, n, inner), start (1) -> y (outer, m, inner) = x[:, start : start + m]
KERNEL(slice) {
  const int64_t *x = shapes[0], *y = shapes[2], start = integer(input(params, 1)[0]);
  if (start < 0 || start + y[1] > x[1]) return INVALID_SHAPES;
  copy_rows(input(params, 0) + start * x[2], x[1] * x[2], output(params, 2), y[1] * y[2], x[0], y[1] * y[2]);
  return OK;
}

// dy (outer, m, inner), start (1) -> dx (outer, n, inner), zero outside of the slice
KERNEL(slice_grad) {
  const int64_t *dy = shapes[0], *dx = shapes[2], start = integer(input(params, 1)[0]);
  if (start < 0 || start + dy[1] > dx[1]) return INVALID_SHAPES;
  const int64_t row_size = dx[1] * dx[2], slice_size = dy[1] * dy[2];
  const float *from = input(params, 0);
#pragma omp parallel for
  for (int64_t row = 0; row < dx[0]; ++row) {
    float *to = output(params, 2) + row * row_size, *begin = to + start * dx[2], *end = begin + slice_size;
    std::fill(to, begin, 0.0f);
    std::memcpy(begin, from + row * slice_size, slice_size * sizeof(float));
    std::fill(end, to + row_size, 0.0f);
  }
  return OK;
}

// a (outer, n, inner), b (outer, m, inner) -> (outer, n + m, inner)
KERNEL(concat) {
  const RowSizes sizes(shapes[0], shapes[1]);
  if (!sizes.fit) return INVALID_SHAPES;
  float *y = output(params, 2);
  copy_rows(input(params, 0), sizes.first, y, sizes.both, sizes.rows, sizes.first);
  copy_rows(input(params, 1), sizes.second, y + sizes.first, sizes.both, sizes.rows, sizes.second);
  return OK;
}

// x (outer, n + m, inner), n (1) -> a (outer, n, inner), b (outer, m, inner)
KERNEL(split) {
  const RowSizes sizes(shapes[2], shapes[3]);
  if (!sizes.fit || shapes[2][1] + shapes[3][1] != shapes[0][1]) return INVALID_SHAPES;
  const float *x = input(params, 0);
  copy_rows(x, sizes.both, output(params, 2), sizes.first, sizes.rows, sizes.first);
  copy_rows(x + sizes.first, sizes.both, output(params, 3), sizes.second, sizes.rows, sizes.second);
  return OK;
}

}  // namespace cpu_kernels
