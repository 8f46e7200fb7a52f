// Upsampling by 2, nearest and linear (half-pixel centers, align_corners=False), with gradients.
#include "buffer.h"

namespace cpu_kernels {
namespace {

// Along an axis, y[2i] = NEAR x[i] + FAR x[i - 1] and y[2i + 1] = NEAR x[i] + FAR x[i + 1]; indices are clamped.
struct Nearest {
  static constexpr float NEAR = 1, FAR = 0;
};
struct Linear {
  static constexpr float NEAR = 0.75f, FAR = 0.25f;
};

// x (outer, n, inner) -> y (outer, 2 n, inner)
template <class Mode>
int upsample_axis(void **params, int64_t **shapes) {
  const float *x = input(params, 0);
  float *y = output(params, 1);
  const int64_t outer = shapes[0][0], n = shapes[0][1], inner = shapes[0][2];
#pragma omp parallel for collapse(2)
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < n; ++i) {
      const float *here = x + (o * n + i) * inner;
      const float *previous = i ? here - inner : here, *next = i < n - 1 ? here + inner : here;
      float *even = y + (o * n + i) * 2 * inner, *odd = even + inner;
#pragma omp simd
      for (int64_t j = 0; j < inner; ++j) {
        even[j] = Mode::NEAR * here[j] + Mode::FAR * previous[j];
        odd[j] = Mode::NEAR * here[j] + Mode::FAR * next[j];
      }
    }
  }
  return OK;
}

// dy (outer, 2 n, inner) -> dx (outer, n, inner)
// x[i] contributes NEAR to y[2i] and y[2i + 1] and FAR to y[2i - 1] and y[2i + 2]; at the ends, where the index of the
// neighbor is clamped to i, FAR goes to y[2i] or y[2i + 1] instead.
template <class Mode>
int upsample_axis_grad(void **params, int64_t **shapes) {
  const float *dy = input(params, 0);
  float *dx = output(params, 1);
  const int64_t outer = shapes[1][0], n = shapes[1][1], inner = shapes[1][2];
#pragma omp parallel for collapse(2)
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < n; ++i) {
      const float *even = dy + (o * n + i) * 2 * inner, *odd = even + inner;
      const float *previous = i ? even - inner : even, *next = i < n - 1 ? odd + inner : odd;
      float *to = dx + (o * n + i) * inner;
#pragma omp simd
      for (int64_t j = 0; j < inner; ++j) {
        to[j] = Mode::NEAR * (even[j] + odd[j]) + Mode::FAR * (previous[j] + next[j]);
      }
    }
  }
  return OK;
}

// x (width) -> y (2 width). Compilers vectorize the loop only if they know that x and y do not overlap.
template <class Mode>
void upsample_row(const float *__restrict x, float *__restrict y, int64_t width) {
  y[0] = (Mode::NEAR + Mode::FAR) * x[0];
  for (int64_t j = 0; j < width - 1; ++j) {
    y[2 * j + 1] = Mode::NEAR * x[j] + Mode::FAR * x[j + 1];
    y[2 * j + 2] = Mode::NEAR * x[j + 1] + Mode::FAR * x[j];
  }
  y[2 * width - 1] = (Mode::NEAR + Mode::FAR) * x[width - 1];
}

// dy (2 width) -> dx (width)
template <class Mode>
void upsample_row_grad(const float *__restrict dy, float *__restrict dx, int64_t width) {
  for (int64_t j = 0; j < width; ++j) {
    const float left = j ? dy[2 * j - 1] : dy[0], right = j < width - 1 ? dy[2 * j + 2] : dy[2 * j + 1];
    dx[j] = Mode::NEAR * (dy[2 * j] + dy[2 * j + 1]) + Mode::FAR * (left + right);
  }
}

// x (frames, H, W) -> y (frames, 2 H, 2 W): along H into a buffer of one row, then along W
template <class Mode>
int upsample_image(void **params, int64_t **shapes) {
  const float *x = input(params, 0);
  float *y = output(params, 1);
  const int64_t frames = shapes[0][0], height = shapes[0][1], width = shapes[0][2];
  const ThreadBuffers rows(width);
#pragma omp parallel
  {
    float *const blend = rows.own();
#pragma omp for
    for (int64_t row = 0; row < frames * 2 * height; ++row) {
      const int64_t y_row = row % (2 * height), i = y_row / 2;
      const float *here = x + (row / (2 * height) * height + i) * width;
      const float *neighbor = y_row % 2 ? (i < height - 1 ? here + width : here) : (i ? here - width : here);
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) blend[j] = Mode::NEAR * here[j] + Mode::FAR * neighbor[j];
      upsample_row<Mode>(blend, y + row * 2 * width, width);
    }
  }
  return OK;
}

// dy (frames, 2 H, 2 W) -> dx (frames, H, W)
template <class Mode>
int upsample_image_grad(void **params, int64_t **shapes) {
  const float *dy = input(params, 0);
  float *dx = output(params, 1);
  const int64_t frames = shapes[1][0], height = shapes[1][1], width = shapes[1][2];
  const ThreadBuffers rows(2 * width);
#pragma omp parallel
  {
    float *const sum = rows.own();
#pragma omp for
    for (int64_t row = 0; row < frames * height; ++row) {
      const int64_t i = row % height;
      const float *even = dy + (row / height * height + i) * 4 * width, *odd = even + 2 * width;
      const float *previous = i ? even - 2 * width : even, *next = i < height - 1 ? odd + 2 * width : odd;
#pragma omp simd
      for (int64_t j = 0; j < 2 * width; ++j) {
        sum[j] = Mode::NEAR * (even[j] + odd[j]) + Mode::FAR * (previous[j] + next[j]);
      }
      upsample_row_grad<Mode>(sum, dx + row * width, width);
    }
  }
  return OK;
}

}  // namespace

KERNEL(upsample_axis_nearest_2x) { return upsample_axis<Nearest>(params, shapes); }
KERNEL(upsample_axis_nearest_2x_grad) { return upsample_axis_grad<Nearest>(params, shapes); }
KERNEL(upsample_axis_linear_2x) { return upsample_axis<Linear>(params, shapes); }
KERNEL(upsample_axis_linear_2x_grad) { return upsample_axis_grad<Linear>(params, shapes); }
KERNEL(upsample_nearest_2x) { return upsample_image<Nearest>(params, shapes); }
KERNEL(upsample_nearest_2x_grad) { return upsample_image_grad<Nearest>(params, shapes); }
KERNEL(upsample_bilinear_2x) { return upsample_image<Linear>(params, shapes); }
KERNEL(upsample_bilinear_2x_grad) { return upsample_image_grad<Linear>(params, shapes); }

}  // namespace cpu_kernels
