// A sink for sums of INT8 convolutions: mean, variance, and lowest and highest of each channel.

#pragma once

#include "native.h"

namespace qnas {

// The sums of 16 channels at some neighboring pixels: few enough for float32 to add them up.
struct Tile {
  __m512i pivot, low, high;  // the first sum, from which distances are taken
  __m512 first, second;      // sums of distances, and of their squares
  int64_t pixels = 0;

  void Add(__m512i sums) {
    if (pixels++ == 0) {
      pivot = low = high = sums;
      first = second = _mm512_setzero_ps();
      return;
    }
    __m512 distance = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, pivot));
    first = _mm512_add_ps(first, distance);
    second = _mm512_fmadd_ps(distance, distance, second);
    low = _mm512_min_epi32(low, sums);
    high = _mm512_max_epi32(high, sums);
  }
};

struct Statistics {
  int64_t nodes, channels, tiles_per_node;
  std::vector<Tile> tiles;  // [nodes, vectors, tiles of a node]

  Statistics(int64_t nodes, int64_t channels, int64_t tiles_per_node)
      : nodes(nodes), channels(channels), tiles_per_node(tiles_per_node),
        tiles(nodes * CeilDiv(channels, kLanes) * tiles_per_node) {}

  Tile* Of(int64_t node, int64_t first) {
    return tiles.data() + (node * CeilDiv(channels, kLanes) + first / kLanes) * tiles_per_node;
  }

  // One vector of channels, of one node.
  struct Column {
    Tile* tiles;

    template <int kPixels>
    void Put(const __m512i (&sums)[kPixels], int64_t, int64_t tile) const {
      Tile found = tiles[tile];
#pragma GCC unroll 8
      for (int i = 0; i < kPixels; ++i) found.Add(sums[i]);
      tiles[tile] = found;
    }
  };

  Column At(int64_t node, int64_t first) { return {Of(node, first)}; }

  template <int kPixels, int kVectors>
  void Put(const __m512i (&sums)[kPixels][kVectors], int64_t node, int64_t first, int64_t,
           int64_t tile) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      Tile& at = Of(node, first + v * kLanes)[tile];
      Tile found = at;
#pragma GCC unroll 8
      for (int r = 0; r < kPixels; ++r) found.Add(sums[r][v]);
      at = found;
    }
  }

  // Writes [nodes, 4, channels]: mean, variance, lowest and highest, each (but the variance) less
  // the channel's center. Those of the next node are `step` farther; null: all are zero.
  ffi::Error Write(ffi::ThreadPool pool, const int32_t* centers, int64_t step, float* out) {
    int64_t vectors = CeilDiv(channels, kLanes);
    return Spread(pool, nodes * vectors, [&](int64_t piece) {
      int64_t node = piece / vectors, first = piece % vectors * kLanes;
      for (int64_t lane = 0; lane < std::min(kLanes, channels - first); ++lane) {
        int64_t channel = first + lane;
        int64_t center = centers ? centers[node * step + channel] : 0;
        WriteChannel(Of(node, first), lane, center, out + 4 * node * channels + channel);
      }
    });
  }

 private:
  template <typename Lane, typename Vector>
  static Lane At(const Vector& vector, int64_t lane) {
    Lane found;
    std::memcpy(&found, reinterpret_cast<const char*>(&vector) + lane * sizeof(Lane), sizeof(Lane));
    return found;
  }

  void WriteChannel(const Tile* of, int64_t lane, int64_t center, float* out) const {
    auto integer = [lane](const auto& v) { return int64_t(At<int32_t>(v, lane)); };
    auto real = [lane](const auto& v) { return double(At<float>(v, lane)); };
    int64_t pixels = 0, low = INT64_MAX, high = INT64_MIN;
    double total = 0, squares = 0;
    for (int64_t i = 0; i < tiles_per_node; ++i) {
      pixels += of[i].pixels;
      total += of[i].pixels * double(integer(of[i].pivot) - center) + real(of[i].first);
      low = std::min(low, integer(of[i].low) - center);
      high = std::max(high, integer(of[i].high) - center);
    }
    const double mean = total / pixels;
    for (int64_t i = 0; i < tiles_per_node; ++i) {
      // sum((pivot + d - mean)^2), d being the distances
      double shift = integer(of[i].pivot) - center - mean;
      squares += real(of[i].second) + 2 * shift * real(of[i].first) + of[i].pixels * shift * shift;
    }
    out[0] = mean;
    out[channels] = std::max(squares / pixels, 0.0);
    out[2 * channels] = low;
    out[3 * channels] = high;
  }
};

}  // namespace qnas
