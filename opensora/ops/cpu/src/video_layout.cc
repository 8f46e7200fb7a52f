// Doubling of an axis, and the frames that a convolution in time sees side by side.
#include "common.h"

namespace {

struct Nearest {
  static constexpr float near = 1, far = 0;
};
struct Linear {
  static constexpr float near = 0.75f, far = 0.25f;
};

// x (outer, n, inner) -> y (outer, 2 n, inner): y[2i] = near x[i] + far x[i - 1], y[2i + 1] = near x[i] + far x[i + 1],
// indices clamped.
template <class Weights>
int doubled(void **params, int64_t **shapes) {
  const float *x = input(params, 0);
  float *y = output(params, 1);
  const int64_t outer = shapes[0][0], n = shapes[0][1], inner = shapes[0][2];
#pragma omp parallel for
  for (int64_t o = 0; o < outer; ++o) {
    const float *from = x + o * n * inner;
    float *to = y + o * 2 * n * inner;
    for (int64_t i = 0; i < n; ++i) {
      const float *here = from + i * inner, *before = i ? here - inner : here, *after = i < n - 1 ? here + inner : here;
      float *even = to + 2 * i * inner, *odd = even + inner;
#pragma omp simd
      for (int64_t j = 0; j < inner; ++j) {
        even[j] = Weights::near * here[j] + Weights::far * before[j];
        odd[j] = Weights::near * here[j] + Weights::far * after[j];
      }
    }
  }
  return 0;
}

template <class Weights>
int doubled_grad(void **params, int64_t **shapes) {
  const float *dy = input(params, 0);
  float *dx = output(params, 1);
  const int64_t outer = shapes[1][0], n = shapes[1][1], inner = shapes[1][2];
#pragma omp parallel for
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < n; ++i) {
      const float *even = dy + (o * 2 * n + 2 * i) * inner, *odd = even + inner;
      // What the neighbours took of x[i]; at the ends x[i] stands for its missing neighbour.
      const float *before = i ? even - inner : even, *after = i < n - 1 ? odd + inner : odd;
      float *to = dx + (o * n + i) * inner;
#pragma omp simd
      for (int64_t j = 0; j < inner; ++j) {
        to[j] = Weights::near * (even[j] + odd[j]) + Weights::far * (before[j] + after[j]);
      }
    }
  }
  return 0;
}

// Both axes of pictures at once, x (frames, H, W) -> y (frames, 2 H, 2 W).
template <class Weights>
int pictures_doubled(void **params, int64_t **shapes) {
  const float *x = input(params, 0);
  float *y = output(params, 1);
  const int64_t frames = shapes[0][0], height = shapes[0][1], width = shapes[0][2];
#pragma omp parallel
  {
    std::vector<float> blended(width);
#pragma omp for
    for (int64_t row = 0; row < frames * 2 * height; ++row) {
      const int64_t up = row % (2 * height), i = up / 2;
      const float *here = x + (row / (2 * height) * height + i) * width;
      const float *other = up % 2 ? (i < height - 1 ? here + width : here) : (i ? here - width : here);
      float *blend = blended.data(), *to = y + row * 2 * width;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) blend[j] = Weights::near * here[j] + Weights::far * other[j];
      to[0] = (Weights::near + Weights::far) * blend[0];
      for (int64_t j = 0; j < width - 1; ++j) {
        to[2 * j + 1] = Weights::near * blend[j] + Weights::far * blend[j + 1];
        to[2 * j + 2] = Weights::near * blend[j + 1] + Weights::far * blend[j];
      }
      to[2 * width - 1] = (Weights::near + Weights::far) * blend[width - 1];
    }
  }
  return 0;
}

template <class Weights>
int pictures_doubled_grad(void **params, int64_t **shapes) {
  const float *dy = input(params, 0);
  float *dx = output(params, 1);
  const int64_t frames = shapes[1][0], height = shapes[1][1], width = shapes[1][2];
#pragma omp parallel
  {
    std::vector<float> gathered(2 * width);
#pragma omp for
    for (int64_t row = 0; row < frames * height; ++row) {
      const int64_t i = row % height;
      const float *even = dy + (row / height * height + i) * 4 * width, *odd = even + 2 * width;
      const float *before = i ? even - 2 * width : even, *after = i < height - 1 ? odd + 2 * width : odd;
      float *sum = gathered.data(), *to = dx + row * width;
#pragma omp simd
      for (int64_t j = 0; j < 2 * width; ++j) {
        sum[j] = Weights::near * (even[j] + odd[j]) + Weights::far * (before[j] + after[j]);
      }
      for (int64_t j = 0; j < width; ++j) {
        const float left = j ? sum[2 * j - 1] : sum[0], right = j < width - 1 ? sum[2 * j + 2] : sum[2 * j + 1];
        to[j] = Weights::near * (sum[2 * j] + sum[2 * j + 1]) + Weights::far * (left + right);
      }
    }
  }
  return 0;
}

}  // namespace

KERNEL(nearest_2x) { return doubled<Nearest>(params, shapes); }
KERNEL(nearest_2x_grad) { return doubled_grad<Nearest>(params, shapes); }
KERNEL(linear_2x) { return doubled<Linear>(params, shapes); }
KERNEL(linear_2x_grad) { return doubled_grad<Linear>(params, shapes); }
KERNEL(nearest_pictures_2x) { return pictures_doubled<Nearest>(params, shapes); }
KERNEL(nearest_pictures_2x_grad) { return pictures_doubled_grad<Nearest>(params, shapes); }
KERNEL(linear_pictures_2x) { return pictures_doubled<Linear>(params, shapes); }
KERNEL(linear_pictures_2x_grad) { return pictures_doubled_grad<Linear>(params, shapes); }
