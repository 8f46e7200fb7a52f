// Transposes a tensor by a permutation of its axes.
#include "common.h"

namespace cpu_kernels {
namespace {

constexpr int64_t TILE = 16;  // floats; a cache line, so that a tile of 16 x 16 uses each line it touches completely

struct Axis {
  int64_t size, from_stride, to_stride;
};

// Copies a plane of two axes tile by tile; `x_inner` is contiguous in `from`, `y_inner` in `to`.
void transpose_plane(const float *from, float *to, const Axis &x_inner, const Axis &y_inner) {
  for (int64_t first = 0; first < x_inner.size; first += TILE) {
    for (int64_t second = 0; second < y_inner.size; second += TILE) {
      const int64_t last = std::min(first + TILE, x_inner.size), end = std::min(second + TILE, y_inner.size);
      for (int64_t i = first; i < last; ++i) {
        for (int64_t j = second; j < end; ++j) to[i * x_inner.to_stride + j] = from[i + j * y_inner.from_stride];
      }
    }
  }
}

// The axes of y in order, with axes merged that are neighbors in x too. geometry is (shape of x, permutation).
std::vector<Axis> merged_axes(const float *geometry, int rank, int64_t elements) {
  std::vector<int64_t> x_strides(rank, 1);
  for (int axis = rank - 2; axis >= 0; --axis) x_strides[axis] = x_strides[axis + 1] * integer(geometry[axis + 1]);
  std::vector<Axis> axes;
  int64_t to_stride = elements;
  for (int i = 0; i < rank; ++i) {
    const int axis = static_cast<int>(integer(geometry[rank + i]));
    const int64_t size = integer(geometry[axis]);
    to_stride /= size;
    if (!axes.empty() && axes.back().from_stride == x_strides[axis] * size) {
      axes.back() = {axes.back().size * size, x_strides[axis], to_stride};
    } else {
      axes.push_back({size, x_strides[axis], to_stride});
    }
  }
  return axes;
}

}  // namespace

// x (any shape), geometry (2 rank) = (shape of x, permutation), inverse geometry (2 rank), which only the gradient
// needs -> y with the elements of x transposed, in the shape of x
KERNEL(permute) {
  const float *x = input(params, 0);
  float *y = output(params, 3);
  const int rank = static_cast<int>(shapes[1][0] / 2);
  std::vector<Axis> axes = merged_axes(input(params, 1), rank, num_elements(shapes[0], 0, rank));
  const Axis y_inner = axes.back();
  axes.pop_back();
  Axis x_inner = {1, 0, 0};
  if (y_inner.from_stride != 1) {
    const auto found = std::find_if(axes.begin(), axes.end(), [](const Axis &axis) { return axis.from_stride == 1; });
    if (found != axes.end()) {
      x_inner = *found;
      axes.erase(found);
    }
  }
  int64_t planes = 1;
  for (const Axis &axis : axes) planes *= axis.size;
#pragma omp parallel for
  for (int64_t plane = 0; plane < planes; ++plane) {
    const float *from = x;
    float *to = y;
    int64_t rest = plane;
    for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis) {
      from += rest % axis->size * axis->from_stride;
      to += rest % axis->size * axis->to_stride;
      rest /= axis->size;
    }
    if (y_inner.from_stride == 1) {
      std::memcpy(to, from, y_inner.size * sizeof(float));
    } else {
      transpose_plane(from, to, x_inner, y_inner);
    }
  }
  return OK;
}

}  // namespace cpu_kernels
