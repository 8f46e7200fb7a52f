// Norms of videos (..., C, H, W) and (B, T, C, H, W), with SiLU in the same pass where it follows.
#include "common.h"

namespace {

constexpr int64_t BLOCK = 128;  // positions taken together, so that all their channels stay in the cache

struct Identity {
  static float value(float x) { return x; }
  static float slope(float) { return 1; }
};

struct SiLU {
  static float value(float x) { return x * sigmoid(x); }
  static float slope(float x) {
    const float s = sigmoid(x);
    return s * (1 + x * (1 - s));
  }
};

// Mean and inverse deviation over the channels, of `size` positions; channels lie `stride` apart.
void channel_statistics(const float *x, int64_t channels, int64_t stride, int64_t size, float eps, float *mean,
                        float *inverse) {
  std::fill(mean, mean + size, 0.0f);
  for (int64_t c = 0; c < channels; ++c) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) mean[i] += x[c * stride + i];
  }
  for (int64_t i = 0; i < size; ++i) mean[i] /= channels;
  std::fill(inverse, inverse + size, 0.0f);
  for (int64_t c = 0; c < channels; ++c) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const float d = x[c * stride + i] - mean[i];
      inverse[i] += d * d;
    }
  }
  for (int64_t i = 0; i < size; ++i) inverse[i] = 1 / std::sqrt(inverse[i] / channels + eps);
}

// x (..., C, H, W), weight (C), bias (C), eps (1) -> y
template <class Activation>
int layer_norm(void **params, int *ndims, int64_t **shapes) {
  const float *x = input(params, 0), *weight = input(params, 1), *bias = input(params, 2);
  const float eps = input(params, 3)[0];
  float *y = output(params, 4);
  const int rank = ndims[0];
  const int64_t channels = shapes[0][rank - 3], positions = product(shapes[0], rank - 2, rank);
  const int64_t frames = product(shapes[0], 0, rank - 3), blocks = (positions + BLOCK - 1) / BLOCK;
  if (shapes[1][0] != channels || shapes[2][0] != channels) return 1;
#pragma omp parallel for
  for (int64_t item = 0; item < frames * blocks; ++item) {
    const int64_t first = item % blocks * BLOCK, size = std::min(BLOCK, positions - first);
    const int64_t offset = item / blocks * channels * positions + first;
    float mean[BLOCK], inverse[BLOCK];
    channel_statistics(x + offset, channels, positions, size, eps, mean, inverse);
    for (int64_t c = 0; c < channels; ++c) {
      const float *from = x + offset + c * positions;
      float *to = y + offset + c * positions;
      const float times = weight[c], up = bias[c];
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) to[i] = Activation::value((from[i] - mean[i]) * inverse[i] * times + up);
    }
  }
  return 0;
}

