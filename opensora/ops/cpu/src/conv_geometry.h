// Geometry of convolutions over frames (B, T, C, H, W): frames with their causal past, kernels, zero padding.
#pragma once

#include "common.h"

namespace cpu_kernels {

// One frame (C, H, W).
struct FrameShape {
  int64_t channels, height, width;
  int64_t plane() const { return height * width; }
  int64_t size() const { return channels * plane(); }
};

// The frames of one clip along time: the cache (the last frames of the previous chunk) or `replicate_pad` copies of the
// first frame of x, then x. Frames outside are zero. Nothing is copied.
struct Clip {
  int64_t replicate_pad, cache_frames, x_frames, frame_size;
  const float *cache, *x;
  int64_t frames() const { return replicate_pad + cache_frames + x_frames; }
  // Null for a frame of zeros.
  const float *frame(int64_t i) const {
    if (i < 0 || i >= frames()) return nullptr;
    if (i < cache_frames) return cache + i * frame_size;
    return x + std::max<int64_t>(0, i - replicate_pad - cache_frames) * frame_size;
  }
};

// Size of the kernel, zero padding in space, and the stride, which is the same along T, H and W.
struct ConvGeometry {
  int64_t frames, height, width;
  int64_t top, bottom, left, right;
  int64_t stride;

  int64_t area() const { return height * width; }
  FrameShape output(int64_t channels, const FrameShape &x) const {
    return {channels, (x.height + top + bottom - height) / stride + 1, (x.width + left + right - width) / stride + 1};
  }
  // Row stride of the padded plane and of the output rows computed from it. With stride 1 the zeros on the right of a
  // row double as the zeros on the left of the next. With stride 2 rows are gathered (im2col_stride2), without padding.
  int64_t pitch(const FrameShape &x) const {
    return stride == 1 ? x.width + std::max(left, right) : output(1, x).width;
  }
  // Distance from the first to the last kernel element in the padded plane.
  int64_t halo(const FrameShape &x) const { return (height - 1) * pitch(x) + width - 1; }
  // Whether no output row or column reads padding only: makes output rows no longer than the pitch.
  bool padding_is_less_than_kernel() const { return std::max(top, bottom) < height && std::max(left, right) < width; }
  // Whether the padded frame is at least as large as the kernel.
  bool fits(const FrameShape &x) const { return x.height + top + bottom >= height && x.width + left + right >= width; }
  // Of the convolution with the flipped kernel that computes the input gradient ("full" padding), stride 1.
  ConvGeometry flipped() const {
    return {frames, height, width, height - 1 - top, height - 1 - bottom, width - 1 - left, width - 1 - right, 1};
  }
};

// Convolution weights (O, C, frames, height, width). `flipped`: those of the input gradient, with inputs and outputs
// exchanged and the kernel reversed along time, height and width; `data` stays as it is.
struct Weights {
  const float *data;
  int64_t outputs, channels, frames, area;
  bool flipped;

  // The `area` weights of one kernel frame, in the order of `data`: element i belongs to kernel element index(i).
  const float *plane(int64_t output, int64_t channel, int64_t frame) const {
    const int64_t row = flipped ? channel * outputs + output : output * channels + channel;
    return data + (row * frames + (flipped ? frames - 1 - frame : frame)) * area;
  }
  int64_t index(int64_t i) const { return flipped ? area - 1 - i : i; }
};

}  // namespace cpu_kernels
