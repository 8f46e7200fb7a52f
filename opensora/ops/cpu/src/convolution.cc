// Convolutions of frames (B, T, C, H, W) in space and over past frames, and their gradients.
//
// For a block of output positions and a chunk of input channels, im2col.h builds a matrix [channel * element, position]
// that stays in the L2 cache, and a GEMM accumulates weights x im2col in a buffer [output, position]. Many channels and
// 3 x 3 kernels go through winograd.h instead. The input gradient is a convolution of dy with the flipped kernel, with
// stride 2 it is col2im of weights^T x dy; the weight gradient is dy x im2col^T.
#include "buffer.h"
#include "conv_geometry.h"
#include "gemm.h"
#include "im2col.h"
#include "simd.h"
#include "winograd.h"

namespace cpu_kernels {
namespace {

constexpr int64_t MAX_POSITIONS = 1024;  // of a block; with MAX_ROWS, 1.1 MiB of im2col matrix
constexpr int64_t MIN_POSITIONS_PER_TASK = 120;
constexpr int64_t MAX_ROWS = 288;  // of the im2col matrix: 32 channels of 3 x 3 elements

// Input channels per im2col matrix.
int64_t chunk_channels(const ConvGeometry &kernel) { return MAX_ROWS / kernel.area(); }

// Input channels per task of a gradient: a chunk, or less for each thread to have a task.
int64_t task_channels(const ConvGeometry &kernel, int64_t channels) {
  return std::min(chunk_channels(kernel), ceil_div(channels, omp_get_max_threads()));
}

// Weights (O, C, frames, height, width) -> [frame, chunk of channels, output, channel, element]: for each chunk a
// contiguous matrix [output, channel * element].
Buffer pack_weights(const Weights &weights, int64_t chunk) {
  const int64_t outputs = weights.outputs, channels = weights.channels, area = weights.area;
  Buffer packed = make_buffer(weights.frames * outputs * channels * area);
#pragma omp parallel for
  for (int64_t output = 0; output < outputs; ++output) {
    for (int64_t channel = 0; channel < channels; ++channel) {
      const int64_t first = channel / chunk * chunk, size = std::min(chunk, channels - first);
      for (int64_t frame = 0; frame < weights.frames; ++frame) {
        float *to = packed.get() + ((frame * channels + first) * outputs + output * size + channel - first) * area;
        const float *from = weights.plane(output, channel, frame);
        for (int64_t i = 0; i < area; ++i) to[weights.index(i)] = from[i];
      }
    }
  }
  return packed;
}

// The im2col convolution of one output frame, block by block. Positions are those of output rows of `pitch` floats.
struct Im2colConvolution {
  const FrameShape x, y;
  const ConvGeometry kernel;
  const float *packed_weights, *bias;  // bias may be null
  int64_t pitch, positions, block;     // of a frame; positions per block, also the row stride of the buffers below
  Sgemm sgemm;

  // acc [output, position] = bias + convolution at the positions [first, first + size); the kernel's first frame is
  // input frame `first_frame`. `padded` and `cols` are scratch memory for im2col.
  void gemm_block(const Clip &clip, int64_t first_frame, int64_t first, int64_t size, float *padded, float *cols,
                  float *acc) const {
    for (int64_t output = 0; output < y.channels; ++output) {
      std::fill_n(acc + output * block, size, bias ? bias[output] : 0.0f);
    }
    const int64_t chunk = chunk_channels(kernel);
    for (int64_t k = 0; k < kernel.frames; ++k) {
      const float *frame = clip.frame(first_frame + k);
      if (!frame) continue;
      for (int64_t channel = 0; channel < x.channels; channel += chunk) {
        const int64_t channels = std::min(chunk, x.channels - channel), rows = channels * kernel.area();
        im2col(frame + channel * x.plane(), channels, x, kernel, first, size, padded, cols, block);
        sgemm('N', 'N', y.channels, size, rows, 1,
              packed_weights + (k * x.channels + channel) * kernel.area() * y.channels, rows, cols, block, 1, acc,
              block);
      }
    }
  }

