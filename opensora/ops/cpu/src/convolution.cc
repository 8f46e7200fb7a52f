// Convolutions of frames laid out (B, T, C, H, W), in space and over the frames before, and their gradients.
//
// A frame with its padding is a row of numbers, `pitch` to a line, and so is what comes out, with a column or two too
// many at the end of each line. In this form a tap of the filter is an offset: y[p] += w x[p + offset]. For a block of
// positions and some channels at once, what the taps see becomes a matrix (channel and tap, position), and the weights
// times this matrix a part of the result. The gradient of the input is a convolution with the filter turned round; that
// of the filter is the product of the result's gradient and the same matrix transposed.
#include <cstdlib>
#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "product.h"
#include "vector.h"

namespace {

constexpr int64_t BLOCK = 1024;  // positions of a task, at most
constexpr int64_t FEW = 144;     // positions that are not worth dividing
constexpr int64_t TASKS = 8;     // for two threads to be done at about the same time
constexpr int64_t TAPS = 288;    // rows of a matrix: it stays in the L2 cache

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
  int64_t taps() const { return height * width; }
  int64_t chunk() const { return TAPS / taps(); }  // input channels at a time
  int64_t pitch(const Shape &x) const { return x.width + std::max(left, right); }  // what is right of a line is left of the next
  Shape output(int64_t channels, const Shape &x) const {
    return {channels, x.height + top + bottom - height + 1, x.width + left + right - width + 1};
  }
  int64_t reach(const Shape &x) const { return (height - 1) * pitch(x) + width - 1; }  // of the last tap
  bool pads_less_than_it_covers() const { return std::max(top, bottom) < height && std::max(left, right) < width; }
  // Nothing but `columns` zeros between lines.
  static Filter spaced(int64_t columns) { return {1, 1, 1, 0, 0, 0, columns}; }
  Filter reversed() const {
    return {frames, height, width, height - 1 - top, height - 1 - bottom, width - 1 - left, width - 1 - right};
  }
};

// Positions [first, first + size) of a padded plane.
void copy_padded(const float *plane, const Shape &x, const Filter &filter, int64_t first, int64_t size, float *to) {
  const int64_t pitch = filter.pitch(x);
  std::memset(to, 0, size * sizeof(float));
  int64_t row = first / pitch, place = row * pitch - first + filter.left;  // where the line's own numbers begin in `to`
  for (row -= filter.top; place < size; ++row, place += pitch) {
    if (row < 0 || row >= x.height) continue;
    const int64_t begin = std::max<int64_t>(place, 0), end = std::min(place + x.width, size);
    const float *from = plane + row * x.width - place;
    for (int64_t i = begin; i < end; ++i) to[i] = from[i];
  }
}

// Memory for many numbers; much of it comes in large pages, where there are some: they are there sooner, and found sooner.
typedef std::unique_ptr<float[], decltype(&std::free)> Buffer;

Buffer make_buffer(int64_t size) {
  constexpr int64_t PAGE = int64_t(1) << 21;
  const int64_t bytes = size * sizeof(float), alignment = bytes < 2 * PAGE ? 64 : PAGE;
  void *memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes)) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (alignment == PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return Buffer(static_cast<float *>(memory), &std::free);
}

// Weights (O, C, frames, taps) -> [frame][chunk of channels][output][channel][tap]; `turned`: those of the gradient of
// the input, whose outputs are the C, with frames and taps in reverse.
Buffer packed(const float *weight, int64_t outputs, int64_t channels, const Filter &filter, bool turned) {
  const int64_t taps = filter.taps();
  Buffer result = make_buffer(filter.frames * outputs * channels * taps);
#pragma omp parallel for
  for (int64_t output = 0; output < outputs; ++output) {
    for (int64_t channel = 0; channel < channels; ++channel) {
      const float *from = weight + (turned ? channel * outputs + output : output * channels + channel) * filter.frames * taps;
      const int64_t chunk = channel / filter.chunk() * filter.chunk(), size = std::min(filter.chunk(), channels - chunk);
      for (int64_t frame = 0; frame < filter.frames; ++frame) {
        float *to = result.get() + ((frame * channels + chunk) * outputs + output * size + channel - chunk) * taps;
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int64_t place = frame * taps + tap;
          to[tap] = from[turned ? filter.frames * taps - 1 - place : place];
        }
      }
    }
  }
  return result;
}

