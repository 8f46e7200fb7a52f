// Optimizer kernels on flat buffers. All but flatten update some of their inputs in place, as MindSpore's own optimizer
// operators do; their output is a dummy, because a Custom operator needs one.
#include "common.h"

namespace cpu_kernels {
namespace {

int64_t total_size(int64_t **shapes, const int *ndims, int first, int last) {
  int64_t total = 0;
  for (int i = first; i < last; ++i) total += num_elements(shapes[i], 0, ndims[i]);
  return total;
}

// flat (N), any number of tensors, which are overwritten with consecutive elements of flat
template <typename T>
int copy_to_tensors(int count, void **params, int *ndims, int64_t **shapes) {
  const T *from = static_cast<const T *>(params[0]);
  if (total_size(shapes, ndims, 1, count - 1) > shapes[0][0]) return INVALID_SHAPES;
  for (int i = 1; i < count - 1; ++i) {
    const int64_t size = num_elements(shapes[i], 0, ndims[i]);
    std::memcpy(params[i], from, size * sizeof(T));
    from += size;
  }
  return OK;
}

}  // namespace

// Any number of tensors -> flat (N): their elements concatenated, padded with zeros
KERNEL(flatten) {
  const int tensors = count - 1;
  float *to = output(params, tensors), *end = to + shapes[tensors][0];
  if (total_size(shapes, ndims, 0, tensors) > shapes[tensors][0]) return INVALID_SHAPES;
  for (int i = 0; i < tensors; ++i) {
    const int64_t size = num_elements(shapes[i], 0, ndims[i]);
    std::memcpy(to, input(params, i), size * sizeof(float));
    to += size;
  }
  std::fill(to, end, 0.0f);
  return OK;
}

// flat, tensors -> dummy
KERNEL(unflatten) { return copy_to_tensors<float>(count, params, ndims, shapes); }

// The same for tensors of float16 or bfloat16.
KERNEL(unflatten_16bit) { return copy_to_tensors<uint16_t>(count, params, ndims, shapes); }

// weights (N), m (N), v (N), which are updated, gradient (N), settings (gradient factor, learning rate,
// learning rate * weight decay, beta1, beta2, 1 / (1 - beta1^t), 1 / (1 - beta2^t), epsilon) -> dummy
// AdamW (Loshchilov and Hutter 2019, algorithm 2).
KERNEL(adamw) {
  float *weights = output(params, 0), *m = output(params, 1), *v = output(params, 2);
  const float *gradient = input(params, 3), *settings = input(params, 4);
  const float factor = settings[0], learning_rate = settings[1], decay = settings[2];
  const float one_minus_beta1 = 1 - settings[3], one_minus_beta2 = 1 - settings[4];
  const float correction1 = settings[5], correction2 = settings[6], epsilon = settings[7];
  const int64_t size = shapes[0][0];
  if (shapes[1][0] != size || shapes[2][0] != size || shapes[3][0] != size) return INVALID_SHAPES;
#pragma omp parallel for simd
  for (int64_t i = 0; i < size; ++i) {
    const float g = gradient[i] * factor;
    m[i] += (g - m[i]) * one_minus_beta1;
    v[i] += (g * g - v[i]) * one_minus_beta2;
    weights[i] -= weights[i] * decay + learning_rate * (m[i] * correction1) / (std::sqrt(v[i] * correction2) + epsilon);
  }
  return OK;
}

// target (N), which is updated, source (N), weight (1) -> dummy; target += (source - target) * weight
KERNEL(lerp) {
  float *target = output(params, 0);
  const float *source = input(params, 1), weight = input(params, 2)[0];
  const int64_t size = shapes[0][0];
  if (shapes[1][0] != size) return INVALID_SHAPES;
#pragma omp parallel for simd
  for (int64_t i = 0; i < size; ++i) target[i] += (source[i] - target[i]) * weight;
  return OK;
}

}  // namespace cpu_kernels