  // acc [output, position] -> to (O, H, W), without the columns at and beyond the output's width.
  void store_block(const float *acc, int64_t first, int64_t size, float *to) const {
    for (int64_t position = first; position < first + size;) {
      const int64_t row = position / pitch, column = position % pitch;
      const int64_t end = std::min(first + size, (row + 1) * pitch), valid = std::min(y.width - column, end - position);
      for (int64_t output = 0; output < y.channels && valid > 0; ++output) {
        std::copy_n(acc + output * block + position - first, valid, to + output * y.plane() + row * y.width + column);
      }
      position = end;
    }
  }
};

// Convolves `frames` output frames of each clip. Output frame i reads the input frames stride * i + shift, ...;
// output_frame(clip, i) is where it goes.
template <typename Clips, typename Output>
void convolve(const Clips &clip_at, const Output &output_frame, int64_t clips, int64_t frames, int64_t shift,
              const FrameShape &x, const ConvGeometry &kernel, const Weights &weights, const float *bias) {
  const FrameShape y = kernel.output(weights.outputs, x);
  const int64_t threads = omp_get_max_threads();
  const bool clip_per_thread = clips >= threads && winograd_fits_one_thread(x, y, kernel, frames);
  if (winograd_is_profitable(x, y, kernel, frames, clip_per_thread)) {
    const WinogradPlan plan(x, y, kernel, frames, clip_per_thread ? 1 : threads);
    std::vector<WinogradScratch> scratch;
    for (int64_t i = 0; i < (clip_per_thread ? threads : 1); ++i) scratch.emplace_back(plan);
#pragma omp parallel for schedule(dynamic) if (clip_per_thread)
    for (int64_t clip = 0; clip < clips; ++clip) {
      winograd_convolve(
          plan, clip_at(clip), [&](int64_t frame) { return output_frame(clip, frame); }, shift, weights, bias,
          scratch[clip_per_thread ? omp_get_thread_num() : 0]);
    }
    return;
  }
  const Buffer packed_weights = pack_weights(weights, chunk_channels(kernel));
  const int64_t pitch = kernel.pitch(x), positions = y.height * pitch;
  const int64_t wanted = std::min(ceil_div(wanted_tasks(), clips * frames), positions / MIN_POSITIONS_PER_TASK);
  const int64_t least = std::max(ceil_div(positions, MAX_POSITIONS), wanted);
  const int64_t block = round_up(ceil_div(positions, least), LANES), blocks = ceil_div(positions, block);
  const Im2colConvolution convolution{x, y, kernel, packed_weights.get(), bias, pitch, positions, block, find_sgemm()};
  const ThreadBuffers padded(block + kernel.halo(x)), cols(MAX_ROWS * block), acc(y.channels * block);
#pragma omp parallel for collapse(3) schedule(dynamic)
  for (int64_t clip = 0; clip < clips; ++clip) {
    for (int64_t frame = 0; frame < frames; ++frame) {
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t first = i * block, size = std::min(block, positions - first);
        convolution.gemm_block(clip_at(clip), kernel.stride * frame + shift, first, size, padded.own(), cols.own(),
                               acc.own());
        convolution.store_block(acc.own(), first, size, output_frame(clip, frame));
      }
    }
  }
}

// dweight (O, C, frames, height, width). Tasks are chunks of input channels, and of output channels if the former are
// fewer than threads.
template <typename Clips>
void weight_gradient(const Clips &clip_at, const float *dy, int64_t clips, int64_t frames, const FrameShape &x,
                     int64_t outputs, const ConvGeometry &kernel, float *dweight) {
  const Sgemm sgemm = find_sgemm();
  const FrameShape y = kernel.output(outputs, x);
  const int64_t pitch = kernel.pitch(x), positions = y.height * pitch, area = kernel.area();
  const int64_t block = round_up(std::min(MAX_POSITIONS, positions), LANES);
  const int64_t chunk = task_channels(kernel, x.channels);
  const int64_t output_tasks = ceil_div(omp_get_max_threads(), ceil_div(x.channels, chunk));
  const int64_t output_chunk = ceil_div(outputs, std::min(output_tasks, ceil_div(outputs, LANES)));
  const ThreadBuffers padded(block + kernel.halo(x)), cols(chunk * area * block), dy_blocks(output_chunk * block);
  const ThreadBuffers accs(kernel.frames * output_chunk * chunk * area);
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t channel = 0; channel < x.channels; channel += chunk) {
    for (int64_t output = 0; output < outputs; output += output_chunk) {
      const int64_t channels = std::min(chunk, x.channels - channel), rows = channels * area;
      const int64_t some_outputs = std::min(output_chunk, outputs - output);
      float *acc = accs.own(), *dy_block = dy_blocks.own();  // [frame, output, channel * element], [output, position]
      std::fill_n(acc, kernel.frames * some_outputs * rows, 0.0f);
      for (int64_t task = 0; task < clips * frames; ++task) {
        const int64_t frame = task % frames;
        const Clip clip = clip_at(task / frames);
        const float *dy_frame = dy + task * y.size() + output * y.plane();
        for (int64_t first = 0; first < positions; first += block) {
          const int64_t size = std::min(block, positions - first);
          for (int64_t o = 0; o < some_outputs; ++o) {
            copy_padded(dy_frame + o * y.plane(), y, pitch, 0, 0, first, size, dy_block + o * block);
          }
          for (int64_t k = 0; k < kernel.frames; ++k) {
            const float *x_frame = clip.frame(kernel.stride * frame + k);
            if (!x_frame) continue;
            im2col(x_frame + channel * x.plane(), channels, x, kernel, first, size, padded.own(), cols.own(), block);
            sgemm('N', 'T', some_outputs, rows, size, 1, dy_block, block, cols.own(), block, 1,
                  acc + k * some_outputs * rows, rows);
          }
        }
      }
      for (int64_t o = 0; o < some_outputs; ++o) {
        for (int64_t c = 0; c < channels; ++c) {
          for (int64_t k = 0; k < kernel.frames; ++k) {
            std::copy_n(acc + (k * some_outputs + o) * rows + c * area, area,
                        dweight + (((output + o) * x.channels + channel + c) * kernel.frames + k) * area);
          }
        }
      }
    }
  }
}

