// Attention in blocks of queries and keys: the matrix of scores is never whole (Dao 2023, FlashAttention-2).
//
// q (B, S, N, D), k and v (B, L, N, D), bias (B or 1, N or 1, S or 1, L or 1), scale (1).
#include <limits>

#include "product.h"
#include "vector.h"

namespace {

constexpr int64_t QUERIES = 128, KEYS = 512;  // of a block of scores, which stays in the L2 cache

struct Shape {
  int64_t batch, queries, heads, width, keys;
  int64_t token;  // from one token to the next

  Shape(const int64_t *q, const int64_t *k)
      : batch(q[0]), queries(q[1]), heads(q[2]), width(q[3]), keys(k[1]), token(heads * width) {}
  // The keys and values of another batch, or of other heads, would be read past their end.
  bool fits(const int64_t *k, const int64_t *v) const {
    return k[0] == batch && k[2] == heads && k[3] == width && std::equal(k, k + 4, v);
  }
  int64_t query(int64_t b, int64_t n, int64_t s) const { return (b * queries + s) * token + n * width; }
  int64_t key(int64_t b, int64_t n, int64_t l) const { return (b * keys + l) * token + n * width; }
};

// A bias that is repeated along the axes where its size is 1.
struct Bias {
  const float *data;
  int64_t steps[4];

  Bias(const float *data, const int64_t *shape) : data(data) {
    int64_t step = 1;
    for (int axis = 3; axis >= 0; --axis) {
      steps[axis] = shape[axis] == 1 ? 0 : step;
      step *= shape[axis];
    }
  }
  static bool fits(const int64_t *bias, const Shape &shape) {
    const int64_t sizes[] = {shape.batch, shape.heads, shape.queries, shape.keys};
    return std::equal(sizes, sizes + 4, bias, [](int64_t size, int64_t other) { return other == 1 || other == size; });
  }
  // Adds the bias of `size` keys, from `first` on.
  void add(int64_t b, int64_t n, int64_t s, int64_t first, int64_t size, float *scores) const {
    const float *row = data + b * steps[0] + n * steps[1] + s * steps[2] + first * steps[3];
    if (steps[3] == 0) {
      for (int64_t i = 0; i < size; ++i) scores[i] += row[0];
    } else {
      for (int64_t i = 0; i < size; ++i) scores[i] += row[i];
    }
  }
};

}  // namespace

// -> y (B, S, N, D), logarithms of the sums of exponentials (B, N, S)
KERNEL(attention) {
  const float *q = input(params, 0), *k = input(params, 1), *v = input(params, 2);
  const Shape shape(shapes[0], shapes[1]);
  const Product product = find_product();
  if (!product || !shape.fits(shapes[1], shapes[2]) || !Bias::fits(shapes[3], shape)) return 1;
  const Bias bias(input(params, 3), shapes[3]);
  const float scale = input(params, 4)[0];
  float *y = output(params, 5), *logarithms = output(params, 6);
  const int64_t chunks = (shape.queries + QUERIES - 1) / QUERIES, width = shape.width, token = shape.token;
#pragma omp parallel
  {
    const int64_t row_size = std::min(KEYS, shape.keys);
    std::vector<float> scores(QUERIES * row_size), total(QUERIES), largest(QUERIES);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < shape.batch * shape.heads * chunks; ++item) {
      const int64_t head = item / chunks, b = head / shape.heads, n = head % shape.heads;
      const int64_t start = item % chunks * QUERIES, rows = std::min(QUERIES, shape.queries - start);
      float *sums = y + shape.query(b, n, start);
      std::fill(total.begin(), total.end(), 0.0f);
      // Not -infinity: a block whose keys are all hidden by a bias of -infinity must weigh 0, not exp(-inf + inf).
      std::fill(largest.begin(), largest.end(), std::numeric_limits<float>::lowest());
      for (int64_t key = 0; key < shape.keys; key += KEYS) {
        const int64_t size = std::min(KEYS, shape.keys - key);
        product('N', 'T', rows, size, width, scale, q + shape.query(b, n, start), token, k + shape.key(b, n, key), token,
                0, scores.data(), row_size);
        for (int64_t row = 0; row < rows; ++row) {
          float *row_scores = scores.data() + row * row_size;
          bias.add(b, n, start + row, key, size, row_scores);
          const float most = largest_of(row_scores, size, largest[row]);
          float sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t i = 0; i < size; ++i) {
            row_scores[i] = exp_approx(row_scores[i] - most);
            sum += row_scores[i];
          }
          if (most > largest[row] && key) {
            const float shrink = exp_approx(largest[row] - most);
            total[row] *= shrink;
            for (int64_t i = 0; i < width; ++i) sums[row * token + i] *= shrink;
          }
          largest[row] = most;
          total[row] += sum;
        }
        product('N', 'N', rows, width, size, 1, scores.data(), row_size, v + shape.key(b, n, key), token, key ? 1 : 0,
                sums, token);
      }
      for (int64_t row = 0; row < rows; ++row) {
        const float inverse = 1 / total[row];
        for (int64_t i = 0; i < width; ++i) sums[row * token + i] *= inverse;
        logarithms[head * shape.queries + start + row] = largest[row] + std::log(total[row]);
      }
    }
  }
  return 0;
}

