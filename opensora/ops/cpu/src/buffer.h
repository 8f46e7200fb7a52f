// Uninitialized scratch memory.
#pragma once

#include <cstdlib>
#include <memory>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "common.h"

namespace cpu_kernels {

using Buffer = std::unique_ptr<float[], decltype(&std::free)>;

// `size` floats; throws std::bad_alloc, so it is called outside of parallel regions. Buffers of 4 MiB and more are
// aligned to 2 MiB and use huge pages: fewer page faults and TLB misses.
inline Buffer make_buffer(int64_t size) {
  constexpr int64_t HUGE_PAGE = int64_t(1) << 21, CACHE_LINE = 64;  // bytes
  const int64_t bytes = std::max<int64_t>(size, 1) * sizeof(float);
  const int64_t alignment = bytes < 2 * HUGE_PAGE ? CACHE_LINE : HUGE_PAGE;
  void *memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes)) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (alignment == HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return Buffer(static_cast<float *>(memory), &std::free);
}

// `size` floats for each thread of a parallel region. Separate buffers: the C library keeps freed memory for the next
// call only up to a size per buffer (32 MiB, opensora/device.py), and larger ones come with new page faults every time.
class ThreadBuffers {
 public:
  explicit ThreadBuffers(int64_t size) {
    for (int thread = 0; thread < omp_get_max_threads(); ++thread) buffers_.push_back(make_buffer(size));
  }
  float *own() const { return buffers_[omp_get_thread_num()].get(); }

 private:
  std::vector<Buffer> buffers_;
};

}  // namespace cpu_kernels
