// INT8 convolutions for CPUs with AVX-512 VNNI, whose vector instructions multiply bytes.
//
// Each kind of convolution has two functions: one returns codes, the other the statistics of the
// sums. From these, `Settle` finds batch norm and grid; `AddCodes` adds two tensors. A whole inverted
// residual has two functions: one returns codes, the other their noise. native.py packs the weights
// and compiles this file.

#include "depthwise.h"
#include "mbconv.h"
#include "native.h"
#include "pointwise.h"
#include "settle.h"
#include "statistics.h"

namespace {

namespace ffi = xla::ffi;
using namespace qnas;
using Pool = ffi::ThreadPool;

bool FitProduct(const Weights& weights, int64_t in, int64_t channels) {
  int64_t vectors = CeilDiv(channels, kLanes) * CeilDiv(in, kGroup);
  return int64_t(weights.element_count()) == vectors * kLanes * kGroup;
}

// The sizes of a 1x1 convolution.
struct Pixels {
  int64_t in, channels, count, nodes;

  Pixels(const Bytes& x, int64_t channels, int64_t nodes)
      : in(x.dimensions().back()),
        channels(channels),
        count(x.element_count() / in),
        nodes(nodes) {}

  bool Fit(const Weights& weights) const {
    return FitProduct(weights, in, channels) && count % nodes == 0;
  }
};

ffi::Error PointwiseCodes(Pool pool, Bytes x, Weights weights, Floats norms,
                          ffi::Result<Bytes> out) {
  const int64_t channels = out->dimensions().back();
  Pixels p(x, channels, norms.element_count() / (3 * channels));
  if (!FitNodes(x, norms) || !p.Fit(weights) ||
      int64_t(out->element_count()) != p.count * channels)
    return Unfit();
  Codes sink{norms.typed_data(), out->typed_data(), channels, channels};
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
  return {{in[0], kernel, stride, dilation}, {in[1], kernel, stride, dilation}, in[2]};
}

bool FitWindow(const Window& w, const Weights& weights) {
  return int64_t(weights.element_count()) == w.vectors() * w.of_vector() * kLanes * kGroup;
}

ffi::Error DepthwiseCodes(Pool pool, Bytes x, Weights weights, Floats norms,
                          ffi::Result<Bytes> out, int64_t kernel, int64_t stride,
                          int64_t dilation) {
  const Window w = WindowOf(x, kernel, stride, dilation);
  const int64_t images = ImagesOf(x), nodes = norms.element_count() / (3 * w.channels);
  if (!FitNodes(x, norms) || !FitWindow(w, weights) ||
      int64_t(out->element_count()) != images * w.rows.out() * w.columns.out() * w.channels)
    return Unfit();
  Codes sink{norms.typed_data(), out->typed_data(), w.channels, w.channels};
  return Depthwise(pool, x.typed_data(), Vectors(weights), w, images, images / nodes, sink);
}

ffi::Error DepthwiseStatistics(Pool pool, Bytes x, Weights weights, ffi::Result<Floats> out,
                               int64_t kernel, int64_t stride, int64_t dilation) {
  const Window w = WindowOf(x, kernel, stride, dilation);
  const int64_t images = ImagesOf(x), nodes = out->element_count() / (4 * w.channels);
  if (!FitWindow(w, weights) || int64_t(out->element_count()) != 4 * nodes * w.channels ||
      images % nodes)
    return Unfit();
  Statistics sink(nodes, w.channels, images / nodes * w.rows.out());
  ffi::Error done =
      Depthwise(pool, x.typed_data(), Vectors(weights), w, images, images / nodes, sink);
  return done.failure() ? done : sink.Write(pool, nullptr, 0, out->typed_data());
}

// Numbers of several nodes, or the same ones for all.
template <typename Numbers>
struct OfNodes {
  const Numbers& numbers;
  int64_t size;  // of one node