// q, k, v, bias, scale, y, logarithms, gradient of y -> gradients of q, k, v
KERNEL(attention_grad) {
  const float *q = input(params, 0), *k = input(params, 1), *v = input(params, 2);
  const Shape shape(shapes[0], shapes[1]);
  const Product product = find_product();
  if (!product || !shape.fits(shapes[1], shapes[2]) || !Bias::fits(shapes[3], shape)) return 1;
  const Bias bias(input(params, 3), shapes[3]);
  const float scale = input(params, 4)[0];
  const float *y = input(params, 5), *logarithms = input(params, 6), *dy = input(params, 7);
  float *dq = output(params, 8), *dk = output(params, 9), *dv = output(params, 10);
  const int64_t width = shape.width, token = shape.token;
#pragma omp parallel
  {
    const int64_t row_size = std::min(KEYS, shape.keys);
    std::vector<float> weights(QUERIES * row_size), slopes(QUERIES * row_size);
#pragma omp for schedule(dynamic)
    for (int64_t head = 0; head < shape.batch * shape.heads; ++head) {
      const int64_t b = head / shape.heads, n = head % shape.heads;
      for (int64_t start = 0; start < shape.queries; start += QUERIES) {
        const int64_t rows = std::min(QUERIES, shape.queries - start), at = shape.query(b, n, start);
        for (int64_t key = 0; key < shape.keys; key += KEYS) {
          const int64_t size = std::min(KEYS, shape.keys - key), key_at = shape.key(b, n, key);
          product('N', 'T', rows, size, width, scale, q + at, token, k + key_at, token, 0, weights.data(), row_size);
          product('N', 'T', rows, size, width, 1, dy + at, token, v + key_at, token, 0, slopes.data(), row_size);
          for (int64_t row = 0; row < rows; ++row) {
            const float *out = y + at + row * token, *grad = dy + at + row * token;
            float *weight = weights.data() + row * row_size, *slope = slopes.data() + row * row_size, mean = 0;
#pragma omp simd reduction(+ : mean)
            for (int64_t i = 0; i < width; ++i) mean += out[i] * grad[i];
            bias.add(b, n, start + row, key, size, weight);
            const float logarithm = logarithms[head * shape.queries + start + row];
#pragma omp simd
            for (int64_t i = 0; i < size; ++i) {
              weight[i] = exp_approx(weight[i] - logarithm);
              slope[i] = weight[i] * (slope[i] - mean);
            }
          }
          product('N', 'N', rows, width, size, scale, slopes.data(), row_size, k + key_at, token, key ? 1 : 0, dq + at,
                  token);
          product('T', 'N', size, width, rows, scale, slopes.data(), row_size, q + at, token, start ? 1 : 0, dk + key_at,
                  token);
          product('T', 'N', size, width, rows, 1, weights.data(), row_size, dy + at, token, start ? 1 : 0, dv + key_at,
                  token);
        }
      }
    }
  }
  return 0;
}
