// im2col for a block of output positions, straight from unpadded planes.
//
// A zero-padded plane is treated as one row of floats, `pitch` floats per image row. With stride 1, kernel element
// (r, c) of output position p reads the padded plane at p + r * pitch + c, a constant offset. So each row of the im2col
// matrix [channel * element, position] is one memcpy. Output rows are computed with the same pitch; the columns at and
// beyond the output's width mix two image rows and are dropped when a block is stored.
#pragma once

#include "conv_geometry.h"

namespace cpu_kernels {

// Positions [first, first + size) of a plane with `pitch` floats per row, `top` rows and `left` columns of zeros.
inline void copy_padded(const float *plane, const FrameShape &x, int64_t pitch, int64_t top, int64_t left,
                        int64_t first, int64_t size, float *to) {
  std::memset(to, 0, size * sizeof(float));
  int64_t row = first / pitch, position = row * pitch - first + left;  // where the row's first float goes in `to`
  for (row -= top; position < size; ++row, position += pitch) {
    if (row < 0 || row >= x.height) continue;
    const int64_t begin = std::max<int64_t>(position, 0), end = std::min(position + x.width, size);
    const float *from = plane + row * x.width - position;
    for (int64_t i = begin; i < end; ++i) to[i] = from[i];
  }
}

// Stride 2: calls visit(i, pointer, count) for runs of output positions first + i, first + i + 1, ... in one output row
// for which kernel element `element` is inside of the plane; the elements read are pointer[0], pointer[2], ...
template <typename Number, typename Visit>
void for_each_run_stride2(Number *plane, const FrameShape &x, const ConvGeometry &kernel, int64_t element,
                          int64_t first, int64_t size, const Visit &visit) {
  const int64_t width = kernel.pitch(x);
  const int64_t row_offset = element / kernel.width - kernel.top, offset = element % kernel.width - kernel.left;
  // Output columns with 0 <= 2 column + offset < x.width. Division rounds toward zero, so the numerator must not be
  // negative if the quotient counts: (x.width - 1 - offset) / 2 + 1 would be wrong for -1.
  const int64_t begin = offset < 0 ? 1 : 0, end = std::min(width, (x.width + 1 - offset) / 2);
  for (int64_t row = first / width; row * width < first + size; ++row) {
    const int64_t start = std::max(begin, first - row * width), stop = std::min(end, first + size - row * width);
    const int64_t x_row = 2 * row + row_offset;
    if (x_row < 0 || x_row >= x.height || start >= stop) continue;
    visit(row * width + start - first, plane + x_row * x.width + 2 * start + offset, stop - start);
  }
}

// planes (channels, H, W) -> cols [channel * element, size], row stride `ldc`
inline void im2col_stride2(const float *planes, int64_t channels, const FrameShape &x, const ConvGeometry &kernel,
                           int64_t first, int64_t size, float *cols, int64_t ldc) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t element = 0; element < kernel.area(); ++element, cols += ldc) {
      std::memset(cols, 0, size * sizeof(float));
      for_each_run_stride2(planes + c * x.plane(), x, kernel, element, first, size,
                           [&](int64_t i, const float *from, int64_t count) {
                             for (int64_t j = 0; j < count; ++j) cols[i + j] = from[2 * j];
                           });
    }
  }
}

// planes (channels, H, W) -> cols [channel * element, size], row stride `ldc`, for the output positions
// [first, first + size). `padded` has room for size + halo floats.
inline void im2col(const float *planes, int64_t channels, const FrameShape &x, const ConvGeometry &kernel,
                   int64_t first, int64_t size, float *padded, float *cols, int64_t ldc) {
  if (kernel.stride == 2) return im2col_stride2(planes, channels, x, kernel, first, size, cols, ldc);
  const int64_t pitch = kernel.pitch(x);
  for (int64_t c = 0; c < channels; ++c) {
    copy_padded(planes + c * x.plane(), x, pitch, kernel.top, kernel.left, first, size + kernel.halo(x), padded);
    for (int64_t row = 0; row < kernel.height; ++row) {
      for (int64_t column = 0; column < kernel.width; ++column, cols += ldc) {
        std::memcpy(cols, padded + row * pitch + column, size * sizeof(float));
      }
    }
  }
}

// The transpose of im2col_stride2: cols [channel * element, size] are added to planes (channels, H, W).
inline void col2im_stride2(const float *cols, int64_t ldc, int64_t channels, const FrameShape &x,
                           const ConvGeometry &kernel, int64_t first, int64_t size, float *planes) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t element = 0; element < kernel.area(); ++element, cols += ldc) {
      for_each_run_stride2(planes + c * x.plane(), x, kernel, element, first, size,
                           [&](int64_t i, float *to, int64_t count) {
                             for (int64_t j = 0; j < count; ++j) to[2 * j] += cols[i + j];
                           });
    }
  }
}

}  // namespace cpu_kernels
