// Attention in blocks of queries and keys: the matrix of scores is never whole (Dao 2023, FlashAttention-2).
//
// q (B, S, N, D), k and v (B, L, N, D), bias (B or 1, N or 1, S or 1, L or 1), scale (1).
#include "matmul.h"

namespace {

constexpr int64_t KEYS = 96, ROWS = 24;  // of a block of scores: multiples of TILE and PANEL
constexpr int64_t QUERIES = 240;         // that share a packed block of keys

struct Shape {
  int64_t batch, queries, heads, width, keys, padded_width;
  int64_t token;  // from one token to the next

  Shape(const int64_t *q, const int64_t *k)
      : batch(q[0]), queries(q[1]), heads(q[2]), width(q[3]), keys(k[1]), padded_width(round_up(q[3], PANEL)),
        token(heads * width) {}
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
  if (!shape.fits(shapes[1], shapes[2])) return 1;
  const Bias bias(input(params, 3), shapes[3]);
  const float scale = input(params, 4)[0];
  float *y = output(params, 5), *logarithms = output(params, 6);
  const int64_t chunks = (shape.queries + QUERIES - 1) / QUERIES, padded = shape.padded_width;
#pragma omp parallel
  {
    std::vector<float> keys(round_up(KEYS, PANEL) * shape.width), values(KEYS * padded), queries(ROWS * shape.width);
    std::vector<float> scores(ROWS * KEYS), sums(QUERIES * padded), total(QUERIES), largest(QUERIES);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < shape.batch * shape.heads * chunks; ++item) {
      const int64_t head = item / chunks, b = head / shape.heads, n = head % shape.heads;
      const int64_t start = item % chunks * QUERIES, end = std::min(shape.queries, start + QUERIES);
      std::fill(sums.begin(), sums.end(), 0.0f);
      std::fill(total.begin(), total.end(), 0.0f);
      std::fill(largest.begin(), largest.end(), -INFINITY);
      for (int64_t key = 0; key < shape.keys; key += KEYS) {
        const int64_t size = std::min(KEYS, shape.keys - key);
        pack_transposed(k + shape.key(b, n, key), shape.token, shape.width, size, keys.data());
        const int64_t columns = round_up(size, PANEL);
        pack(v + shape.key(b, n, key), shape.token, size, shape.width, 1, values.data());
        for (int64_t first = start; first < end; first += ROWS) {
          const int64_t rows = std::min(ROWS, end - first);
          const int64_t full_rows = round_up(rows, TILE);
          pack_rows(q + shape.query(b, n, first), shape.token, rows, shape.width, scale, queries.data());
          std::fill(scores.begin(), scores.end(), 0.0f);
          add_product<1>(queries.data(), shape.width * TILE, TILE, keys.data(), full_rows, shape.width, columns,
                         scores.data(), KEYS);
          for (int64_t row = 0; row < rows; ++row) {
            const int64_t at = first + row - start;
            float *row_scores = scores.data() + row * KEYS;
            bias.add(b, n, first + row, key, size, row_scores);
            float most = largest[at], sum = 0;
#pragma omp simd reduction(max : most)
            for (int64_t i = 0; i < size; ++i) most = std::max(most, row_scores[i]);
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < size; ++i) {
              row_scores[i] = exp_approx(row_scores[i] - most);
              sum += row_scores[i];
            }
            if (most > largest[at]) {
              const float shrink = exp_approx(largest[at] - most);
              total[at] *= shrink;
              for (int64_t i = 0; i < padded; ++i) sums[at * padded + i] *= shrink;
              largest[at] = most;
            }
            total[at] += sum;
          }
          add_product<KEYS>(scores.data(), KEYS * TILE, 1, values.data(), full_rows, size, padded,
                            sums.data() + (first - start) * padded, padded);
        }
      }
      for (int64_t s = start; s < end; ++s) {
        const float *sum = sums.data() + (s - start) * padded, inverse = 1 / total[s - start];
        float *to = y + shape.query(b, n, s);
        for (int64_t i = 0; i < shape.width; ++i) to[i] = sum[i] * inverse;
        logarithms[head * shape.queries + s] = largest[s - start] + std::log(total[s - start]);
      }
    }
  }
  return 0;
}

