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

// x (..., D), modulation (..., vectors, D), (eps, first) -> y (..., D) = (x - mean) / std * (1 + scale) + shift
// shift and scale are the vectors `first` and `first` + 1 of the modulation.
KERNEL(modulated_layer_norm) {
  const float *x = input(params, 0), *modulation = input(params, 1), *settings = input(params, 2);
  const float eps = settings[0];
  float *y = output(params, 3);
  const Modulation shape(shapes[0], ndims[0], shapes[1], ndims[1], settings[1]);
  if (!shape.fits(shapes[0], ndims[0], shapes[1], ndims[1], 2)) return INVALID_SHAPES;
  const int64_t width = shape.width;
#pragma omp parallel for
  for (int64_t row = 0; row < shape.groups * shape.rows; ++row) {
    const float *x_row = x + row * width;
    const float *shift_row = modulation + shape.offset(row), *scale_row = shift_row + width;
    float *y_row = y + row * width;
    const float mean = row_mean(x_row, width);
    const float rstd = 1 / std::sqrt(mean_square(x_row, width, mean) + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) y_row[i] = (x_row[i] - mean) * rstd * (1 + scale_row[i]) + shift_row[i];
  }
  return OK;
}

// x (..., D), modulation (..., vectors, D), (eps, first), dy (..., D) -> dx (..., D), dmodulation (..., vectors, D)
// With n = (x - mean) / std and g = dy (1 + scale): dx = (g - mean(g) - n mean(g n)) / std.
KERNEL(modulated_layer_norm_grad) {
  const float *x = input(params, 0), *modulation = input(params, 1), *settings = input(params, 2);
  const float *dy = input(params, 3), eps = settings[0];
  float *dx = output(params, 4), *dmodulation = output(params, 5);
  const Modulation shape(shapes[0], ndims[0], shapes[1], ndims[1], settings[1]);
  if (!shape.fits(shapes[0], ndims[0], shapes[1], ndims[1], 2)) return INVALID_SHAPES;
  const int64_t rows = shape.rows, width = shape.width;
  std::fill(dmodulation, dmodulation + shape.groups * shape.vectors * width, 0.0f);
  const ThreadBuffers normalized_rows(width), gradient_rows(width);
  for (int64_t b = 0; b < shape.groups; ++b) {
    ThreadSums dshift_sums(width), dscale_sums(width);
    const int64_t offset = shape.offset(b * rows);
    const float *scale_row = modulation + offset + width;
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
    dshift_sums.total(dmodulation + offset);
    dscale_sums.total(dmodulation + offset + width);
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
