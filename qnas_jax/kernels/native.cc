// INT8 convolutions for CPUs with AVX-512 VNNI, whose vector instructions multiply bytes.
//
// Activations are uint8, weights int8, sums int32: exact. One instruction adds four products to
// each of 16 sums, so both kinds of convolution are brought to that form: a 1x1 convolution over
// four input channels, a depthwise one over four columns of the kernel. A sum becomes the code
// clip(round(sum * factor + offset), 0, top), ties to even.
//
// native.py packs the weights and compiles this file.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

constexpr int64_t kLanes = 16;   // channels of a vector of sums
constexpr int64_t kGroup = 4;    // products that one instruction adds to a sum
constexpr int64_t kPixels = 96;  // pixels of a piece of work; with their sums they fit a cache
constexpr int64_t kLine = 4;     // vectors of a piece of work: one cache line of codes

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

using Bytes = ffi::Buffer<ffi::U8>;
using Weights = ffi::Buffer<ffi::S8>;
using Norms = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Bytes>;

const __m512i* Vectors(const Weights& weights) {
  return reinterpret_cast<const __m512i*>(weights.typed_data());
}

// Whether these are the sizes that a convolution expects, and each node (the first dimensions of
// x) has its own norm, or all have the same.
bool Fit(const Bytes& x, const Weights& weights, const Norms& norms, int64_t vectors,
         const Bytes& out, int64_t values) {
  auto dims = x.dimensions(), of_norms = norms.dimensions();
  bool own = of_norms.size() + 2 == dims.size(), same = own;
  for (size_t i = 0; i + 4 < dims.size() && (own || same); ++i) {
    own = own && of_norms[i] == dims[i];
    same = same && of_norms[i] == 1;
  }
  return (own || same) && int64_t(out.element_count()) == values &&
         int64_t(weights.element_count()) == vectors * kLanes * kGroup;
}

ffi::Error Unfit() { return ffi::Error::InvalidArgument("shapes do not fit each other"); }

// Calls body(0) to body(count - 1), on this thread and on the pool's free threads.
template <typename Body>
ffi::Error Spread(ffi::ThreadPool pool, int64_t count, const Body& body) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::atomic<bool> failed{false};
  };
  auto shared = std::make_shared<Shared>();
  // A thread of the pool may start after the last piece, when `body` is gone: it finds no work.
  std::function<void()> work = [shared, count, &body] {
    for (int64_t i; (i = shared->next++) < count; shared->done++) {
      try {
        body(i);
      } catch (...) {  // on a thread of the pool it would end the process
        shared->failed = true;
      }
    }
  };
  int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(work));
  work();
  while (shared->done < count) std::this_thread::yield();
  if (!shared->failed) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "an int8 convolution lacks memory");
}

// Turns the sums of 16 channels (fewer in the last vector) into codes.
struct Norm {
  __mmask16 mask;
  __m512 factor, offset, top;

  // For the channels from `first` on; norms are [nodes, 3, channels].
  Norm(const float* norms, int64_t node, int64_t channels, int64_t first)
      : mask(first + kLanes <= channels ? 0xffff : (1u << (channels - first)) - 1) {
    norms += 3 * node * channels + first;
    factor = _mm512_maskz_loadu_ps(mask, norms);
    offset = _mm512_maskz_loadu_ps(mask, norms + channels);
    top = _mm512_maskz_loadu_ps(mask, norms + 2 * channels);
  }

  void Store(__m512i sums, uint8_t* out) const {
    __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), factor, offset);
    y = _mm512_min_ps(_mm512_max_ps(y, _mm512_setzero_ps()), top);
    __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(y));
    if (mask == 0xffff)  // the usual case, and several times as fast
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
    else
      _mm_mask_storeu_epi8(out, mask, bytes);
  }
};

// 1x1 convolutions. Weights are [channels / 16, in / 4] vectors of 16 channels x 4 inputs.

struct Product {
  const uint8_t* x;  // [pixels, in]
  int64_t in;
  const __m512i* weights;
  const float* norms;
  int64_t node, channels, first;  // output channels in all; the first of those computed here

  int64_t groups() const { return CeilDiv(in, kGroup); }
};

// Adds the products of a group of inputs to the sums of kRows pixels x kVectors vectors.
template <int kRows, int kVectors>
[[gnu::always_inline]] inline void AddGroup(const Product& p, const uint8_t* x, int64_t group,
                                            int64_t inputs, __m512i (&sums)[kRows][kVectors]) {
  __m512i weights[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v)
    weights[v] = _mm512_loadu_si512(p.weights + v * p.groups() + group);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    int32_t four = 0;
    std::memcpy(&four, x + r * p.in + group * kGroup, inputs);
    const __m512i values = _mm512_set1_epi32(four);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], values, weights[v]);
  }
}

