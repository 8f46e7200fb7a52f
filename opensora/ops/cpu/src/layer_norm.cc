// Norms over the last axis: LayerNorm with adaLN modulation, RMSNorm.
#include "buffer.h"

namespace cpu_kernels {
namespace {

float row_mean(const float *x, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += x[i];
  return sum / size;
}

// Mean of (x - center)^2.
float mean_square(const float *x, int64_t size, float center) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += (x[i] - center) * (x[i] - center);
  return sum / size;
}

}  // namespace

// x (B, S, D), shift (B, 1, D), scale (B, 1, D), eps (1) -> y (B, S, D) = (x - mean) / std * (1 + scale) + shift
KERNEL(modulated_layer_norm) {
  const float *x = input(params, 0), *shift = input(params, 1), *scale = input(params, 2);
  const float eps = input(params, 3)[0];
  float *y = output(params, 4);
  const int64_t batch = shapes[0][0], rows = shapes[0][1], width = shapes[0][2];
  if (!is_modulation(shapes[1], batch, width) || !is_modulation(shapes[2], batch, width)) return INVALID_SHAPES;
#pragma omp parallel for
  for (int64_t row = 0; row < batch * rows; ++row) {
    const float *x_row = x + row * width;
    const float *shift_row = shift + row / rows * width, *scale_row = scale + row / rows * width;
    float *y_row = y + row * width;
    const float mean = row_mean(x_row, width);
    const float rstd = 1 / std::sqrt(mean_square(x_row, width, mean) + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) y_row[i] = (x_row[i] - mean) * rstd * (1 + scale_row[i]) + shift_row[i];
  }
  return OK;
}

// x (B, S, D), scale (B, 1, D), eps (1), dy (B, S, D) -> dx (B, S, D), dshift (B, 1, D), dscale (B, 1, D)
// With n = (x - mean) / std and g = dy (1 + scale): dx = (g - mean(g) - n mean(g n)) / std.
KERNEL(modulated_layer_norm_grad) {
  const float *x = input(params, 0), *scale = input(params, 1), *dy = input(params, 3);
  const float eps = input(params, 2)[0];
  float *dx = output(params, 4), *dshift = output(params, 5), *dscale = output(params, 6);
  const int64_t batch = shapes[0][0], rows = shapes[0][1], width = shapes[0][2];
  if (!is_modulation(shapes[1], batch, width)) return INVALID_SHAPES;
  const ThreadBuffers normalized_rows(width), gradient_rows(width);
  for (int64_t b = 0; b < batch; ++b) {
    ThreadSums dshift_sums(width), dscale_sums(width);
    const float *scale_row = scale + b * width;
#pragma omp parallel
    {
      float *dshift_sum = dshift_sums.own(), *dscale_sum = dscale_sums.own();
      float *normalized = normalized_rows.own(), *gradient = gradient_rows.own();
#pragma omp for schedule(static)
      for (int64_t row = b * rows; row < (b + 1) * rows; ++row) {
        const float *x_row = x + row * width, *dy_row = dy + row * width;
        float *dx_row = dx + row * width;
        const float mean = row_mean(x_row, width);
        const float rstd = 1 / std::sqrt(mean_square(x_row, width, mean) + eps);
        float sum = 0, product_sum = 0;
#pragma omp simd reduction(+ : sum, product_sum)
        for (int64_t i = 0; i < width; ++i) {
          const float n = (x_row[i] - mean) * rstd, g = dy_row[i] * (1 + scale_row[i]);
          normalized[i] = n;
          gradient[i] = g;
          sum += g;
          product_sum += g * n;
          dshift_sum[i] += dy_row[i];
          dscale_sum[i] += dy_row[i] * n;
        }
        sum /= width;
        product_sum /= width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) dx_row[i] = (gradient[i] - sum - normalized[i] * product_sum) * rstd;
      }
    }
    dshift_sums.total(dshift + b * width);
    dscale_sums.total(dscale + b * width);
  }
  return OK;
}

// x (..., D), weight (D), eps (1) -> y (..., D) = x / rms(x) * weight
KERNEL(rms_norm) {
  const float *x = input(params, 0), *weight = input(params, 1);
  const float eps = input(params, 2)[0];
  float *y = output(params, 3);
  const int64_t width = shapes[1][0], rows = num_elements(shapes[0], 0, ndims[0] - 1);
  if (shapes[0][ndims[0] - 1] != width) return INVALID_SHAPES;
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) {
    const float *x_row = x + row * width;
    float *y_row = y + row * width;
    const float rrms = 1 / std::sqrt(mean_square(x_row, width, 0) + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) y_row[i] = x_row[i] * rrms * weight[i];
  }
  return OK;
}

// x (..., D), weight (D), eps (1), dy (..., D) -> dx (..., D), dweight (D)
// With g = dy weight: dx = (g - x mean(g x) / rms^2) / rms.
KERNEL(rms_norm_grad) {
  const float *x = input(params, 0), *weight = input(params, 1), *dy = input(params, 3);
  const float eps = input(params, 2)[0];
  float *dx = output(params, 4), *dweight = output(params, 5);
  const int64_t width = shapes[1][0], rows = num_elements(shapes[0], 0, ndims[0] - 1);
  if (shapes[0][ndims[0] - 1] != width) return INVALID_SHAPES;
  ThreadSums dweight_sums(width);
#pragma omp parallel
  {
    float *dweight_sum = dweight_sums.own();
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      const float *x_row = x + row * width, *dy_row = dy + row * width;
      float *dx_row = dx + row * width;
      const float rrms = 1 / std::sqrt(mean_square(x_row, width, 0) + eps);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < width; ++i) {
        sum += dy_row[i] * weight[i] * x_row[i];
        dweight_sum[i] += dy_row[i] * x_row[i] * rrms;
      }
      const float factor = sum / width * rrms * rrms;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) dx_row[i] = (dy_row[i] * weight[i] - x_row[i] * factor) * rrms;
    }
  }
  dweight_sums.total(dweight);
  return OK;
}

}  // namespace cpu_kernels
