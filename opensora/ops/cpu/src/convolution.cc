// Convolutions of frames laid out (B, T, C, H, W), in space and over the frames before, and their gradients.
//
// A frame with its padding is a row of numbers, `pitch` to a line, and so is what comes out, with a column or two too
// many at the end of each line. In this form a tap of the filter is an offset: y[p] += w x[p + offset]. For a block of
// positions and some channels at once, what the taps see becomes a matrix (channel and tap, position), and the weights
// times this matrix a part of the result. The gradient of the input is a convolution with the filter turned round; that
// of the filter is the product of the result's gradient and the same matrix transposed.
#include "frames.h"
#include "product.h"
#include "vector.h"
#include "winograd.h"

namespace {

constexpr int64_t BLOCK = 1024;  // positions of a task, at most
constexpr int64_t FEW = 120;     // positions that are not worth dividing
constexpr int64_t TASKS = 8;     // for two threads to be done at about the same time
constexpr int64_t TAPS = 288;    // rows of a matrix: it stays in the L2 cache

int64_t chunk_of(const Filter &filter) { return TAPS / filter.taps(); }  // input channels at a time

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

// Weights as [frame][chunk of channels][output][channel][tap].
Buffer packed(const Weights &weights, int64_t chunk_size) {
  const int64_t outputs = weights.outputs, channels = weights.channels, taps = weights.taps;
  Buffer result = make_buffer(weights.frames * outputs * channels * taps);
#pragma omp parallel for
  for (int64_t output = 0; output < outputs; ++output) {
    for (int64_t channel = 0; channel < channels; ++channel) {
      const int64_t chunk = channel / chunk_size * chunk_size, size = std::min(chunk_size, channels - chunk);
      for (int64_t frame = 0; frame < weights.frames; ++frame) {
        float *to = result.get() + ((frame * channels + chunk) * outputs + output * size + channel - chunk) * taps;
        const float *from = weights.taps_of(output, channel, frame);
        for (int64_t tap = 0; tap < taps; ++tap) to[tap] = from[weights.turned ? taps - 1 - tap : tap];
      }
    }
  }
  return result;
}

// Calls visit(first result, pointer to what the tap sees there, count) for runs of the results at the positions [first,
// first + size), for a tap of a filter that takes steps of two: what a run sees lies two apart.
template <typename Number, typename Visit>
void visit_tap(Number *plane, const Shape &x, const Filter &filter, int64_t tap, int64_t first, int64_t size,
               const Visit &visit) {
  const int64_t width = filter.pitch(x), row = tap / filter.width - filter.top, shift = tap % filter.width - filter.left;
  // Columns of results for which the tap is inside the frame: 0 <= 2 column + shift < x.width. Division rounds towards
  // zero, so the numerator must not be negative where the quotient counts: (x.width - 1 - shift) / 2 + 1 is wrong for -1.
  const int64_t begin = shift < 0 ? 1 : 0, end = std::min(width, (x.width + 1 - shift) / 2);
  for (int64_t line = first / width; line * width < first + size; ++line) {
    const int64_t start = std::max(begin, first - line * width), stop = std::min(end, first + size - line * width);
    const int64_t seen_line = 2 * line + row;
    if (seen_line < 0 || seen_line >= x.height || start >= stop) continue;
    visit(line * width + start - first, plane + seen_line * x.width + 2 * start + shift, stop - start);
  }
}

void see_every_second(const float *planes, int64_t channels, const Shape &x, const Filter &filter, int64_t first,
                      int64_t size, float *seen, int64_t step) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t tap = 0; tap < filter.taps(); ++tap, seen += step) {
      std::memset(seen, 0, size * sizeof(float));
      visit_tap(planes + c * x.plane(), x, filter, tap, first, size, [&](int64_t result, const float *from, int64_t count) {
        for (int64_t i = 0; i < count; ++i) seen[result + i] = from[2 * i];
      });
    }
  }
}

