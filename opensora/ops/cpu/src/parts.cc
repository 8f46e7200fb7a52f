// Parts of an axis: cut out of it, or put one behind the other. Tensors are (outer, axis, inner).
#include "common.h"

namespace {

// `count` floats to every row of `to`, whose rows are `to_step` apart, from rows `from_step` apart.
void copy_rows(const float *from, int64_t from_step, float *to, int64_t to_step, int64_t rows, int64_t count) {
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(to + row * to_step, from + row * from_step, count * sizeof(float));
  }
}

// An axis and the two parts that make it up.
struct Halves {
  int64_t rows, first, second;
  bool fit;

  Halves(const int64_t *one, const int64_t *other)
      : rows(one[0]), first(one[1] * one[2]), second(other[1] * other[2]),
        fit(one[0] == other[0] && one[2] == other[2]) {}

  int join(const float *front, const float *back, float *whole) const {
    copy_rows(front, first, whole, first + second, rows, first);
    copy_rows(back, second, whole + first, first + second, rows, second);
    return 0;
  }

  int cut(const float *whole, float *front, float *back) const {
    copy_rows(whole, first + second, front, first, rows, first);
    copy_rows(whole + first, first + second, back, second, rows, second);
    return 0;
  }
};

}  // namespace

// x, (where the part begins) -> the part
KERNEL(part) {
  const int64_t *x = shapes[0], *y = shapes[2], start = std::lround(input(params, 1)[0]);
  if (start < 0 || start + y[1] > x[1]) return 1;
  copy_rows(input(params, 0) + start * x[2], x[1] * x[2], output(params, 2), y[1] * y[2], x[0], y[1] * y[2]);
  return 0;
}

// dy, (where the part begins) -> dx, 0 outside the part
KERNEL(part_grad) {
  const int64_t *dy = shapes[0], *dx = shapes[2], start = std::lround(input(params, 1)[0]);
  if (start < 0 || start + dy[1] > dx[1]) return 1;
  const int64_t row_size = dx[1] * dx[2], part_size = dy[1] * dy[2];
  const float *from = input(params, 0);
#pragma omp parallel for
  for (int64_t row = 0; row < dx[0]; ++row) {
    float *to = output(params, 2) + row * row_size, *begin = to + start * dx[2], *end = begin + part_size;
    std::fill(to, begin, 0.0f);
    std::memcpy(begin, from + row * part_size, part_size * sizeof(float));
    std::fill(end, to + row_size, 0.0f);
  }
  return 0;
}

// front, back -> both in one
KERNEL(join) {
  const Halves halves(shapes[0], shapes[1]);
  return halves.fit ? halves.join(input(params, 0), input(params, 1), output(params, 2)) : 1;
}

// whole, (length of the front) -> front, back
KERNEL(cut) {
  const Halves halves(shapes[2], shapes[3]);
  const bool fits = halves.fit && shapes[2][1] + shapes[3][1] == shapes[0][1];
  return fits ? halves.cut(input(params, 0), output(params, 2), output(params, 3)) : 1;
}
