// GroupNorm of x (B, T, C, H, W), optionally followed by SiLU.
#include "common.h"

namespace cpu_kernels {
namespace {

// One group: the elements that share statistics are `runs` contiguous runs (one per frame) of `length` floats, `stride`
// floats apart.
struct Group {
  int64_t runs, length, stride;
  float mean, rstd;

  void compute_statistics(const float *x, float eps) {
    double total = 0;
    for (int64_t run = 0; run < runs; ++run) total += sum_of_powers<1>(x + run * stride, 0);
    mean = total / (runs * length);
    total = 0;
    for (int64_t run = 0; run < runs; ++run) total += sum_of_powers<2>(x + run * stride, mean);
    rstd = 1 / std::sqrt(total / (runs * length) + eps);
  }

 private:
  static constexpr int64_t BLOCK = 4096;  // floats that are summed in float32 before they are added in float64

  // Sum of (x - center)^power.
  template <int power>
  double sum_of_powers(const float *x, float center) const {
    double total = 0;
    for (int64_t first = 0; first < length; first += BLOCK) {
      const int64_t size = std::min(BLOCK, length - first);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < size; ++i) {
        const float d = x[first + i] - center;
        sum += power == 2 ? d * d : d;
      }
      total += sum;
    }
    return total;
  }
};

// x is (B, T, C, H, W); settings are (groups, eps, per_frame): whether each frame has statistics of its own.
struct GroupNormShape {
  int64_t frames, channels, positions, groups, clips, frames_per_clip, group_channels;
  float eps;

  GroupNormShape(const int64_t *shape, const float *settings)
      : frames(shape[1]), channels(shape[2]), positions(shape[3] * shape[4]), groups(integer(settings[0])),
        eps(settings[1]) {
    const bool per_frame = settings[2] != 0;
    clips = per_frame ? shape[0] * frames : shape[0];
    frames_per_clip = per_frame ? 1 : frames;
    group_channels = channels / std::max<int64_t>(groups, 1);
  }
  bool fits(const int64_t *weight, const int64_t *bias) const {
    return groups > 0 && channels % groups == 0 && weight[0] == channels && bias[0] == channels;
  }
  Group group() const { return {frames_per_clip, group_channels * positions, channels * positions, 0, 0}; }
  int64_t offset(int64_t clip, int64_t group) const {
    return (clip * frames_per_clip * channels + group * group_channels) * positions;
  }
};

// x (B, T, C, H, W), weight (C), bias (C), settings (3) -> y (B, T, C, H, W)
template <class Activation>
int forward(void **params, int64_t **shapes) {
  const float *x = input(params, 0), *weight = input(params, 1), *bias = input(params, 2);
  const GroupNormShape shape(shapes[0], input(params, 3));
  if (!shape.fits(shapes[1], shapes[2])) return INVALID_SHAPES;
  float *y = output(params, 4);
#pragma omp parallel for
  for (int64_t task = 0; task < shape.clips * shape.groups; ++task) {
    const int64_t g = task % shape.groups, offset = shape.offset(task / shape.groups, g);
    Group group = shape.group();
    group.compute_statistics(x + offset, shape.eps);
    for (int64_t run = 0; run < group.runs; ++run) {
      for (int64_t c = 0; c < shape.group_channels; ++c) {
        const int64_t start = offset + run * group.stride + c * shape.positions;
        const float *x_row = x + start;
        float *y_row = y + start;
        const float w = group.rstd * weight[g * shape.group_channels + c], b = bias[g * shape.group_channels + c];
#pragma omp simd
        for (int64_t i = 0; i < shape.positions; ++i) y_row[i] = Activation::value((x_row[i] - group.mean) * w + b);
      }
    }
  }
  return OK;
}

// x (B, T, C, H, W), weight (C), bias (C), settings (3), dy (B, T, C, H, W)
//   -> dx (B, T, C, H, W), dweight (C), dbias (C)
// With n = (x - mean) / std, d = dy f'(n weight + bias) and g = d weight: dx = (g - mean(g) - n mean(g n)) / std. A
// first pass stores d in dx. Tasks are groups, which own their channels of dweight and dbias.
template <class Activation>
int backward(void **params, int64_t **shapes) {
  const float *x = input(params, 0), *weight = input(params, 1), *bias = input(params, 2), *dy = input(params, 4);
  const GroupNormShape shape(shapes[0], input(params, 3));
  if (!shape.fits(shapes[1], shapes[2])) return INVALID_SHAPES;
  float *dx = output(params, 5), *dweight = output(params, 6), *dbias = output(params, 7);
  std::fill(dweight, dweight + shape.channels, 0.0f);
  std::fill(dbias, dbias + shape.channels, 0.0f);
#pragma omp parallel for
  for (int64_t g = 0; g < shape.groups; ++g) {
    for (int64_t clip = 0; clip < shape.clips; ++clip) {
      const int64_t offset = shape.offset(clip, g);
      Group group = shape.group();
      group.compute_statistics(x + offset, shape.eps);
      double sum = 0, product_sum = 0;
      for (int64_t run = 0; run < group.runs; ++run) {
        for (int64_t c = 0; c < shape.group_channels; ++c) {
          const int64_t start = offset + run * group.stride + c * shape.positions;
          const int64_t channel = g * shape.group_channels + c;
          const float *x_row = x + start, *dy_row = dy + start;
          float *d = dx + start;
          const float w = weight[channel], b = bias[channel];
          float db = 0, dw = 0;
#pragma omp simd reduction(+ : db, dw)
          for (int64_t i = 0; i < shape.positions; ++i) {
            const float normalized = (x_row[i] - group.mean) * group.rstd;
            d[i] = dy_row[i] * Activation::derivative(normalized * w + b);
            db += d[i];
            dw += d[i] * normalized;
          }
          dbias[channel] += db;
          dweight[channel] += dw;
          sum += db * w;
          product_sum += dw * w;
        }
      }
      const float mean_gradient = sum / (group.runs * group.length);
      const float mean_product = product_sum / (group.runs * group.length);
      for (int64_t run = 0; run < group.runs; ++run) {
        for (int64_t c = 0; c < shape.group_channels; ++c) {
          const int64_t start = offset + run * group.stride + c * shape.positions;
          const float *x_row = x + start;
          float *d = dx + start;
          const float w = weight[g * shape.group_channels + c];
#pragma omp simd
          for (int64_t i = 0; i < shape.positions; ++i) {
            const float normalized = (x_row[i] - group.mean) * group.rstd;
            d[i] = (d[i] * w - mean_gradient - normalized * mean_product) * group.rstd;
          }
        }
      }
    }
  }
  return OK;
}

}  // namespace

KERNEL(group_norm) { return forward<Identity>(params, shapes); }
KERNEL(group_norm_grad) { return backward<Identity>(params, shapes); }
KERNEL(group_norm_silu) { return forward<SiLU>(params, shapes); }
KERNEL(group_norm_silu_grad) { return backward<SiLU>(params, shapes); }

}  // namespace cpu_kernels
