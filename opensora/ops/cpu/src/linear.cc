// Linear maps y = x W^T + b: each thread makes a share of the product.
#include "product.h"

namespace {

constexpr int64_t UNIT = 16;  // shares of a row are multiples of a cache line

struct Matrix {
  const float *data;
  int64_t step;
  bool transposed;

  char mark() const { return transposed ? 'T' : 'N'; }
  const float *from_row(int64_t row) const { return data + row * (transposed ? 1 : step); }
  const float *from_column(int64_t column) const { return data + column * (transposed ? step : 1); }
};

// c (m, n) = a (m, k) b (k, n) + beta c; columns of c, or rows where columns are few, are shared among threads.
int multiply(const Matrix &a, const Matrix &b, float *c, int64_t m, int64_t n, int64_t k, float beta) {
  const Product product = find_product();
  const bool by_rows = m > 4 * n;  // columns are the faster ones to share
  const int64_t length = by_rows ? m : n, units = (length + UNIT - 1) / UNIT;
  const int64_t shares = std::min<int64_t>(omp_get_max_threads(), units);
  int failed = product ? 0 : 1;
  if (failed) return failed;
#pragma omp parallel for reduction(| : failed)
  for (int64_t share = 0; share < shares; ++share) {
    const int64_t first = units * share / shares * UNIT;
    const int64_t size = std::min(units * (share + 1) / shares * UNIT, length) - first;
    if (by_rows) {
      failed |= product(a.mark(), b.mark(), size, n, k, 1.0f, a.from_row(first), a.step, b.data, b.step, beta,
                        c + first * n, n);
    } else {
      failed |= product(a.mark(), b.mark(), m, size, k, 1.0f, a.data, a.step, b.from_column(first), b.step, beta,
                        c + first, n);
    }
  }
  return failed;
}

// dy (rows, n) -> its sum over the rows
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

// x (rows, k), weight (n, k) -> y (rows, n)
KERNEL(linear) {
  const int64_t rows = shapes[0][0], k = shapes[0][1], n = shapes[1][0];
  if (shapes[1][1] != k) return 1;
  return multiply({input(params, 0), k, false}, {input(params, 1), k, true}, output(params, 2), rows, n, k, 0.0f);
}

// x, weight, bias (n) -> y
KERNEL(linear_bias) {
  const int64_t rows = shapes[0][0], k = shapes[0][1], n = shapes[1][0];
  const float *bias = input(params, 2);
  float *y = output(params, 3);
  if (shapes[1][1] != k || shapes[2][0] != n) return 1;
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) std::copy(bias, bias + n, y + row * n);
  return multiply({input(params, 0), k, false}, {input(params, 1), k, true}, y, rows, n, k, 1.0f);
}

// weight (n, k), dy (rows, n) -> dx (rows, k)
KERNEL(linear_input_grad) {
  const int64_t n = shapes[0][0], k = shapes[0][1], rows = shapes[1][0];
  if (shapes[1][1] != n) return 1;
  return multiply({input(params, 1), n, false}, {input(params, 0), k, false}, output(params, 2), rows, k, n, 0.0f);
}

// x (rows, k), dy (rows, n) -> dweight (n, k)
KERNEL(linear_weight_grad) {
  const int64_t rows = shapes[0][0], k = shapes[0][1], n = shapes[1][1];
  if (shapes[1][0] != rows) return 1;
  return multiply({input(params, 1), n, true}, {input(params, 0), k, false}, output(params, 2), n, k, rows, 0.0f);
}

// dy (rows, n) -> dbias (n)
KERNEL(linear_bias_grad) {
  sum_rows(input(params, 0), output(params, 1), shapes[0][0], shapes[0][1]);
  return 0;
}
