// 3 x 3 convolutions by Winograd's minimal filtering F(4 x 4, 3 x 3) (Lavin and Gray 2016, arXiv:1509.09308): a tile of
// 4 x 4 outputs takes 36 multiplications per input channel instead of 144. README.md has the derivation.
//
// 1. input transform: V = B^T d B for every 6 x 6 input tile d, tiles 4 apart;
// 2. weight transform: U = G g G^T for every 3 x 3 kernel g;
// 3. 36 independent GEMMs, one per element of the tiles: M = U V, [outputs, channels] x [channels, tiles];
// 4. output transform: Y = A^T M A for every tile.
//
// The tiles of consecutive frames are adjacent columns of V, so a frame of the kernel is a column offset: a 3-D
// convolution accumulates one GEMM per kernel frame, and each input frame is transformed once.
#pragma once

#include "buffer.h"
#include "conv_geometry.h"
#include "gemm.h"
#include "simd.h"

namespace cpu_kernels {

constexpr int64_t OUT_TILE = 4, IN_TILE = 6, TILE_ELEMS = IN_TILE * IN_TILE;
// Limits of the scratch memory, in floats: 24 MiB of transformed input, 16 MiB of transformed weights.
constexpr int64_t MAX_INPUT = 6 << 20, MAX_WEIGHTS = 4 << 20;
// If both take at most this many floats (4 MiB), every thread can have scratch memory for a clip of its own.
constexpr int64_t MAX_PER_THREAD = 1 << 20;
// Least number of channels and of output positions per clip for which Winograd was faster than im2col (two threads,
// AVX-512); with fewer, the transforms cost more than they save.
constexpr int64_t MIN_CHANNELS = 16, MIN_POSITIONS = 512, MIN_POSITIONS_PER_THREAD = 256;
constexpr int64_t MIN_COLUMNS = 64;  // of a GEMM that is divided among threads

// The interpolation points are 0, A, -A, B, -B and infinity with A = 1 / sqrt(2), B = sqrt(2): a quarter of the
// rounding error of the usual points 1 and 2, with as many operations.
constexpr float A = 0.70710678f, B = 1.41421356f;

// out = B^T d, `count` columns at once: six rows of d to six rows of out.
inline void input_transform(const float *const d[IN_TILE], float *const out[IN_TILE], int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float even_a = d[4][i] - 2 * d[2][i], odd_a = A * (d[3][i] - 2 * d[1][i]);
    const float even_b = d[4][i] - 0.5f * d[2][i], odd_b = B * (d[3][i] - 0.5f * d[1][i]);
    out[0][i] = d[0][i] - 2.5f * d[2][i] + d[4][i];
    out[1][i] = even_a + odd_a;
    out[2][i] = even_a - odd_a;
    out[3][i] = even_b + odd_b;
    out[4][i] = even_b - odd_b;
    out[5][i] = d[1][i] - 2.5f * d[3][i] + d[5][i];
  }
}

// out = A^T m, `count` columns at once: six rows of m to four rows of out.
inline void output_transform(const float *const m[IN_TILE], float *const out[OUT_TILE], int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float sum_a = m[1][i] + m[2][i], odd_a = A * (m[1][i] - m[2][i]);
    const float sum_b = m[3][i] + m[4][i], odd_b = B * (m[3][i] - m[4][i]);
    out[0][i] = m[0][i] + sum_a + sum_b;
    out[1][i] = odd_a + odd_b;
    out[2][i] = 0.5f * sum_a + 2 * sum_b;
    out[3][i] = 0.5f * odd_a + 2 * odd_b + m[5][i];
  }
}

// out = G g, for LANES kernels at once: three rows of g to six rows of out.
inline void weight_transform(const Vector &g0, const Vector &g1, const Vector &g2, Vector out[IN_TILE]) {
  const Vector even_a = g0 * (-2.0f / 3) - g2 * (1.0f / 3), odd_a = g1 * (-2.0f / 3 * A);
  const Vector even_b = g0 * (1.0f / 6) + g2 * (1.0f / 3), odd_b = g1 * (1.0f / 6 * B);
  out[0] = g0;
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = g2;
}