// Stride 2: adds the input gradient to the frames dx_frame(clip, i). Tasks are clips and chunks of input channels.
template <typename Input>
void add_input_gradient_stride2(const Input &dx_frame, const float *dy, int64_t clips, int64_t frames,
                                const FrameShape &x, int64_t outputs, const ConvGeometry &kernel, const float *weight) {
  const Sgemm sgemm = find_sgemm();
  const FrameShape y = kernel.output(outputs, x);
  const int64_t area = kernel.area(), block = std::min(MAX_POSITIONS, y.plane());
  const int64_t chunk = task_channels(kernel, x.channels);
  const Buffer packed_weights = pack_weights({weight, outputs, x.channels, kernel.frames, area, false}, chunk);
  const ThreadBuffers cols(chunk * area * block);
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t clip = 0; clip < clips; ++clip) {
    for (int64_t channel = 0; channel < x.channels; channel += chunk) {
      const int64_t channels = std::min(chunk, x.channels - channel), rows = channels * area;
      for (int64_t frame = 0; frame < frames; ++frame) {
        for (int64_t k = 0; k < kernel.frames; ++k) {
          float *planes = dx_frame(clip, kernel.stride * frame + k) + channel * x.plane();
          const float *weights = packed_weights.get() + (k * x.channels + channel) * area * outputs;
          for (int64_t first = 0; first < y.plane(); first += block) {
            const int64_t size = std::min(block, y.plane() - first);
            sgemm('T', 'N', rows, size, outputs, 1, weights, rows, dy + (clip * frames + frame) * y.size() + first,
                  y.plane(), 0, cols.own(), block);
            col2im_stride2(cols.own(), block, channels, x, kernel, first, size, planes);
          }
        }
      }
    }
  }
}

// The arguments of the kernels below: [cache (B, P, C, H, W),] x (B, T, C, H, W), weight (O, C, k, k', k''), bias (O),
// settings (top, bottom, left, right, replicate_pad, stride), and for gradients dy (B, T', O, H', W').
struct Arguments {
  const float *cache, *x, *weight;
  int64_t clips, replicate_pad, cache_frames, x_frames, outputs, y_frames;
  FrameShape shape;
  ConvGeometry kernel;
  bool fit;

  Arguments(void **params, int64_t **shapes, bool has_cache) {
    const int i = has_cache ? 1 : 0;  // index of x
    cache = has_cache ? input(params, 0) : nullptr;
    cache_frames = has_cache ? shapes[0][1] : 0;
    x = input(params, i);
    weight = input(params, i + 1);
    const int64_t *x_shape = shapes[i], *weight_shape = shapes[i + 1];
    const float *settings = input(params, i + 3);
    clips = x_shape[0];
    x_frames = x_shape[1];
    shape = {x_shape[2], x_shape[3], x_shape[4]};
    outputs = weight_shape[0];
    kernel = {weight_shape[2],      weight_shape[3],      weight_shape[4],      integer(settings[0]),
              integer(settings[1]), integer(settings[2]), integer(settings[3]), integer(settings[5])};
    replicate_pad = integer(settings[4]);
    const int64_t frames = replicate_pad + cache_frames + x_frames;
    y_frames = (frames - kernel.frames) / std::max<int64_t>(kernel.stride, 1) + 1;
    fit = (kernel.stride == 1 || kernel.stride == 2) && weight_shape[1] == shape.channels &&
          shapes[i + 2][0] == outputs && kernel.fits(shape) && kernel.padding_is_less_than_kernel() &&
          frames >= kernel.frames && find_sgemm();
    if (has_cache) fit = fit && shapes[0][0] == clips && std::equal(x_shape + 2, x_shape + 5, shapes[0] + 2);
  }

  // Whether the gradient of the output has the output's shape.
  bool fits(const int64_t *dy) const {
    const FrameShape y = kernel.output(outputs, shape);
    const int64_t expected[] = {clips, y_frames, outputs, y.height, y.width};
    return std::equal(expected, expected + 5, dy);
  }