// What the filter's taps see of some planes at the positions [first, first + size): (channel and tap, position), rows
// `step` apart. `line` has room for the positions and the reach of the filter.
void see(const float *planes, int64_t channels, const Shape &x, const Filter &filter, int64_t first, int64_t size,
         float *line, float *seen, int64_t step) {
  const int64_t pitch = filter.pitch(x);
  for (int64_t c = 0; c < channels; ++c) {
    copy_padded(planes + c * x.plane(), x, filter, first, size + filter.reach(x), line);
    for (int64_t row = 0; row < filter.height; ++row) {
      for (int64_t column = 0; column < filter.width; ++column, seen += step) {
        std::memcpy(seen, line + row * pitch + column, size * sizeof(float));
      }
    }
  }
}

// A convolution of `count` output frames of each clip; output frame i sees input frames i + shift, i + shift + 1, ...
template <typename Input, typename Output>
void convolve(const Input &input_frames, const Output &output_frame, int64_t clips, int64_t count, int64_t shift,
              const Shape &x, int64_t outputs, const Filter &filter, const float *weights,
              const float *bias) {
  const Product product = find_product();
  const Shape y = filter.output(outputs, x);
  const int64_t pitch = filter.pitch(x), positions = y.height * pitch;
  const int64_t wanted = std::min((TASKS + clips * count - 1) / (clips * count), positions / FEW);
  const int64_t least = std::max((positions + BLOCK - 1) / BLOCK, wanted);
  const int64_t block = round_up((positions + least - 1) / least, LANES), blocks = (positions + block - 1) / block;
#pragma omp parallel
  {
    std::vector<float> line(block + filter.reach(x));
    Buffer seen = make_buffer(TAPS * block), sums = make_buffer(outputs * block);
#pragma omp for collapse(3) schedule(dynamic)
    for (int64_t clip = 0; clip < clips; ++clip) {
      for (int64_t frame = 0; frame < count; ++frame) {
        for (int64_t part = 0; part < blocks; ++part) {
          const int64_t first = part * block, size = std::min(block, positions - first);
          for (int64_t output = 0; output < outputs; ++output) {
            std::fill_n(sums.get() + output * block, size, bias ? bias[output] : 0.0f);
          }
          const Frames source = input_frames(clip);
          for (int64_t k = 0; k < filter.frames; ++k) {
            const float *from = source.at(frame + shift + k);
            if (!from) continue;
            for (int64_t chunk = 0; chunk < x.channels; chunk += filter.chunk()) {
              const int64_t channels = std::min(filter.chunk(), x.channels - chunk), taps = channels * filter.taps();
              see(from + chunk * x.plane(), channels, x, filter, first, size, line.data(), seen.get(), block);
              product('N', 'N', outputs, size, taps, 1, weights + (k * x.channels + chunk) * filter.taps() * outputs, taps,
                      seen.get(), block, 1, sums.get(), block);
            }
          }
          float *to = output_frame(clip, frame);
          for (int64_t place = first; place < first + size;) {
            const int64_t row = place / pitch, column = place % pitch, stop = std::min(first + size, (row + 1) * pitch);
            const int64_t valid = std::min(y.width - column, stop - place);
            for (int64_t output = 0; output < outputs && valid > 0; ++output) {
              std::copy_n(sums.get() + output * block + place - first, valid, to + output * y.plane() + row * y.width + column);
            }
            place = stop;
          }
        }
      }
    }
  }
}

