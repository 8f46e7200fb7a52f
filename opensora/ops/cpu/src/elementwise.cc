// Bias and GELU, gated residual, rotary embedding: one pass over memory each.
#include "common.h"

namespace cpu_kernels {
namespace {

// The tanh form of GELU, 0.5 x (1 + tanh(u / 2)) with u = 2 sqrt(2 / pi) (x + 0.044715 x^3), equals x sigmoid(u). So
// u = x (A + B x^2) with A = 2 sqrt(2 / pi) and B = 0.044715 A.
constexpr float A = 1.5957691216057308f, B = 0.07135481627159756f;

float gelu(float x) { return x * sigmoid(x * (A + B * x * x)); }

float gelu_derivative(float x) {
  const float s = sigmoid(x * (A + B * x * x));
  return s + x * s * (1 - s) * (A + 3 * B * x * x);
}

}  // namespace

// x (..., D), bias (D) -> y (..., D) = gelu(x + bias)
KERNEL(bias_gelu) {
  const float *x = input(params, 0), *bias = input(params, 1);
  float *y = output(params, 2);
  const int64_t width = shapes[1][0], rows = num_elements(shapes[0], 0, ndims[0] - 1);
  if (shapes[0][ndims[0] - 1] != width) return INVALID_SHAPES;
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) y[row * width + i] = gelu(x[row * width + i] + bias[i]);
  }
  return OK;
}

// x (..., D), bias (D), dy (..., D) -> dx (..., D), dbias (D)
KERNEL(bias_gelu_grad) {
  const float *x = input(params, 0), *bias = input(params, 1), *dy = input(params, 2);
  float *dx = output(params, 3);
  const int64_t width = shapes[1][0], rows = num_elements(shapes[0], 0, ndims[0] - 1);
  if (shapes[0][ndims[0] - 1] != width) return INVALID_SHAPES;
  ThreadSums dbias_sums(width);
#pragma omp parallel
  {
    float *dbias_sum = dbias_sums.own();
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const float d = dy[row * width + i] * gelu_derivative(x[row * width + i] + bias[i]);
        dx[row * width + i] = d;
        dbias_sum[i] += d;
      }
    }
  }
  dbias_sums.total(output(params, 4));
  return OK;
}

// x (..., D), modulation (..., vectors, D), (first), y (..., D) -> z (..., D) = x + gate y
// The gate is the vector `first` of the modulation.
KERNEL(gated_residual) {
  const float *x = input(params, 0), *modulation = input(params, 1), *y = input(params, 3);
  float *z = output(params, 4);
  const Modulation shape(shapes[0], ndims[0], shapes[1], ndims[1], input(params, 2)[0]);
  if (!shape.fits(shapes[0], ndims[0], shapes[1], ndims[1], 1) || ndims[0] != ndims[3] ||
      !std::equal(shapes[0], shapes[0] + ndims[0], shapes[3])) {
    return INVALID_SHAPES;
  }
  const int64_t width = shape.width;
#pragma omp parallel for
  for (int64_t row = 0; row < shape.groups * shape.rows; ++row) {
    const float *gate_row = modulation + shape.offset(row);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) z[row * width + i] = x[row * width + i] + gate_row[i] * y[row * width + i];
  }
  return OK;
}

// modulation (..., vectors, D), (first), y (..., D), dz (..., D) -> dmodulation (..., vectors, D), dy (..., D); dx is dz
KERNEL(gated_residual_grad) {
  const float *modulation = input(params, 0), *y = input(params, 2), *dz = input(params, 3);
  float *dmodulation = output(params, 4), *dy = output(params, 5);
  const Modulation shape(shapes[2], ndims[2], shapes[0], ndims[0], input(params, 1)[0]);
  if (!shape.fits(shapes[2], ndims[2], shapes[0], ndims[0], 1)) return INVALID_SHAPES;
  const int64_t rows = shape.rows, width = shape.width;
  std::fill(dmodulation, dmodulation + shape.groups * shape.vectors * width, 0.0f);
  for (int64_t b = 0; b < shape.groups; ++b) {
    ThreadSums dgate_sums(width);
    const int64_t offset = shape.offset(b * rows);
    const float *gate_row = modulation + offset;
#pragma omp parallel
    {
      float *dgate_sum = dgate_sums.own();
#pragma omp for schedule(static)
      for (int64_t row = b * rows; row < (b + 1) * rows; ++row) {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
          dgate_sum[i] += dz[row * width + i] * y[row * width + i];
          dy[row * width + i] = dz[row * width + i] * gate_row[i];
        }
      }
    }
    dgate_sums.total(dmodulation + offset);
  }
  return OK;
}

// x (B, S, N, D), cos and sin (S, 1, 3, D / 6), (direction, rows), (-direction, rows), which only the gradient
// needs -> y (B, S, N, D)
// Rotates the first `rows` of the batch and copies the others. The direction is 1, or -1 for the inverse rotation. A head has three sections of D / 3 channels, for t, h and w; channel i of a section is paired with channel i + D / 6.
KERNEL(rope) {
  const float *x = input(params, 0), *cos = input(params, 1), *sin = input(params, 2);
  const float direction = input(params, 3)[0];
  const int64_t rotated = integer(input(params, 3)[1]);
  float *y = output(params, 5);
  const int64_t batch = shapes[0][0], tokens = shapes[0][1], heads = shapes[0][2], width = shapes[0][3];
  const int64_t half = width / 6, angles = tokens * 3 * half;
  if (width % 6 || num_elements(shapes[1], 0, ndims[1]) != angles || num_elements(shapes[2], 0, ndims[2]) != angles) {
    return INVALID_SHAPES;
  }
#pragma omp parallel for
  for (int64_t row = 0; row < batch * tokens; ++row) {
    if (row >= rotated * tokens) {
      std::copy(x + row * heads * width, x + (row + 1) * heads * width, y + row * heads * width);
      continue;
    }
    const float *token_cos = cos + row % tokens * 3 * half, *token_sin = sin + row % tokens * 3 * half;
    for (int64_t section = 0; section < heads * 3; ++section) {
      const float *first = x + row * heads * width + section * 2 * half, *second = first + half;
      float *to = y + row * heads * width + section * 2 * half;
      const float *c = token_cos + section % 3 * half, *s = token_sin + section % 3 * half;
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        to[i] = first[i] * c[i] - direction * second[i] * s[i];
        to[half + i] = second[i] * c[i] + direction * first[i] * s[i];
      }
    }
  }
  return OK;
}

}  // namespace cpu_kernels
