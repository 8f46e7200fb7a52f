// Clips as convolutions see them: frames with what stands before them, and filters with what they add around a frame.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "common.h"

struct Shape {
  int64_t channels, height, width;
  int64_t plane() const { return height * width; }
  int64_t size() const { return channels * plane(); }
};

// Frames of one clip: copies of x's first, or past, and then x; nothing, that is zeros, before and behind.
struct Frames {
  int64_t copies, past_count, count, size;
  const float *past, *x;
  const float *at(int64_t i) const {
    if (i < 0 || i >= copies + past_count + count) return nullptr;
    if (i < past_count) return past + i * size;
    return x + std::max<int64_t>(0, i - copies - past_count) * size;
  }
};

struct Filter {
  int64_t frames, height, width;
  int64_t top, bottom, left, right;
  int64_t stride;  // in time, height and width
  int64_t taps() const { return height * width; }
  // Of a line of results. What is right of a line of the input is left of the next, unless the filter takes longer steps.
  int64_t pitch(const Shape &x) const { return stride == 1 ? x.width + std::max(left, right) : output(1, x).width; }
  Shape output(int64_t channels, const Shape &x) const {
    return {channels, (x.height + top + bottom - height) / stride + 1, (x.width + left + right - width) / stride + 1};
  }
  int64_t reach(const Shape &x) const { return (height - 1) * pitch(x) + width - 1; }  // of the last tap
  bool pads_less_than_it_covers() const { return std::max(top, bottom) < height && std::max(left, right) < width; }
  // Whether a padded frame is at least as large as the filter.
  bool is_covered_by(const Shape &x) const {
    return x.height + top + bottom >= height && x.width + left + right >= width;
  }
  // Nothing but `columns` zeros between lines.
  static Filter spaced(int64_t columns) { return {1, 1, 1, 0, 0, 0, columns, 1}; }
  Filter reversed() const {
    return {frames, height, width, height - 1 - top, height - 1 - bottom, width - 1 - left, width - 1 - right, 1};
  }
};

// Memory for many numbers; much of it comes in large pages, where there are some: they are there sooner, and found sooner.
typedef std::unique_ptr<float[], decltype(&std::free)> Buffer;

inline Buffer make_buffer(int64_t size) {
  constexpr int64_t PAGE = int64_t(1) << 21;
  const int64_t bytes = size * sizeof(float), alignment = bytes < 2 * PAGE ? 64 : PAGE;
  void *memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes)) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (alignment == PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return Buffer(static_cast<float *>(memory), &std::free);
}

// A filter's weights (O, C, frames, taps); `turned`: those of the gradient of the input, whose outputs are the C, with
// frames and taps in reverse.
struct Weights {
  const float *values;
  int64_t outputs, channels, frames, taps;
  bool turned;
  // The taps of one frame; of turned weights, the last comes first.
  const float *taps_of(int64_t output, int64_t channel, int64_t frame) const {
    const int64_t filter = turned ? channel * outputs + output : output * channels + channel;
    return values + (filter * frames + (turned ? frames - 1 - frame : frame)) * taps;
  }
};