  int64_t Count() const { return numbers.element_count(); }
  bool Fit(int64_t nodes) const { return Count() == size || Count() == nodes * size; }
  auto* At(int64_t node) const {
    return numbers.typed_data() + (Count() == size ? 0 : node * size);
  }
};

ffi::Error Settle(Floats statistics, Floats rates, Floats scale, Floats total, Floats norm_scale,
                  Floats norm_bias, Floats before, Ints bits, ffi::Result<Floats> step,
                  ffi::Result<Floats> grid, ffi::Result<Floats> norms, float low, float high) {
  const int64_t channels = step->dimensions().back(), nodes = grid->element_count() / kGrid;
  const OfNodes<Floats> sums{statistics, 4 * channels}, rate{rates, channels};
  const OfNodes<Floats> weights[] = {
      {scale, channels}, {total, channels}, {norm_scale, channels}, {norm_bias, channels}};
  const OfNodes<Floats> input{before, before.dimensions().back()};
  const OfNodes<Ints> width{bits, 1};
  bool fit = sums.Fit(nodes) && rate.Fit(nodes) && input.Fit(nodes) && width.Fit(nodes) &&
             input.size >= 2 && int64_t(step->element_count()) == kStep * nodes * channels &&
             int64_t(norms->element_count()) == 3 * nodes * channels;
  for (const auto& one : weights) fit = fit && one.Fit(nodes);
  if (!fit) return Unfit();
  for (int64_t i = 0; i < nodes; ++i)
    Settled{channels, sums.At(i), rate.At(i), weights[0].At(i), weights[1].At(i),
            weights[2].At(i), weights[3].At(i), input.At(i), *width.At(i), low, high}
        .Write(step->typed_data() + kStep * i * channels, grid->typed_data() + i * kGrid,
               norms->typed_data() + 3 * i * channels);
  return ffi::Error::Success();
}

ffi::Error AddCodes(Pool pool, Bytes x, Bytes y, Floats of_x, Floats of_y, Ints bits,
                    ffi::Result<Bytes> out, ffi::Result<Floats> grid) {
  const int64_t nodes = grid->element_count() / kGrid, size = out->element_count();
  const OfNodes<Floats> first{of_x, of_x.dimensions().back()};
  const OfNodes<Floats> second{of_y, of_y.dimensions().back()};
  const OfNodes<Ints> width{bits, 1};
  if (!nodes || int64_t(x.element_count()) != size || int64_t(y.element_count()) != size ||
      size % nodes || first.size < 2 || second.size < 2 || !first.Fit(nodes) ||
      !second.Fit(nodes) || !width.Fit(nodes))
    return Unfit();
  for (int64_t i = 0; i < nodes; ++i) {
    const int64_t at = i * size / nodes;
    const Sum sum{size / nodes, x.typed_data() + at, y.typed_data() + at,
                  first.At(i), second.At(i), *width.At(i)};
    ffi::Error done = sum.Write(pool, out->typed_data() + at, grid->typed_data() + i * kGrid);
    if (done.failure()) return done;
  }
  return ffi::Error::Success();
}

// The sizes of an inverted residual, the first of its norms, and the number of its grids.
struct Place {
  int64_t kernel, stride, dilation, hidden, channels, first, op;
};

// What both functions of an inverted residual read.
struct Inverted {
  Bytes x;
  Weights expand, depthwise, project;
  Floats norms, grids;

  int64_t Nodes() const { return norms.element_count() / (3 * norms.dimensions().back()); }