// x, weight, bias, eps, gradient of y -> gradients of x, weight, bias
template <class Activation>
int layer_norm_grad(void **params, int *ndims, int64_t **shapes) {
  const float *x = input(params, 0), *weight = input(params, 1), *bias = input(params, 2), *dy = input(params, 4);
  const float eps = input(params, 3)[0];
  float *dx = output(params, 5);
  const int rank = ndims[0];
  const int64_t channels = shapes[0][rank - 3], positions = product(shapes[0], rank - 2, rank);
  const int64_t frames = product(shapes[0], 0, rank - 3), blocks = (positions + BLOCK - 1) / BLOCK;
  if (shapes[1][0] != channels || shapes[2][0] != channels) return 1;
  ThreadSums weight_sums(channels), bias_sums(channels);
#pragma omp parallel
  {
    float *weight_sum = weight_sums.own(), *bias_sum = bias_sums.own();
    std::vector<float> inner(channels * BLOCK);
    float mean[BLOCK], inverse[BLOCK], sum[BLOCK], product_sum[BLOCK];
#pragma omp for schedule(static)
    for (int64_t item = 0; item < frames * blocks; ++item) {
      const int64_t first = item % blocks * BLOCK, size = std::min(BLOCK, positions - first);
      const int64_t offset = item / blocks * channels * positions + first;
      channel_statistics(x + offset, channels, positions, size, eps, mean, inverse);
      std::fill(sum, sum + size, 0.0f);
      std::fill(product_sum, product_sum + size, 0.0f);
      for (int64_t c = 0; c < channels; ++c) {
        const float *from = x + offset + c * positions, *grad = dy + offset + c * positions;
        float *g = inner.data() + c * BLOCK;
        const float times = weight[c], up = bias[c];
        float dweight = 0, dbias = 0;
#pragma omp simd reduction(+ : dweight, dbias)
        for (int64_t i = 0; i < size; ++i) {
          const float normal = (from[i] - mean[i]) * inverse[i];
          const float d = grad[i] * Activation::slope(normal * times + up);
          dweight += d * normal;
          dbias += d;
          g[i] = d * times;
          sum[i] += g[i];
          product_sum[i] += g[i] * normal;
        }
        weight_sum[c] += dweight;
        bias_sum[c] += dbias;
      }
      for (int64_t c = 0; c < channels; ++c) {
        const float *from = x + offset + c * positions, *g = inner.data() + c * BLOCK;
        float *to = dx + offset + c * positions;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
          const float normal = (from[i] - mean[i]) * inverse[i];
          to[i] = (g[i] - (sum[i] + normal * product_sum[i]) / channels) * inverse[i];
        }
      }
    }
  }
  weight_sums.total(output(params, 6));
  bias_sums.total(output(params, 7));
  return 0;
}

// One group's elements: `runs` of `length` elements, `stride` apart.
struct Group {
  int64_t runs, length, stride;
  float mean, inverse;

  void measure(const float *x, float eps) {
    double total = 0;
    for (int64_t run = 0; run < runs; ++run) total += sum_of(x + run * stride, 0, false);
    mean = total / (runs * length);
    total = 0;
    for (int64_t run = 0; run < runs; ++run) total += sum_of(x + run * stride, mean, true);
    inverse = 1 / std::sqrt(total / (runs * length) + eps);
  }

 private:
  double sum_of(const float *x, float centre, bool squares) const {
    double total = 0;
    for (int64_t first = 0; first < length; first += 4096) {
      const int64_t size = std::min<int64_t>(4096, length - first);
      float sum = 0;
      if (squares) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; ++i) sum += (x[first + i] - centre) * (x[first + i] - centre);
      } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; ++i) sum += x[first + i];
      }
      total += sum;
    }
    return total;
  }
};

// Shapes of a GroupNorm: x (B, T, C, H, W) and settings (groups, eps, 1 where each frame has its own statistics).
struct GroupNormShape {
  int64_t frames, channels, positions, groups, clips, frames_together, group_channels;
  float eps;

  GroupNormShape(const int64_t *shape, const float *settings)
      : frames(shape[1]), channels(shape[2]), positions(shape[3] * shape[4]), groups(std::lround(settings[0])),
        eps(settings[1]) {
    const bool per_frame = settings[2] != 0;
    clips = per_frame ? shape[0] * frames : shape[0];
    frames_together = per_frame ? 1 : frames;
    group_channels = channels / std::max<int64_t>(groups, 1);
  }
  bool fits(const int64_t *weight, const int64_t *bias) const {
    return groups > 0 && channels % groups == 0 && weight[0] == channels && bias[0] == channels;
  }
  Group group() const { return {frames_together, group_channels * positions, channels * positions, 0, 0}; }
  int64_t offset(int64_t clip, int64_t group) const {
    return (clip * frames_together * channels + group * group_channels) * positions;
  }
};