// Weights of the outputs [first, first + outputs) -> U [frame, element, output, channel]. Called by all threads of a
// parallel region.
inline void transform_weights(const Weights &weights, int64_t first, int64_t outputs, float *transformed) {
#pragma omp for collapse(2)
  for (int64_t output = 0; output < outputs; ++output) {
    for (int64_t frame = 0; frame < weights.frames; ++frame) {
      for (int64_t channel = 0; channel < weights.channels; channel += LANES) {
        const int64_t count = std::min<int64_t>(LANES, weights.channels - channel);
        float kernels[9][LANES] = {};
        for (int64_t lane = 0; lane < count; ++lane) {
          const float *from = weights.plane(first + output, channel + lane, frame);
          for (int64_t i = 0; i < 9; ++i) kernels[weights.index(i)][lane] = from[i];
        }
        const auto g = [&](int i) { return *reinterpret_cast<const Vector *>(kernels[i]); };
        Vector columns[3][IN_TILE];  // columns of G g
        for (int column = 0; column < 3; ++column) {
          weight_transform(g(column), g(3 + column), g(6 + column), columns[column]);
        }
        for (int row = 0; row < IN_TILE; ++row) {
          Vector out[IN_TILE];
          weight_transform(columns[0][row], columns[1][row], columns[2][row], out);
          for (int column = 0; column < IN_TILE; ++column) {
            const int64_t element = frame * TILE_ELEMS + row * IN_TILE + column;
            std::memcpy(transformed + (element * outputs + output) * weights.channels + channel, &out[column],
                        count * sizeof(float));
          }
        }
      }
    }
  }
}

// A block of tile rows of a frame, over its whole width.
struct TileRows {
  int64_t first, rows, columns;
  int64_t tiles() const { return rows * columns; }
};

inline int64_t num_tiles(int64_t size) { return ceil_div(size, OUT_TILE); }

// Transforms the tiles of one plane; every thread has one, with `scratch_size` floats of scratch memory.
class PlaneTransform {
 public:
  PlaneTransform(const FrameShape &x, const FrameShape &y, const ConvGeometry &kernel, const TileRows &tiles,
                 float *scratch)
      : x_(x), y_(y), kernel_(kernel), tiles_(tiles), pitch_(input_pitch(tiles.columns)), rows_(scratch) {}

  // For a block of up to `rows` tile rows: the larger of what input() and output() need.
  static int64_t scratch_size(int64_t rows, int64_t columns) {
    return std::max((OUT_TILE * rows + 2 + IN_TILE + 1) * input_pitch(columns),
                    (OUT_TILE * IN_TILE + OUT_TILE * OUT_TILE + OUT_TILE) * columns);
  }

  // plane (H, W), or null for zeros -> V: tile t of element e goes to to[e * stride + t].
  void input(const float *plane, float *to, int64_t stride) const {
    if (!plane) {
      for (int64_t element = 0; element < TILE_ELEMS; ++element) {
        std::fill_n(to + element * stride, tiles_.tiles(), 0.0f);
      }
      return;
    }
    float *vertical = rows_ + (OUT_TILE * tiles_.rows + 2) * pitch_;  // B^T d, six rows
    float *phases = vertical + IN_TILE * pitch_;  // a row of it, de-interleaved into columns of the same index modulo 4
    copy_padded_rows(plane);
    const int64_t columns = tiles_.columns, phase_size = columns + 1;
    const float *in[IN_TILE];
    float *out[IN_TILE];
    for (int64_t row = 0; row < tiles_.rows; ++row) {
      for (int64_t i = 0; i < IN_TILE; ++i) {
        in[i] = rows_ + (OUT_TILE * row + i) * pitch_;
        out[i] = vertical + i * pitch_;
      }
      input_transform(in, out, pitch_);
      for (int64_t i = 0; i < IN_TILE; ++i) {
        const float *from = vertical + i * pitch_;
        for (int64_t j = 0; j < phase_size; ++j) {
          for (int64_t p = 0; p < OUT_TILE; ++p) phases[p * phase_size + j] = from[OUT_TILE * j + p];
        }
        for (int64_t j = 0; j < IN_TILE; ++j) {
          in[j] = phases + j % OUT_TILE * phase_size + j / OUT_TILE;  // column j of every tile
          out[j] = to + (i * IN_TILE + j) * stride + row * columns;
        }
        input_transform(in, out, columns);
      }
    }
  }

