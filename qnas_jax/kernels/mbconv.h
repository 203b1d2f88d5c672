// A whole INT8 inverted residual: 1x1 convolution, depthwise convolution, 1x1 convolution, and the
// sum with the input.
//
// The values in between are several times as wide as input and output. They never reach memory:
// some rows of the first convolution are kept in a ring, from which the second makes one row at a
// time for the third.

#pragma once

#include "correlate.h"
#include "depthwise.h"
#include "grid.h"
#include "native.h"
#include "pointwise.h"

namespace qnas {

constexpr int64_t kLeastRows = 16;  // of a piece: its first rows need some that others make too

// A sink of the first convolution: one row, its codes as groups.
struct GroupCodes {
  const float* norms;  // [3, channels], `step` numbers apart
  int64_t channels, step;
  const Groups& layout;
  __m512i* out;  // [channels / 16, groups]

  template <int kPixels, int kVectors>
  void Put(const __m512i (&sums)[kPixels][kVectors], int64_t, int64_t first, int64_t pixel,
           int64_t) const {
    static_assert(kPixels % kGroup == 0);
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      const Norm norm(norms, step, channels, first + v * kLanes);
#pragma GCC unroll 2
      for (int r = 0; r < kPixels; r += kGroup) {
        const int64_t group = (pixel + r) / kGroup;
        __m512i four = PackFours(norm.Round(sums[r][v]), norm.Round(sums[r + 1][v]),
                                 norm.Round(sums[r + 2][v]), norm.Round(sums[r + 3][v]));
        out[(first / kLanes + v) * layout.count() + group] =
            _mm512_and_si512(Transpose(four), _mm512_set1_epi32(layout.masks[group]));
      }
    }
  }
};

// What is computed, but for which rows.
struct Mbconv {
  Window w;          // of the channels in between
  int64_t in, out;   // channels of input and output
  int64_t of_node;   // images of a node
  bool adds;         // the input to the output
  const uint8_t* x;  // [images, height, width, in]
  const __m512i *expand, *depthwise, *project;  // weights
  // [nodes, 3, of_norms], from the three convolutions' channels on.
  const float* norms;
  // [nodes, of_grids], from the output's on; if it adds, those of x, y and the sum.
  const float* grids;
  int64_t of_norms, of_grids;
  uint8_t* codes;       // the output, or null: then its noise is asked for
  const float* target;  // [images of a node, out height, out width, out]
  float* noise;         // [images, out height, out]

  int64_t of_row() const { return w.columns.out() * out; }  // values
};

// Computes rows of an image's output.
class Rows {
 public:
  Rows(const Mbconv& m, const Groups& layout, int64_t image)
      : m_(m),
        layout_(layout),
        image_(image),
        norms_(m.norms + image / m.of_node * 3 * m.of_norms),
        pixels_(layout.phases * layout.tiles * kTile),
        shifted_(m.w.vectors() * Shifted()),
        ring_(m.w.rows.kernel * m.w.vectors() * layout.count()),
        wide_(m.w.vectors() * pixels_ * kLanes),
        row_(pixels_ * m.out),
        ordered_(m.of_row()),
        beside_((m.w.columns.size + 2 * Margin()) * m.in) {
    for (int64_t v = 0; v < m.w.vectors(); ++v)
      Shift(m.depthwise + v * m.w.of_vector(), m.w.rows.kernel, m.w.columns.step(),
            shifted_.data() + v * Shifted());
  }

  // Outputs `begin` to `end` of a phase of the rows.
  void Run(int64_t phase, int64_t begin, int64_t end) {
    const int64_t size = m_.w.vectors() * layout_.count();
    auto make = [&](int64_t row, int64_t place) { Expand(row, ring_.data() + place * size); };
    auto use = [&](const Ring& ring) {
      Filter(ring);
      Project();
      Finish(ring.row);
    };
    WalkRows(m_.w.rows, size, phase, begin, end, make, use);
  }

 private:
  // Vectors of weights, of a vector of channels.
  int64_t Shifted() const {
    return m_.w.rows.kernel * ShiftedOf(m_.w.rows.kernel, m_.w.columns.step());
  }
  // Columns beside a row that its groups may touch.
  int64_t Margin() const { return kGroup * m_.w.columns.dilation; }

  void Expand(int64_t row, __m512i* groups) {
    const Axis &rows = m_.w.rows, &columns = m_.w.columns;
    const int64_t bytes = columns.size * m_.in;
    const uint8_t* x = m_.x + (image_ * rows.size + row) * bytes;
    if (std::min(row, rows.size - 1 - row) * columns.size < Margin()) {  // nothing to read there
      std::memcpy(beside_.data() + Margin() * m_.in, x, bytes);
      x = beside_.data() + Margin() * m_.in;
    }
    const GroupCodes sink{norms_, m_.w.channels, m_.of_norms, layout_, groups};
    const int64_t step = columns.dilation * m_.in;
    Panels({x, m_.in, step, kLanes, m_.expand, 0, 0, 0}, m_.w.channels,
           [&](Product p, auto vectors) {
             for (int64_t phase = 0; phase < layout_.phases; ++phase) {
               int64_t first = phase * layout_.of_phase, last = first + layout_.of_phase;
               while (first < last && !layout_.masks[first]) ++first;  // not on the image
               while (first < last && !layout_.masks[last - 1]) --last;
               if (first == last) continue;
               p.x = x + layout_.first[first] * m_.in - kGroup * first * step;
               MultiplyFours<decltype(vectors)::value>(p, kGroup * first, kGroup * last, sink);
             }
           });
  }

