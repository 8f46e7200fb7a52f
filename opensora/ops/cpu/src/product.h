// Products of matrices. They are oneDNN's, which MindSpore brings along; a call runs in the thread that makes it.
#pragma once

#include "common.h"

// c (m, n) = alpha op(a) op(b) + beta c, rows `step` floats apart; 'N' or 'T' say whether a and b are transposed.
using Product = int (*)(char a_is, char b_is, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                        int64_t a_step, const float *b, int64_t b_step, float beta, float *c, int64_t c_step);

// Null where the process has not loaded oneDNN.
Product find_product();