template <class Activation>
int group_norm_forward(void **params, int64_t **shapes) {
  const float *x = input(params, 0), *weight = input(params, 1), *bias = input(params, 2);
  const GroupNormShape shape(shapes[0], input(params, 3));
  if (!shape.fits(shapes[1], shapes[2])) return 1;
  float *y = output(params, 4);
#pragma omp parallel for
  for (int64_t item = 0; item < shape.clips * shape.groups; ++item) {
    const int64_t g = item % shape.groups, offset = shape.offset(item / shape.groups, g);
    Group group = shape.group();
    group.measure(x + offset, shape.eps);
    for (int64_t run = 0; run < group.runs; ++run) {
      for (int64_t c = 0; c < shape.group_channels; ++c) {
        const float *from = x + offset + run * group.stride + c * shape.positions;
        float *to = y + offset + run * group.stride + c * shape.positions;
        const float times = group.inverse * weight[g * shape.group_channels + c];
        const float up = bias[g * shape.group_channels + c];
#pragma omp simd
        for (int64_t i = 0; i < shape.positions; ++i) to[i] = Activation::value((from[i] - group.mean) * times + up);
      }
    }
  }
  return 0;
}

template <class Activation>
int group_norm_backward(void **params, int64_t **shapes) {
  const float *x = input(params, 0), *weight = input(params, 1), *bias = input(params, 2), *dy = input(params, 4);
  const GroupNormShape shape(shapes[0], input(params, 3));
  if (!shape.fits(shapes[1], shapes[2])) return 1;
  float *dx = output(params, 5), *dweight = output(params, 6), *dbias = output(params, 7);
  std::fill(dweight, dweight + shape.channels, 0.0f);
  std::fill(dbias, dbias + shape.channels, 0.0f);
#pragma omp parallel for
  for (int64_t g = 0; g < shape.groups; ++g) {
    for (int64_t clip = 0; clip < shape.clips; ++clip) {
      const int64_t offset = shape.offset(clip, g);
      Group group = shape.group();
      group.measure(x + offset, shape.eps);
      double sum = 0, product_sum = 0;
      for (int64_t run = 0; run < group.runs; ++run) {
        for (int64_t c = 0; c < shape.group_channels; ++c) {
          const int64_t start = offset + run * group.stride + c * shape.positions, channel = g * shape.group_channels + c;
          const float *from = x + start, *grad = dy + start;
          float *inner = dx + start;
          const float times = weight[channel], up = bias[channel];
          float total = 0, product_total = 0;
#pragma omp simd reduction(+ : total, product_total)
          for (int64_t i = 0; i < shape.positions; ++i) {
            const float normal = (from[i] - group.mean) * group.inverse;
            inner[i] = grad[i] * Activation::slope(normal * times + up);
            total += inner[i];
            product_total += inner[i] * normal;
          }
          dbias[channel] += total;
          dweight[channel] += product_total;
          sum += total * times;
          product_sum += product_total * times;
        }
      }
      const float mean_gradient = sum / (group.runs * group.length);
      const float mean_product = product_sum / (group.runs * group.length);
      for (int64_t run = 0; run < group.runs; ++run) {
        for (int64_t c = 0; c < shape.group_channels; ++c) {
          const int64_t start = offset + run * group.stride + c * shape.positions;
          const float *from = x + start;
          float *to = dx + start;
          const float times = weight[g * shape.group_channels + c];
#pragma omp simd
          for (int64_t i = 0; i < shape.positions; ++i) {
            const float normal = (from[i] - group.mean) * group.inverse;
            to[i] = (to[i] * times - mean_gradient - normal * mean_product) * group.inverse;
          }
        }
      }
    }
  }
  return 0;
}

}  // namespace

KERNEL(channel_layer_norm) { return layer_norm<Identity>(params, ndims, shapes); }
KERNEL(channel_layer_norm_grad) { return layer_norm_grad<Identity>(params, ndims, shapes); }
KERNEL(channel_layer_norm_silu) { return layer_norm<SiLU>(params, ndims, shapes); }
KERNEL(channel_layer_norm_silu_grad) { return layer_norm_grad<SiLU>(params, ndims, shapes); }
KERNEL(group_norm) { return group_norm_forward<Identity>(params, shapes); }
KERNEL(group_norm_grad) { return group_norm_backward<Identity>(params, shapes); }
KERNEL(group_norm_silu) { return group_norm_forward<SiLU>(params, shapes); }
KERNEL(group_norm_silu_grad) { return group_norm_backward<SiLU>(params, shapes); }
