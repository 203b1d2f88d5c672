// Sums of INT8 depthwise convolutions, of one row of outputs. Weights are [channels / 16, kernel,
// kernel / 4] vectors of 16 channels x 4 columns, padded with zeros. The image is padded with code
// 0.
//
// An image's row is rearranged into groups: vectors of 16 channels x 4 columns, as one instruction
// takes them. Four neighboring outputs read the same groups, each with its weights shifted by
// some columns, so that a column is held once.

#pragma once

#include <numeric>

#include "native.h"

namespace qnas {

constexpr int64_t kTile = 4;  // neighboring outputs that read the same groups

// One axis of an image. Every so many outputs read inputs that are `dilation` apart. These are a
// phase: on its own inputs, numbered by taps, the convolution is not dilated.
struct Axis {
  int64_t size, kernel, stride, dilation;

  int64_t out() const { return CeilDiv(size, stride); }
  int64_t phases() const { return dilation / std::gcd(stride, dilation); }
  int64_t outputs(int64_t phase) const { return CeilDiv(out() - phase, phases()); }
  // Taps from an output of a phase to the next.
  int64_t step() const { return stride / std::gcd(stride, dilation); }
  int64_t input(int64_t phase, int64_t tap) const {
    return stride * phase + dilation * tap - dilation * (kernel - 1) / 2;
  }
  bool holds(int64_t input) const { return 0 <= input && input < size; }
};

// Taps before the first one, so that the image's first column begins a group.
constexpr int64_t Lead(int64_t kernel) { return (kGroup - kernel / 2 % kGroup) % kGroup; }

// Of an output in a tile: where its taps begin, and how many groups they touch.
constexpr int64_t TapOf(int64_t kernel, int64_t step, int64_t output) {
  return Lead(kernel) + output * step;
}
constexpr int64_t GroupsOf(int64_t kernel, int64_t step, int64_t output) {
  return CeilDiv(TapOf(kernel, step, output) % kGroup + kernel, kGroup);
}
// Vectors of shifted weights for a row of the kernel.
constexpr int64_t ShiftedOf(int64_t kernel, int64_t step) {
  return GroupsOf(kernel, step, 0) + GroupsOf(kernel, step, 1) + GroupsOf(kernel, step, 2) +
         GroupsOf(kernel, step, 3);
}

// The weights of a vector of channels, for each row of the kernel and output in a tile.
inline void Shift(const __m512i* weights, int64_t kernel, int64_t step, __m512i* shifted) {
  const int64_t groups = CeilDiv(kernel, kGroup);
  for (int64_t row = 0; row < kernel; ++row, weights += groups)
    for (int64_t output = 0; output < kTile; ++output) {
      const int64_t bits = TapOf(kernel, step, output) % kGroup * 8;
      for (int64_t group = 0; group < GroupsOf(kernel, step, output); ++group) {
        const __m512i zero = _mm512_setzero_si512();
        __m512i own = group < groups ? _mm512_loadu_si512(weights + group) : zero;
        __m512i before = group > 0 ? _mm512_loadu_si512(weights + group - 1) : zero;
        *shifted++ = _mm512_or_si512(_mm512_sll_epi32(own, _mm_cvtsi64_si128(bits)),
                                     _mm512_srl_epi32(before, _mm_cvtsi64_si128(32 - bits)));
      }
    }
}

// A row of an image as groups, [phases, of_phase].
struct Groups {
  Axis columns;
  int64_t phases, tiles, of_phase;  // tiles of outputs in a phase
  std::vector<int64_t> first;       // each group's first column
  std::vector<int32_t> masks;       // which bytes of each group are on the image

  explicit Groups(const Axis& columns) : columns(columns), phases(columns.phases()) {
    const int64_t kernel = columns.kernel, step = columns.step();
    tiles = CeilDiv(columns.outputs(0), kTile);
    of_phase = (tiles - 1) * step + TapOf(kernel, step, kTile - 1) / kGroup +
               GroupsOf(kernel, step, kTile - 1);
    for (int64_t phase = 0; phase < phases; ++phase)
      for (int64_t group = 0; group < of_phase; ++group) {
        first.push_back(columns.input(phase, group * kGroup - Lead(kernel)));
        masks.push_back(0);
        for (int64_t i = 0; i < kGroup; ++i)
          if (columns.holds(column(first.size() - 1, i))) masks.back() |= 0xffu << 8 * i;
      }
  }

