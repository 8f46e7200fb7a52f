// Axes of a tensor in another order.
#include "common.h"

namespace {

constexpr int64_t SQUARE = 16;

struct Axis {
  int64_t size, from_step, to_step;
};

// Copies what two axes span, in squares: along `read` elements lie together in `from`, along `write` in `to`.
void copy_plane(const float *from, float *to, const Axis &read, const Axis &write) {
  for (int64_t first = 0; first < read.size; first += SQUARE) {
    for (int64_t second = 0; second < write.size; second += SQUARE) {
      const int64_t last = std::min(first + SQUARE, read.size), end = std::min(second + SQUARE, write.size);
      for (int64_t i = first; i < last; ++i) {
        for (int64_t j = second; j < end; ++j) to[i * read.to_step + j] = from[i + j * write.from_step];
      }
    }
  }
}

}  // namespace

// x and its geometry, (shape, order of axes) -> the elements in the new order; y has the shape of x. The third input,
// the geometry of the way back, serves the gradient.
KERNEL(permute) {
  const float *x = input(params, 0), *geometry = input(params, 1);
  float *y = output(params, 3);
  const int rank = static_cast<int>(shapes[1][0] / 2);
  std::vector<int64_t> steps(rank, 1);
  for (int axis = rank - 2; axis >= 0; --axis) steps[axis] = steps[axis + 1] * std::lround(geometry[axis + 1]);
  std::vector<Axis> axes;  // in the order of y
  int64_t to_step = product(shapes[0], 0, rank);
  for (int i = 0; i < rank; ++i) {
    const int axis = static_cast<int>(std::lround(geometry[rank + i]));
    const int64_t size = std::lround(geometry[axis]);
    to_step /= size;
    // An axis that follows the one before it in x as well is one with it.
    if (!axes.empty() && axes.back().from_step == steps[axis] * size) {
      axes.back() = {axes.back().size * size, steps[axis], to_step};
    } else {
      axes.push_back({size, steps[axis], to_step});
    }
  }
  const Axis write = axes.back();
  axes.pop_back();
  Axis read = {1, 0, 0};
  if (write.from_step != 1) {
    const auto innermost = std::find_if(axes.begin(), axes.end(), [](const Axis &axis) { return axis.from_step == 1; });
    if (innermost != axes.end()) {
      read = *innermost;
      axes.erase(innermost);
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
      from += rest % axis->size * axis->from_step;
      to += rest % axis->size * axis->to_step;
      rest /= axis->size;
    }
    if (write.from_step == 1) {
      std::memcpy(to, from, write.size * sizeof(float));
    } else {
      copy_plane(from, to, read, write);
    }
  }
  return 0;
}
