// Matrix products (GEMM) by oneDNN's dnnl_sgemm, which MindSpore ships.
#pragma once

#include "common.h"

namespace cpu_kernels {

// c (m, n) = alpha op(a) op(b) + beta c. Matrices are row-major with row strides lda, ldb, ldc in floats; op transposes
// if the mode is 'T' and not if it is 'N'. Returns 0 on success.
using Sgemm = int (*)(char mode_a, char mode_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                      int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

// dnnl_sgemm of the oneDNN library that is already loaded in this process; null if there is none, or not version 2.
// MindSpore builds oneDNN for an external thread pool, so a call runs on the calling thread alone: kernels call it
// inside their own parallel loops.
Sgemm find_sgemm();

}  // namespace cpu_kernels
