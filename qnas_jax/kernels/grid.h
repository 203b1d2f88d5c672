// Quantized values as real numbers, and back.

#pragma once

#include "native.h"

namespace qnas {

// The grid of a quantized value: the real number of a code, and the code of a real number.
struct Grid {
  __m512 scale, zero_point, inverse, top, lowest;

  explicit Grid(const float* grid)
      : scale(_mm512_set1_ps(grid[0])),
        zero_point(_mm512_set1_ps(grid[1])),
        inverse(_mm512_set1_ps(grid[2])),
        top(_mm512_set1_ps(grid[3])),
        lowest(_mm512_set1_ps(-grid[1] * grid[0])) {}

  // The bound changes no value: it keeps the compiler from fusing the product into a sum.
  __m512 Real(const uint8_t* codes, __mmask16 mask) const {
    __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, codes));
    __m512 real = _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(code), zero_point), scale);
    return _mm512_max_ps(real, lowest);
  }

  __m128i Code(__m512 real) const {
    const int to_even = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    __m512 code = _mm512_roundscale_ps(_mm512_mul_ps(real, inverse), to_even);
    code = _mm512_min_ps(_mm512_add_ps(code, zero_point), top);
    return _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(_mm512_max_ps(code, _mm512_setzero_ps())));
  }
};

}  // namespace qnas
