// Shared by all kernels: MindSpore's calling convention, error statuses, elementwise functions, per-thread memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include <omp.h>

namespace cpu_kernels {

// A kernel's return value. Anything but OK makes MindSpore raise an error.
enum Status : int {
  OK = 0,
  INVALID_SHAPES = 1,  // the shapes or settings do not fit together: nothing was read or written
  OUT_OF_MEMORY = 2,
};

// Defines a kernel with the signature of MindSpore's Custom operator (func_type="aot"): params, ndims and shapes list
// the inputs, then the outputs, `count` in all. All are contiguous, and float32 unless stated. Kernels allocate memory
// outside of parallel regions only: an exception that leaves a parallel region ends the process, one that ends up here
// becomes a status.
#define KERNEL(name)                                                                                           \
  static int name##_body(int count, void **params, int *ndims, int64_t **shapes);                              \
  extern "C" int name(int count, void **params, int *ndims, int64_t **shapes, const char **, void *, void *) { \
    try {                                                                                                      \
      return name##_body(count, params, ndims, shapes);                                                        \
    } catch (const std::bad_alloc &) {                                                                         \
      return cpu_kernels::OUT_OF_MEMORY;                                                                       \
    }                                                                                                          \
  }                                                                                                            \
  static int name##_body(int count, void **params, int *ndims, int64_t **shapes)

inline const float *input(void **params, int i) { return static_cast<const float *>(params[i]); }
inline float *output(void **params, int i) { return static_cast<float *>(params[i]); }

// Settings are float32 as well. Python checks that integers among them are exact.
inline int64_t integer(float setting) { return std::lround(setting); }

// Product of the sizes of the axes [first, last).
inline int64_t num_elements(const int64_t *shape, int first, int last) {
  int64_t result = 1;
  for (int i = first; i < last; ++i) result *= shape[i];
  return result;
}

// Rows of x (..., D), divided evenly among the groups of a modulation (..., vectors, D): consecutive rows share the
// `vectors` vectors of a group, of which an operator uses those from `first` on.
struct Modulation {
  int64_t width, vectors, groups, rows, first;  // rows of each group

  Modulation(const int64_t *x, int x_rank, const int64_t *modulation, int rank, float first)
      : width(x[x_rank - 1]), vectors(modulation[rank - 2]), groups(num_elements(modulation, 0, rank - 2)),
        rows(groups ? num_elements(x, 0, x_rank - 1) / groups : 0), first(integer(first)) {}
  bool fits(const int64_t *x, int x_rank, const int64_t *modulation, int rank, int64_t used) const {
    return modulation[rank - 1] == width && rows * groups == num_elements(x, 0, x_rank - 1) && first >= 0 &&
           first + used <= vectors;
  }
  // Offset of the vector number `first` of the group that has row `row` of x.
  int64_t offset(int64_t row) const { return (row / rows * vectors + first) * width; }
};

inline int64_t ceil_div(int64_t size, int64_t unit) { return (size + unit - 1) / unit; }
inline int64_t round_up(int64_t size, int64_t unit) { return ceil_div(size, unit) * unit; }

// Splits `count` into the fewest blocks of at most `limit` (at least 1) and returns the size of a block.
inline int64_t even_split(int64_t count, int64_t limit) {
  return ceil_div(count, ceil_div(count, std::max<int64_t>(limit, 1)));
}

// Number of tasks for dynamic scheduling: several per thread, so that threads finish at about the same time although
// tasks and cores differ.
inline int64_t wanted_tasks() { return 4 * omp_get_max_threads(); }

// exp(x) with a relative error of about 1e-7, and exactly 0 below exp(-87): masked keys must have no weight, because
// arithmetic with denormal numbers is about a hundred times slower. Branch-free, so loops over it vectorize.
// Cephes' expf: exp(x) = 2^n p(r) with n = round(x / ln 2), r = x - n ln 2 in [-ln 2 / 2, ln 2 / 2]; ln 2 is subtracted
// as the sum of two floats to keep r exact.
inline float exp_approx(float value) {
  const float x = std::min(std::max(value, -87.0f), 88.0f);
  const float n = std::nearbyint(x * 1.44269504088896f);
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &y, 4);
  bits += static_cast<int32_t>(n) * (1 << 23);  // times 2^n
  std::memcpy(&y, &bits, 4);
  return value < -87.0f ? 0.0f : y;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exp_approx(-x)); }

// Activations that norms apply in the same pass.
struct Identity {
  static float value(float x) { return x; }
  static float derivative(float) { return 1; }
};

struct SiLU {
  static float value(float x) { return x * sigmoid(x); }
  static float derivative(float x) {
    const float s = sigmoid(x);
    return s * (1 + x * (1 - s));
  }
};

// A zero-initialized accumulator per thread. They are added up in the order of threads, so results are reproducible for
// a given number of threads.
class ThreadSums {
 public:
  explicit ThreadSums(int64_t size) : size_(size), rows_(omp_get_max_threads() * size, 0.0f) {}
  float *own() { return rows_.data() + omp_get_thread_num() * size_; }
  void total(float *result) const {
    std::fill(result, result + size_, 0.0f);
    for (size_t row = 0; row < rows_.size(); row += size_) {
      for (int64_t i = 0; i < size_; ++i) result[i] += rows_[row + i];
    }
  }

 private:
  int64_t size_;
  std::vector<float> rows_;
};

}  // namespace cpu_kernels