  Clip clip(int64_t i) const {
    const int64_t size = shape.size();
    return {replicate_pad, cache_frames, x_frames, size, cache + i * cache_frames * size, x + i * x_frames * size};
  }

  int forward(const float *bias, float *y) const {
    if (!fit) return INVALID_SHAPES;
    const int64_t size = kernel.output(outputs, shape).size();
    convolve([&](int64_t i) { return clip(i); },
             [&](int64_t i, int64_t frame) { return y + (i * y_frames + frame) * size; }, clips, y_frames, 0, shape,
             kernel, {weight, outputs, shape.channels, kernel.frames, kernel.area(), false}, bias);
    return OK;
  }

  int input_gradient(const float *dy, const int64_t *dy_shape, float *dcache, float *dx) const {
    if (!fit || !fits(dy_shape)) return INVALID_SHAPES;
    const FrameShape y = kernel.output(outputs, shape);
    const int64_t size = shape.size();
    std::vector<float> replicated(clips * replicate_pad * size);  // gradients of the copies of the first frame
    const auto dy_clip = [&](int64_t i) {
      return Clip{0, 0, y_frames, y.size(), nullptr, dy + i * y_frames * y.size()};
    };
    const auto dx_frame = [&](int64_t i, int64_t frame) {
      if (frame < replicate_pad) return replicated.data() + (i * replicate_pad + frame) * size;
      frame -= replicate_pad;
      return frame < cache_frames ? dcache + (i * cache_frames + frame) * size
                                  : dx + (i * x_frames + frame - cache_frames) * size;
    };
    if (kernel.stride == 2) {
      std::fill_n(dx, clips * x_frames * size, 0.0f);
      std::fill_n(dcache, clips * cache_frames * size, 0.0f);
      add_input_gradient_stride2(dx_frame, dy, clips, y_frames, shape, outputs, kernel, weight);
    } else {
      convolve(dy_clip, dx_frame, clips, replicate_pad + cache_frames + x_frames, 1 - kernel.frames, y,
               kernel.flipped(), {weight, shape.channels, outputs, kernel.frames, kernel.area(), true}, nullptr);
    }
    for (int64_t i = 0; i < clips * replicate_pad; ++i) {
      const float *from = replicated.data() + i * size;
      float *to = dx + i / replicate_pad * x_frames * size;
#pragma omp parallel for simd
      for (int64_t j = 0; j < size; ++j) to[j] += from[j];
    }
    return OK;
  }

  int weight_gradients(const float *dy, const int64_t *dy_shape, float *dweight, float *dbias) const {
    if (!fit || !fits(dy_shape)) return INVALID_SHAPES;
    weight_gradient([&](int64_t i) { return clip(i); }, dy, clips, y_frames, shape, outputs, kernel, dweight);
    const int64_t plane = kernel.output(outputs, shape).plane();
#pragma omp parallel for
    for (int64_t output = 0; output < outputs; ++output) {
      double total = 0;
      for (int64_t frame = 0; frame < clips * y_frames; ++frame) {
        const float *from = dy + (frame * outputs + output) * plane;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < plane; ++i) sum += from[i];
        total += sum;
      }
      dbias[output] = static_cast<float>(total);
    }
    return OK;
  }
};

}  // namespace

// x, weight, bias, settings -> y (B, T', O, H', W')
KERNEL(conv3d) { return Arguments(params, shapes, false).forward(input(params, 2), output(params, 4)); }

// cache, x, weight, bias, settings -> y
KERNEL(conv3d_cached) { return Arguments(params, shapes, true).forward(input(params, 3), output(params, 5)); }

// x, weight, bias, settings, dy -> dx
KERNEL(conv3d_input_grad) {
  return Arguments(params, shapes, false).input_gradient(input(params, 4), shapes[4], nullptr, output(params, 5));
}

// cache, x, weight, bias, settings, dy -> dcache, dx
KERNEL(conv3d_cached_input_grad) {
  return Arguments(params, shapes, true)
      .input_gradient(input(params, 5), shapes[5], output(params, 6), output(params, 7));
}

// x, weight, bias, settings, dy -> dweight, dbias
KERNEL(conv3d_weight_grad) {
  return Arguments(params, shapes, false)
      .weight_gradients(input(params, 4), shapes[4], output(params, 5), output(params, 6));
}

// cache, x, weight, bias, settings, dy -> dweight, dbias
KERNEL(conv3d_cached_weight_grad) {
  return Arguments(params, shapes, true)
      .weight_gradients(input(params, 5), shapes[5], output(params, 6), output(params, 7));
}

}  // namespace cpu_kernels
