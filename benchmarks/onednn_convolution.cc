// Convolutions by oneDNN 2.x, for convolution_onednn.py. MindSpore ships oneDNN without headers, so this file declares
// what it uses of the documented C API. Descriptors are opaque: buffers that are larger than oneDNN's structures.
#include <dlfcn.h>
#include <omp.h>

#include <cstdint>
#include <functional>

namespace dnnl {
namespace threadpool_interop {

// The interface of dnnl_threadpool_iface.hpp; the order of the virtual functions is its ABI.
struct threadpool_iface {
  virtual int get_num_threads() const = 0;
  virtual bool get_in_parallel() const = 0;
  virtual void parallel_for(int n, const std::function<void(int, int)> &fn) = 0;
  virtual uint64_t get_flags() const = 0;
  virtual ~threadpool_iface() {}
};

}  // namespace threadpool_interop
}  // namespace dnnl

namespace {

struct OpenMPPool : dnnl::threadpool_interop::threadpool_iface {
  int get_num_threads() const override { return omp_get_max_threads(); }
  bool get_in_parallel() const override { return omp_in_parallel(); }
  void parallel_for(int n, const std::function<void(int, int)> &fn) override {
#pragma omp parallel for schedule(static, 1)
    for (int i = 0; i < n; ++i) fn(i, n);
  }
  uint64_t get_flags() const override { return 0; }
};

constexpr int CPU = 1, F32 = 3, TAG_ANY = 1, FORWARD_INFERENCE = 96;
constexpr int SRC = 1, DST = 17, WEIGHTS = 33, BIAS = 41;  // DNNL_ARG_*
constexpr int QUERY_NAME = 8, QUERY_SRC = 129, QUERY_WEIGHTS = 131, QUERY_DST = 133;
constexpr int MAX_DIMS = 12;
constexpr unsigned THREADPOOL = 8;  // dnnl_version_t::cpu_runtime

using Dims = int64_t[MAX_DIMS];
using Handle = void *;

struct Version {
  int major, minor, patch;
  const char *hash;
  unsigned cpu_runtime, gpu_runtime;
};

struct ExecArg {
  int arg;
  Handle memory;
};

struct MemoryDesc {
  alignas(16) char opaque[4096];
};

struct ConvolutionDesc {
  alignas(16) char opaque[32768];
};

class OneDNN {
 public:
  explicit OneDNN(const char *path) : library_(dlopen(path, RTLD_NOW)) {}
  bool loaded() const { return library_ != nullptr; }

  // Calls a function of the C API. After the first failure, calls do nothing.
  template <typename... Args>
  void call(const char *name, Args... args) {
    if (failed_) return;
    const auto function = reinterpret_cast<int (*)(Args...)>(dlsym(library_, name));
    failed_ = function ? function(args...) : -1;
  }
  const Version *version() const { return reinterpret_cast<const Version *(*)()>(dlsym(library_, "dnnl_version"))(); }
  const MemoryDesc *query(Handle primitive_desc, int what) const {
    const auto function =
        reinterpret_cast<const MemoryDesc *(*)(Handle, int, int)>(dlsym(library_, "dnnl_primitive_desc_query_md"));
    return function(primitive_desc, what, 0);
  }
  int failed() const { return failed_; }

 private:
  void *library_;
  int failed_ = 0;
};

// A convolution with layouts chosen by oneDNN (format tag "any"), and reorders from and to contiguous tensors.
class Convolution {
 public:
  Convolution(const char *path, int algorithm, int rank, const Dims &x, const Dims &weight, const Dims &y,
              const Dims &strides, const Dims &padding)
      : onednn(path) {
    if (!onednn.loaded()) return;
    onednn.call("dnnl_engine_create", &engine_, CPU, size_t(0));
    if (onednn.version()->cpu_runtime == THREADPOOL) {
      onednn.call("dnnl_threadpool_interop_stream_create", &stream_, engine_, static_cast<void *>(&pool_));
    } else {
      onednn.call("dnnl_stream_create", &stream_, engine_, 1u);
    }
    const Dims bias = {weight[0]}, one = {1};
    MemoryDesc any[3], bias_desc;
    describe(rank, x, &any[0], &plain_[0]);
    describe(rank, weight, &any[1], &plain_[1]);
    describe(rank, y, &any[2], &plain_[2]);
    onednn.call("dnnl_memory_desc_init_by_strides", &bias_desc, 1, &bias[0], F32, &one[0]);
    ConvolutionDesc desc;
    onednn.call("dnnl_convolution_forward_desc_init", &desc, FORWARD_INFERENCE, algorithm, &any[0], &any[1], &bias_desc,
                &any[2], &strides[0], &padding[0], &padding[0]);
    Handle primitive_desc = nullptr;
    onednn.call("dnnl_primitive_desc_create", &primitive_desc, static_cast<void *>(&desc), Handle(nullptr), engine_,
                Handle(nullptr));
    if (onednn.failed()) return;
    onednn.call("dnnl_primitive_desc_query", primitive_desc, QUERY_NAME, 0, static_cast<void *>(&name));
    onednn.call("dnnl_primitive_create", &primitive_, primitive_desc);
    const int kinds[] = {QUERY_SRC, QUERY_WEIGHTS, QUERY_DST};
    for (int i = 0; i < 3; ++i) {
      blocked_[i] = onednn.query(primitive_desc, kinds[i]);
      onednn.call("dnnl_memory_create", &memory_[i], blocked_[i], engine_, reinterpret_cast<void *>(-1));
    }
    onednn.call("dnnl_memory_create", &memory_[3], static_cast<const MemoryDesc *>(&bias_desc), engine_,
                reinterpret_cast<void *>(-1));
  }