// q, k, v, bias, scale, y, logarithms, gradient of y -> gradients of q, k, v
KERNEL(attention_grad) {
  const float *q = input(params, 0), *k = input(params, 1), *v = input(params, 2);
  const Shape shape(shapes[0], shapes[1]);
  if (!shape.fits(shapes[1], shapes[2])) return 1;
  const Bias bias(input(params, 3), shapes[3]);
  const float scale = input(params, 4)[0];
  const float *y = input(params, 5), *logarithms = input(params, 6), *dy = input(params, 7);
  float *dq = output(params, 8), *dk = output(params, 9), *dv = output(params, 10);
  const int64_t width = shape.width, padded = shape.padded_width;
#pragma omp parallel
  {
    std::vector<float> keys_across(KEYS * width), values_across(KEYS * width), keys(KEYS * padded);
    std::vector<float> queries(ROWS * width), grads(ROWS * width), query_panels(ROWS * padded), grad_panels(ROWS * padded);
    std::vector<float> weights(ROWS * KEYS), slopes(ROWS * KEYS), key_sums(KEYS * padded), value_sums(KEYS * padded);
    std::vector<float> query_sums(round_up(shape.queries, ROWS) * padded), means(shape.queries);
#pragma omp for schedule(dynamic)
    for (int64_t head = 0; head < shape.batch * shape.heads; ++head) {
      const int64_t b = head / shape.heads, n = head % shape.heads;
      std::fill(query_sums.begin(), query_sums.end(), 0.0f);
      for (int64_t s = 0; s < shape.queries; ++s) {
        const float *out = y + shape.query(b, n, s), *grad = dy + shape.query(b, n, s);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; ++i) sum += out[i] * grad[i];
        means[s] = sum;
      }
      for (int64_t key = 0; key < shape.keys; key += KEYS) {
        const int64_t size = std::min(KEYS, shape.keys - key), columns = round_up(size, PANEL);
        pack_transposed(k + shape.key(b, n, key), shape.token, width, size, keys_across.data());
        pack_transposed(v + shape.key(b, n, key), shape.token, width, size, values_across.data());
        pack(k + shape.key(b, n, key), shape.token, size, width, 1, keys.data());
        std::fill(key_sums.begin(), key_sums.end(), 0.0f);
        std::fill(value_sums.begin(), value_sums.end(), 0.0f);
        for (int64_t first = 0; first < shape.queries; first += ROWS) {
          const int64_t rows = std::min(ROWS, shape.queries - first);
          pack_rows(q + shape.query(b, n, first), shape.token, rows, width, scale, queries.data());
          pack_rows(dy + shape.query(b, n, first), shape.token, rows, width, 1, grads.data());
          pack(q + shape.query(b, n, first), shape.token, rows, width, scale, query_panels.data());
          pack(dy + shape.query(b, n, first), shape.token, rows, width, 1, grad_panels.data());
          std::fill(weights.begin(), weights.end(), 0.0f);
          std::fill(slopes.begin(), slopes.end(), 0.0f);
          const int64_t full_rows = round_up(rows, TILE), tile = width * TILE;
          add_product<1>(queries.data(), tile, TILE, keys_across.data(), full_rows, width, columns, weights.data(), KEYS);
          add_product<1>(grads.data(), tile, TILE, values_across.data(), full_rows, width, columns, slopes.data(), KEYS);
          for (int64_t row = 0; row < full_rows; ++row) {
            float *weight = weights.data() + row * KEYS, *slope = slopes.data() + row * KEYS;
            const int64_t used = row < rows ? size : 0;
            if (used) {
              bias.add(b, n, first + row, key, size, weight);
              const float logarithm = logarithms[head * shape.queries + first + row], mean = means[first + row];
#pragma omp simd
              for (int64_t i = 0; i < size; ++i) {
                weight[i] = exp_approx(weight[i] - logarithm);
                slope[i] = weight[i] * (slope[i] - mean);
              }
            }
            std::fill(weight + used, weight + columns, 0.0f);
            std::fill(slope + used, slope + columns, 0.0f);
          }
          const int64_t key_rows = round_up(size, TILE);
          add_product<KEYS>(slopes.data(), KEYS * TILE, 1, keys.data(), full_rows, size, padded,
                            query_sums.data() + first * padded, padded);
          add_product<1>(slopes.data(), TILE, KEYS, query_panels.data(), key_rows, rows, padded, key_sums.data(), padded);
          add_product<1>(weights.data(), TILE, KEYS, grad_panels.data(), key_rows, rows, padded, value_sums.data(),
                         padded);
        }
        for (int64_t l = 0; l < size; ++l) {
          float *to_key = dk + shape.key(b, n, key + l), *to_value = dv + shape.key(b, n, key + l);
          for (int64_t i = 0; i < width; ++i) to_key[i] = key_sums[l * padded + i];
          for (int64_t i = 0; i < width; ++i) to_value[i] = value_sums[l * padded + i];
        }
      }
      for (int64_t s = 0; s < shape.queries; ++s) {
        float *to = dq + shape.query(b, n, s);
        for (int64_t i = 0; i < width; ++i) to[i] = query_sums[s * padded + i] * scale;
      }
    }
  }
  return 0;
}
