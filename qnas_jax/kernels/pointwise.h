// INT8 convolutions of 1x1. Weights are [channels / 16, in / 4] vectors of 16 channels x 4 inputs:
// one instruction adds four products to each of 16 sums.

#pragma once

#include "native.h"

namespace qnas {

constexpr int64_t kPiece = 96;  // pixels of a piece of work; with their sums they fit a cache

struct Product {
  const uint8_t* x;
  int64_t in;
  int64_t pixel, line;         // bytes from a pixel to the next, and from 16 inputs to the next
  const __m512i* weights;      // of the channels computed here
  int64_t node, first, piece;  // the node's number; the first of these channels; for a sink

  int64_t groups() const { return CeilDiv(in, kGroup); }
};

// Adds the products of a group of inputs to the sums of kPixels x kVectors vectors.
template <int kPixels, int kVectors>
[[gnu::always_inline]] inline void AddGroup(const Product& p, const uint8_t* x, int64_t group,
                                            int64_t inputs, __m512i (&sums)[kPixels][kVectors]) {
  __m512i weights[kVectors];
#pragma GCC unroll 3
  for (int v = 0; v < kVectors; ++v)
    weights[v] = _mm512_loadu_si512(p.weights + v * p.groups() + group);
#pragma GCC unroll 8
  for (int r = 0; r < kPixels; ++r) {
    int32_t four = 0;
    std::memcpy(&four, x + r * p.pixel, inputs);
    const __m512i values = _mm512_set1_epi32(four);
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v)
      sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], values, weights[v]);
  }
}

// kPixels x kVectors vectors, whose sums fit the registers.
template <int kPixels, int kVectors, typename Sink>
void Multiply(const Product& p, int64_t pixel, Sink& sink) {
  __m512i sums[kPixels][kVectors] = {};
  const uint8_t* x = p.x + pixel * p.pixel;
  const int64_t whole = p.in / kGroup;
  int64_t group = 0;
  for (; group + 4 <= whole; group += 4, x += p.line)
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) AddGroup(p, x + i * kGroup, group + i, kGroup, sums);
  for (; group < whole; ++group, x += kGroup) AddGroup(p, x, group, kGroup, sums);
  if (whole < p.groups()) AddGroup(p, x, whole, p.in % kGroup, sums);
  sink.template Put<kPixels, kVectors>(sums, p.node, p.first, pixel, p.piece);
}

// Whole fours of pixels; returns the first of those left.
template <int kVectors, typename Sink>
int64_t MultiplyFours(const Product& p, int64_t pixel, int64_t end, Sink& sink) {
  for (; pixel + 8 <= end; pixel += 8) Multiply<8, kVectors>(p, pixel, sink);
  for (; pixel + 4 <= end; pixel += 4) Multiply<4, kVectors>(p, pixel, sink);
  return pixel;
}

// Calls body(p, vectors) for all channels, a panel of 1 to 3 vectors at a time, whose weights stay
// in the cache meanwhile.
template <typename Body>
void Panels(Product p, int64_t channels, const Body& body) {
  const int64_t vectors = CeilDiv(channels, kLanes), panels = CeilDiv(vectors, 3);
  const __m512i* weights = p.weights;
  for (int64_t panel = 0; panel < panels; ++panel) {  // of nearly equal widths
    int64_t from = panel * vectors / panels, to = (panel + 1) * vectors / panels;
    p.weights = weights + from * p.groups();
    p.first = from * kLanes;
    switch (to - from) {
      case 1: body(p, Count<1>()); break;
      case 2: body(p, Count<2>()); break;
      default: body(p, Count<3>());
    }
  }
}

// How many pieces of work a node's pixels are.
inline int64_t PointwisePieces(int64_t pixels) { return CeilDiv(pixels, kPiece); }

// All sums of `nodes` x `of_node` pixels.
template <typename Sink>
ffi::Error Pointwise(ffi::ThreadPool pool, const uint8_t* x, int64_t in, const __m512i* weights,
                     int64_t channels, int64_t nodes, int64_t of_node, Sink& sink) {
  const int64_t pieces = PointwisePieces(of_node);
  return Spread(pool, nodes * pieces, [&](int64_t piece) {
    int64_t node = piece / pieces, start = piece % pieces * kPiece;
    int64_t end = node * of_node + std::min(start + kPiece, of_node);
    start += node * of_node;
    Panels({x, in, in, kLanes, weights, node, 0, piece % pieces}, channels,
           [&](const Product& p, auto vectors) {
             constexpr int kVectors = decltype(vectors)::value;
             int64_t pixel = MultiplyFours<kVectors>(p, start, end, sink);
             for (; pixel < end; ++pixel) Multiply<1, kVectors>(p, pixel, sink);
           });
  });
}

}  // namespace qnas
