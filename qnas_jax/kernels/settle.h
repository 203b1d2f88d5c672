// What follows the statistics of a convolution's sums: batch norm, and the grid of the values.
//
// The numbers are XLA's to the last bit, if the bitwidth is an argument of its program: there, too, a
// product and the sum that follows are rounded once.

#pragma once

#include <cfloat>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "grid.h"
#include "native.h"

namespace qnas {

// Of a grid: scale, zero point, inverse of the scale, highest code, lowest and highest real value.
constexpr int64_t kGrid = 6;
// Of a channel: batch norm's factor and offset; of its grid inverse, scale, lowest and highest.
constexpr int64_t kStep = 6;

// NaN if one of them is.
inline float Least(float a, float b) { return std::isnan(a) || a < b ? a : b; }
inline float Greatest(float a, float b) { return std::isnan(a) || a > b ? a : b; }

struct Range {
  float low = std::numeric_limits<float>::infinity(), high = -low;

  void Add(float value) { low = Least(low, value), high = Greatest(high, value); }

  void WriteGrid(int32_t bits, float* grid) const {
    const float q_max = (int32_t(1) << bits) - 1;
    const float alpha = Least(low, 0), beta = Greatest(high, 0);
    const float step = (beta - alpha) / q_max;
    const float scale = step < FLT_MIN ? 1 : step;
    const float zero = std::nearbyint(-alpha / scale);
    const float lowest = scale * (0 - zero), highest = scale * (q_max - zero);
    const float found[kGrid] = {scale, zero, 1 / scale, q_max, lowest, highest};
    std::copy(found, found + kGrid, grid);
  }
};

// A convolution of one node.
struct Settled {
  int64_t channels;
  const float *statistics, *rate;  // [4, channels], [channels]
  const float *scale, *total, *norm_scale, *norm_bias;
  const float* before;  // the grid of its input: scale and zero point
  int32_t bits;
  float low, high;  // the activation's bounds

  // Writes [kStep, channels], the grid, and both as `Codes` takes them.
  void Write(float* step, float* grid, float* norms) const {
    Range range;
    float* offsets = step + channels;
    for (int64_t c = 0; c < channels; ++c) {
      const float unit = scale[c] * before[0], mean = unit * statistics[c];
      const float factor = norm_scale[c] * rate[c];
      const float offset = std::fmaf(-mean, factor, norm_bias[c]);
      step[c] = factor, offsets[c] = offset;
      for (int64_t row = 2; row < 4; ++row) {
        const float y = std::fmaf(unit * statistics[row * channels + c], factor, offset);
        range.Add(Least(Greatest(y, low), high));
      }
    }
    range.WriteGrid(bits, grid);
    const float of_channel[] = {grid[2], grid[0], grid[4], grid[5]};
    for (int64_t i = 0; i < kStep - 2; ++i)
      std::fill_n(step + (2 + i) * channels, channels, of_channel[i]);
    for (int64_t c = 0; c < channels; ++c) {
      const float factor = step[c] * grid[2] * scale[c] * before[0];
      const float offset = std::fmaf(offsets[c], grid[2], grid[1]), shift = total[c] * factor;
      norms[c] = factor;
      norms[channels + c] = std::fmaf(-shift, before[1], offset);
      norms[2 * channels + c] = grid[3];
    }
  }
};

// The sum of two tensors of one node, on a grid of its own.
struct Sum {
  static constexpr int64_t kPiece = 1 << 15;  // bytes that a thread takes at once

  int64_t size;
  const uint8_t *x, *y;
  const float *of_x, *of_y;  // their grids
  int32_t bits;

  ffi::Error Write(ffi::ThreadPool pool, uint8_t* out, float* grid) const {
    const int64_t pieces = CeilDiv(size, kPiece);
    std::vector<Range> ranges(pieces);
    ffi::Error done = Spread(pool, pieces, [&](int64_t piece) {
      const float inf = std::numeric_limits<float>::infinity();
      __m512 low = _mm512_set1_ps(inf), high = _mm512_set1_ps(-inf);
      Each(piece, [&](int64_t, __mmask16 mask, __m512 sum) {
        low = _mm512_mask_min_ps(low, mask, low, sum);
        high = _mm512_mask_max_ps(high, mask, high, sum);
      });
      ranges[piece].Add(_mm512_reduce_min_ps(low));
      ranges[piece].Add(_mm512_reduce_max_ps(high));
    });
    if (done.failure()) return done;
    Range range;
    for (const Range& found : ranges) range.Add(found.low), range.Add(found.high);
    // The instructions lose NaN, which comes from a grid and is then in all sums.
    for (const float* of : {of_x, of_y})
      if (std::isnan(of[0] * of[1])) range.Add(NAN);
    range.WriteGrid(bits, grid);
    const Grid of_sum(grid);
    return Spread(pool, pieces, [&](int64_t piece) {
      Each(piece, [&](int64_t at, __mmask16 mask, __m512 sum) {
        StoreVector(of_sum.Code(sum), mask, out + at);
      });
    });
  }

 private:
  template <typename Body>
  void Each(int64_t piece, const Body& body) const {
    const Grid grid_x(of_x), grid_y(of_y);
    const int64_t last = std::min(size, (piece + 1) * kPiece);
    for (int64_t i = piece * kPiece; i < last; i += kLanes) {
      const __mmask16 mask = MaskOf(last, i);
      body(i, mask, _mm512_add_ps(grid_x.Real(x + i, mask), grid_y.Real(y + i, mask)));
    }
  }
};

}  // namespace qnas