  // The depthwise convolution: 16 channels of all pixels, then the next 16.
  void Filter(const Ring& ring) {
    const float* norms = norms_ + m_.w.channels;
    for (int64_t v = 0; v < m_.w.vectors(); ++v) {
      const Norm norm(norms, m_.of_norms, m_.w.channels, v * kLanes);
      uint8_t* out = wide_.data() + v * pixels_ * kLanes;
      CorrelateRow(layout_, ring, ring_.data() + v * layout_.count(),
                   shifted_.data() + v * Shifted(),
                   [&](int64_t phase, int64_t first, const auto& sums) {
                     uint8_t* to = out + (phase * layout_.tiles * kTile + first) * kLanes;
#pragma GCC unroll 2
                     for (size_t i = 0; i < std::size(sums); i += 4, to += 4 * kLanes)
                       _mm512_storeu_si512(
                           to, PackBytes(norm.Round(sums[i]), norm.Round(sums[i + 1]),
                                         norm.Round(sums[i + 2]), norm.Round(sums[i + 3])));
                   });
    }
  }

  void Project() {
    const Codes sink{norms_ + 2 * m_.w.channels, row_.data(), m_.out, m_.of_norms};
    Panels({wide_.data(), m_.w.channels, kLanes, pixels_ * kLanes, m_.project, 0, 0, 0}, m_.out,
           [&](const Product& p, auto vectors) {
             MultiplyFours<decltype(vectors)::value>(p, 0, pixels_, sink);
           });
  }

  void Finish(int64_t row) {
    const int64_t at = (image_ * m_.w.rows.out() + row) * m_.of_row();
    const float* grid = m_.grids + image_ / m_.of_node * m_.of_grids;
    const uint8_t* y = Order();
    uint8_t* out = m_.codes ? m_.codes + at : ordered_.data();
    if (m_.adds)
      Add(Grid(grid), m_.x + at, Grid(grid + 4), y, Grid(grid + 8), out);
    else if (y != out)
      std::memcpy(out, y, m_.of_row());
    if (!m_.codes) AddNoise(Grid(m_.adds ? grid + 8 : grid), out, row);
  }

  // The row's codes in the order of the columns.
  const uint8_t* Order() {
    if (layout_.phases == 1) return row_.data();
    for (int64_t c = 0; c < m_.w.columns.out(); ++c) {
      const int64_t pixel = c % layout_.phases * layout_.tiles * kTile + c / layout_.phases;
      std::memcpy(ordered_.data() + c * m_.out, row_.data() + pixel * m_.out, m_.out);
    }
    return ordered_.data();
  }

  void Add(const Grid& of_x, const uint8_t* x, const Grid& of_y, const uint8_t* y,
           const Grid& of_sum, uint8_t* out) const {
    for (int64_t i = 0; i < m_.of_row(); i += kLanes) {
      const __mmask16 mask = MaskOf(m_.of_row(), i);
      __m512 sum = _mm512_add_ps(of_x.Real(x + i, mask), of_y.Real(y + i, mask));
      StoreVector(of_sum.Code(sum), mask, out + i);
    }
  }

  // The squared distances from the target, summed over the row.
  void AddNoise(const Grid& grid, const uint8_t* codes, int64_t row) const {
    const int64_t rows = m_.w.rows.out();
    const float* target = m_.target + (image_ % m_.of_node * rows + row) * m_.of_row();
    for (int64_t first = 0; first < m_.out; first += kLanes) {
      const __mmask16 mask = MaskOf(m_.out, first);
      __m512 total = _mm512_setzero_ps();
      for (int64_t i = first; i < m_.of_row(); i += m_.out) {
        __m512 real = grid.Real(codes + i, mask);
        __m512 error = _mm512_sub_ps(real, _mm512_maskz_loadu_ps(mask, target + i));
        total = _mm512_fmadd_ps(error, error, total);
      }
      _mm512_mask_storeu_ps(m_.noise + (image_ * rows + row) * m_.out + first, mask, total);
    }
  }

  const Mbconv& m_;
  const Groups& layout_;
  const int64_t image_;
  const float* norms_;             // of the node
  const int64_t pixels_;           // of a row of outputs, each phase padded to whole tiles
  std::vector<__m512i> shifted_;   // weights of the depthwise convolution
  std::vector<__m512i> ring_;      // [kernel, channels / 16, groups], zero beside the image
  std::vector<uint8_t> wide_;      // [channels / 16, pixels, 16], what the third reads
  std::vector<uint8_t> row_;       // [pixels, out]
  std::vector<uint8_t> ordered_;   // [out width, out]
  std::vector<uint8_t> beside_;    // a row of the image with margins
};

// All images, cut into as many pieces as there are threads, or more.
inline ffi::Error Run(ffi::ThreadPool pool, const Mbconv& m, int64_t images) {
  const Groups layout(m.w.columns);
  const int64_t phases = m.w.rows.phases(), rows = m.w.rows.outputs(0);
  const int64_t most = std::max<int64_t>(rows / kLeastRows, 1);
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  const int64_t parts = std::min(CeilDiv(threads, images * phases), most);
  return Spread(pool, images * phases * parts, [&](int64_t piece) {
    const int64_t part = piece % parts, phase = piece / parts % phases;
    const int64_t outputs = m.w.rows.outputs(phase);
    Rows(m, layout, piece / parts / phases)
        .Run(phase, part * outputs / parts, (part + 1) * outputs / parts);
  });
}

}  // namespace qnas
