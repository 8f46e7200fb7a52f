// Attention in blocks of queries and keys; the matrix of scores is never stored whole (Dao 2023, FlashAttention-2).
//
// q (B, S, N, D), k and v (B, L, N, D), bias (B or 1, N or 1, S or 1, L or 1), scale (1).
#include <limits>

#include "buffer.h"
#include "gemm.h"
#include "simd.h"

namespace cpu_kernels {
namespace {

constexpr int64_t QUERIES = 128, KEYS = 512;  // size of a block of scores: 256 KiB, which stays in the L2 cache

struct AttentionShape {
  int64_t batch, queries, heads, width, keys;
  int64_t token_stride;  // floats from one token to the next of the same head

  AttentionShape(const int64_t *q, const int64_t *k)
      : batch(q[0]), queries(q[1]), heads(q[2]), width(q[3]), keys(k[1]), token_stride(heads * width) {}
  bool fits(const int64_t *k, const int64_t *v) const {
    return k[0] == batch && k[2] == heads && k[3] == width && std::equal(k, k + 4, v);
  }
  int64_t query_offset(int64_t b, int64_t n, int64_t s) const { return (b * queries + s) * token_stride + n * width; }
  int64_t key_offset(int64_t b, int64_t n, int64_t l) const { return (b * keys + l) * token_stride + n * width; }
  int64_t key_elements() const { return batch * keys * token_stride; }
};

// The additive bias, broadcast along axes of size 1.
struct Bias {
  const float *data;
  int64_t strides[4];

  Bias(const float *data, const int64_t *shape) : data(data) {
    int64_t stride = 1;
    for (int axis = 3; axis >= 0; --axis) {
      strides[axis] = shape[axis] == 1 ? 0 : stride;
      stride *= shape[axis];
    }
  }
  static bool fits(const int64_t *bias, const AttentionShape &shape) {
    const int64_t sizes[] = {shape.batch, shape.heads, shape.queries, shape.keys};
    return std::equal(sizes, sizes + 4, bias, [](int64_t size, int64_t other) { return other == 1 || other == size; });
  }
  // scores[i] += bias[b, n, s, first + i] for `size` keys.
  void add(int64_t b, int64_t n, int64_t s, int64_t first, int64_t size, float *scores) const {
    const float *row = data + b * strides[0] + n * strides[1] + s * strides[2] + first * strides[3];
    if (strides[3] == 0) {
      for (int64_t i = 0; i < size; ++i) scores[i] += row[0];
    } else {
      for (int64_t i = 0; i < size; ++i) scores[i] += row[i];
    }
  }
};

// y (B, S, N, D) and the logsumexp of the scores (B, N, S).
// For each query row, over the blocks of keys: m is the running maximum, l = sum exp(score - m) and
// y = sum exp(score - m) v. When a block raises m, l and y are multiplied by exp(old m - new m). At the end y /= l.
void attend(const AttentionShape &shape, const float *q, const float *k, const float *v, const Bias &bias, float scale,
            Sgemm sgemm, float *y, float *logsumexp) {
  const int64_t blocks = ceil_div(shape.queries, QUERIES), width = shape.width, token = shape.token_stride;
  const int64_t row_size = std::min(KEYS, shape.keys);
  const ThreadBuffers thread_scores(QUERIES * row_size);
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < shape.batch * shape.heads * blocks; ++task) {
    const int64_t head = task / blocks, b = head / shape.heads, n = head % shape.heads;
    const int64_t start = task % blocks * QUERIES, rows = std::min(QUERIES, shape.queries - start);
    float *scores = thread_scores.own(), *y_block = y + shape.query_offset(b, n, start);
    float row_sum[QUERIES] = {}, row_maximum[QUERIES];
    // Not -infinity: keys that are all masked by a bias of -infinity must weigh 0, not exp(-inf + inf).
    std::fill(row_maximum, row_maximum + QUERIES, std::numeric_limits<float>::lowest());
    for (int64_t key = 0; key < shape.keys; key += KEYS) {
      const int64_t size = std::min(KEYS, shape.keys - key);
      sgemm('N', 'T', rows, size, width, scale, q + shape.query_offset(b, n, start), token,
            k + shape.key_offset(b, n, key), token, 0, scores, row_size);
      for (int64_t row = 0; row < rows; ++row) {
        float *weights = scores + row * row_size;
        bias.add(b, n, start + row, key, size, weights);
        const float maximum = row_max(weights, size, row_maximum[row]);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; ++i) {
          weights[i] = exp_approx(weights[i] - maximum);
          sum += weights[i];
        }
        if (maximum > row_maximum[row] && key) {
          const float correction = exp_approx(row_maximum[row] - maximum);
          row_sum[row] *= correction;
          for (int64_t i = 0; i < width; ++i) y_block[row * token + i] *= correction;
        }
        row_maximum[row] = maximum;
        row_sum[row] += sum;
      }
      sgemm('N', 'N', rows, width, size, 1, scores, row_size, v + shape.key_offset(b, n, key), token, key ? 1 : 0,
            y_block, token);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const float inverse = 1 / row_sum[row];
      for (int64_t i = 0; i < width; ++i) y_block[row * token + i] *= inverse;
      logsumexp[head * shape.queries + start + row] = row_maximum[row] + std::log(row_sum[row]);
    }
  }
}