  // Without outputs; of no images of a node if the shapes do not fit each other.
  Mbconv At(const Place& place) const {
    Window w = WindowOf(x, place.kernel, place.stride, place.dilation);
    const int64_t in = std::exchange(w.channels, place.hidden), nodes = Nodes();
    const auto of_grids = grids.dimensions().last(3);  // ops, grids of one, 4
    Mbconv m{w, in, place.channels, 0, of_grids[1] == 3};
    m.of_norms = norms.dimensions().back();
    m.of_grids = of_grids[0] * of_grids[1] * 4;
    const bool fit =
        FitNodes(x, norms) && of_grids[2] == 4 && place.op < of_grids[0] &&
        int64_t(grids.element_count()) == nodes * m.of_grids && ImagesOf(x) % nodes == 0 &&
        place.first + 2 * place.hidden + place.channels <= m.of_norms &&
        (!m.adds || (in == place.channels && place.stride == 1)) && FitWindow(w, depthwise) &&
        FitProduct(expand, in, place.hidden) && FitProduct(project, place.hidden, place.channels);
    if (!fit) return m;
    m.of_node = ImagesOf(x) / nodes;
    m.x = x.typed_data();
    m.expand = Vectors(expand), m.depthwise = Vectors(depthwise), m.project = Vectors(project);
    m.norms = norms.typed_data() + place.first;
    m.grids = grids.typed_data() + place.op * of_grids[1] * 4;
    return m;
  }
};

ffi::Error MbconvCodes(Pool pool, Bytes x, Weights expand, Weights depthwise, Weights project,
                       Floats norms, Floats grids, ffi::Result<Bytes> out, Place place) {
  Mbconv m = Inverted{x, expand, depthwise, project, norms, grids}.At(place);
  const int64_t images = ImagesOf(x);
  if (!m.of_node || int64_t(out->element_count()) != images * m.w.rows.out() * m.of_row())
    return Unfit();
  m.codes = out->typed_data();
  return Run(pool, m, images);
}

ffi::Error MbconvNoise(Pool pool, Bytes x, Weights expand, Weights depthwise, Weights project,
                       Floats norms, Floats grids, Floats target, ffi::Result<Floats> out,
                       Place place) {
  Mbconv m = Inverted{x, expand, depthwise, project, norms, grids}.At(place);
  const int64_t images = ImagesOf(x), rows = m.of_node * m.w.rows.out();
  if (!m.of_node || int64_t(out->element_count()) * m.of_node != images * m.out ||
      int64_t(target.element_count()) != rows * m.of_row())
    return Unfit();
  std::vector<float> noise(images * m.w.rows.out() * m.out);
  m.target = target.typed_data(), m.noise = noise.data();
  ffi::Error done = Run(pool, m, images);
  if (done.failure()) return done;
  for (int64_t node = 0; node < images / m.of_node; ++node)
    for (int64_t channel = 0; channel < m.out; ++channel) {
      double total = 0;
      for (int64_t row = 0; row < rows; ++row)
        total += noise[(node * rows + row) * m.out + channel];
      out->typed_data()[node * m.out + channel] = total;
    }
  return done;
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

auto OfMbconv() {
  return Signature().Arg<Weights>().Arg<Weights>().Arg<Floats>().Arg<Floats>();
}

}  // namespace

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(
    Place, StructMember<int64_t>("kernel"), StructMember<int64_t>("stride"),
    StructMember<int64_t>("dilation"), StructMember<int64_t>("hidden"),
    StructMember<int64_t>("channels"), StructMember<int64_t>("first"),
    StructMember<int64_t>("op"));

// Whether this CPU has the instructions that this file is compiled to.
extern "C" bool qnas_jax_runs_here() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(qnas_jax_pointwise, Guarded(PointwiseCodes),
                              Signature().Arg<Floats>().Ret<Bytes>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(qnas_jax_pointwise_statistics, Guarded(PointwiseStatistics),
                              Signature().Arg<Ints>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(qnas_jax_depthwise, Guarded(DepthwiseCodes),
                              Windowed(Signature().Arg<Floats>().Ret<Bytes>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(qnas_jax_depthwise_statistics, Guarded(DepthwiseStatistics),
                              Windowed(Signature().Ret<Floats>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(qnas_jax_settle, Guarded(Settle),
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<float>("low")
                                  .Attr<float>("high"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(qnas_jax_add, Guarded(AddCodes),
                              ffi::Ffi::Bind()
                                  .Ctx<Pool>()
                                  .Arg<Bytes>()
                                  .Arg<Bytes>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Ret<Bytes>()
                                  .Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(qnas_jax_mbconv, Guarded(MbconvCodes),
                              OfMbconv().Ret<Bytes>().Attrs<Place>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(qnas_jax_mbconv_noise, Guarded(MbconvNoise),
                              OfMbconv().Arg<Floats>().Ret<Floats>().Attrs<Place>());
