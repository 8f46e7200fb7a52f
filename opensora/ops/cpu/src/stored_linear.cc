// Linear layers whose weights are stored in 16 or 8 bits. Every thread widens a panel of weights to float32 at a time
// and multiplies it with sgemm, so that no float32 copy of all weights exists. With many rows widening costs little.
#include "buffer.h"
#include "gemm.h"

namespace cpu_kernels {
namespace {

constexpr int64_t UNIT = 16;                 // weight rows; threads get multiples of it
constexpr int64_t PANEL = int64_t(1) << 22;  // floats of a widened panel
constexpr int64_t GROUP = 32;                // int8 weights with one scale, as in Q8_0 of GGUF

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Exact, without subnormal floats, which MindSpore's threads treat as zeros in graph mode. The exponents of float are
// larger by 112. A subnormal half becomes the mantissa of a float in [2^-14, 2^-13), minus 2^-14. Infinity and NaN,
// whose exponent bits are all set, get them all set again.
inline float widen_half(uint16_t half) {
  const uint32_t magnitude = uint32_t(half & 0x7fff) << 13;
  const float subnormal = from_bits(magnitude + (113u << 23)) - 1.0f / 16384;
  uint32_t bits;
  std::memcpy(&bits, &subnormal, 4);
  bits = magnitude < 1u << 23 ? bits : magnitude + (112u << 23);
  bits |= magnitude >= 31u << 23 ? 255u << 23 : 0u;
  return from_bits(bits | uint32_t(half & 0x8000) << 16);
}

struct BFloat16 {
  const uint16_t *data;
  void widen(int64_t row, int64_t k, float *result) const {
    for (int64_t i = 0; i < k; ++i) result[i] = from_bits(uint32_t(data[row * k + i]) << 16);
  }
};

struct Float16 {
  const uint16_t *data;
  void widen(int64_t row, int64_t k, float *result) const {
    for (int64_t i = 0; i < k; ++i) result[i] = widen_half(data[row * k + i]);
  }
};

struct Int8 {
  const int8_t *data;
  const uint16_t *scales;  // float16
  void widen(int64_t row, int64_t k, float *result) const {
    for (int64_t first = 0; first < k; first += GROUP) {
      const float scale = widen_half(scales[(row * k + first) / GROUP]);
      for (int64_t i = first; i < first + GROUP; ++i) result[i] = scale * data[row * k + i];
    }
  }
};

// x (rows, k), weights (n, k), bias (n) or null -> y (rows, n)
template <typename Weights>
int multiply(const float *x, const Weights &weights, const float *bias, float *y, int64_t rows, int64_t n, int64_t k) {
  const Sgemm sgemm = find_sgemm();
  if (!sgemm) return INVALID_SHAPES;
  const int64_t share = ceil_div(ceil_div(std::max<int64_t>(n, 1), UNIT), omp_get_max_threads()) * UNIT;
  const int64_t size = even_split(share, std::max(PANEL / std::max<int64_t>(k, 1), UNIT));
  const ThreadBuffers panels(size * k);
  int failed = 0;
#pragma omp parallel for schedule(dynamic) reduction(| : failed)
  for (int64_t first = 0; first < n; first += size) {
    const int64_t count = std::min(size, n - first);
    float *panel = panels.own();
    for (int64_t row = 0; row < count; ++row) weights.widen(first + row, k, panel + row * k);
    if (bias) {
      for (int64_t row = 0; row < rows; ++row) std::copy(bias + first, bias + first + count, y + row * n + first);
    }
    failed |= sgemm('N', 'T', rows, count, k, 1.0f, x, k, panel, k, bias ? 1.0f : 0.0f, y + first, n);
  }
  return failed ? INVALID_SHAPES : OK;
}

// The inputs are x, the weights, then the scales of int8, then the bias if there is one; the output is last.
template <typename Weights>
int linear(int count, void **params, int64_t **shapes, const Weights &weights, int bias_at) {
  const int64_t rows = shapes[0][0], k = shapes[0][1], n = shapes[1][0];
  const bool has_bias = count == bias_at + 2;
  if (shapes[1][1] != k || (has_bias && shapes[bias_at][0] != n)) return INVALID_SHAPES;
  return multiply(input(params, 0), weights, has_bias ? input(params, bias_at) : nullptr, output(params, count - 1),
                  rows, n, k);
}

}  // namespace

// x (rows, k), weight (n, k) bfloat16, [bias (n)] -> y (rows, n)
KERNEL(linear_bfloat16) { return linear(count, params, shapes, BFloat16{static_cast<const uint16_t *>(params[1])}, 2); }

// x (rows, k), weight (n, k) float16, [bias (n)] -> y (rows, n)
KERNEL(linear_float16) { return linear(count, params, shapes, Float16{static_cast<const uint16_t *>(params[1])}, 2); }

// x (rows, k), weight (n, k) int8, scale (n, k / 32) float16, [bias (n)] -> y (rows, n)
KERNEL(linear_int8) {
  const int64_t n = shapes[1][0], k = shapes[1][1];
  if (k % GROUP || shapes[2][0] != n || shapes[2][1] != k / GROUP) return INVALID_SHAPES;
  return linear(count, params, shapes,
                Int8{static_cast<const int8_t *>(params[1]), static_cast<const uint16_t *>(params[2])}, 3);
}

}  // namespace cpu_kernels
