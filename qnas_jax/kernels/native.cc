// INT8 convolutions for CPUs with AVX-512 VNNI, whose vector instructions multiply bytes.
//
// Each kind of convolution has two functions: one returns codes, the other the statistics of the
// sums. native.py packs the weights and compiles this file.

#include "depthwise.h"
#include "native.h"
#include "pointwise.h"
#include "statistics.h"

namespace {

namespace ffi = xla::ffi;
using namespace qnas;
using Pool = ffi::ThreadPool;

// The sizes of a 1x1 convolution.
struct Pixels {
  int64_t in, channels, count, nodes;

  Pixels(const Bytes& x, int64_t channels, int64_t nodes)
      : in(x.dimensions().back()),
        channels(channels),
        count(x.element_count() / in),
        nodes(nodes) {}

  bool Fit(const Weights& weights) const {
    int64_t vectors = CeilDiv(channels, kLanes) * CeilDiv(in, kGroup);
    return int64_t(weights.element_count()) == vectors * kLanes * kGroup && count % nodes == 0;
  }
};

ffi::Error PointwiseCodes(Pool pool, Bytes x, Weights weights, Floats norms,
                          ffi::Result<Bytes> out) {
  const int64_t channels = out->dimensions().back();
  Pixels p(x, channels, norms.element_count() / (3 * channels));
  if (!FitNodes(x, norms) || !p.Fit(weights) ||
      int64_t(out->element_count()) != p.count * channels)
    return Unfit();
  Codes sink{norms.typed_data(), out->typed_data(), channels};
  return Pointwise(pool, x.typed_data(), p.in, Vectors(weights), channels, p.nodes,
                   p.count / p.nodes, sink);
}

ffi::Error PointwiseStatistics(Pool pool, Bytes x, Weights weights, Ints centers,
                               ffi::Result<Floats> out) {
  const int64_t channels = out->dimensions().back();
  Pixels p(x, channels, out->element_count() / (4 * channels));
  if (!FitNodes(x, centers) || !p.Fit(weights)) return Unfit();
  Statistics sink(p.nodes, channels, PointwisePieces(p.count / p.nodes));
  ffi::Error done = Pointwise(pool, x.typed_data(), p.in, Vectors(weights), channels, p.nodes,
                              p.count / p.nodes, sink);
  if (done.failure()) return done;
  const bool same = int64_t(centers.element_count()) == channels;  // for all nodes
  return sink.Write(pool, centers.typed_data(), same ? 0 : channels, out->typed_data());
}

int64_t ImagesOf(const Bytes& x) {
  auto dims = x.dimensions().last(3);
  return x.element_count() / (dims[0] * dims[1] * dims[2]);
}

Window WindowOf(const Bytes& x, int64_t kernel, int64_t stride, int64_t dilation) {
  auto in = x.dimensions().last(3);
  return {in[0],  in[1],  in[2], CeilDiv(in[0], stride), CeilDiv(in[1], stride),
          kernel, stride, dilation};
}

bool FitWindow(const Window& w, const Weights& weights) {
  int64_t vectors = CeilDiv(w.channels, kLanes) * w.kernel * w.groups();
  return int64_t(weights.element_count()) == vectors * kLanes * kGroup;
}

ffi::Error DepthwiseCodes(Pool pool, Bytes x, Weights weights, Floats norms,
                          ffi::Result<Bytes> out, int64_t kernel, int64_t stride,
                          int64_t dilation) {
  const Window w = WindowOf(x, kernel, stride, dilation);
  const int64_t images = ImagesOf(x), nodes = norms.element_count() / (3 * w.channels);
  if (!FitNodes(x, norms) || !FitWindow(w, weights) ||
      int64_t(out->element_count()) != images * w.out_height * w.out_width * w.channels)
    return Unfit();
  Codes sink{norms.typed_data(), out->typed_data(), w.channels};
  return Depthwise(pool, x.typed_data(), Vectors(weights), w, images, images / nodes, sink);
}

ffi::Error DepthwiseStatistics(Pool pool, Bytes x, Weights weights, ffi::Result<Floats> out,
                               int64_t kernel, int64_t stride, int64_t dilation) {
  const Window w = WindowOf(x, kernel, stride, dilation);
  const int64_t images = ImagesOf(x), nodes = out->element_count() / (4 * w.channels);
  if (!FitWindow(w, weights) || int64_t(out->element_count()) != 4 * nodes * w.channels ||
      images % nodes)
    return Unfit();
  Statistics sink(nodes, w.channels, images / nodes * w.out_height);
  ffi::Error done =
      Depthwise(pool, x.typed_data(), Vectors(weights), w, images, images / nodes, sink);
  return done.failure() ? done : sink.Write(pool, nullptr, 0, out->typed_data());
}

// The attributes of a depthwise convolution.
template <typename Signature>
auto Windowed(Signature signature) {
  return std::move(signature)
      .template Attr<int64_t>("kernel")
      .template Attr<int64_t>("stride")
      .template Attr<int64_t>("dilation");
}

auto Signature() { return ffi::Ffi::Bind().Ctx<Pool>().Arg<Bytes>().Arg<Weights>(); }

}  // namespace

// Whether this CPU has the instructions that this file is compiled to.
extern "C" bool qnas_jax_runs_here() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(qnas_jax_pointwise, PointwiseCodes,
                              Signature().Arg<Floats>().Ret<Bytes>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(qnas_jax_pointwise_statistics, PointwiseStatistics,
                              Signature().Arg<Ints>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(qnas_jax_depthwise, DepthwiseCodes,
                              Windowed(Signature().Arg<Floats>().Ret<Bytes>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(qnas_jax_depthwise_statistics, DepthwiseStatistics,
                              Windowed(Signature().Ret<Floats>()));
