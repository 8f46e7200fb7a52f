// Linear layers y = x W^T + b and their gradients: one GEMM, divided among the threads.
#include "gemm.h"

namespace cpu_kernels {
namespace {

constexpr int64_t UNIT = 16;  // floats; threads get multiples of a cache line

// op(data): a row-major matrix with row stride `stride`, possibly transposed.
struct Matrix {
  const float *data;
  int64_t stride;
  bool transposed;

  char mode() const { return transposed ? 'T' : 'N'; }
  const float *from_row(int64_t row) const { return data + row * (transposed ? 1 : stride); }
  const float *from_column(int64_t column) const { return data + column * (transposed ? stride : 1); }
};

int64_t num_rows(const int64_t *shape, int rank) { return num_elements(shape, 0, rank - 1); }

// c (m, n) = a (m, k) b (k, n) + beta c. Threads divide the columns of c, or its rows if there are few columns.
int multiply(const Matrix &a, const Matrix &b, float *c, int64_t m, int64_t n, int64_t k, float beta) {
  const Sgemm sgemm = find_sgemm();
  if (!sgemm) return INVALID_SHAPES;
  const bool by_rows = m > 4 * n;  // dividing columns was measured to be faster unless there are few
  const int64_t length = by_rows ? m : n, units = ceil_div(length, UNIT);
  const int64_t blocks = std::min<int64_t>(omp_get_max_threads(), units);
  int failed = 0;
#pragma omp parallel for reduction(| : failed)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = units * block / blocks * UNIT;
    const int64_t size = std::min(units * (block + 1) / blocks * UNIT, length) - first;
    if (by_rows) {
      failed |= sgemm(a.mode(), b.mode(), size, n, k, 1.0f, a.from_row(first), a.stride, b.data, b.stride, beta,
                      c + first * n, n);
    } else {
      failed |= sgemm(a.mode(), b.mode(), m, size, k, 1.0f, a.data, a.stride, b.from_column(first), b.stride, beta,
                      c + first, n);
    }
  }
  return failed ? INVALID_SHAPES : OK;
}

// sums (n) = the sum of the rows of dy (rows, n)
void sum_rows(const float *dy, float *sums, int64_t rows, int64_t n) {
#pragma omp parallel for
  for (int64_t first = 0; first < n; first += UNIT) {
    const int64_t size = std::min(UNIT, n - first);
    float sum[UNIT] = {};
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < size; ++i) sum[i] += dy[row * n + first + i];
    }
    std::copy(sum, sum + size, sums + first);
  }
}

}  // namespace

// x (..., k), weight (n, k) -> y (..., n)
KERNEL(linear) {
  const int64_t rows = num_rows(shapes[0], ndims[0]), k = shapes[0][ndims[0] - 1], n = shapes[1][0];
  if (shapes[1][1] != k) return INVALID_SHAPES;
  return multiply({input(params, 0), k, false}, {input(params, 1), k, true}, output(params, 2), rows, n, k, 0.0f);
}

// x (..., k), weight (n, k), bias (n) -> y (..., n)
KERNEL(linear_bias) {
  const int64_t rows = num_rows(shapes[0], ndims[0]), k = shapes[0][ndims[0] - 1], n = shapes[1][0];
  const float *bias = input(params, 2);
  float *y = output(params, 3);
  if (shapes[1][1] != k || shapes[2][0] != n) return INVALID_SHAPES;
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) std::copy(bias, bias + n, y + row * n);
  return multiply({input(params, 0), k, false}, {input(params, 1), k, true}, y, rows, n, k, 1.0f);
}

// weight (n, k), dy (..., n) -> dx (..., k)
KERNEL(linear_input_grad) {
  const int64_t n = shapes[0][0], k = shapes[0][1], rows = num_rows(shapes[1], ndims[1]);
  if (shapes[1][ndims[1] - 1] != n) return INVALID_SHAPES;
  return multiply({input(params, 1), n, false}, {input(params, 0), k, false}, output(params, 2), rows, k, n, 0.0f);
}

// x (..., k), dy (..., n) -> dweight (n, k)
KERNEL(linear_weight_grad) {
  const int64_t rows = num_rows(shapes[0], ndims[0]), k = shapes[0][ndims[0] - 1], n = shapes[1][ndims[1] - 1];
  if (num_rows(shapes[1], ndims[1]) != rows) return INVALID_SHAPES;
  return multiply({input(params, 1), n, true}, {input(params, 0), k, false}, output(params, 2), n, k, rows, 0.0f);
}

// dy (..., n) -> dbias (n)
KERNEL(linear_bias_grad) {
  sum_rows(input(params, 0), output(params, 1), num_rows(shapes[0], ndims[0]), shapes[0][ndims[0] - 1]);
  return OK;
}

// x (B, ..., k), then n times a weight (m, k) and a bias (m) -> y (n B, ..., m), the layers' outputs one after another
KERNEL(stacked_linear) {
  const int layers = (count - 2) / 2;
  const int64_t rows = num_rows(shapes[0], ndims[0]), k = shapes[0][ndims[0] - 1], m = shapes[1][0];
  for (int i = 1; i <= layers; ++i) {
    if (shapes[2 * i - 1][0] != m || shapes[2 * i - 1][1] != k || shapes[2 * i][0] != m) return INVALID_SHAPES;
  }
  for (int i = 0; i < layers; ++i) {
    const float *weight = input(params, 2 * i + 1), *bias = input(params, 2 * i + 2);
    float *y = output(params, count - 1) + i * rows * m;
#pragma omp parallel for
    for (int64_t row = 0; row < rows; ++row) std::copy(bias, bias + m, y + row * m);
    if (multiply({input(params, 0), k, false}, {weight, k, true}, y, rows, m, k, 1.0f)) return INVALID_SHAPES;
  }
  return OK;
}

// n weights (m, k), dy (n B, ..., m) -> dx (B, ..., k)
KERNEL(stacked_linear_input_grad) {
  const int layers = count - 2;
  const int64_t m = shapes[0][0], k = shapes[0][1], rows = num_rows(shapes[layers], ndims[layers]) / layers;
  if (shapes[layers][ndims[layers] - 1] != m || shapes[layers][0] % layers) return INVALID_SHAPES;
  for (int i = 0; i < layers; ++i) {
    const float *dy = input(params, layers) + i * rows * m;
    if (multiply({dy, m, false}, {input(params, i), k, false}, output(params, count - 1), rows, k, m, i ? 1.0f : 0.0f)) {
      return INVALID_SHAPES;
    }
  }
  return OK;
}

// x (B, ..., k), dy (n B, ..., m) -> n times dweight (m, k) and dbias (m)
KERNEL(stacked_linear_weight_grad) {
  const int layers = (count - 2) / 2;
  const int64_t rows = num_rows(shapes[0], ndims[0]), k = shapes[0][ndims[0] - 1], m = shapes[1][ndims[1] - 1];
  if (num_rows(shapes[1], ndims[1]) != layers * rows) return INVALID_SHAPES;
  for (int i = 0; i < layers; ++i) {
    const float *dy = input(params, 1) + i * rows * m;
    if (multiply({dy, m, true}, {input(params, 0), k, false}, output(params, 2 * i + 2), m, k, rows, 0.0f)) {
      return INVALID_SHAPES;
    }
    sum_rows(dy, output(params, 2 * i + 3), rows, m);
  }
  return OK;
}

}  // namespace cpu_kernels
