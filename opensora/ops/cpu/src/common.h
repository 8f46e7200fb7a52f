// What all kernels share: how MindSpore calls them, loops over threads, and functions that compilers vectorise.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

// A kernel as MindSpore's Custom operator wants it: inputs come first, then outputs, all float32 and contiguous.
// It returns 0, or 1 if the shapes of its inputs do not fit together: nothing is read or written out of bounds then.
#define KERNEL(name) \
  extern "C" int name(int count, void **params, int *ndims, int64_t **shapes, const char **, void *, void *)

inline const float *input(void **params, int i) { return static_cast<const float *>(params[i]); }
inline float *output(void **params, int i) { return static_cast<float *>(params[i]); }

inline int64_t product(const int64_t *shape, int first, int last) {
  int64_t result = 1;
  for (int i = first; i < last; ++i) result *= shape[i];
  return result;
}

// Whether a shape is (batch, 1, width): one row for all of a batch item's rows.
inline bool is_modulation(const int64_t *shape, int64_t batch, int64_t width) {
  return shape[0] == batch && shape[1] == 1 && shape[2] == width;
}

// exp(x) to about 1e-7, relative, and 0 below exp(-87): what is hidden has no weight at all, for products with numbers
// next to 0 take a hundred times as long. Without branches, so that loops over it are vectorised (Cephes' expf in
// outline: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]).
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
  bits += static_cast<int32_t>(n) * (1 << 23);
  std::memcpy(&y, &bits, 4);
  return value < -87.0f ? 0.0f : y;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exp_approx(-x)); }

// Sums that threads gather by themselves: a row for each thread, added up in the order of threads, so that the same
// number of threads gives the same result.
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