// Per block, with weights p = exp(q k^T scale + bias - logsumexp) recomputed and ds = p (dy v^T - rowsum(y dy)):
// dq += scale ds k, dk += scale ds^T q, dv += p^T dy.
// Tasks are (head, segment of queries). Segments of a head add to the same dk and dv, so all but the first have partial
// sums of their own, which are added in order at the end. Many heads need one segment each, and no partial sums.
void attend_grad(const AttentionShape &shape, const float *q, const float *k, const float *v, const Bias &bias,
                 float scale, Sgemm sgemm, const float *y, const float *logsumexp, const float *dy, float *dq, float *dk,
                 float *dv) {
  const int64_t width = shape.width, token = shape.token_stride, heads = shape.batch * shape.heads;
  const int64_t blocks = ceil_div(shape.queries, QUERIES);
  const int64_t segment_blocks = std::max<int64_t>(ceil_div(blocks, ceil_div(wanted_tasks(), heads)), 1);
  const int64_t segments = ceil_div(blocks, segment_blocks), key_elements = shape.key_elements();
  const int64_t row_size = std::min(KEYS, shape.keys);
  const ThreadBuffers thread_weights(QUERIES * row_size), thread_gradients(QUERIES * row_size);
  const Buffer partial_dk = make_buffer((segments - 1) * key_elements);
  const Buffer partial_dv = make_buffer((segments - 1) * key_elements);
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < heads * segments; ++task) {
    const int64_t head = task / segments, b = head / shape.heads, n = head % shape.heads, segment = task % segments;
    float *weights = thread_weights.own(), *gradients = thread_gradients.own();
    float *segment_dk = segment ? partial_dk.get() + (segment - 1) * key_elements : dk;
    float *segment_dv = segment ? partial_dv.get() + (segment - 1) * key_elements : dv;
    const int64_t begin = segment * segment_blocks * QUERIES;
    const int64_t end = std::min(begin + segment_blocks * QUERIES, shape.queries);
    for (int64_t start = begin; start < end; start += QUERIES) {
      const int64_t rows = std::min(QUERIES, end - start), q_offset = shape.query_offset(b, n, start);
      for (int64_t key = 0; key < shape.keys; key += KEYS) {
        const int64_t size = std::min(KEYS, shape.keys - key), k_offset = shape.key_offset(b, n, key);
        const float beta = start > begin ? 1 : 0;
        sgemm('N', 'T', rows, size, width, scale, q + q_offset, token, k + k_offset, token, 0, weights, row_size);
        sgemm('N', 'T', rows, size, width, 1, dy + q_offset, token, v + k_offset, token, 0, gradients, row_size);
        for (int64_t row = 0; row < rows; ++row) {
          const float *y_row = y + q_offset + row * token, *dy_row = dy + q_offset + row * token;
          float *p = weights + row * row_size, *ds = gradients + row * row_size, row_sum = 0;
#pragma omp simd reduction(+ : row_sum)
          for (int64_t i = 0; i < width; ++i) row_sum += y_row[i] * dy_row[i];
          bias.add(b, n, start + row, key, size, p);
          const float row_logsumexp = logsumexp[head * shape.queries + start + row];
#pragma omp simd
          for (int64_t i = 0; i < size; ++i) {
            p[i] = exp_approx(p[i] - row_logsumexp);
            ds[i] = p[i] * (ds[i] - row_sum);
          }
        }
        sgemm('N', 'N', rows, width, size, scale, gradients, row_size, k + k_offset, token, key ? 1 : 0, dq + q_offset,
              token);
        sgemm('T', 'N', size, width, rows, scale, gradients, row_size, q + q_offset, token, beta, segment_dk + k_offset,
              token);
        sgemm('T', 'N', size, width, rows, 1, weights, row_size, dy + q_offset, token, beta, segment_dv + k_offset,
              token);
      }
    }
  }
  for (int64_t segment = 0; segment < segments - 1; ++segment) {
    const float *other_dk = partial_dk.get() + segment * key_elements;
    const float *other_dv = partial_dv.get() + segment * key_elements;
#pragma omp parallel for simd
    for (int64_t i = 0; i < key_elements; ++i) {
      dk[i] += other_dk[i];
      dv[i] += other_dv[i];
    }
  }
}

}  // namespace

