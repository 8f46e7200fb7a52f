// LayerNorm over the channels of x (..., C, H, W), every position on its own, optionally followed by SiLU.
#include "buffer.h"

namespace cpu_kernels {
namespace {

constexpr int64_t BLOCK = 128;  // positions per task: a block of 512 channels takes 256 KiB and stays in the L2 cache

// Mean and 1 / std over the channels for `size` positions; channels are `stride` floats apart.
void channel_statistics(const float *x, int64_t channels, int64_t stride, int64_t size, float eps, float *mean,
                        float *rstd) {
  std::fill(mean, mean + size, 0.0f);
  for (int64_t c = 0; c < channels; ++c) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) mean[i] += x[c * stride + i];
  }
  for (int64_t i = 0; i < size; ++i) mean[i] /= channels;
  std::fill(rstd, rstd + size, 0.0f);
  for (int64_t c = 0; c < channels; ++c) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const float d = x[c * stride + i] - mean[i];
      rstd[i] += d * d;
    }
  }
  for (int64_t i = 0; i < size; ++i) rstd[i] = 1 / std::sqrt(rstd[i] / channels + eps);
}

// x (..., C, H, W), weight (C), bias (C), eps (1) -> y (..., C, H, W)
template <class Activation>
int forward(void **params, int *ndims, int64_t **shapes) {
  const float *x = input(params, 0), *weight = input(params, 1), *bias = input(params, 2);
  const float eps = input(params, 3)[0];
  float *y = output(params, 4);
  const int rank = ndims[0];
  const int64_t channels = shapes[0][rank - 3], positions = num_elements(shapes[0], rank - 2, rank);
  const int64_t frames = num_elements(shapes[0], 0, rank - 3), blocks = ceil_div(positions, BLOCK);
  if (shapes[1][0] != channels || shapes[2][0] != channels) return INVALID_SHAPES;
#pragma omp parallel for
  for (int64_t task = 0; task < frames * blocks; ++task) {
    const int64_t first = task % blocks * BLOCK, size = std::min(BLOCK, positions - first);
    const int64_t offset = task / blocks * channels * positions + first;
    float mean[BLOCK], rstd[BLOCK];
    channel_statistics(x + offset, channels, positions, size, eps, mean, rstd);
    for (int64_t c = 0; c < channels; ++c) {
      const float *x_row = x + offset + c * positions;
      float *y_row = y + offset + c * positions;
      const float w = weight[c], b = bias[c];
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) y_row[i] = Activation::value((x_row[i] - mean[i]) * rstd[i] * w + b);
    }
  }
  return OK;
}

// x (..., C, H, W), weight (C), bias (C), eps (1), dy (..., C, H, W) -> dx (..., C, H, W), dweight (C), dbias (C)
// With n = (x - mean) / std, d = dy f'(n weight + bias) and g = d weight: dx = (g - mean(g) - n mean(g n)) / std.
template <class Activation>
int backward(void **params, int *ndims, int64_t **shapes) {
  const float *x = input(params, 0), *weight = input(params, 1), *bias = input(params, 2), *dy = input(params, 4);
  const float eps = input(params, 3)[0];
  float *dx = output(params, 5);
  const int rank = ndims[0];
  const int64_t channels = shapes[0][rank - 3], positions = num_elements(shapes[0], rank - 2, rank);
  const int64_t frames = num_elements(shapes[0], 0, rank - 3), blocks = ceil_div(positions, BLOCK);
  if (shapes[1][0] != channels || shapes[2][0] != channels) return INVALID_SHAPES;
  ThreadSums dweight_sums(channels), dbias_sums(channels);
  const ThreadBuffers gradients(channels * BLOCK);
#pragma omp parallel
  {
    float *dweight_sum = dweight_sums.own(), *dbias_sum = dbias_sums.own(), *gradient = gradients.own();
    float mean[BLOCK], rstd[BLOCK], sum[BLOCK], product_sum[BLOCK];
#pragma omp for schedule(static)
    for (int64_t task = 0; task < frames * blocks; ++task) {
      const int64_t first = task % blocks * BLOCK, size = std::min(BLOCK, positions - first);
      const int64_t offset = task / blocks * channels * positions + first;
      channel_statistics(x + offset, channels, positions, size, eps, mean, rstd);
      std::fill(sum, sum + size, 0.0f);
      std::fill(product_sum, product_sum + size, 0.0f);
      for (int64_t c = 0; c < channels; ++c) {
        const float *x_row = x + offset + c * positions, *dy_row = dy + offset + c * positions;
        float *g = gradient + c * BLOCK;
        const float w = weight[c], b = bias[c];
        float dw = 0, db = 0;
#pragma omp simd reduction(+ : dw, db)
        for (int64_t i = 0; i < size; ++i) {
          const float normalized = (x_row[i] - mean[i]) * rstd[i];
          const float d = dy_row[i] * Activation::derivative(normalized * w + b);
          dw += d * normalized;
          db += d;
          g[i] = d * w;
          sum[i] += g[i];
          product_sum[i] += g[i] * normalized;
        }
        dweight_sum[c] += dw;
        dbias_sum[c] += db;
      }
      for (int64_t c = 0; c < channels; ++c) {
        const float *x_row = x + offset + c * positions, *g = gradient + c * BLOCK;
        float *dx_row = dx + offset + c * positions;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
          const float normalized = (x_row[i] - mean[i]) * rstd[i];
          dx_row[i] = (g[i] - (sum[i] + normalized * product_sum[i]) / channels) * rstd[i];
        }
      }
    }
  }
  dweight_sums.total(output(params, 6));
  dbias_sums.total(output(params, 7));
  return OK;
}

}  // namespace

KERNEL(channel_layer_norm) { return forward<Identity>(params, ndims, shapes); }
KERNEL(channel_layer_norm_grad) { return backward<Identity>(params, ndims, shapes); }
KERNEL(channel_layer_norm_silu) { return forward<SiLU>(params, ndims, shapes); }
KERNEL(channel_layer_norm_silu_grad) { return backward<SiLU>(params, ndims, shapes); }

}  // namespace cpu_kernels
