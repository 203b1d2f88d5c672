// INT8 depthwise convolutions of images.

#pragma once

#include "correlate.h"
#include "native.h"

namespace qnas {

constexpr int64_t kLine = 4;  // vectors of a piece of work: one cache line of codes

struct Window {
  Axis rows, columns;
  int64_t channels;

  int64_t vectors() const { return CeilDiv(channels, kLanes); }
  int64_t of_vector() const { return rows.kernel * CeilDiv(rows.kernel, kGroup); }  // weights
};

// Rearranges a row of 16 channels.
inline void Arrange(const Groups& layout, const uint8_t* row, int64_t channels, __mmask16 mask,
                    __m512i* groups) {
  const auto quarters = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int64_t group = 0; group < layout.count(); ++group) {
    __m128i columns[kGroup];
#pragma GCC unroll 4
    for (int64_t i = 0; i < kGroup; ++i) {
      const int64_t column = layout.column(group, i);
      columns[i] = _mm_maskz_loadu_epi8(layout.columns.holds(column) ? mask : 0,
                                        row + column * channels);
    }
    __m512i four = _mm512_castsi128_si512(columns[0]);
    four = _mm512_inserti32x4(four, columns[1], 1);
    four = _mm512_inserti32x4(four, columns[2], 2);
    four = _mm512_inserti32x4(four, columns[3], 3);
    groups[group] = Transpose(_mm512_permutexvar_epi32(quarters, four));
  }
}

// 16 channels of an image. `pixel` and `tile` are the image's first pixel and row, for the sink.
template <typename Column>
void CorrelateImage(const Window& w, const Groups& layout, const uint8_t* x, __mmask16 mask,
                    const __m512i* weights, int64_t pixel, int64_t tile, const Column& sink) {
  const int64_t width = w.columns.out(), phases = layout.phases, count = layout.count();
  std::vector<__m512i> groups(w.rows.kernel * count), sums(phases * layout.tiles * kTile);
  std::vector<__m512i> shifted(w.rows.kernel * ShiftedOf(w.rows.kernel, w.columns.step()));
  Shift(weights, w.rows.kernel, w.columns.step(), shifted.data());
  auto make = [&](int64_t row, int64_t place) {
    Arrange(layout, x + row * w.columns.size * w.channels, w.channels, mask,
            groups.data() + place * count);
  };
  auto use = [&](const Ring& ring) {
    CorrelateRow(layout, ring, groups.data(), shifted.data(),
                 [&](int64_t phase, int64_t first, const auto& found) {
                   for (const __m512i& sum : found) sums[phase + phases * first++] = sum;
                 });
    auto put = [&](auto few, int64_t column) {
      constexpr int kFew = decltype(few)::value;
      __m512i found[kFew];
      std::copy_n(sums.data() + column, kFew, found);
      sink.template Put<kFew>(found, pixel + ring.row * width + column, tile + ring.row);
    };
    int64_t c = 0;
    for (; c + 8 <= width; c += 8) put(Count<8>(), c);
    for (; c + 4 <= width; c += 4) put(Count<4>(), c);
    for (; c < width; ++c) put(Count<1>(), c);
  };
  for (int64_t phase = 0; phase < w.rows.phases(); ++phase)
    WalkRows(w.rows, count, phase, 0, w.rows.outputs(phase), make, use);
}

// All sums of some images, `of_node` of each node.
template <typename Sink>
ffi::Error Depthwise(ffi::ThreadPool pool, const uint8_t* x, const __m512i* weights,
                     const Window& w, int64_t images, int64_t of_node, Sink& sink) {
  const Groups layout(w.columns);
  const int64_t pieces = CeilDiv(w.vectors(), kLine), pixels = w.rows.out() * w.columns.out();
  return Spread(pool, images * pieces, [&](int64_t piece) {
    int64_t image = piece / pieces, begin = piece % pieces * kLine;
    for (int64_t vector = begin; vector < std::min(begin + kLine, w.vectors()); ++vector) {
      int64_t first = vector * kLanes;
      CorrelateImage(w, layout, x + image * w.rows.size * w.columns.size * w.channels + first,
                     MaskOf(w.channels, first), weights + vector * w.of_vector(), image * pixels,
                     image % of_node * w.rows.out(), sink.At(image / of_node, first));
    }
  });
}

}  // namespace qnas