  // M: tile t of element e is from[e * stride + t] -> plane (H, W), plus bias.
  void output(const float *from, int64_t stride, float bias, float *plane) const {
    const int64_t columns = tiles_.columns;
    float *horizontal = rows_;                                  // M A: [output column, element row, tile]
    float *phases = horizontal + OUT_TILE * IN_TILE * columns;  // A^T M A: [output row, output column, tile]
    float *y_row = phases + OUT_TILE * OUT_TILE * columns;
    const float *in[IN_TILE];
    float *out[OUT_TILE];
    for (int64_t row = 0; row < tiles_.rows; ++row) {
      for (int64_t i = 0; i < IN_TILE; ++i) {
        for (int64_t j = 0; j < IN_TILE; ++j) in[j] = from + (i * IN_TILE + j) * stride + row * columns;
        for (int64_t j = 0; j < OUT_TILE; ++j) out[j] = horizontal + (j * IN_TILE + i) * columns;
        output_transform(in, out, columns);
      }
      for (int64_t j = 0; j < OUT_TILE; ++j) {
        for (int64_t i = 0; i < IN_TILE; ++i) in[i] = horizontal + (j * IN_TILE + i) * columns;
        for (int64_t i = 0; i < OUT_TILE; ++i) out[i] = phases + (i * OUT_TILE + j) * columns;
        output_transform(in, out, columns);
      }
      const int64_t first = OUT_TILE * (tiles_.first + row), valid_rows = std::min(OUT_TILE, y_.height - first);
      for (int64_t i = 0; i < valid_rows; ++i) {
        const float *phase = phases + i * OUT_TILE * columns;
        for (int64_t t = 0; t < columns; ++t) {
          for (int64_t j = 0; j < OUT_TILE; ++j) y_row[OUT_TILE * t + j] = phase[j * columns + t] + bias;
        }
        std::copy_n(y_row, y_.width, plane + (first + i) * y_.width);
      }
    }
  }

 private:
  // A row of tiles reads 4 columns + 2 floats; a multiple of 4 is easier to de-interleave.
  static int64_t input_pitch(int64_t columns) { return OUT_TILE * (columns + 1); }

  // The rows that the tiles read, zero-padded, with row stride pitch_.
  void copy_padded_rows(const float *plane) const {
    const int64_t rows = OUT_TILE * tiles_.rows + 2, top = OUT_TILE * tiles_.first - kernel_.top;  // x row of rows_[0]
    const int64_t width = std::min(x_.width, pitch_ - kernel_.left);
    std::fill_n(rows_, rows * pitch_, 0.0f);
    for (int64_t row = std::max<int64_t>(0, -top); row < rows && top + row < x_.height; ++row) {
      std::copy_n(plane + (top + row) * x_.width, width, rows_ + row * pitch_ + kernel_.left);
    }
  }

  const FrameShape &x_, &y_;
  const ConvGeometry &kernel_;
  const TileRows tiles_;
  const int64_t pitch_;
  float *const rows_;
};

// How a clip is divided into blocks that fit the scratch memory.
struct WinogradPlan {
  FrameShape x, y;
  ConvGeometry kernel;
  int64_t frames, threads;                          // output frames of a clip; threads that share a clip
  int64_t tile_rows, tile_columns;                  // of a frame
  int64_t block_frames, block_rows, block_outputs;  // of a block: output frames, tile rows, output channels
  int64_t column_blocks;                            // into which a GEMM's columns are divided
  int64_t input_stride, output_stride;              // row strides of V and M

  WinogradPlan(const FrameShape &x, const FrameShape &y, const ConvGeometry &kernel, int64_t frames, int64_t threads)
      : x(x), y(y), kernel(kernel), frames(frames), threads(threads) {
    tile_rows = num_tiles(y.height);
    tile_columns = num_tiles(y.width);
    const int64_t max_rows = MAX_INPUT / (TILE_ELEMS * x.channels * tile_columns);  // tile rows of all frames together
    block_frames = even_split(frames, max_rows - kernel.frames + 1);
    const int64_t input_frames = block_frames + kernel.frames - 1;
    block_rows = even_split(tile_rows, max_rows / input_frames);
    block_outputs = even_split(y.channels, MAX_WEIGHTS / (TILE_ELEMS * kernel.frames * x.channels));
    const int64_t columns = block_frames * block_rows * tile_columns;
    column_blocks = std::max<int64_t>(std::min(ceil_div(4 * threads, TILE_ELEMS), columns / MIN_COLUMNS), 1);
    // Not multiples of large powers of two: rows that are would compete for the same cache sets.
    input_stride = round_up(input_frames * block_rows * tile_columns, LANES) + LANES;
    output_stride = round_up(columns, LANES) + LANES;
  }
};

// Scratch memory for one clip at a time.
struct WinogradScratch {
  Buffer weights, input, products;  // U [frame, element, output, channel], V and M [element, channel, tile]
  std::vector<Buffer> transforms;   // of each thread

  explicit WinogradScratch(const WinogradPlan &plan)
      : weights(make_buffer(TILE_ELEMS * plan.kernel.frames * plan.block_outputs * plan.x.channels)),
        input(make_buffer(TILE_ELEMS * plan.x.channels * plan.input_stride)),
        products(make_buffer(TILE_ELEMS * plan.block_outputs * plan.output_stride)) {
    for (int64_t thread = 0; thread < plan.threads; ++thread) {
      transforms.push_back(make_buffer(PlaneTransform::scratch_size(plan.block_rows, plan.tile_columns)));
    }
  }
};