// What the filter's taps see of some planes at the positions [first, first + size): (channel and tap, position), rows
// `step` apart. `line` has room for the positions and the reach of the filter.
void see(const float *planes, int64_t channels, const Shape &x, const Filter &filter, int64_t first, int64_t size,
         float *line, float *seen, int64_t step) {
  if (filter.stride == 2) return see_every_second(planes, channels, x, filter, first, size, seen, step);
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

// A convolution of `count` output frames of each clip; output frame i sees input frames stride i + shift and those after.
template <typename Input, typename Output>
void convolve(const Input &input_frames, const Output &output_frame, int64_t clips, int64_t count, int64_t shift,
              const Shape &x, const Filter &filter, const Weights &filter_weights, const float *bias) {
  const int64_t outputs = filter_weights.outputs;
  const Shape y = filter.output(outputs, x);
  const bool is_small = winograd::fits_one_thread(x, y, filter, count), apart = is_small && clips >= omp_get_max_threads();
  if (winograd::pays(x, y, filter, count, apart)) {
#pragma omp parallel for schedule(dynamic) if (apart)
    for (int64_t clip = 0; clip < clips; ++clip) {
      convolve_by_tiles(input_frames(clip), [&](int64_t frame) { return output_frame(clip, frame); }, count, shift, x, filter,
                        filter_weights, bias);
    }
    return;
  }
  const Product product = find_product();
  const Buffer packed_weights = packed(filter_weights, chunk_of(filter));
  const float *weights = packed_weights.get();
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
            const float *from = source.at(filter.stride * frame + shift + k);
            if (!from) continue;
            for (int64_t chunk = 0; chunk < x.channels; chunk += chunk_of(filter)) {
              const int64_t channels = std::min(chunk_of(filter), x.channels - chunk), taps = channels * filter.taps();
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
  const int64_t share = std::min(chunk_of(filter), (x.channels + omp_get_max_threads() - 1) / omp_get_max_threads());
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
              const float *from = source.at(filter.stride * frame + k);
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

// The gradient of the input of a filter that takes steps of two, added to what is there: threads share the channels.
template <typename Input>
void add_input_gradient(const Input &input_frame, const float *dy, int64_t clips, int64_t count, const Shape &x,
                        int64_t outputs, const Filter &filter, const float *weight) {
  const Product product = find_product();
  const Shape y = filter.output(outputs, x);
  const int64_t taps = filter.taps(), block = std::min(BLOCK, y.plane());
  const int64_t share = std::min(chunk_of(filter), (x.channels + omp_get_max_threads() - 1) / omp_get_max_threads());
  const Buffer weights = packed({weight, outputs, x.channels, filter.frames, taps, false}, share);
#pragma omp parallel
  {
    Buffer seen = make_buffer(share * taps * block);
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t clip = 0; clip < clips; ++clip) {
      for (int64_t chunk = 0; chunk < x.channels; chunk += share) {
        const int64_t rows = std::min(share, x.channels - chunk) * taps;
        for (int64_t frame = 0; frame < count; ++frame) {
          for (int64_t k = 0; k < filter.frames; ++k) {
            float *planes = input_frame(clip, filter.stride * frame + k) + chunk * x.plane();
            for (int64_t first = 0; first < y.plane(); first += block) {
              const int64_t size = std::min(block, y.plane() - first);
              product('T', 'N', rows, size, outputs, 1, weights.get() + (k * x.channels + chunk) * taps * outputs, rows,
                      dy + (clip * count + frame) * y.size() + first, y.plane(), 0, seen.get(), block);
              for (int64_t row = 0; row < rows; ++row) {
                const float *from = seen.get() + row * block;
                visit_tap(planes + row / taps * x.plane(), x, filter, row % taps, first, size,
                          [&](int64_t result, float *to, int64_t run) {
                            for (int64_t i = 0; i < run; ++i) to[2 * i] += from[result + i];
                          });
              }
            }
          }
        }
      }
    }
  }
}

// What the kernels below are given: frames x (B, T, C, H, W), with past (B, P, C, H, W) or copies of the first before
// them, a filter (O, C, k, k', k''), and settings: its padding (top, bottom, left, right), the number of copies, the stride.
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
              std::lround(settings[2]), std::lround(settings[3]), std::lround(settings[5])};
    copies = std::lround(settings[4]);
    count = (copies + past_frames + frames - filter.frames) / std::max<int64_t>(filter.stride, 1) + 1;
    fits = (filter.stride == 1 || filter.stride == 2) && of_weight[1] == shape.channels && shapes[i + 2][0] == outputs &&
           filter.is_covered_by(shape) && filter.pads_less_than_it_covers() &&
           copies + past_frames + frames >= filter.frames && find_product();
    if (has_past) fits = fits && shapes[0][0] == clips && std::equal(of_x + 2, of_x + 5, shapes[0] + 2);
  }

  Frames clip(int64_t i) const {
    return {copies, past_frames, frames, shape.size(), past + i * past_frames * shape.size(), x + i * frames * shape.size()};
  }

  // Return 0, or 1 if the inputs do not fit together, as all kernels do.

  int run(const float *bias, float *y) const {
    if (!fits) return 1;
    const int64_t size = filter.output(outputs, shape).size();
    convolve([&](int64_t i) { return clip(i); }, [&](int64_t i, int64_t frame) { return y + (i * count + frame) * size; },
             clips, count, 0, shape, filter, {weight, outputs, shape.channels, filter.frames, filter.taps(), false}, bias);
    return 0;
  }

  int input_gradient(const float *dy, float *dpast, float *dx) const {
    if (!fits) return 1;
    const Shape y = filter.output(outputs, shape);
    const int64_t size = shape.size();
    std::vector<float> of_copies(clips * copies * size);
    const auto clip_of_dy = [&](int64_t i) { return Frames{0, 0, count, y.size(), nullptr, dy + i * count * y.size()}; };
    const auto frame_of_dx = [&](int64_t i, int64_t frame) {
      if (frame < copies) return of_copies.data() + (i * copies + frame) * size;
      frame -= copies;
      return frame < past_frames ? dpast + (i * past_frames + frame) * size : dx + (i * frames + frame - past_frames) * size;
    };
    if (filter.stride == 2) {
      std::fill_n(dx, clips * frames * size, 0.0f);
      std::fill_n(dpast, clips * past_frames * size, 0.0f);
      add_input_gradient(frame_of_dx, dy, clips, count, shape, outputs, filter, weight);
    } else {
      convolve(clip_of_dy, frame_of_dx, clips, copies + past_frames + frames, 1 - filter.frames, y, filter.reversed(),
               {weight, shape.channels, outputs, filter.frames, filter.taps(), true}, nullptr);
    }
    for (int64_t i = 0; i < clips * copies; ++i) {
      const float *from = of_copies.data() + i * size;
      float *to = dx + i / copies * frames * size;
#pragma omp parallel for simd
      for (int64_t j = 0; j < size; ++j) to[j] += from[j];
    }
    return 0;
  }

  int parameter_gradients(const float *dy, float *dweight, float *dbias) const {
    if (!fits) return 1;
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
    return 0;
  }
};

}  // namespace

// x, weight, bias, settings -> y
KERNEL(convolve) { return Call(params, shapes, false).run(input(params, 2), output(params, 4)); }

// past, x, weight, bias, settings -> y
KERNEL(convolve_after) { return Call(params, shapes, true).run(input(params, 3), output(params, 5)); }

// x, weight, bias, settings, dy -> dx
KERNEL(convolve_grad) {
  return Call(params, shapes, false).input_gradient(input(params, 4), nullptr, output(params, 5));
}

// past, x, weight, bias, settings, dy -> dpast, dx
KERNEL(convolve_after_grad) {
  return Call(params, shapes, true).input_gradient(input(params, 5), output(params, 6), output(params, 7));
}

// x, weight, bias, settings, dy -> dweight, dbias
KERNEL(convolve_parameters_grad) {
  return Call(params, shapes, false).parameter_gradients(input(params, 4), output(params, 5), output(params, 6));
}

// past, x, weight, bias, settings, dy -> dweight, dbias
KERNEL(convolve_after_parameters_grad) {
  return Call(params, shapes, true).parameter_gradients(input(params, 5), output(params, 6), output(params, 7));
}