  // Copies contiguous inputs into the layouts of the primitive.
  void load(float *x, float *weight, const float *bias) {
    reorder(0, x, true);
    reorder(1, weight, true);
    onednn.call("dnnl_memory_set_data_handle", memory_[3], static_cast<void *>(const_cast<float *>(bias)));
  }
  void run() {
    const ExecArg args[] = {{SRC, memory_[0]}, {WEIGHTS, memory_[1]}, {BIAS, memory_[3]}, {DST, memory_[2]}};
    onednn.call("dnnl_primitive_execute", primitive_, stream_, 4, &args[0]);
    onednn.call("dnnl_stream_wait", stream_);
  }
  void store(float *y) { reorder(2, y, false); }

  OneDNN onednn;
  const char *name = "";

 private:
  void describe(int rank, const Dims &dims, MemoryDesc *any, MemoryDesc *plain) {
    Dims strides = {};
    int64_t stride = 1;
    for (int axis = rank - 1; axis >= 0; --axis) {
      strides[axis] = stride;
      stride *= dims[axis];
    }
    onednn.call("dnnl_memory_desc_init_by_tag", any, rank, &dims[0], F32, TAG_ANY);
    onednn.call("dnnl_memory_desc_init_by_strides", plain, rank, &dims[0], F32, static_cast<const int64_t *>(strides));
  }
  void reorder(int i, float *plain, bool into) {
    Handle memory = nullptr, desc = nullptr, primitive = nullptr;
    onednn.call("dnnl_memory_create", &memory, static_cast<const MemoryDesc *>(&plain_[i]), engine_,
                static_cast<void *>(plain));
    const MemoryDesc *source = into ? &plain_[i] : blocked_[i], *target = into ? blocked_[i] : &plain_[i];
    onednn.call("dnnl_reorder_primitive_desc_create", &desc, source, engine_, target, engine_, Handle(nullptr));
    onednn.call("dnnl_primitive_create", &primitive, desc);
    const ExecArg args[] = {{SRC, into ? memory : memory_[i]}, {DST, into ? memory_[i] : memory}};
    onednn.call("dnnl_primitive_execute", primitive, stream_, 2, &args[0]);
    onednn.call("dnnl_stream_wait", stream_);
  }

  OpenMPPool pool_;
  Handle engine_ = nullptr, stream_ = nullptr, primitive_ = nullptr, memory_[4] = {};
  MemoryDesc plain_[3];
  const MemoryDesc *blocked_[3] = {};
};

}  // namespace

// Null if oneDNN does not implement the convolution. All arrays have MAX_DIMS numbers, of which `rank` count for x
// (N, C, [T,] H, W), weight (O, C, [T,] H, W) and y (N, O, [T,] H, W), and rank - 2 for strides and padding.
extern "C" void *convolution_create(const char *path, int algorithm, int rank, const int64_t *x, const int64_t *weight,
                                    const int64_t *y, const int64_t *strides, const int64_t *padding) {
  auto *made = new Convolution(path, algorithm, rank, *reinterpret_cast<const Dims *>(x),
                               *reinterpret_cast<const Dims *>(weight), *reinterpret_cast<const Dims *>(y),
                               *reinterpret_cast<const Dims *>(strides), *reinterpret_cast<const Dims *>(padding));
  if (made->onednn.loaded() && !made->onednn.failed()) return made;
  delete made;
  return nullptr;
}
extern "C" const char *convolution_name(void *made) { return static_cast<Convolution *>(made)->name; }
extern "C" void convolution_load(void *made, float *x, float *weight, const float *bias) {
  static_cast<Convolution *>(made)->load(x, weight, bias);
}
extern "C" void convolution_run(void *made) { static_cast<Convolution *>(made)->run(); }
extern "C" void convolution_store(void *made, float *y) { static_cast<Convolution *>(made)->store(y); }