// Whether the transformed input and weights of a clip are small enough for each thread to have its own.
inline bool winograd_fits_one_thread(const FrameShape &x, const FrameShape &y, const ConvGeometry &kernel,
                                     int64_t frames) {
  const int64_t tiles = (frames + kernel.frames - 1) * num_tiles(y.height) * num_tiles(y.width);
  return TILE_ELEMS * x.channels * std::max(tiles, kernel.frames * y.channels) <= MAX_PER_THREAD;
}

// Whether Winograd is expected to be faster than im2col; `clip_per_thread`: each thread has clips of its own.
inline bool winograd_is_profitable(const FrameShape &x, const FrameShape &y, const ConvGeometry &kernel, int64_t frames,
                                   bool clip_per_thread) {
  return kernel.height == 3 && kernel.width == 3 && kernel.stride == 1 &&
         std::min(x.channels, y.channels) >= MIN_CHANNELS &&
         frames * y.plane() >= (clip_per_thread ? MIN_POSITIONS_PER_THREAD : MIN_POSITIONS);
}

// Convolves one clip with plan.threads threads. Output frame i reads the input frames i + shift, i + shift + 1, ... ;
// output_frame(i) is where it goes; bias may be null.
template <typename Output>
void winograd_convolve(const WinogradPlan &plan, const Clip &clip, const Output &output_frame, int64_t shift,
                       const Weights &weights, const float *bias, const WinogradScratch &scratch) {
  const Sgemm sgemm = find_sgemm();
  const FrameShape &x = plan.x, &y = plan.y;
  float *transformed_weights = scratch.weights.get(), *transformed_input = scratch.input.get();
  float *products = scratch.products.get();
#pragma omp parallel num_threads(plan.threads)
  for (int64_t first_frame = 0; first_frame < plan.frames; first_frame += plan.block_frames) {
    for (int64_t first_row = 0; first_row < plan.tile_rows; first_row += plan.block_rows) {
      const int64_t frames = std::min(plan.block_frames, plan.frames - first_frame);
      const TileRows tiles{first_row, std::min(plan.block_rows, plan.tile_rows - first_row), plan.tile_columns};
      const PlaneTransform transform(x, y, plan.kernel, tiles, scratch.transforms[omp_get_thread_num()].get());
#pragma omp for collapse(2)
      for (int64_t frame = 0; frame < frames + plan.kernel.frames - 1; ++frame) {
        for (int64_t channel = 0; channel < x.channels; ++channel) {
          const float *from = clip.frame(first_frame + frame + shift);
          transform.input(from ? from + channel * x.plane() : nullptr,
                          transformed_input + channel * plan.input_stride + frame * tiles.tiles(),
                          x.channels * plan.input_stride);
        }
      }
      for (int64_t first = 0; first < y.channels; first += plan.block_outputs) {
        const int64_t outputs = std::min(plan.block_outputs, y.channels - first);
        const bool is_first = first_frame == 0 && first_row == 0;
        if (is_first || plan.block_outputs < y.channels) {
          transform_weights(weights, first, outputs, transformed_weights);
        }
        const int64_t block = round_up(ceil_div(frames * tiles.tiles(), plan.column_blocks), LANES);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t element = 0; element < TILE_ELEMS; ++element) {
          for (int64_t column = 0; column < frames * tiles.tiles(); column += block) {
            const int64_t size = std::min(block, frames * tiles.tiles() - column);
            const float *input_columns = transformed_input + element * x.channels * plan.input_stride + column;
            for (int64_t k = 0; k < plan.kernel.frames; ++k) {
              sgemm('N', 'N', outputs, size, x.channels, 1,
                    transformed_weights + (k * TILE_ELEMS + element) * outputs * x.channels, x.channels,
                    input_columns + k * tiles.tiles(), plan.input_stride, k ? 1 : 0,
                    products + element * plan.block_outputs * plan.output_stride + column, plan.output_stride);
            }
          }
        }
#pragma omp for collapse(2)
        for (int64_t frame = 0; frame < frames; ++frame) {
          for (int64_t output = 0; output < outputs; ++output) {
            transform.output(products + output * plan.output_stride + frame * tiles.tiles(),
                             plan.block_outputs * plan.output_stride, bias ? bias[first + output] : 0.0f,
                             output_frame(first_frame + frame) + (first + output) * y.plane());
          }
        }
      }
    }
  }
}

}  // namespace cpu_kernels