  int64_t count() const { return masks.size(); }
  int64_t column(int64_t group, int64_t i) const { return first[group] + i * columns.dilation; }
};

// Some neighboring rows of an image as groups, in a ring: the inputs of a row of outputs.
struct Ring {
  int64_t size, row;          // groups between the ring's rows; the row of outputs
  int64_t start, first, last;  // the kernel's first row in the ring; its rows on the image
};

// Calls use(ring) for outputs `begin` to `end` of a phase of the rows, and before it
// make(row, place in the ring) for each row of the image that it needs.
template <typename Make, typename Use>
void WalkRows(const Axis& rows, int64_t size, int64_t phase, int64_t begin, int64_t end,
              const Make& make, const Use& use) {
  int64_t made = 0;  // taps before this one are in the ring
  for (int64_t output = begin; output < end; ++output) {
    const int64_t tap = output * rows.step();
    Ring ring{size, phase + output * rows.phases(), tap % rows.kernel, rows.kernel, 0};
    for (int64_t i = 0; i < rows.kernel; ++i) {
      const int64_t row = rows.input(phase, tap + i);
      if (!rows.holds(row)) continue;
      ring.first = std::min(ring.first, i);
      ring.last = i + 1;
      if (tap + i < made) continue;
      make(row, (tap + i) % rows.kernel);
      made = tap + i + 1;
    }
    use(ring);
  }
}

// The sums of kTiles x 4 outputs. `groups` is where the first begins, in the ring's first row.
template <int kTiles, typename Kernel, typename Step>
[[gnu::always_inline]] inline void Correlate(Kernel kernel, Step step, const Ring& ring,
                                             const __m512i* groups, const __m512i* weights,
                                             __m512i (&sums)[kTiles * kTile]) {
  weights += ring.first * ShiftedOf(kernel, step);
  for (int64_t i = ring.first; i < ring.last; ++i) {
    int64_t place = ring.start + i;
    const __m512i* at = groups + (place < kernel ? place : place - kernel) * ring.size;
#pragma GCC unroll 4
    for (int output = 0; output < kTile; ++output) {
      const int64_t first = TapOf(kernel, step, output) / kGroup;
#pragma GCC unroll 4
      for (int64_t group = 0; group < GroupsOf(kernel, step, output); ++group) {
        __m512i four = _mm512_loadu_si512(weights++);
        asm("" : "+v"(four));  // else GCC 12 loads it for each tile: loads are what takes time
#pragma GCC unroll 4
        for (int tile = 0; tile < kTiles; ++tile) {
          __m512i& sum = sums[tile * kTile + output];
          sum = _mm512_dpbusd_epi32(sum, at[tile * step + first + group], four);
        }
      }
    }
  }
}

// A row of outputs of one vector of channels. Calls put(phase, first, sums) for a few
// neighboring outputs of a phase, the last of which may lie beyond its end.
template <typename Put>
void CorrelateRow(const Groups& layout, const Ring& ring, const __m512i* groups,
                  const __m512i* weights, const Put& put) {
  auto run = [&](auto kernel, auto step) {
    auto tiles = [&](auto count, int64_t phase, int64_t tile) {
      constexpr int kTiles = decltype(count)::value;
      __m512i sums[kTiles * kTile] = {};
      const __m512i* at = groups + phase * layout.of_phase + tile * step;
      Correlate<kTiles>(kernel, step, ring, at, weights, sums);
      put(phase, tile * kTile, sums);
    };
    for (int64_t phase = 0; phase < layout.phases; ++phase) {
      int64_t tile = 0;
      for (; tile + 2 <= layout.tiles; tile += 2) tiles(Count<2>(), phase, tile);
      if (tile < layout.tiles) tiles(Count<1>(), phase, tile);
    }
  };
  // The usual sizes, known to the compiler, keep the groups in registers.
  auto with_step = [&](auto step) {
    switch (layout.columns.kernel) {
      case 3: return run(Count<3>(), step);
      case 5: return run(Count<5>(), step);
      case 7: return run(Count<7>(), step);
      default: return run(layout.columns.kernel, step);
    }
  };
  switch (layout.columns.step()) {
    case 1: return with_step(Count<1>());
    case 2: return with_step(Count<2>());
    default: return with_step(layout.columns.step());
  }
}

}  // namespace qnas