// The gradient of the filter, (O, C, frames, taps): threads share the channels.
template <typename Input>
void filter_gradient(const Input &input_frames, const float *dy, int64_t clips, int64_t count, const Shape &x,
                     int64_t outputs, const Filter &filter, float *dweight) {
  const Product product = find_product();
  const Shape y = filter.output(outputs, x);
  const int64_t pitch = filter.pitch(x), positions = y.height * pitch, taps = filter.taps();
  const int64_t block = round_up(std::min(BLOCK, positions), LANES);
  const int64_t share = std::min(filter.chunk(), (x.channels + omp_get_max_threads() - 1) / omp_get_max_threads());
#pragma omp parallel
  {
    std::vector<float> line(block + filter.reach(x));
    Buffer seen = make_buffer(share * taps * block), gradients = make_buffer(outputs * block);
    Buffer sums = make_buffer(filter.frames * outputs * share * taps);
#pragma omp for schedule(dynamic)
    for (int64_t chunk = 0; chunk < x.channels; chunk += share) {
      const int64_t channels = std::min(share, x.channels - chunk), rows = channels * taps;
      std::fill_n(sums.get(), filter.frames * outputs * rows, 0.0f);
      for (int64_t clip = 0; clip < clips; ++clip) {
        const Frames source = input_frames(clip);
        for (int64_t frame = 0; frame < count; ++frame) {
          const float *of_frame = dy + (clip * count + frame) * y.size();
          for (int64_t first = 0; first < positions; first += block) {
            const int64_t size = std::min(block, positions - first);
            for (int64_t output = 0; output < outputs; ++output) {
              copy_padded(of_frame + output * y.plane(), y, Filter::spaced(pitch - y.width), first, size,
                          gradients.get() + output * block);
            }
            for (int64_t k = 0; k < filter.frames; ++k) {
              const float *from = source.at(frame + k);
              if (!from) continue;
              see(from + chunk * x.plane(), channels, x, filter, first, size, line.data(), seen.get(), block);
              product('N', 'T', outputs, rows, size, 1, gradients.get(), block, seen.get(), block, 1,
                      sums.get() + k * outputs * rows, rows);
            }
          }
        }
      }
      for (int64_t output = 0; output < outputs; ++output) {
        for (int64_t channel = 0; channel < channels; ++channel) {
          for (int64_t k = 0; k < filter.frames; ++k) {
            std::copy_n(sums.get() + (k * outputs + output) * rows + channel * taps, taps,
                        dweight + ((output * x.channels + chunk + channel) * filter.frames + k) * taps);
          }
        }
      }
    }
  }
}

// What the kernels below are given: frames x (B, T, C, H, W), with past (B, P, C, H, W) or copies of the first before
// them, a filter (O, C, k, k', k''), and settings: its padding (top, bottom, left, right) and the number of copies.
struct Call {
  const float *past, *x, *weight;
  int64_t clips, copies, past_frames, frames, outputs, count;
  Shape shape;
  Filter filter;
  bool fits;

  Call(void **params, int64_t **shapes, bool has_past) {
    const int i = has_past ? 1 : 0;
    past = has_past ? input(params, 0) : nullptr;
    past_frames = has_past ? shapes[0][1] : 0;
    x = input(params, i);
    weight = input(params, i + 1);
    const int64_t *of_x = shapes[i], *of_weight = shapes[i + 1];
    const float *settings = input(params, i + 3);
    clips = of_x[0];
    frames = of_x[1];
    shape = {of_x[2], of_x[3], of_x[4]};
    outputs = of_weight[0];
    filter = {of_weight[2], of_weight[3], of_weight[4], std::lround(settings[0]), std::lround(settings[1]),
              std::lround(settings[2]), std::lround(settings[3])};
    copies = std::lround(settings[4]);
    count = copies + past_frames + frames - filter.frames + 1;
    fits = of_weight[1] == shape.channels && count > 0 && filter.pads_less_than_it_covers() && find_product();
    if (has_past) fits = fits && shapes[0][0] == clips && std::equal(of_x + 2, of_x + 5, shapes[0] + 2);
  }

