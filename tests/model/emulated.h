// Instructions that this processor may lack, as plain C++, for the builds of decode.cpp that use them.
// Included before it (test_other_processors.py): EMULATED is 1 for AVX-VNNI, 2 for AVX-512 VNNI, 3 for AMX.

#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace emulated {

// Adds to each of 32 bits the products of its TIMES pairs of values of the types A and B.
template <class A, class B, class V> V dot(V sum, V a, V b) {
  constexpr int LANES = sizeof(V) / 4, TIMES = 4 / sizeof(A);
  uint32_t sums[LANES];
  A from_a[LANES * TIMES];
  B from_b[LANES * TIMES];
  std::memcpy(sums, &sum, sizeof sum), std::memcpy(from_a, &a, sizeof a), std::memcpy(from_b, &b, sizeof b);
  for (int i = 0; i < LANES * TIMES; ++i) sums[i / TIMES] += static_cast<uint32_t>(int32_t{from_a[i]} * int32_t{from_b[i]});
  std::memcpy(&sum, sums, sizeof sum);
  return sum;
}

} // namespace emulated

#if EMULATED == 1
#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32(sum, a, b) emulated::dot<uint8_t, int8_t>(sum, a, b)
#define _mm256_dpwssd_avx_epi32(sum, a, b) emulated::dot<int16_t, int16_t>(sum, a, b)
#else
#define __AVX512F__ 1
#define __AVX512VNNI__ 1
#define _mm512_dpbusd_epi32(sum, a, b) emulated::dot<uint8_t, int8_t>(sum, a, b)
#define _mm512_dpwssd_epi32(sum, a, b) emulated::dot<int16_t, int16_t>(sum, a, b)

namespace emulated {

inline __m512 shuffle(__m512 a, __m512 b, int chosen) { // quarters: two of a, then two of b
  float from[2][16], out[16];
  std::memcpy(from[0], &a, sizeof a), std::memcpy(from[1], &b, sizeof b);
  for (int i = 0; i < 4; ++i) std::memcpy(out + 4 * i, from[i / 2] + 4 * (chosen >> 2 * i & 3), 16);
  std::memcpy(&a, out, sizeof a);
  return a;
}

} // namespace emulated

#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4(a, b, chosen) emulated::shuffle(a, b, chosen)
#endif

#if EMULATED == 3
namespace emulated {

inline thread_local uint8_t tiles[8][16][64];

inline void load(int tile, const void* from, size_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(tiles[tile][r], static_cast<const char*>(from) + r * stride, 64);
}
inline void store(int tile, void* to, size_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(to) + r * stride, tiles[tile][r], 64);
}
inline void multiply(int sum, int a, int b) { // signed by unsigned bytes
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 16; ++c) {
      uint32_t total;
      std::memcpy(&total, tiles[sum][r] + 4 * c, 4);
      for (int k = 0; k < 64; ++k)
        total += static_cast<uint32_t>(int32_t{static_cast<int8_t>(tiles[a][r][k])} * int32_t{tiles[b][k / 4][4 * c + k % 4]});
      std::memcpy(tiles[sum][r] + 4 * c, &total, 4);
    }
}

} // namespace emulated

#define __AMX_INT8__ 1
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#define _tile_zero(tile) std::memset(emulated::tiles[tile], 0, sizeof emulated::tiles[tile])
#define _tile_loadd(tile, from, stride) emulated::load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated::store(tile, to, stride)
#define _tile_dpbsud(sum, a, b) emulated::multiply(sum, a, b)
#define _tile_loadconfig(shapes) static_cast<void>(shapes)
#define _tile_release() static_cast<void>(0)
#endif
