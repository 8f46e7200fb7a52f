// Norms over the last axis: LayerNorm with modulation, RMSNorm.
#include "common.h"

namespace {

float mean_of(const float *x, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += x[i];
  return sum / size;
}

float mean_square(const float *x, int64_t size, float centre) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += (x[i] - centre) * (x[i] - centre);
  return sum / size;
}

}  // namespace

// x (B, S, D), shift and scale (B, 1, D), eps (1) -> (x - mean) / deviation * (1 + scale) + shift
KERNEL(modulated_layer_norm) {
  const float *x = input(params, 0), *shift = input(params, 1), *scale = input(params, 2);
  const float eps = input(params, 3)[0];
  float *y = output(params, 4);
  const int64_t batch = shapes[0][0], rows = shapes[0][1], width = shapes[0][2];
  if (!is_modulation(shapes[1], batch, width) || !is_modulation(shapes[2], batch, width)) return 1;
#pragma omp parallel for
  for (int64_t row = 0; row < batch * rows; ++row) {
    const float *from = x + row * width, *up = shift + row / rows * width, *times = scale + row / rows * width;
    float *to = y + row * width;
    const float mean = mean_of(from, width);
    const float inverse = 1 / std::sqrt(mean_square(from, width, mean) + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) to[i] = (from[i] - mean) * inverse * (1 + times[i]) + up[i];
  }
  return 0;
}

// x, scale, eps, gradient of y -> gradients of x, shift, scale
KERNEL(modulated_layer_norm_grad) {
  const float *x = input(params, 0), *scale = input(params, 1), *dy = input(params, 3);
  const float eps = input(params, 2)[0];
  float *dx = output(params, 4), *dshift = output(params, 5), *dscale = output(params, 6);
  const int64_t batch = shapes[0][0], rows = shapes[0][1], width = shapes[0][2];
  if (!is_modulation(shapes[1], batch, width)) return 1;
  for (int64_t b = 0; b < batch; ++b) {
    ThreadSums shift_sums(width), scale_sums(width);
    const float *times = scale + b * width;
#pragma omp parallel
    {
      float *shift_sum = shift_sums.own(), *scale_sum = scale_sums.own();
      std::vector<float> normal(width), inner(width);
#pragma omp for schedule(static)
      for (int64_t row = b * rows; row < (b + 1) * rows; ++row) {
        const float *from = x + row * width, *grad = dy + row * width;
        float *to = dx + row * width;
        const float mean = mean_of(from, width);
        const float inverse = 1 / std::sqrt(mean_square(from, width, mean) + eps);
        float sum = 0, product_sum = 0;
#pragma omp simd reduction(+ : sum, product_sum)
        for (int64_t i = 0; i < width; ++i) {
          const float n = (from[i] - mean) * inverse, g = grad[i] * (1 + times[i]);
          normal[i] = n;
          inner[i] = g;
          sum += g;
          product_sum += g * n;
          shift_sum[i] += grad[i];
          scale_sum[i] += grad[i] * n;
        }
        sum /= width;
        product_sum /= width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) to[i] = (inner[i] - sum - normal[i] * product_sum) * inverse;
      }
    }
    shift_sums.total(dshift + b * width);
    scale_sums.total(dscale + b * width);
  }
  return 0;
}

// x (..., D), weight (D), eps (1) -> x / root mean square * weight
KERNEL(rms_norm) {
  const float *x = input(params, 0), *weight = input(params, 1);
  const float eps = input(params, 2)[0];
  float *y = output(params, 3);
  const int64_t width = shapes[1][0], rows = product(shapes[0], 0, ndims[0] - 1);
  if (shapes[0][ndims[0] - 1] != width) return 1;
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) {
    const float *from = x + row * width;
    float *to = y + row * width;
    const float inverse = 1 / std::sqrt(mean_square(from, width, 0) + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) to[i] = from[i] * inverse * weight[i];
  }
  return 0;
}

// x, weight, eps, gradient of y -> gradients of x, weight
KERNEL(rms_norm_grad) {
  const float *x = input(params, 0), *weight = input(params, 1), *dy = input(params, 3);
  const float eps = input(params, 2)[0];
  float *dx = output(params, 4), *dweight = output(params, 5);
  const int64_t width = shapes[1][0], rows = product(shapes[0], 0, ndims[0] - 1);
  if (shapes[0][ndims[0] - 1] != width) return 1;
  ThreadSums weight_sums(width);
#pragma omp parallel
  {
    float *weight_sum = weight_sums.own();
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      const float *from = x + row * width, *grad = dy + row * width;
      float *to = dx + row * width;
      const float inverse = 1 / std::sqrt(mean_square(from, width, 0) + eps);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < width; ++i) {
        sum += grad[i] * weight[i] * from[i];
        weight_sum[i] += grad[i] * from[i] * inverse;
      }
      const float back = sum / width * inverse * inverse;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) to[i] = (grad[i] * weight[i] - from[i] * back) * inverse;
    }
  }
  weight_sums.total(dweight);
  return 0;
}
