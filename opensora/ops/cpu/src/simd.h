// SIMD vectors of the CPU's width (GCC vector extension).
#pragma once

#include "common.h"

namespace cpu_kernels {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

// May be unaligned.
using Vector __attribute__((vector_size(LANES * 4), aligned(4))) = float;

// max(most, x[0], ..., x[size - 1]). Four independent chains of maxima: compilers make a single chain of the plain
// loop, whose latency makes it ten times slower.
inline float row_max(const float *x, int64_t size, float most) {
  const auto larger = [](Vector a, Vector b) -> Vector { return a > b ? a : b; };
  const auto at = [x](int64_t i) { return *reinterpret_cast<const Vector *>(x + i); };
  Vector lanes[4];
  std::fill(lanes, lanes + 4, Vector{} + most);
  int64_t i = 0;
  for (; i + 4 * LANES <= size; i += 4 * LANES) {
    for (int chain = 0; chain < 4; ++chain) lanes[chain] = larger(lanes[chain], at(i + chain * LANES));
  }
  for (; i + LANES <= size; i += LANES) lanes[0] = larger(lanes[0], at(i));
  const Vector all = larger(larger(lanes[0], lanes[1]), larger(lanes[2], lanes[3]));
  for (int lane = 0; lane < LANES; ++lane) most = std::max(most, all[lane]);
  for (; i < size; ++i) most = std::max(most, x[i]);
  return most;
}

}  // namespace cpu_kernels