// q, k, v, bias, scale -> y (B, S, N, D), logsumexp of the scores (B, N, S)
KERNEL(attention) {
  const AttentionShape shape(shapes[0], shapes[1]);
  const Sgemm sgemm = find_sgemm();
  if (!sgemm || !shape.fits(shapes[1], shapes[2]) || !Bias::fits(shapes[3], shape)) return INVALID_SHAPES;
  attend(shape, input(params, 0), input(params, 1), input(params, 2), Bias(input(params, 3), shapes[3]),
         input(params, 4)[0], sgemm, output(params, 5), output(params, 6));
  return OK;
}

// q, k, v, bias, scale, y (B, S, N, D), logsumexp (B, N, S), dy (B, S, N, D) -> dq (B, S, N, D), dk, dv (B, L, N, D)
KERNEL(attention_grad) {
  const AttentionShape shape(shapes[0], shapes[1]);
  const Sgemm sgemm = find_sgemm();
  if (!sgemm || !shape.fits(shapes[1], shapes[2]) || !Bias::fits(shapes[3], shape)) return INVALID_SHAPES;
  attend_grad(shape, input(params, 0), input(params, 1), input(params, 2), Bias(input(params, 3), shapes[3]),
              input(params, 4)[0], sgemm, input(params, 5), input(params, 6), input(params, 7), output(params, 8),
              output(params, 9), output(params, 10));
  return OK;
}

// qkv (3 B, S, N, D): queries, keys, values; bias, scale -> y (B, S, N, D), logsumexp of the scores (B, N, S)
KERNEL(self_attention) {
  const int64_t part[] = {shapes[0][0] / 3, shapes[0][1], shapes[0][2], shapes[0][3]};
  const AttentionShape shape(part, part);
  const Sgemm sgemm = find_sgemm();
  if (!sgemm || shapes[0][0] % 3 || !Bias::fits(shapes[1], shape)) return INVALID_SHAPES;
  const float *q = input(params, 0), *k = q + shape.key_elements(), *v = k + shape.key_elements();
  attend(shape, q, k, v, Bias(input(params, 1), shapes[1]), input(params, 2)[0], sgemm, output(params, 3),
         output(params, 4));
  return OK;
}

// qkv, bias, scale, y (B, S, N, D), logsumexp (B, N, S), dy (B, S, N, D) -> dqkv (3 B, S, N, D)
KERNEL(self_attention_grad) {
  const int64_t part[] = {shapes[0][0] / 3, shapes[0][1], shapes[0][2], shapes[0][3]};
  const AttentionShape shape(part, part);
  const Sgemm sgemm = find_sgemm();
  if (!sgemm || shapes[0][0] % 3 || !Bias::fits(shapes[1], shape)) return INVALID_SHAPES;
  const float *q = input(params, 0), *k = q + shape.key_elements(), *v = k + shape.key_elements();
  float *dq = output(params, 6), *dk = dq + shape.key_elements(), *dv = dk + shape.key_elements();
  attend_grad(shape, q, k, v, Bias(input(params, 1), shapes[1]), input(params, 2)[0], sgemm, input(params, 3),
              input(params, 4), input(params, 5), dq, dk, dv);
  return OK;
}

}  // namespace cpu_kernels
