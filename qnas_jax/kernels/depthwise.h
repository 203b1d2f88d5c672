// INT8 depthwise convolutions. Weights are [channels / 16, kernel, kernel / 4] vectors of 16
// channels x 4 columns, padded with zeros. The image is padded with code 0.

#pragma once

#include "native.h"

namespace qnas {

constexpr int64_t kLine = 4;  // vectors of a piece of work: one cache line of codes

struct Window {
  int64_t height, width, channels, out_height, out_width, kernel, stride, dilation;

  int64_t groups() const { return CeilDiv(kernel, kGroup); }
  int64_t pad() const { return dilation * (kernel - 1) / 2; }
  // Groups of four columns that the sums of a row read.
  int64_t fours() const {
    return (out_width - 1) * stride + kGroup * (groups() - 1) * dilation + 1;
  }
  // The columns of a padded row that are `dilation` apart.
  int64_t phase_width() const {
    return CeilDiv(std::max(width + pad(), fours() + 3 * dilation), dilation) + kGroup;
  }
};

// Rearranges a row: for every column c of the padded row, the columns c, c + d, c + 2d, c + 3d
// of each of 16 channels. `padded` holds columns that are d apart side by side.
inline void Interleave(const Window& w, const uint8_t* row, __mmask16 mask, __m128i* padded,
                       __m512i* fours) {
  const auto quarters = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  // Local copies: the compiler then knows that no store changes them.
  const int64_t channels = w.channels, width = w.width, count = w.fours(), d = w.dilation;
  const int64_t pad = w.pad(), phase_width = w.phase_width();
  for (int64_t phase = 0; phase < d; ++phase) {
    __m128i* to = padded + phase * phase_width;
    int64_t begin = CeilDiv(std::max<int64_t>(pad - phase, 0), d);
    const uint8_t* from = row + (begin * d + phase - pad) * channels;
    int64_t end = CeilDiv(pad + width - phase, d), step = d * channels;
    if (mask == 0xffff)
      for (int64_t i = begin; i < end; ++i, from += step)
        to[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    else
      for (int64_t i = begin; i < end; ++i, from += step) to[i] = _mm_maskz_loadu_epi8(mask, from);
    for (int64_t c = phase, i = 0; c < count; c += d, ++i) {
      __m512i four = _mm512_permutexvar_epi32(quarters, _mm512_loadu_si512(to + i));
      fours[c] = _mm512_shuffle_epi8(four, bytes);
    }
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
                      const __m512i* weights, __m512i (&sums)[kColumns]) {
  for (int64_t i = rows.first; i < rows.last; ++i)
    for (int64_t group = 0; group < w.groups(); ++group) {
      __m512i four = _mm512_loadu_si512(weights + i * w.groups() + group);
      const __m512i* at = fours + (rows.top + i * w.dilation) * w.fours() + column +
                          group * kGroup * w.dilation;
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c)
        sums[c] = _mm512_dpbusd_epi32(sums[c], at[c * w.stride], four);
    }
}

template <int kCount>
using Count = std::integral_constant<int, kCount>;

// 16 channels of an image. `pixel` and `tile` are the image's first pixel and row, for the sink.
template <typename Column>
void CorrelateImage(const Window& w, const uint8_t* x, __mmask16 mask, const __m512i* weights,
                    int64_t pixel, int64_t tile, const Column& sink) {
  thread_local std::vector<__m512i> fours;
  thread_local std::vector<__m128i> padded;
  fours.resize(std::max<size_t>(fours.size(), w.height * w.fours()));
  padded.assign(w.dilation * w.phase_width(), _mm_setzero_si128());
  auto columns = [&](auto count, const Rows& rows, int64_t row, int64_t c) {
    constexpr int kColumns = decltype(count)::value;
    __m512i sums[kColumns] = {};
    Correlate<kColumns>(w, rows, c * w.stride, fours.data(), weights, sums);
    sink.template Put<kColumns>(sums, pixel + row * w.out_width + c, 1, tile + row);
  };
  // Rows that are `dilation` apart share inputs: in this order these stay in the cache.
  for (int64_t phase = 0; phase < std::min(w.dilation, w.out_height); ++phase) {
    int64_t made = 0;  // rows before this one are rearranged, of this phase's inputs
    for (int64_t row = phase; row < w.out_height; row += w.dilation) {
      Rows rows(w, row);
      for (int64_t i = rows.first; i < rows.last; ++i) {
        int64_t at = rows.top + i * w.dilation;
        if (at < made) continue;
        Interleave(w, x + at * w.width * w.channels, mask, padded.data(),
                   fours.data() + at * w.fours());
        made = at + 1;
      }
      int64_t c = 0;
      for (; c + 8 <= w.out_width; c += 8) columns(Count<8>(), rows, row, c);
      for (; c + 4 <= w.out_width; c += 4) columns(Count<4>(), rows, row, c);
      for (; c < w.out_width; ++c) columns(Count<1>(), rows, row, c);
    }
  }
}

// All sums of some images, `of_node` of each node.
template <typename Sink>
ffi::Error Depthwise(ffi::ThreadPool pool, const uint8_t* x, const __m512i* weights,
                     const Window& w, int64_t images, int64_t of_node, Sink& sink) {
  const int64_t vectors = CeilDiv(w.channels, kLanes), pieces = CeilDiv(vectors, kLine);
  return Spread(pool, images * pieces, [&](int64_t piece) {
    int64_t image = piece / pieces, begin = piece % pieces * kLine;
    for (int64_t vector = begin; vector < std::min(begin + kLine, vectors); ++vector) {
      int64_t first = vector * kLanes;
      CorrelateImage(w, x + image * w.height * w.width * w.channels + first,
                     MaskOf(w.channels, first), weights + vector * w.kernel * w.groups(),
                     image * w.out_height * w.out_width, image % of_node * w.out_height,
                     sink.At(image / of_node, first));
    }
  });
}

}  // namespace qnas
