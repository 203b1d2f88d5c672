// INT8 convolutions of 1x1. Weights are [channels / 16, in / 4] vectors of 16 channels x 4 inputs:
// one instruction adds four products to each of 16 sums.

#pragma once

#include "native.h"

namespace qnas {

constexpr int64_t kPixels = 96;  // pixels of a piece of work; with their sums they fit a cache

struct Product {
  const uint8_t* x;  // [pixels, in]
  int64_t in;
  const __m512i* weights;      // of the channels computed here
  int64_t node, first, piece;  // the node's number; the first of these channels; for a sink

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
template <int kRows, int kVectors, typename Sink>
void Multiply(const Product& p, int64_t pixel, Sink& sink) {
  __m512i sums[kRows][kVectors] = {};
  const uint8_t* x = p.x + pixel * p.in;
  const int64_t whole = p.in / kGroup;
  for (int64_t group = 0; group < whole; ++group) AddGroup(p, x, group, kGroup, sums);
  if (whole < p.groups()) AddGroup(p, x, whole, p.in % kGroup, sums);
  sink.template Put<kRows, kVectors>(sums, p.node, p.first, pixel, p.piece);
}

template <int kVectors, typename Sink>
void MultiplyPixels(const Product& p, int64_t pixel, int64_t end, Sink& sink) {
  constexpr int kRows = 6;
  for (; pixel + kRows <= end; pixel += kRows) Multiply<kRows, kVectors>(p, pixel, sink);
  for (; pixel < end; ++pixel) Multiply<1, kVectors>(p, pixel, sink);
}

// How many pieces of work a node's pixels are.
inline int64_t PointwisePieces(int64_t pixels) { return CeilDiv(pixels, kPixels); }

// All sums of `nodes` x `of_node` pixels.
template <typename Sink>
ffi::Error Pointwise(ffi::ThreadPool pool, const uint8_t* x, int64_t in, const __m512i* weights,
                     int64_t channels, int64_t nodes, int64_t of_node, Sink& sink) {
  const int64_t pieces = PointwisePieces(of_node), vectors = CeilDiv(channels, kLanes);
  const int64_t panels = CeilDiv(vectors, 4);
  return Spread(pool, nodes * pieces, [&](int64_t piece) {
    int64_t node = piece / pieces, start = piece % pieces * kPixels;
    int64_t end = node * of_node + std::min(start + kPixels, of_node);
    start += node * of_node;
    for (int64_t panel = 0; panel < panels; ++panel) {  // of nearly equal widths
      int64_t from = panel * vectors / panels, to = (panel + 1) * vectors / panels;
      Product p{x, in, weights + from * CeilDiv(in, kGroup), node, from * kLanes, piece % pieces};
      switch (to - from) {
        case 1: MultiplyPixels<1>(p, start, end, sink); break;
        case 2: MultiplyPixels<2>(p, start, end, sink); break;
        case 3: MultiplyPixels<3>(p, start, end, sink); break;
        default: MultiplyPixels<4>(p, start, end, sink);
      }
    }
  });
}

}  // namespace qnas
