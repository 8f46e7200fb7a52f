// Convolutions with 3 x 3 taps by Winograd's minimal filtering F(4 x 4, 3 x 3) (Lavin and Gray 2016, arXiv:1509.09308):
// a tile of 4 x 4 results takes 36 products for each channel instead of 144.
//
// Tiles of 6 x 6 numbers of the input, every 4 rows and columns, and the filters go to another basis, where a
// convolution is 36 products of matrices, (outputs, channels) times (channels, tiles); what these give goes back as
// tiles of 4 x 4. Frames lie one behind the other in the columns, so a filter's next frame is the same matrix further on.
#pragma once

#include "frames.h"
#include "product.h"
#include "vector.h"

namespace winograd {

constexpr int64_t SIDE = 4, SEEN = 6, POINTS = SEEN * SEEN;  // of a tile: results, what they see of the input
constexpr int64_t TILE_FLOATS = 6 << 20, WEIGHT_FLOATS = 4 << 20;  // at most so many are in the other basis at a time
constexpr int64_t SMALL = 1 << 20;  // so many of each a thread can have for itself
// Least of an input and its result: with fewer, the changes of basis cost more than they spare.
constexpr int64_t CHANNELS = 16, POSITIONS = 512, POSITIONS_APART = 256;

// The other basis is that of values at the points 0, A, -A, B, -B and infinity. Rounding costs a quarter of what it does
// with 1 and 2, which are usual, for as much work.
constexpr float A = 0.70710678f, B = 1.41421356f;

// B^T of six rows of numbers.
inline void forth(const float *const d[SEEN], float *const out[SEEN], int64_t count) {
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

// A^T of six rows of numbers.
inline void back(const float *const m[SEEN], float *const out[SIDE], int64_t count) {
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

// G of three numbers of LANES filters.
inline void filter_forth(const Vector &a, const Vector &b, const Vector &c, Vector out[SEEN]) {
  const Vector even_a = a * (-2.0f / 3) - c * (1.0f / 3), odd_a = b * (-2.0f / 3 * A);
  const Vector even_b = a * (1.0f / 6) + c * (1.0f / 3), odd_b = b * (1.0f / 6 * B);
  out[0] = a;
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = c;
}

// Filters of some outputs -> [frame][point][output][channel].
inline void transform_weights(const Weights &weights, int64_t first, int64_t outputs, float *to) {
#pragma omp for collapse(2)
  for (int64_t output = 0; output < outputs; ++output) {
    for (int64_t frame = 0; frame < weights.frames; ++frame) {
      for (int64_t channel = 0; channel < weights.channels; channel += LANES) {
        const int64_t count = std::min<int64_t>(LANES, weights.channels - channel);
        float taps[9][LANES] = {};
        for (int64_t lane = 0; lane < count; ++lane) {
          const float *from = weights.taps_of(first + output, channel + lane, frame);
          for (int tap = 0; tap < 9; ++tap) taps[weights.turned ? 8 - tap : tap][lane] = from[tap];
        }
        const auto tap = [&](int i) { return *reinterpret_cast<const Vector *>(taps[i]); };
        Vector down[3][SEEN];
        for (int column = 0; column < 3; ++column) filter_forth(tap(column), tap(3 + column), tap(6 + column), down[column]);
        for (int row = 0; row < SEEN; ++row) {
          Vector across[SEEN];
          filter_forth(down[0][row], down[1][row], down[2][row], across);
          for (int column = 0; column < SEEN; ++column) {
            float *place = to + ((frame * POINTS + row * SEEN + column) * outputs + output) * weights.channels + channel;
            std::memcpy(place, &across[column], count * sizeof(float));
          }
        }
      }
    }
  }
}

// Some rows of a frame's tiles.
struct Tiles {
  int64_t first_row, rows, columns;
  int64_t per_frame() const { return rows * columns; }
};

// `count` in equal parts of at most `most`, and at least one: how large they are.
inline int64_t share(int64_t count, int64_t most) {
  const int64_t parts = (count + std::max<int64_t>(most, 1) - 1) / std::max<int64_t>(most, 1);
  return (count + parts - 1) / parts;
}

// One plane's tiles: `to` is where the first goes at the first point, points are `step` apart. A null plane is zeros.
class PlaneForth {
 public:
  PlaneForth(const Shape &x, const Filter &filter, const Tiles &tiles)
      : x_(x), filter_(filter), tiles_(tiles), pitch_(SIDE * (tiles.columns + 1)),
        lines_((SIDE * tiles.rows + 2) * pitch_), down_(SEEN * pitch_), apart_(SEEN * pitch_) {}

  void operator()(const float *plane, float *to, int64_t step) {
    if (!plane) {
      for (int64_t point = 0; point < POINTS; ++point) std::fill_n(to + point * step, tiles_.per_frame(), 0.0f);
      return;
    }
    std::fill(lines_.begin(), lines_.end(), 0.0f);
    const int64_t top = SIDE * tiles_.first_row - filter_.top;  // the input's line that the first one is
    const int64_t width = std::min(x_.width, pitch_ - filter_.left);
    for (int64_t line = std::max<int64_t>(0, -top); line < SIDE * tiles_.rows + 2 && top + line < x_.height; ++line) {
      std::copy_n(plane + (top + line) * x_.width, width, lines_.data() + line * pitch_ + filter_.left);
    }
    const int64_t columns = tiles_.columns, apart = columns + 1;
    const float *seen[SEEN];
    float *out[SEEN], *at_points[SEEN];
    for (int64_t row = 0; row < tiles_.rows; ++row) {
      for (int64_t i = 0; i < SEEN; ++i) {
        seen[i] = lines_.data() + (SIDE * row + i) * pitch_;
        out[i] = down_.data() + i * pitch_;
      }
      forth(seen, out, pitch_);
      for (int64_t i = 0; i < SEEN; ++i) {
        float *parts = apart_.data();  // every fourth column together
        for (int64_t j = 0; j < apart; ++j) {
          for (int64_t part = 0; part < SIDE; ++part) parts[part * apart + j] = out[i][SIDE * j + part];
        }
        for (int64_t j = 0; j < SEEN; ++j) {
          seen[j] = parts + j % SIDE * apart + j / SIDE;
          at_points[j] = to + (i * SEEN + j) * step + row * columns;
        }
        forth(seen, at_points, columns);
      }
    }
  }

 private:
  const Shape &x_;
  const Filter &filter_;
  const Tiles &tiles_;
  int64_t pitch_;
  std::vector<float> lines_, down_, apart_;
};

// The inverse way: tiles at `from` to a plane of the result.
class PlaneBack {
 public:
  PlaneBack(const Shape &y, const Tiles &tiles)
      : y_(y), tiles_(tiles), across_(SEEN * SIDE * tiles.columns), apart_(SIDE * SIDE * tiles.columns),
        line_(SIDE * tiles.columns) {}

  void operator()(const float *from, int64_t step, float bias, float *plane) {
    const int64_t columns = tiles_.columns;
    const float *points[SEEN];
    float *out[SIDE];
    for (int64_t row = 0; row < tiles_.rows; ++row) {
      for (int64_t i = 0; i < SEEN; ++i) {
        for (int64_t j = 0; j < SEEN; ++j) points[j] = from + (i * SEEN + j) * step + row * columns;
        for (int64_t part = 0; part < SIDE; ++part) out[part] = across_.data() + (part * SEEN + i) * columns;
        back(points, out, columns);
      }
      for (int64_t part = 0; part < SIDE; ++part) {
        for (int64_t i = 0; i < SEEN; ++i) points[i] = across_.data() + (part * SEEN + i) * columns;
        for (int64_t i = 0; i < SIDE; ++i) out[i] = apart_.data() + (i * SIDE + part) * columns;
        back(points, out, columns);
      }
      const int64_t first = SIDE * (tiles_.first_row + row), lines = std::min(SIDE, y_.height - first);
      for (int64_t i = 0; i < lines; ++i) {
        const float *parts = apart_.data() + i * SIDE * columns;  // every fourth column together
        for (int64_t j = 0; j < columns; ++j) {
          for (int64_t part = 0; part < SIDE; ++part) line_[SIDE * j + part] = parts[part * columns + j] + bias;
        }
        std::copy_n(line_.data(), y_.width, plane + (first + i) * y_.width);
      }
    }
  }

 private:
  const Shape &y_;
  const Tiles &tiles_;
  std::vector<float> across_, apart_, line_;
};

inline int64_t tiles_along(int64_t size) { return (size + SIDE - 1) / SIDE; }

// Whether a clip's tiles and the filters are few enough for each thread to have its own.
inline bool fits_one_thread(const Shape &x, const Shape &y, const Filter &filter, int64_t count) {
  const int64_t tiles = (count + filter.frames - 1) * tiles_along(y.height) * tiles_along(y.width);
  return POINTS * x.channels * std::max(tiles, filter.frames * y.channels) <= SMALL;
}

// Whether tiles are the quicker way to convolve a clip; `apart`: threads have clips for themselves.
inline bool pays(const Shape &x, const Shape &y, const Filter &filter, int64_t count, bool apart) {
  return filter.height == 3 && filter.width == 3 && filter.stride == 1 && std::min(x.channels, y.channels) >= CHANNELS &&
         count * y.plane() >= (apart ? POSITIONS_APART : POSITIONS);
}

}  // namespace winograd

// Convolves one clip; output frame i sees input frames i + shift, i + shift + 1, ...
template <typename Output>
void convolve_by_tiles(const Frames &input_frames, const Output &output_frame, int64_t count, int64_t shift, const Shape &x,
                       const Filter &filter, const Weights &weights, const float *bias) {
  using namespace winograd;
  const Product product = find_product();
  const Shape y = filter.output(weights.outputs, x);
  const int64_t tile_rows = tiles_along(y.height), tile_columns = tiles_along(y.width);
  const int64_t rows_fit = TILE_FLOATS / (POINTS * x.channels * tile_columns);  // in all frames together
  const int64_t frames = share(count, rows_fit - filter.frames + 1), seen_frames = frames + filter.frames - 1;
  const int64_t rows = share(tile_rows, rows_fit / seen_frames);
  const int64_t outputs = share(y.channels, WEIGHT_FLOATS / (POINTS * filter.frames * x.channels));
  const int64_t step = round_up(seen_frames * rows * tile_columns, LANES) + LANES;  // not a power of two
  const int64_t result_step = round_up(frames * rows * tile_columns, LANES) + LANES;
  const Buffer seen = make_buffer(POINTS * x.channels * step), sums = make_buffer(POINTS * outputs * result_step);
  const Buffer of_weights = make_buffer(POINTS * filter.frames * outputs * x.channels);
#pragma omp parallel
  for (int64_t first_frame = 0; first_frame < count; first_frame += frames) {
    for (int64_t first_row = 0; first_row < tile_rows; first_row += rows) {
      const int64_t some_frames = std::min(frames, count - first_frame);
      const Tiles tiles{first_row, std::min(rows, tile_rows - first_row), tile_columns};
      PlaneForth plane_forth(x, filter, tiles);
      PlaneBack plane_back(y, tiles);
#pragma omp for collapse(2)
      for (int64_t frame = 0; frame < some_frames + filter.frames - 1; ++frame) {
        for (int64_t channel = 0; channel < x.channels; ++channel) {
          const float *from = input_frames.at(first_frame + frame + shift);
          plane_forth(from ? from + channel * x.plane() : nullptr, seen.get() + channel * step + frame * tiles.per_frame(),
                      x.channels * step);
        }
      }
      for (int64_t first = 0; first < y.channels; first += outputs) {
        const int64_t some = std::min(outputs, y.channels - first);
        const bool is_first = first_frame == 0 && first_row == 0;
        if (is_first || outputs < y.channels) transform_weights(weights, first, some, of_weights.get());
#pragma omp for schedule(dynamic)
        for (int64_t point = 0; point < POINTS; ++point) {
          for (int64_t k = 0; k < filter.frames; ++k) {
            product('N', 'N', some, some_frames * tiles.per_frame(), x.channels, 1,
                    of_weights.get() + (k * POINTS + point) * some * x.channels, x.channels,
                    seen.get() + point * x.channels * step + k * tiles.per_frame(), step, k ? 1 : 0,
                    sums.get() + point * outputs * result_step, result_step);
          }
        }
#pragma omp for collapse(2)
        for (int64_t frame = 0; frame < some_frames; ++frame) {
          for (int64_t output = 0; output < some; ++output) {
            plane_back(sums.get() + output * result_step + frame * tiles.per_frame(), outputs * result_step,
                       bias ? bias[first + output] : 0.0f, output_frame(first_frame + frame) + (first + output) * y.plane());
          }
        }
      }
    }
  }
}
