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

// Windows of three frames out of `past` and x, at steps of two.
struct Windows {
  static constexpr int64_t STRIDE = 2;
  int64_t batch, past, frames, channels, positions, count;

  Windows(const int64_t *past_shape, const int64_t *shape)
      : batch(shape[0]), past(past_shape[1]), frames(shape[1]), channels(shape[2]), positions(shape[3] * shape[4]),
        count((past + frames - 3) / STRIDE + 1) {}

  // Where a frame of a channel begins: in the first of two tensors while it is past, then in the second.
  template <class Pointer>
  Pointer find(Pointer before, Pointer now, int64_t b, int64_t frame, int64_t c) const {
    return frame < past ? before + ((b * past + frame) * channels + c) * positions
                        : now + ((b * frames + frame - past) * channels + c) * positions;
  }

  // past (B, P, C, H, W), x (B, T, C, H, W) -> (B T', 3 C, H, W): each window's three frames, channel by channel, as
  // the weights of a 3-D filter lie.
  int gather(void **params) const {
    float *y = output(params, 2);
#pragma omp parallel for
    for (int64_t item = 0; item < batch * count * channels; ++item) {
      const int64_t c = item % channels, window = item / channels;
      for (int64_t k = 0; k < 3; ++k) {
        const float *from = find(input(params, 0), input(params, 1), window / count, window % count * STRIDE + k, c);
        std::memcpy(y + (item * 3 + k) * positions, from, positions * sizeof(float));
      }
    }
    return 0;
  }

  // past, x, gradient of the windows -> gradients of past, x
  int scatter(void **params) const {
    const float *dy = input(params, 2);
    const int64_t all = past + frames;
#pragma omp parallel for
    for (int64_t item = 0; item < batch * all * channels; ++item) {
      const int64_t c = item % channels, frame = item / channels % all, b = item / channels / all;
      float *to = find(output(params, 3), output(params, 4), b, frame, c);
      std::fill(to, to + positions, 0.0f);
      for (int64_t k = 0; k < 3 && k <= frame; ++k) {
        const int64_t t = (frame - k) / STRIDE;
        if ((frame - k) % STRIDE || t >= count) continue;
        const float *from = dy + (((b * count + t) * channels + c) * 3 + k) * positions;
#pragma omp simd
        for (int64_t i = 0; i < positions; ++i) to[i] += from[i];
      }
    }
    return 0;
  }
};

}  // namespace

KERNEL(nearest_2x) { return doubled<Nearest>(params, shapes); }
KERNEL(nearest_2x_grad) { return doubled_grad<Nearest>(params, shapes); }
KERNEL(linear_2x) { return doubled<Linear>(params, shapes); }
KERNEL(linear_2x_grad) { return doubled_grad<Linear>(params, shapes); }
KERNEL(nearest_pictures_2x) { return pictures_doubled<Nearest>(params, shapes); }
KERNEL(nearest_pictures_2x_grad) { return pictures_doubled_grad<Nearest>(params, shapes); }
KERNEL(linear_pictures_2x) { return pictures_doubled<Linear>(params, shapes); }
KERNEL(linear_pictures_2x_grad) { return pictures_doubled_grad<Linear>(params, shapes); }

KERNEL(time_windows) { return Windows(shapes[0], shapes[1]).gather(params); }
KERNEL(time_windows_grad) { return Windows(shapes[0], shapes[1]).scatter(params); }