// kRows pixels x kVectors vectors, whose sums fit the registers.
template <int kRows, int kVectors>
void Multiply(const Product& p, int64_t pixel, uint8_t* out) {
  __m512i sums[kRows][kVectors] = {};
  const uint8_t* x = p.x + pixel * p.in;
  const int64_t whole = p.in / kGroup;
  for (int64_t group = 0; group < whole; ++group) AddGroup(p, x, group, kGroup, sums);
  if (whole < p.groups()) AddGroup(p, x, whole, p.in % kGroup, sums);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    int64_t channel = p.first + v * kLanes;
    Norm norm(p.norms, p.node, p.channels, channel);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
      norm.Store(sums[r][v], out + (pixel + r) * p.channels + channel);
  }
}

template <int kVectors>
void MultiplyPixels(const Product p, int64_t pixels, uint8_t* out) {
  constexpr int kRows = 6;
  int64_t pixel = 0;
  for (; pixel + kRows <= pixels; pixel += kRows) Multiply<kRows, kVectors>(p, pixel, out);
  for (; pixel < pixels; ++pixel) Multiply<1, kVectors>(p, pixel, out);
}

ffi::Error Pointwise(ffi::ThreadPool pool, Bytes x, Weights weights, Norms norms, Result out) {
  int64_t in = x.dimensions().back(), channels = out->dimensions().back();
  int64_t pixels = x.element_count() / in, nodes = norms.element_count() / (3 * channels);
  int64_t vectors = CeilDiv(channels, kLanes), panels = CeilDiv(vectors, 4);
  if (!Fit(x, weights, norms, vectors * CeilDiv(in, kGroup), *out, pixels * channels))
    return Unfit();
  int64_t of_node = pixels / nodes, pieces = CeilDiv(of_node, kPixels);
  return Spread(pool, nodes * pieces, [&](int64_t piece) {
    int64_t node = piece / pieces, start = piece % pieces * kPixels;
    int64_t count = std::min(kPixels, of_node - start);
    start += node * of_node;
    for (int64_t panel = 0; panel < panels; ++panel) {  // of nearly equal widths
      int64_t begin = panel * vectors / panels, end = (panel + 1) * vectors / panels;
      const __m512i* from = Vectors(weights) + begin * CeilDiv(in, kGroup);
      Product p{x.typed_data() + start * in, in, from, norms.typed_data(), node, channels,
                begin * kLanes};
      uint8_t* to = out->typed_data() + start * channels;
      switch (end - begin) {
        case 1: MultiplyPixels<1>(p, count, to); break;
        case 2: MultiplyPixels<2>(p, count, to); break;
        case 3: MultiplyPixels<3>(p, count, to); break;
        default: MultiplyPixels<4>(p, count, to);
      }
    }
  });
}

// Depthwise convolutions. Weights are [channels / 16, kernel, kernel / 4] vectors of 16
// channels x 4 columns, padded with zeros. The image is padded with code 0.

struct Window {
  int64_t height, width, channels, out_height, out_width, kernel, stride, dilation;

  int64_t groups() const { return CeilDiv(kernel, kGroup); }
  int64_t pad() const { return dilation * (kernel - 1) / 2; }
  // Groups of four columns that the sums of a row read.
  int64_t fours() const {
    return (out_width - 1) * stride + kGroup * (groups() - 1) * dilation + 1;
  }
};

// Rearranges a row: for every column c of the padded row, the columns c, c + d, c + 2d, c + 3d
// of each of 16 channels.
void Interleave(const Window& w, const uint8_t* row, __mmask16 mask, __m128i* padded,
                __m512i* fours) {
  const auto quarters = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  // Local copies: the compiler then knows that no store changes them.
  const int64_t channels = w.channels, width = w.width, count = w.fours(), d = w.dilation;
  __m128i* inner = padded + w.pad();
  if (mask == 0xffff)
    for (int64_t c = 0; c < width; ++c)
      inner[c] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + c * channels));
  else
    for (int64_t c = 0; c < width; ++c) inner[c] = _mm_maskz_loadu_epi8(mask, row + c * channels);
  for (int64_t c = 0; c < count; ++c) {
    __m512i four = _mm512_castsi128_si512(padded[c]);
    four = _mm512_inserti32x4(four, padded[c + d], 1);
    four = _mm512_inserti32x4(four, padded[c + 2 * d], 2);
    four = _mm512_inserti32x4(four, padded[c + 3 * d], 3);
    fours[c] = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(quarters, four), bytes);
  }
}

// The rows of the kernel that lie on the image, for a row of the output.
struct Rows {
  int64_t top, first, last;  // the image's row at the kernel's top; the kernel's rows

