// Steps of an optimizer. What they change is among their inputs: MindSpore's own operators for parameters work in place
// too. Their output is a number that says nothing.
#include "common.h"

namespace {

int64_t total_size(int64_t **shapes, const int *ndims, int first, int last) {
  int64_t total = 0;
  for (int i = first; i < last; ++i) total += product(shapes[i], 0, ndims[i]);
  return total;
}

}  // namespace

// Any number of tensors -> their elements one behind the other, and zeros where the output is longer.
KERNEL(flatten) {
  const int tensors = count - 1;
  float *to = output(params, tensors), *end = to + shapes[tensors][0];
  if (total_size(shapes, ndims, 0, tensors) > shapes[tensors][0]) return 1;
  for (int i = 0; i < tensors; ++i) {
    const int64_t size = product(shapes[i], 0, ndims[i]);
    std::memcpy(to, input(params, i), size * sizeof(float));
    to += size;
  }
  std::fill(to, end, 0.0f);
  return 0;
}

// The inverse: a flat tensor and those that take their elements from it.
KERNEL(unflatten) {
  const float *from = input(params, 0);
  if (total_size(shapes, ndims, 1, count - 1) > shapes[0][0]) return 1;
  for (int i = 1; i < count - 1; ++i) {
    const int64_t size = product(shapes[i], 0, ndims[i]);
    std::memcpy(output(params, i), from, size * sizeof(float));
    from += size;
  }
  return 0;
}

// weights, moments m and v, gradient, (its factor, learning rate, decay of the weights, beta 1 and 2,
// 1 / (1 - beta1^t), 1 / (1 - beta2^t), epsilon)
KERNEL(adamw) {
  float *weights = output(params, 0), *m = output(params, 1), *v = output(params, 2);
  const float *gradient = input(params, 3), *settings = input(params, 4);
  const float factor = settings[0], rate = settings[1], decay = settings[2], rest1 = 1 - settings[3],
              rest2 = 1 - settings[4], unbias1 = settings[5], unbias2 = settings[6], epsilon = settings[7];
  const int64_t size = shapes[0][0];
  if (shapes[1][0] != size || shapes[2][0] != size || shapes[3][0] != size) return 1;
#pragma omp parallel for simd
  for (int64_t i = 0; i < size; ++i) {
    const float g = gradient[i] * factor;
    m[i] += (g - m[i]) * rest1;
    v[i] += (g * g - v[i]) * rest2;
    weights[i] -= weights[i] * decay + rate * (m[i] * unbias1) / (std::sqrt(v[i] * unbias2) + epsilon);
  }
  return 0;
}

// shadow, weights, (how much of the difference shadow takes on)
KERNEL(move_towards) {
  float *shadow = output(params, 0);
  const float *weights = input(params, 1), part = input(params, 2)[0];
  const int64_t size = shapes[0][0];
  if (shapes[1][0] != size) return 1;
#pragma omp parallel for simd
  for (int64_t i = 0; i < size; ++i) shadow[i] += (weights[i] - shadow[i]) * part;
  return 0;
}
