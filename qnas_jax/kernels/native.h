// What the INT8 convolutions of native.cc share: buffers, threads, and where sums go.
//
// Activations are uint8, weights int8, sums int32: exact. A convolution computes the sums of some
// pixels x 16 channels and gives them to a sink: `Codes` turns them into codes, `Statistics` adds
// them up for batch norm and ranges.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace qnas {

namespace ffi = xla::ffi;

constexpr int64_t kLanes = 16;  // channels of a vector of sums
constexpr int64_t kGroup = 4;   // products that one instruction adds to a sum

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A number that the compiler knows, also inside a function that is called with it.
template <int kCount>
using Count = std::integral_constant<int, kCount>;

// The channels of a vector, fewer in the last one.
inline __mmask16 MaskOf(int64_t channels, int64_t first) {
  return first + kLanes <= channels ? 0xffff : (1u << (channels - first)) - 1;
}

using Bytes = ffi::Buffer<ffi::U8>;
using Weights = ffi::Buffer<ffi::S8>;
using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;

inline const __m512i* Vectors(const Weights& weights) {
  return reinterpret_cast<const __m512i*>(weights.typed_data());
}

// Whether each node (the first dimensions of x) has its own rows of numbers, or all have the same.
template <typename Numbers>
bool FitNodes(const Bytes& x, const Numbers& numbers) {
  auto dims = x.dimensions(), of_nodes = numbers.dimensions();
  bool own = of_nodes.size() + 2 == dims.size(), same = own;
  for (size_t i = 0; i + 4 < dims.size() && (own || same); ++i) {
    own = own && of_nodes[i] == dims[i];
    same = same && of_nodes[i] == 1;
  }
  return own || same;
}

inline ffi::Error Unfit() {
  return ffi::Error::InvalidArgument("shapes do not fit each other");
}

inline ffi::Error LacksMemory() {
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "an int8 convolution lacks memory");
}

// The function, which names a lack of memory: of an exception XLA would say "unknown", as if another
// process were gone.
template <typename... Arguments>
auto Guarded(ffi::Error (*run)(Arguments...)) {
  return [run](Arguments... arguments) -> ffi::Error {
    try {
      return run(arguments...);
    } catch (const std::bad_alloc&) {
      return LacksMemory();
    }
  };
}

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
  return LacksMemory();
}

// The numbers of four vectors, each 16 integers, as bytes: four of each vector side by side.
// Integers beyond a byte become the nearest byte.
inline __m512i PackFours(__m512i a, __m512i b, __m512i c, __m512i d) {
  return _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
}

// The same, one vector after another.
inline __m512i PackBytes(__m512i a, __m512i b, __m512i c, __m512i d) {
  const auto order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, PackFours(a, b, c, d));
}

// Turns four times four neighboring bytes, the result of `PackFours`, around: the four vectors'
// bytes of each channel side by side.
inline __m512i Transpose(__m512i fours) {
  const auto order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_shuffle_epi8(fours, _mm512_broadcast_i32x4(order));
}

inline void StoreVector(__m128i bytes, __mmask16 mask, uint8_t* out) {
  if (mask == 0xffff)  // the usual case, and several times as fast
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
  else
    _mm_mask_storeu_epi8(out, mask, bytes);
}

// Turns the sums of 16 channels into the codes clip(round(sum * factor + offset), 0, top), ties to
// even.
struct Norm {
  __m512 factor, offset, top;

  // For the channels from `first` on; norms are [3, channels], `step` numbers apart.
  Norm(const float* norms, int64_t step, int64_t channels, int64_t first) {
    __mmask16 mask = MaskOf(channels, first);
    factor = _mm512_maskz_loadu_ps(mask, norms + first);
    offset = _mm512_maskz_loadu_ps(mask, norms + step + first);
    top = _mm512_maskz_loadu_ps(mask, norms + 2 * step + first);
  }

  // Codes that are not above the top, but may be negative.
  __m512i Round(__m512i sums) const {
    __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), factor, offset);
    return _mm512_cvtps_epi32(_mm512_min_ps(y, top));
  }
};

// A sink: codes, [pixels, channels].
struct Codes {
  const float* norms;  // [nodes, 3, step]: of each node, `channels` numbers thrice
  uint8_t* out;
  int64_t channels, step;

  // One vector of channels, of one node.
  struct Column {
    Norm norm;
    __mmask16 mask;
    uint8_t* out;
    int64_t channels;

    // Puts a few neighboring pixels.
    template <int kPixels>
    void Put(const __m512i (&sums)[kPixels], int64_t pixel, int64_t) const {
      uint8_t* to = out + pixel * channels;
      if constexpr (kPixels % 4 == 0) {
#pragma GCC unroll 2
        for (int i = 0; i < kPixels; i += 4) {
          __m512i four = PackBytes(norm.Round(sums[i]), norm.Round(sums[i + 1]),
                                   norm.Round(sums[i + 2]), norm.Round(sums[i + 3]));
          StoreVector(_mm512_castsi512_si128(four), mask, to + i * channels);
          StoreVector(_mm512_extracti32x4_epi32(four, 1), mask, to + (i + 1) * channels);
          StoreVector(_mm512_extracti32x4_epi32(four, 2), mask, to + (i + 2) * channels);
          StoreVector(_mm512_extracti32x4_epi32(four, 3), mask, to + (i + 3) * channels);
        }
      } else {
        for (int i = 0; i < kPixels; ++i) {
          __m512i code = norm.Round(sums[i]);
          __m512i four = PackBytes(code, code, code, code);
          StoreVector(_mm512_castsi512_si128(four), mask, to + i * channels);
        }
      }
    }
  };

  Column At(int64_t node, int64_t first) const {
    const float* own = norms + 3 * node * step;
    return {Norm(own, step, channels, first), MaskOf(channels, first), out + first, channels};
  }

  // Puts neighboring pixels x neighboring vectors.
  template <int kPixels, int kVectors>
  void Put(const __m512i (&sums)[kPixels][kVectors], int64_t node, int64_t first, int64_t pixel,
           int64_t) const {
    const float* own = norms + 3 * node * step;
    const __mmask16 mask = MaskOf(channels, first + (kVectors - 1) * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kPixels; ++r) {
      __m512i codes[3] = {};
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v)
        codes[v] = Norm(own, step, channels, first + v * kLanes).Round(sums[r][v]);
      __m512i four = PackBytes(codes[0], codes[1], codes[2], codes[2]);
      uint8_t* to = out + (pixel + r) * channels + first;
      const __mmask16 whole = 0xffff;
      StoreVector(_mm512_castsi512_si128(four), kVectors == 1 ? mask : whole, to);
      if (kVectors > 1)
        StoreVector(_mm512_extracti32x4_epi32(four, 1), kVectors == 2 ? mask : whole, to + 16);
      if (kVectors > 2)
        StoreVector(_mm512_extracti32x4_epi32(four, 2), mask, to + 32);
    }
  }
};

}  // namespace qnas