  Rows(const Window& w, int64_t row)
      : top(row * w.stride - w.pad()),
        first(top < 0 ? CeilDiv(-top, w.dilation) : 0),
        last(std::min(w.kernel, CeilDiv(w.height - top, w.dilation))) {}
};

// kColumns pixels of a row, from column `column` of the padded image on.
template <int kColumns>
inline void Correlate(const Window& w, const Rows& rows, int64_t column, const __m512i* fours,
                      const __m512i* weights, const Norm& norm, uint8_t* out) {
  __m512i sums[kColumns] = {};
  for (int64_t i = rows.first; i < rows.last; ++i)
    for (int64_t group = 0; group < w.groups(); ++group) {
      __m512i four = _mm512_loadu_si512(weights + i * w.groups() + group);
      const __m512i* at = fours + (rows.top + i * w.dilation) * w.fours() + column +
                          group * kGroup * w.dilation;
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c)
        sums[c] = _mm512_dpbusd_epi32(sums[c], at[c * w.stride], four);
    }
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c) norm.Store(sums[c], out + c * w.channels);
}

// 16 channels of an image.
void CorrelateImage(const Window& w, const uint8_t* x, const __m512i* weights, const Norm& norm,
                    uint8_t* out) {
  thread_local std::vector<__m512i> fours;
  thread_local std::vector<__m128i> padded;
  fours.resize(std::max<size_t>(fours.size(), w.height * w.fours()));
  padded.assign(std::max(w.width + w.pad(), w.fours() + 3 * w.dilation), _mm_setzero_si128());
  // Rows that are `dilation` apart share inputs: in this order these stay in the cache.
  for (int64_t phase = 0; phase < std::min(w.dilation, w.out_height); ++phase) {
    int64_t made = 0;  // rows before this one are rearranged, of this phase's inputs
    for (int64_t row = phase; row < w.out_height; row += w.dilation) {
      Rows rows(w, row);
      for (int64_t i = rows.first; i < rows.last; ++i) {
        int64_t at = rows.top + i * w.dilation;
        if (at < made) continue;
        Interleave(w, x + at * w.width * w.channels, norm.mask, padded.data(),
                   fours.data() + at * w.fours());
        made = at + 1;
      }
      uint8_t* to = out + row * w.out_width * w.channels;
      int64_t c = 0;
      for (; c + 8 <= w.out_width; c += 8)
        Correlate<8>(w, rows, c * w.stride, fours.data(), weights, norm, to + c * w.channels);
      for (; c + 4 <= w.out_width; c += 4)
        Correlate<4>(w, rows, c * w.stride, fours.data(), weights, norm, to + c * w.channels);
      for (; c < w.out_width; ++c)
        Correlate<1>(w, rows, c * w.stride, fours.data(), weights, norm, to + c * w.channels);
    }
  }
}

ffi::Error Depthwise(ffi::ThreadPool pool, Bytes x, Weights weights, Norms norms, Result out,
                     int64_t kernel, int64_t stride, int64_t dilation) {
  auto in = x.dimensions().last(3), to = out->dimensions().last(3);
  int64_t images = x.element_count() / (in[0] * in[1] * in[2]);
  Window w{in[0], in[1], in[2], to[0], to[1], kernel, stride, dilation};
  int64_t vectors = CeilDiv(w.channels, kLanes), pieces = CeilDiv(vectors, kLine);
  if (!Fit(x, weights, norms, vectors * kernel * w.groups(), *out, images * to[0] * to[1] * to[2]))
    return Unfit();
  int64_t of_node = images / (norms.element_count() / (3 * w.channels));
  return Spread(pool, images * pieces, [&](int64_t piece) {
    int64_t image = piece / pieces, begin = piece % pieces * kLine;
    for (int64_t vector = begin; vector < std::min(begin + kLine, vectors); ++vector) {
      int64_t first = vector * kLanes;
      CorrelateImage(w, x.typed_data() + image * w.height * w.width * w.channels + first,
                     Vectors(weights) + vector * kernel * w.groups(),
                     Norm(norms.typed_data(), image / of_node, w.channels, first),
                     out->typed_data() + image * w.out_height * w.out_width * w.channels + first);
    }
  });
}

auto Signature() {
  using Pool = ffi::ThreadPool;
  return ffi::Ffi::Bind().Ctx<Pool>().Arg<Bytes>().Arg<Weights>().Arg<Norms>().Ret<Bytes>();
}

}  // namespace

// Whether this CPU has the instructions that this file is compiled to.
extern "C" bool qnas_jax_runs_here() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(qnas_jax_pointwise, Pointwise, Signature());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    qnas_jax_depthwise, Depthwise,
    Signature().Attr<int64_t>("kernel").Attr<int64_t>("stride").Attr<int64_t>("dilation"));