  Frames clip(int64_t i) const {
    return {copies, past_frames, frames, shape.size(), past + i * past_frames * shape.size(), x + i * frames * shape.size()};
  }

  void run(const float *bias, float *y) const {
    const int64_t size = filter.output(outputs, shape).size();
    convolve([&](int64_t i) { return clip(i); }, [&](int64_t i, int64_t frame) { return y + (i * count + frame) * size; },
             clips, count, 0, shape, outputs, filter, packed(weight, outputs, shape.channels, filter, false).get(), bias);
  }

  void input_gradient(const float *dy, float *dpast, float *dx) const {
    const Shape y = filter.output(outputs, shape);
    const int64_t size = shape.size();
    std::vector<float> of_copies(clips * copies * size);
    const auto clip_of_dy = [&](int64_t i) { return Frames{0, 0, count, y.size(), nullptr, dy + i * count * y.size()}; };
    const auto frame_of_dx = [&](int64_t i, int64_t frame) {
      if (frame < copies) return of_copies.data() + (i * copies + frame) * size;
      frame -= copies;
      return frame < past_frames ? dpast + (i * past_frames + frame) * size : dx + (i * frames + frame - past_frames) * size;
    };
    convolve(clip_of_dy, frame_of_dx, clips, copies + past_frames + frames, 1 - filter.frames, y, shape.channels,
             filter.reversed(), packed(weight, shape.channels, outputs, filter, true).get(), nullptr);
    for (int64_t i = 0; i < clips * copies; ++i) {
      const float *from = of_copies.data() + i * size;
      float *to = dx + i / copies * frames * size;
#pragma omp parallel for simd
      for (int64_t j = 0; j < size; ++j) to[j] += from[j];
    }
  }

  void parameter_gradients(const float *dy, float *dweight, float *dbias) const {
    filter_gradient([&](int64_t i) { return clip(i); }, dy, clips, count, shape, outputs, filter, dweight);
    const int64_t plane = filter.output(outputs, shape).plane();
#pragma omp parallel for
    for (int64_t output = 0; output < outputs; ++output) {
      double total = 0;
      for (int64_t frame = 0; frame < clips * count; ++frame) {
        const float *from = dy + (frame * outputs + output) * plane;
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t i = 0; i < plane; ++i) part += from[i];
        total += part;
      }
      dbias[output] = static_cast<float>(total);
    }
  }
};

}  // namespace

// x, weight, bias, settings -> y
KERNEL(convolve) {
  const Call call(params, shapes, false);
  if (!call.fits) return 1;
  call.run(input(params, 2), output(params, 4));
  return 0;
}

// past, x, weight, bias, settings -> y
KERNEL(convolve_after) {
  const Call call(params, shapes, true);
  if (!call.fits) return 1;
  call.run(input(params, 3), output(params, 5));
  return 0;
}

// x, weight, bias, settings, dy -> dx
KERNEL(convolve_grad) {
  Call(params, shapes, false).input_gradient(input(params, 4), nullptr, output(params, 5));
  return 0;
}

// past, x, weight, bias, settings, dy -> dpast, dx
KERNEL(convolve_after_grad) {
  Call(params, shapes, true).input_gradient(input(params, 5), output(params, 6), output(params, 7));
  return 0;
}

// x, weight, bias, settings, dy -> dweight, dbias
KERNEL(convolve_parameters_grad) {
  Call(params, shapes, false).parameter_gradients(input(params, 4), output(params, 5), output(params, 6));
  return 0;
}

// past, x, weight, bias, settings, dy -> dweight, dbias
KERNEL(convolve_after_parameters_grad) {
  Call(params, shapes, true).parameter_gradients(input(params, 5), output(params, 6), output(params, 7));
  return 0;
}
