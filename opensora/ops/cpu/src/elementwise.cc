// GELU, gated residuals, rotary embedding: one pass over memory each.
#include "common.h"

namespace {

// GELU in its tanh form is x sigmoid(x (A + B x^2)).
constexpr float A = 1.5957691216057308f, B = 0.07135481627159756f;

float gelu(float x) { return x * sigmoid(x * (A + B * x * x)); }

float gelu_slope(float x) {
  const float s = sigmoid(x * (A + B * x * x));
  return s + x * s * (1 - s) * (A + 3 * B * x * x);
}

}  // namespace

// x (..., D), bias (D) -> gelu(x + bias)
KERNEL(bias_gelu) {
  const float *x = input(params, 0), *bias = input(params, 1);
  float *y = output(params, 2);
  const int64_t width = shapes[1][0], rows = product(shapes[0], 0, ndims[0] - 1);
  if (shapes[0][ndims[0] - 1] != width) return 1;
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) y[row * width + i] = gelu(x[row * width + i] + bias[i]);
  }
  return 0;
}

// x, bias, gradient of y -> gradients of x, bias
KERNEL(bias_gelu_grad) {
  const float *x = input(params, 0), *bias = input(params, 1), *dy = input(params, 2);
  float *dx = output(params, 3);
  const int64_t width = shapes[1][0], rows = product(shapes[0], 0, ndims[0] - 1);
  if (shapes[0][ndims[0] - 1] != width) return 1;
  ThreadSums bias_sums(width);
#pragma omp parallel
  {
    float *bias_sum = bias_sums.own();
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const float d = dy[row * width + i] * gelu_slope(x[row * width + i] + bias[i]);
        dx[row * width + i] = d;
        bias_sum[i] += d;
      }
    }
  }
  bias_sums.total(output(params, 4));
  return 0;
}

// x (B, S, D), gate (B, 1, D), y (B, S, D) -> x + gate * y
KERNEL(gated_residual) {
  const float *x = input(params, 0), *gate = input(params, 1), *y = input(params, 2);
  float *z = output(params, 3);
  const int64_t batch = shapes[0][0], rows = shapes[0][1], width = shapes[0][2];
  if (!is_modulation(shapes[1], batch, width) || !std::equal(shapes[0], shapes[0] + 3, shapes[2])) return 1;
#pragma omp parallel for
  for (int64_t row = 0; row < batch * rows; ++row) {
    const float *times = gate + row / rows * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) z[row * width + i] = x[row * width + i] + times[i] * y[row * width + i];
  }
  return 0;
}

// gate, y, gradient of z -> gradients of gate, y
KERNEL(gated_residual_grad) {
  const float *gate = input(params, 0), *y = input(params, 1), *dz = input(params, 2);
  float *dgate = output(params, 3), *dy = output(params, 4);
  const int64_t batch = shapes[1][0], rows = shapes[1][1], width = shapes[1][2];
  if (!is_modulation(shapes[0], batch, width)) return 1;
  for (int64_t b = 0; b < batch; ++b) {
    ThreadSums gate_sums(width);
    const float *times = gate + b * width;
#pragma omp parallel
    {
      float *gate_sum = gate_sums.own();
#pragma omp for schedule(static)
      for (int64_t row = b * rows; row < (b + 1) * rows; ++row) {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
          gate_sum[i] += dz[row * width + i] * y[row * width + i];
          dy[row * width + i] = dz[row * width + i] * times[i];
        }
      }
    }
    gate_sums.total(dgate + b * width);
  }
  return 0;
}

// x (B, S, N, D), cos and sin (S, 1, 3, D / 6), direction (1): 1, or -1 for the inverse -> x rotated.
// A head is three parts; the halves of a part form the pairs.
KERNEL(rope) {
  const float *x = input(params, 0), *cos = input(params, 1), *sin = input(params, 2);
  const float direction = input(params, 3)[0];
  float *y = output(params, 4);
  const int64_t batch = shapes[0][0], tokens = shapes[0][1], heads = shapes[0][2], width = shapes[0][3];
  const int64_t half = width / 6, angles = tokens * 3 * half;
  if (width % 6 || product(shapes[1], 0, ndims[1]) != angles || product(shapes[2], 0, ndims[2]) != angles) return 1;
#pragma omp parallel for
  for (int64_t row = 0; row < batch * tokens; ++row) {
    const float *c = cos + row % tokens * 3 * half, *s = sin + row % tokens * 3 * half;
    for (int64_t part = 0; part < heads * 3; ++part) {
      const float *first = x + row * heads * width + part * 2 * half, *second = first + half;
      float *to = y + row * heads * width + part * 2 * half;
      const float *pc = c + part % 3 * half, *ps = s + part % 3 * half;
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        to[i] = first[i] * pc[i] - direction * second[i] * ps[i];
        to[half + i] = second[i] * pc[i] + direction * first[i] * ps[i];
      }
    }
  }
  return 0;
}
