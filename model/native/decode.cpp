// One decode step of the prior on CPUs, called from model/native_decoder.py.
//
// Computes what model/transformer.py's `step` computes: both queries of every live sequence through
// all layers, then sampling. What matrix products and attention multiply is rounded to 8 bits, with a
// scale for each row, output column, query, key and value; shares of attention to 15 bits. Sums of
// products are of integers, so they are exact. Everything else is fp32.
//
// The same bits on every processor, with any number of threads, and for a row at any load: integer
// sums have no order, and every sum of floats is of VEC lanes in one fixed order. Floats are only
// added, multiplied, divided and rooted, as IEEE 754 defines, and never contracted (build.py).
//
// Compiled once for each instruction set (build.py). They differ only in how they multiply integers.
// Knows no labels, no slots and no Python objects: flat arrays in, flat arrays out.

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

constexpr int VEC = 16; // values of a vector, in as many registers as that takes
constexpr int QUAD = 4; // 8-bit values that a lane takes in at once
#if defined(__AVX512F__)
constexpr int LANES = 16; // values of 32 bits in a register
constexpr int COLUMNS = 2 * VEC; // output columns of one block of registers
constexpr int ROWS_TOGETHER = 8; // rows of one
constexpr int BLOCKS_TOGETHER = 4;
#else
#if defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int COLUMNS = VEC;
constexpr int ROWS_TOGETHER = 4;
constexpr int BLOCKS_TOGETHER = 1;
#endif

// ---- memory, threads ------------------------------------------------------------------------

constexpr size_t HUGE_PAGE = size_t{2} << 20;

template <class T> class Buffer { // zeroed, aligned to a cache line; large ones to huge pages, and in them
 public:
  explicit Buffer(size_t count = 0) : data_(count ? make(count) : nullptr, &std::free) {}
  T* get() const { return data_.get(); }
  T* at(size_t i) const { return data_.get() + i; }

 private:
  static T* make(size_t count) {
    const size_t least = count * sizeof(T), unit = least >= HUGE_PAGE / 2 ? HUGE_PAGE : 64;
    const size_t bytes = (least + unit - 1) / unit * unit;
    void* memory = std::aligned_alloc(unit, bytes);
    if (!memory) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (unit == HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE); // where it is refused, pages are small
#endif
    std::memset(memory, 0, bytes);
    return static_cast<T*>(memory);
  }
  std::unique_ptr<T, decltype(&std::free)> data_;
};

// Asks for what is read soon, so that memory answers while something else is computed. After AHEAD
// bytes, the processor has noticed itself that they are read in order.
constexpr size_t AHEAD = 4096, LINE = 64;
inline void fetch(const void* from, size_t bytes) {
  for (size_t at = 0; at < std::min(bytes, AHEAD); at += LINE) __builtin_prefetch(static_cast<const char*>(from) + at, 0, 2);
}

// Asks for what lies so many bytes after what is read now. Measured with AVX2 only (docs/performance.md).
#if defined(__AVX512F__)
constexpr size_t AHEAD_IN_ORDER = 0;
#else
constexpr size_t AHEAD_IN_ORDER = 2048;
#endif
inline void ahead(const uint8_t* now, size_t bytes) {
  if (bytes) __builtin_prefetch(now + bytes, 0, 3);
}

inline void relax() { // tells the processor that this thread spins
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits a little by spinning, then lets others run: a step has dozens of barriers of microseconds.
template <class Done> void wait_for(Done done) {
  for (int spins = 0; !done(); ++spins) {
    if (spins < 2000) relax();
    else std::this_thread::yield();
  }
}

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait() {
    const int generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_acq_rel);
    } else {
      wait_for([&] { return generation_.load(std::memory_order_acquire) != generation; });
    }
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0}, generation_{0};
};

// ---- arithmetic -----------------------------------------------------------------------------

template <class To, class From> inline To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
template <class V> inline V read(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V> inline void write(void* p, const V& v) { std::memcpy(p, &v, sizeof v); }

// VEC values of 32 bits. Compilers keep vectors wider than a register in memory, hence the parts.
constexpr int PARTS = VEC / LANES;
template <class T> struct Vector {
  typedef T Part __attribute__((vector_size(sizeof(T) * LANES)));
  Part part[PARTS];
};
using floats = Vector<float>;
using ints = Vector<int32_t>;
using words = Vector<uint32_t>;
typedef int16_t short_part __attribute__((vector_size(2 * LANES)));
typedef uint16_t unsigned_pairs_part __attribute__((vector_size(4 * LANES)));
typedef int8_t byte_part __attribute__((vector_size(LANES)));
typedef uint64_t long_part __attribute__((vector_size(4 * LANES)));

// Written out, and never a copy of the whole: either would keep vectors in memory as well.
template <class T, class Of, size_t... I> inline Vector<T> parts(Of of, std::index_sequence<I...>) { return {{of(I)...}}; }
template <class T, class Of> inline Vector<T> parts(Of of) { return parts<T>(of, std::make_index_sequence<PARTS>{}); }
// each(0), each(1) ... each(TIMES - 1), each with a constant: arrays that it indexes stay in registers.
template <int TIMES> inline void times(auto each) {
  [&]<int... I>(std::integer_sequence<int, I...>) { (each(std::integral_constant<int, I>{}), ...); }(std::make_integer_sequence<int, TIMES>{});
}
#define PART_BY_PART(op)                                                                                              \
  template <class T> inline Vector<T> operator op(const Vector<T>& a, const Vector<T>& b) {                           \
    return parts<T>([&](int i) { return a.part[i] op b.part[i]; });                                                   \
  }                                                                                                                   \
  template <class T> inline Vector<T> operator op(const Vector<T>& a, std::type_identity_t<T> b) {                    \
    return parts<T>([&](int i) { return a.part[i] op b; });                                                           \
  }
PART_BY_PART(+)
PART_BY_PART(-)
PART_BY_PART(*)
PART_BY_PART(/)
PART_BY_PART(&)
PART_BY_PART(|)
PART_BY_PART(<<)
PART_BY_PART(>>)
#undef PART_BY_PART
template <class T> inline Vector<T>& operator+=(Vector<T>& a, const Vector<T>& b) { return a = a + b; }

template <class T> inline Vector<T> all(T value) {
  return parts<T>([&](int) { return value - typename Vector<T>::Part{}; });
}
template <class To, class T> inline Vector<To> convert(const Vector<T>& v) {
  return parts<To>([&](int i) { return __builtin_convertvector(v.part[i], typename Vector<To>::Part); });
}
// To fewer bits a value.
inline void narrow(int16_t* p, const ints& v) {
  for (int i = 0; i < PARTS; ++i) write(p + i * LANES, __builtin_convertvector(v.part[i], short_part));
}
inline void narrow(int8_t* p, const ints& v) {
#if defined(__AVX2__) && !defined(__AVX512F__) // compilers take lanes one by one here
  const __m256i shorts = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)v.part[0], (__m256i)v.part[1]), 0xD8);
  write(p, _mm_packs_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1)));
#else
  for (int i = 0; i < PARTS; ++i) write(p + i * LANES, __builtin_convertvector(v.part[i], byte_part));
#endif
}
template <class T> inline Vector<T> cast(const auto& v) { // the same bits
  return parts<T>([&](int i) { return (typename Vector<T>::Part)v.part[i]; });
}
template <class T> inline Vector<T> load(const T* p) {
  return parts<T>([&](int i) { return read<typename Vector<T>::Part>(p + i * LANES); });
}
inline ints load_bytes(const int8_t* p) {
  return parts<int32_t>([&](int i) { return __builtin_convertvector(read<byte_part>(p + i * LANES), ints::Part); });
}
inline words load_quads(const uint8_t* p) {
  return parts<uint32_t>([&](int i) { return read<words::Part>(p + i * LANES * QUAD); });
}
inline void store(float* p, const floats& v) {
  for (int i = 0; i < PARTS; ++i) write(p + i * LANES, v.part[i]);
}
inline floats select(const ints& which, const floats& a, const floats& b) {
  return parts<float>([&](int i) { return which.part[i] ? a.part[i] : b.part[i]; });
}
inline floats largest(const floats& a, const floats& b) {
  return parts<float>([&](int i) { return a.part[i] > b.part[i] ? a.part[i] : b.part[i]; });
}
inline floats neighbours(const floats& v) { // lanes 1, 0, 3, 2 ...
  return parts<float>([&](int i) {
    const auto pairs = (long_part)v.part[i];
    return (floats::Part)(pairs >> 32 | pairs << 32);
  });
}
inline floats halves(const floats& v) { // lane i plus lane i + 8, and lane i + 8 plus lane i
#if defined(__AVX512F__)
  return {{v.part[0] + (floats::Part)_mm512_shuffle_f32x4((__m512)v.part[0], (__m512)v.part[0], 0x4E)}};
#else
  return parts<float>([&](int i) { return v.part[i] + v.part[i ^ PARTS / 2]; });
#endif
}
inline floats magnitude(const floats& v) { return cast<float>(cast<uint32_t>(v) & 0x7FFFFFFFu); }
inline ints inside(int i, int first, int count) { // which of i .. i + VEC - 1 are in [first, count)
  constexpr int32_t PLACES[VEC] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const ints place = load(PLACES) + i;
  return parts<int32_t>([&](int n) { return (place.part[n] >= first) & (place.part[n] < count); });
}

// Lanes joined by halves: lane i with lane i + 8, then with i + 4, i + 2, i + 1.
template <class T> inline T joined(const Vector<T>& v, auto join) {
  typedef T Quarter __attribute__((vector_size(4 * sizeof(T))));
  static_assert(VEC == 16);
  Quarter quarters[4];
  std::memcpy(quarters, &v, sizeof v);
  const Quarter last = join(join(quarters[0], quarters[2]), join(quarters[1], quarters[3]));
  return join(join(last[0], last[2]), join(last[1], last[3]));
}
inline float sum(const floats& v) { return joined(v, [](auto a, auto b) { return a + b; }); }
inline int32_t sum(const ints& v) { return joined(v, [](auto a, auto b) { return a + b; }); }
inline float top(const floats& v) { return joined(v, [](auto a, auto b) { return a < b ? b : a; }); }

// The nearest integers of values below 2^22, halves to the even one.
inline ints nearest(const floats& v) {
  constexpr float shift = 12582912.f; // 1.5 * 2^23: above it, floats are integers
  return cast<int32_t>(v + shift) - bits<int32_t>(shift);
}

// exp(x) for x <= 0: 2^n times a polynomial of degree 6, relative error about 2e-7.
inline floats exponential(const floats& x) {
  const floats t = largest(x, all(-87.f)) * 1.44269504f;
  const ints n = convert<int32_t>(t - 0.5f); // the nearest integer, for t <= 0
  const floats f = t - convert<float>(n);
  constexpr float terms[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                             2.4022651e-1f, 6.9314718e-1f, 1.f};
  floats value = all(terms[0]);
  for (int i = 1; i < 7; ++i) value = value * f + terms[i];
  return value * cast<float>((n + 127) << 23);
}

// ---- products of 8 and 16 bits --------------------------------------------------------------

// sum + a.low * b.low + a.high * b.high, of the pairs of 16 bits in each lane
inline words dot_pairs(const words& sum, const words& a, const words& b) {
  return parts<uint32_t>([&](int i) -> words::Part {
#if defined(__AVX512VNNI__)
    return (words::Part)_mm512_dpwssd_epi32((__m512i)sum.part[i], (__m512i)a.part[i], (__m512i)b.part[i]);
#elif defined(__AVXVNNI__)
    return (words::Part)_mm256_dpwssd_avx_epi32((__m256i)sum.part[i], (__m256i)a.part[i], (__m256i)b.part[i]);
#elif defined(__AVX2__)
    return sum.part[i] + (words::Part)_mm256_madd_epi16((__m256i)a.part[i], (__m256i)b.part[i]);
#elif defined(__SSE2__)
    return sum.part[i] + (words::Part)_mm_madd_epi16((__m128i)a.part[i], (__m128i)b.part[i]);
#else
    const auto low = [](words::Part v) { return (ints::Part)(v << 16) >> 16; };
    const auto high = [](words::Part v) { return (ints::Part)v >> 16; };
    return sum.part[i] + (words::Part)(low(a.part[i]) * low(b.part[i])) + (words::Part)(high(a.part[i]) * high(b.part[i]));
#endif
  });
}

// Of the four bytes of each lane two, as pairs of 16 bits.
inline words even_bytes(const words& v) { return v & 0x00FF00FFu; }
inline words odd_bytes(const words& v) {
  return parts<uint32_t>([&](int i) { return (words::Part)((unsigned_pairs_part)v.part[i] >> 8); });
}

// Four signed 8-bit values that multiply four of every lane, and the product. Lanes are stored plus ZERO, for
// processors that want them unsigned. A product is too large by ZERO times the sum of the values. AVX2 adds the
// products of values 0 and 1 in 16 bits, and those of 2 and 3, so the magnitudes of two are 128 at most together.
// The second form adds two products. There AVX2 adds four in 16 bits: 0 and 1 of both quads, and 2 and 3.
#if defined(__ARM_FEATURE_DOTPROD)
constexpr int ZERO = 0;
#else
constexpr int ZERO = 128;
#endif
#if defined(__AVX2__) || defined(__ARM_FEATURE_DOTPROD)
struct Quad { uint32_t values; };
inline Quad quad(uint32_t values) { return {values}; }
inline ints dot(const ints& sum, const words& lanes, Quad with) {
  const words values = all(with.values);
  return parts<int32_t>([&](int i) -> ints::Part {
#if defined(__AVX512VNNI__)
    return (ints::Part)_mm512_dpbusd_epi32((__m512i)sum.part[i], (__m512i)lanes.part[i], (__m512i)values.part[i]);
#elif defined(__AVXVNNI__)
    return (ints::Part)_mm256_dpbusd_avx_epi32((__m256i)sum.part[i], (__m256i)lanes.part[i], (__m256i)values.part[i]);
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)lanes.part[i], (__m256i)values.part[i]);
    return sum.part[i] + (ints::Part)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    return (ints::Part)vdotq_s32((int32x4_t)sum.part[i], (int8x16_t)lanes.part[i], (int8x16_t)values.part[i]);
#endif
  });
}
#else
struct Quad { uint32_t even, odd; }; // widened to 16 bits, as this processor multiplies those
inline Quad quad(uint32_t values) {
  const auto at = [=](int i) { return static_cast<uint32_t>(static_cast<uint16_t>(static_cast<int8_t>(values >> 8 * i))); };
  return {at(0) | at(2) << 16, at(1) | at(3) << 16};
}
inline ints dot(const ints& sum, const words& lanes, Quad with) {
  return cast<int32_t>(dot_pairs(dot_pairs(cast<uint32_t>(sum), even_bytes(lanes), all(with.even)), odd_bytes(lanes), all(with.odd)));
}
#endif
inline ints dot(const ints& sum, const words& lanes, Quad with, const words& more_lanes, Quad more_with) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
  const words values = all(with.values), more = all(more_with.values);
  return parts<int32_t>([&](int i) -> ints::Part {
    const __m256i fours = _mm256_add_epi16(_mm256_maddubs_epi16((__m256i)lanes.part[i], (__m256i)values.part[i]),
                                           _mm256_maddubs_epi16((__m256i)more_lanes.part[i], (__m256i)more.part[i]));
    return sum.part[i] + (ints::Part)_mm256_madd_epi16(fours, _mm256_set1_epi16(1));
  });
#else
  return dot(dot(sum, lanes, with), more_lanes, more_with);
#endif
}

// How values were rounded to 8 bits: value = scale * rounded. `shift` is what a product with them is too large by.
struct Rounding {
  float scale = 0.f;
  int32_t shift = 0;
};

inline float steps_of(float most, int limit) { return most > 0.f ? static_cast<float>(limit) / most : 0.f; }

// Round [width] values, a multiple of VEC, to -127 .. 127, so that 127 is the largest of sizes_of(magnitudes). What
// is not finite makes the scale so.
inline Rounding round_by(const float* x, int width, int8_t* out, auto sizes_of) {
  floats most{}, poison{};
  for (int i = 0; i < width; i += VEC) {
    const floats v = load(x + i);
    most = largest(most, sizes_of(magnitude(v))), poison += v * 0.f;
  }
  const float maximum = top(most), inverse = steps_of(maximum, 127);
  ints total{};
  for (int i = 0; i < width; i += VEC) {
    const ints rounded = nearest(load(x + i) * inverse);
    total += rounded;
    narrow(out + i, rounded);
  }
  return {maximum / 127.f + sum(poison), ZERO * sum(total)};
}

// Lanes: weights, keys and values.
inline Rounding round(const float* x, int width, int8_t* out) {
  return round_by(x, width, out, [](const floats& sizes) { return sizes; });
}

// A query: two neighbours are at most 128 together, 127 and twice a half.
inline Rounding round_query(const float* x, int width, int8_t* out) {
  return round_by(x, width, out, [](const floats& sizes) { return sizes + neighbours(sizes); });
}

constexpr int INNER = 64; // inner dimensions of matrix products are padded to a multiple, with zeros
constexpr int padded(int inner) { return (inner + INNER - 1) / INNER * INNER; }
// Of each INNER values, value v * VEC + l is byte v of quad l.
static_assert(INNER == VEC * QUAD);
constexpr int quad_of(int k) { return k / INNER * VEC + k % VEC; }
constexpr int byte_of(int k) { return k % INNER / VEC; }
constexpr int APART = VEC / 2; // quads l and l + APART are added in 16 bits

// A row of activations: the four values that are added in 16 bits are at most 128 together, 126 and four times a half.
inline Rounding round_row(const float* x, int width, uint32_t* quads) {
  const auto at = [&](int i) { return i < width ? load(x + i) : floats{}; };
  floats most{}, poison{};
  for (int i = 0; i < width; i += 2 * VEC) {
    const floats a = at(i), b = at(i + VEC);
    most = largest(most, halves(magnitude(a) + magnitude(b))), poison += a * 0.f + b * 0.f;
  }
  const float maximum = top(most), inverse = steps_of(maximum, 126);
  ints total{};
  for (int i = 0; i < width; i += INNER) {
    words quad{};
    for (int v = 0; v < QUAD; ++v) {
      const ints rounded = nearest(at(i + v * VEC) * inverse);
      total += rounded;
      quad = quad | (cast<uint32_t>(rounded) & 0xFFu) << static_cast<uint32_t>(8 * v);
    }
    for (int part = 0; part < PARTS; ++part) write(quads + i / QUAD + part * LANES, quad.part[part]);
  }
  return {maximum / 126.f + sum(poison), ZERO * sum(total)};
}

// ---- matrix products ------------------------------------------------------------------------

constexpr int TILE = 16;  // rows of a matrix tile (AMX); a row has 64 bytes

// Rows of 8-bit activations, each with its rounding.
struct Rows {
  Buffer<Quad> quads; // [rows][padded(width) / QUAD]
  Buffer<Rounding> rounding;

  Rows() = default;
  Rows(int rows, int width) // and a group of tiles past the last row, see block_product
      : quads(static_cast<size_t>(rows + 2 * TILE) * padded(width) / QUAD), rounding(rows) {}

  // `rounded` has room for [padded(width) / QUAD].
  void set(int row, int width, const float* values, uint32_t* rounded) {
    rounding.get()[row] = round_row(values, width, rounded);
    Quad* __restrict to = quads.at(static_cast<size_t>(row) * padded(width) / QUAD);
    const uint32_t* __restrict from = rounded;
    for (int k = 0; k < padded(width) / QUAD; ++k) to[k] = quad(from[k]);
  }
};

// A linear layer's weights [out, in] as [out / COLUMNS][padded / QUAD][COLUMNS][QUAD], plus ZERO: one load
// gives four inner elements of VEC output columns, to be multiplied with one quad of a row.
struct Linear {
  int in = 0, out = 0;
  uint8_t* packed = nullptr;
  Buffer<float> scale; // [out]
  const float* bias = nullptr;

  static size_t size(int in, int out) { return static_cast<size_t>(padded(in)) * out; }
  Linear() = default;
  // Packs into `free`, zeroed memory, which then begins after it.
  Linear(const float* weights, const float* bias_, int in_, int out_, uint8_t*& free)
      : in(in_), out(out_), packed(std::exchange(free, free + size(in_, out_))), scale(out_), bias(bias_) {
    std::vector<int8_t> rounded(in);
    for (int n = 0; n < out; ++n) {
      scale.get()[n] = round(weights + static_cast<size_t>(n) * in, in, rounded.data()).scale;
      for (int k = 0; k < in; ++k) {
        const size_t block = static_cast<size_t>(n / COLUMNS) * (padded(in) / QUAD) + quad_of(k);
        packed[(block * COLUMNS + n % COLUMNS) * QUAD + byte_of(k)] = static_cast<uint8_t>(rounded[k] + ZERO);
      }
    }
  }
};

#if defined(__AMX_INT8__)
struct alignas(64) TileShapes { // of all eight tiles
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE};
};

// TILES times 16 rows times COLUMNS columns. Reads whole tiles: rows past the last one must be memory.
template <int TILES, class Emit>
inline void block_product(const Quad* x, int in, const uint8_t* weights, int rows, Emit emit) {
  const int inner = padded(in), stride = COLUMNS * QUAD;
  alignas(64) int32_t sums[2 * TILES][TILE][VEC];
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (TILES == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int k = 0; k < inner; k += INNER) {
    const uint8_t* from = weights + static_cast<size_t>(k) * COLUMNS;
    _tile_loadd(6, from, stride);
    _tile_loadd(7, from + VEC * QUAD, stride);
    _tile_loadd(4, x + k / QUAD, inner);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    if constexpr (TILES == 2) {
      _tile_loadd(5, x + (static_cast<size_t>(TILE) * inner + k) / QUAD, inner);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  if constexpr (TILES == 2) {
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
  }
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < 2; ++c) emit(r, c * VEC, load(sums[r / TILE * 2 + c][r % TILE]));
}

template <class Emit>
int some_rows(const Quad* x, int in, const uint8_t* weights, int left, Emit emit) {
  const int rows = std::min(left, 2 * TILE);
  if (rows > TILE) block_product<2>(x, in, weights, rows, emit);
  else block_product<1>(x, in, weights, rows, emit);
  return rows;
}
void begin_products() {
  static const TileShapes shapes;
  _tile_loadconfig(&shapes);
}
void end_products() { _tile_release(); }

#else

// ROWS rows times COLUMNS columns.
template <int ROWS, class Emit>
inline int block_product(const Quad* x, int in, const uint8_t* weights, Emit emit) {
  constexpr int VECTORS = COLUMNS / VEC;
  const int quads = padded(in) / QUAD;
  ints sums[ROWS][VECTORS];
  times<ROWS>([&](auto r) { times<VECTORS>([&](auto c) { sums[r][c] = all<int32_t>(0); }); });
  for (int k = 0; k < quads; k += 2 * APART, x += 2 * APART, weights += 2 * APART * COLUMNS * QUAD)
    for (int l = 0; l < APART; ++l) {
      words columns[2][VECTORS];
      times<2>([&](auto i) {
        const uint8_t* from = weights + (l + i * APART) * COLUMNS * QUAD;
        ahead(from, 2 * AHEAD_IN_ORDER);
        times<VECTORS>([&](auto c) { columns[i][c] = load_quads(from + c * VEC * QUAD); });
      });
      times<ROWS>([&](auto r) {
        const Quad* quad = x + static_cast<size_t>(r) * quads + l;
        times<VECTORS>([&](auto c) { sums[r][c] = dot(sums[r][c], columns[0][c], quad[0], columns[1][c], quad[APART]); });
      });
    }
  times<ROWS>([&](auto r) { times<VECTORS>([&](auto c) { emit(r, c * VEC, sums[r][c]); }); });
  return ROWS;
}

template <class Emit>
int some_rows(const Quad* x, int in, const uint8_t* weights, int left, Emit emit) {
  if (left >= ROWS_TOGETHER) return block_product<ROWS_TOGETHER>(x, in, weights, emit);
  if (left >= 4) return block_product<4>(x, in, weights, emit);
  if (left >= 2) return block_product<2>(x, in, weights, emit);
  return block_product<1>(x, in, weights, emit);
}
void begin_products() {}
void end_products() {}

#endif

// `rows` rows from `first` on times this thread's share of the columns; emit(row, column, values).
template <class Emit>
void product(const Linear& layer, const Rows& x, int first, int rows, int thread, int threads, Emit emit) {
  const int blocks = layer.out / COLUMNS, inner = padded(layer.in);
  for (int block = blocks * thread / threads; block < blocks * (thread + 1) / threads; ++block) {
    const uint8_t* weights = layer.packed + static_cast<size_t>(block) * inner * COLUMNS;
    for (int row = 0; row < rows;) {
      const Rounding* rounding = x.rounding.at(first + row);
      row += some_rows(x.quads.at(static_cast<size_t>(first + row) * inner / QUAD), layer.in, weights, rows - row, [&](int r, int c, ints total) {
        const int column = block * COLUMNS + c;
        const floats scale = load(layer.scale.at(column)) * rounding[r].scale;
        emit(row + r, column, convert<float>(total - rounding[r].shift) * scale);
      });
    }
  }
}

void layer_norm(const float* x, const float* scale, const float* shift, int width, float* out) {
  floats total{};
  for (int i = 0; i < width; i += VEC) total += load(x + i);
  const float mean = sum(total) / width;
  floats squares{};
  for (int i = 0; i < width; i += VEC) {
    const floats d = load(x + i) - mean;
    squares += d * d;
  }
  const float inverse = 1.f / std::sqrt(sum(squares) / width + 1e-5f);
  for (int i = 0; i < width; i += VEC)
    store(out + i, (load(x + i) - mean) * inverse * load(scale + i) + load(shift + i));
}

// ---- the model ------------------------------------------------------------------------------

constexpr int MAX_HEAD_WIDTH = 256;
constexpr int SORTED_TOGETHER = 128; // ranks

struct Block {
  const float *norm1_scale, *norm1_shift, *norm2_scale, *norm2_shift;
  Linear qkv, out, up, down;
};

} // namespace

// What Python passes; all pointers stay valid for as long as the decoder lives.
struct PatharModel {
  int32_t layers, heads, width, hidden, codebook_size, steps, sequences, threads;
  const float* const* blocks; // of each layer: norm1 scale, shift, qkv, out, norm2 scale, shift,
                              // up weights, bias, down weights, bias
  const float *norm_scale, *norm_shift, *structure_head, *appearance_head;
  const float *label, *structure, *appearance;          // embeddings [., width]
  const float *structure_position, *appearance_position; // [steps, width], stream vector included
  const float *cosine, *sine; // [4, steps, head_width / 2]: structure and appearance query, keys
};

// One step's rows. A sequence is a row of the cache; an image has one sequence, or two with guidance.
struct PatharBatch {
  int32_t sequences, images;
  const int32_t *sequence, *position, *structure, *appearance, *label; // [sequences]
  const int32_t *label_row, *null_row; // [images] and [images, 2], places in the arrays above
  const float *cfg_scale, *temperature, *top_p; // [images, 2], by stream
  const int32_t* top_k;                         // [images, 2], 0 is off
  const float* uniform;                         // [images, 2], in (0, 1)
  const int32_t* given;                         // [images, 2], tokens that stand; below 0: draw
  int32_t* ids;                                 // [images, 2], the tokens given or drawn
  float* log_probability;                       // [images, 2], of these, by their label alone
};

namespace {

class Decoder {
 public:
  explicit Decoder(const PatharModel& model);
  ~Decoder();
  void step(const PatharBatch& batch);
  const float* logits(int stream) const { return logits_.at(static_cast<size_t>(stream) * m_.sequences * m_.codebook_size); }

 private:
  void serve(int thread);
  void compute(int thread);
  void embed(int sequence);
  void attend(int layer, int row, int head, int thread, int next);
  void take(int thread, int image, int stream);
  int32_t draw(int thread, int image, int stream, const float* label);
  void set(int row, int width, const float* values, int thread) {
    rows_.set(row, width, values, rounded_.at(static_cast<size_t>(thread) * padded(m_.hidden) / QUAD));
  }
  size_t place(int layer, int sequence, int head, int stream) const {
    return ((static_cast<size_t>(layer) * m_.sequences + sequence) * m_.heads + head) * 2 + stream;
  }

  const PatharModel m_;
  const int head_width_, padded_steps_;
  const int share_limit_; // so that a sum of shares times values fits 32 bits
  Buffer<uint8_t> weights_; // of all layers, one after the other
  std::vector<Block> blocks_;
  Linear heads_[2];
  Buffer<uint8_t> keys_;  // at a place [padded_steps / VEC][head_width / QUAD][VEC][QUAD], plus ZERO
  Buffer<uint8_t> values_; // at a place [padded_steps / QUAD][head_width][QUAD], plus OFFSET, see BYTE_OF
  Buffer<float> key_scales_, value_scales_; // at a place [padded_steps]
  Buffer<float> x_, qkv_, mixed_, hidden_, logits_, scores_, weight_, ranked_, normed_;
  Buffer<int16_t> shares_;
  Buffer<uint32_t> rounded_;
  Rows rows_; // what the next product multiplies
  Buffer<uint64_t> order_;
  const PatharBatch* batch_ = nullptr;
  Barrier barrier_;
  std::atomic<uint32_t> round_{0};
  std::atomic<bool> leaving_{false};
  std::vector<std::thread> workers_;
};

Decoder::Decoder(const PatharModel& model)
    : m_(model), head_width_(model.width / model.heads),
      padded_steps_((model.steps + VEC - 1) / VEC * VEC),
      share_limit_(std::min(32767, INT32_MAX / (127 * 2 * padded_steps_))), barrier_(model.threads) {
  const int w = m_.width, rows = 2 * m_.sequences;
  const size_t threads = m_.threads;
  const size_t layer_size = Linear::size(w, 4 * w) + Linear::size(w, m_.hidden) + Linear::size(m_.hidden, w);
  weights_ = Buffer<uint8_t>(m_.layers * layer_size + Linear::size(w, 2 * m_.codebook_size));
  uint8_t* free = weights_.get();
  for (int layer = 0; layer < m_.layers; ++layer) {
    const float* const* p = m_.blocks + layer * 10;
    blocks_.push_back({p[0], p[1], p[4], p[5], Linear(p[2], nullptr, w, 3 * w, free), Linear(p[3], nullptr, w, w, free),
                       Linear(p[6], p[7], w, m_.hidden, free), Linear(p[8], p[9], m_.hidden, w, free)});
  }
  heads_[0] = Linear(m_.structure_head, nullptr, w, m_.codebook_size, free);
  heads_[1] = Linear(m_.appearance_head, nullptr, w, m_.codebook_size, free);
  const size_t places = static_cast<size_t>(m_.layers) * rows * m_.heads * padded_steps_;
  keys_ = Buffer<uint8_t>(places * head_width_), values_ = Buffer<uint8_t>(places * head_width_);
  key_scales_ = Buffer<float>(places), value_scales_ = Buffer<float>(places);
  x_ = Buffer<float>(static_cast<size_t>(rows) * w), qkv_ = Buffer<float>(static_cast<size_t>(rows) * 3 * w);
  mixed_ = Buffer<float>(static_cast<size_t>(rows) * w), hidden_ = Buffer<float>(static_cast<size_t>(rows) * m_.hidden);
  rows_ = Rows(rows, m_.hidden);
  logits_ = Buffer<float>(static_cast<size_t>(rows) * m_.codebook_size);
  scores_ = Buffer<float>(threads * 3 * padded_steps_), shares_ = Buffer<int16_t>(threads * 3 * padded_steps_);
  normed_ = Buffer<float>(threads * w), rounded_ = Buffer<uint32_t>(threads * padded(m_.hidden) / QUAD);
  weight_ = Buffer<float>(threads * m_.codebook_size);
  ranked_ = Buffer<float>(threads * m_.codebook_size);
  order_ = Buffer<uint64_t>(threads * m_.codebook_size);
  for (int thread = 1; thread < m_.threads; ++thread) workers_.emplace_back([this, thread] { serve(thread); });
}

Decoder::~Decoder() {
  leaving_ = true;
  round_.fetch_add(1), round_.notify_all();
  for (auto& worker : workers_) worker.join();
}

// A worker sleeps between steps unless the next comes at once.
void Decoder::serve(int thread) {
  for (uint32_t seen = 0;; ++seen) {
    for (int spins = 0; spins < 5000 && round_.load(std::memory_order_acquire) == seen; ++spins) relax();
    round_.wait(seen, std::memory_order_acquire);
    if (leaving_) return;
    compute(thread);
  }
}

void Decoder::step(const PatharBatch& batch) {
  batch_ = &batch;
  round_.fetch_add(1, std::memory_order_acq_rel), round_.notify_all();
  compute(0);
}

void Decoder::compute(int thread) {
  const PatharBatch& b = *batch_;
  const int n = m_.threads, w = m_.width, rows = 2 * b.sequences;
  const auto row = [](const Buffer<float>& of, int r, int width) { return of.at(static_cast<size_t>(r) * width); };
  const auto norm = [&](const float* scale, const float* shift, auto place) {
    float* normed = row(normed_, thread, w);
    for (int r = thread; r < rows; r += n) {
      layer_norm(row(x_, r, w), scale, shift, w, normed);
      set(place(r), w, normed, thread);
    }
    barrier_.wait();
  };
  const auto same = [](int r) { return r; };
  begin_products();
  for (int i = thread; i < b.sequences; i += n) embed(i);
  barrier_.wait();
  for (int layer = 0; layer < m_.layers; ++layer) {
    const Block& block = blocks_[layer];
    norm(block.norm1_scale, block.norm1_shift, same);
    product(block.qkv, rows_, 0, rows, thread, n, [&](int r, int c, floats v) { store(row(qkv_, r, 3 * w) + c, v); });
    barrier_.wait();
    for (int task = thread; task < b.sequences * m_.heads; task += n) attend(layer, task / m_.heads, task % m_.heads, thread, task + n);
    barrier_.wait();
    for (int r = thread; r < rows; r += n) set(r, w, row(mixed_, r, w), thread);
    barrier_.wait();
    product(block.out, rows_, 0, rows, thread, n, [&](int r, int c, floats v) {
      float* to = row(x_, r, w) + c;
      store(to, load(to) + v);
    });
    barrier_.wait();
    norm(block.norm2_scale, block.norm2_shift, same);
    product(block.up, rows_, 0, rows, thread, n, [&](int r, int c, floats v) {
      v = largest(v + load(block.up.bias + c), floats{});
      store(row(hidden_, r, m_.hidden) + c, v * v);
    });
    barrier_.wait();
    for (int r = thread; r < rows; r += n) set(r, m_.hidden, row(hidden_, r, m_.hidden), thread);
    barrier_.wait();
    product(block.down, rows_, 0, rows, thread, n, [&](int r, int c, floats v) {
      float* to = row(x_, r, w) + c;
      store(to, load(to) + (v + load(block.down.bias + c)));
    });
    barrier_.wait();
  }
  norm(m_.norm_scale, m_.norm_shift, [&](int r) { return r % 2 * b.sequences + r / 2; }); // structure rows first
  for (int stream = 0; stream < 2; ++stream) {
    float* logits = const_cast<float*>(this->logits(stream));
    product(heads_[stream], rows_, stream * b.sequences, b.sequences, thread, n,
            [&](int r, int c, floats v) { store(logits + static_cast<size_t>(r) * m_.codebook_size + c, v); });
  }
  end_products();
  barrier_.wait();
  for (int task = thread; task < 2 * b.images; task += n) take(thread, task / 2, task % 2);
  barrier_.wait();
}

// The inputs of a sequence's two positions, as in Prior.embed_pair.
void Decoder::embed(int i) {
  const PatharBatch& b = *batch_;
  const size_t w = m_.width, p = b.position[i];
  const float* structure = p ? m_.structure + b.structure[i] * w : m_.label + b.label[i] * w;
  const float* appearance = m_.appearance + b.appearance[i] * w;
  float* x = x_.at(2 * i * w);
  for (size_t c = 0; c < w; c += VEC) {
    store(x + c, load(structure + c) + load(m_.structure_position + p * w + c));
    store(x + w + c, load(appearance + c) + load(m_.appearance_position + p * w + c));
  }
}

// Turn by the tables of one kind (0, 1: queries; 2, 3: keys).
void rotate(const float* from, const float* cosine, const float* sine, int width, float* __restrict out) {
  for (int i = 0, half = width / 2; i < half; ++i) {
    const float a = from[i], b = from[i + half];
    out[i] = a * cosine[i] - b * sine[i];
    out[i + half] = a * sine[i] + b * cosine[i];
  }
}

// One query of a head.
struct Query {
  Quad quads[MAX_HEAD_WIDTH / QUAD];
  Rounding rounding;
};

// Scores of QUERIES queries against BLOCKS blocks of VEC keys.
template <int QUERIES, int BLOCKS>
void score_blocks(const Query* queries, const uint8_t* keys, const float* scales, int width, float* const* out, int first) {
  ints sums[QUERIES][BLOCKS];
  times<QUERIES>([&](auto q) { times<BLOCKS>([&](auto b) { sums[q][b] = all<int32_t>(0); }); });
  for (int d = 0; d < width; d += QUAD)
    times<BLOCKS>([&](auto b) {
      ahead(keys + (static_cast<size_t>(b) * width + d) * VEC, AHEAD_IN_ORDER);
      const words key = load_quads(keys + (static_cast<size_t>(b) * width + d) * VEC);
      times<QUERIES>([&](auto q) { sums[q][b] = dot(sums[q][b], key, queries[q].quads[d / QUAD]); });
    });
  times<QUERIES>([&](auto q) {
    times<BLOCKS>([&](auto b) {
      const floats scale = load(scales + (first + b) * VEC) * queries[q].rounding.scale;
      store(out[q] + (first + b) * VEC, convert<float>(sums[q][b] - queries[q].rounding.shift) * scale);
    });
  });
}

template <int QUERIES>
void score(const Query* queries, const uint8_t* keys, const float* scales, int blocks, int width, float* const* out) {
  int block = 0;
  const auto at = [&] { return keys + static_cast<size_t>(block) * width * VEC; };
  for (; block + BLOCKS_TOGETHER <= blocks; block += BLOCKS_TOGETHER) score_blocks<QUERIES, BLOCKS_TOGETHER>(queries, at(), scales, width, out, block);
  for (; block < blocks; ++block) score_blocks<QUERIES, 1>(queries, at(), scales, width, out, block);
}

floats largest(const float* scores, int first, int count, floats found) {
  for (int i = 0; i < count; i += VEC) found = select(inside(i, first, count), largest(found, load(scores + i)), found);
  return found;
}

// Scores become exp(scores - maximum) times the scale of the position's value, zero outside [first, count). Adds
// the exponentials to `total`; returns the largest that is left.
floats weigh(float* scores, const float* scales, int first, int count, floats maximum, floats& total, floats found) {
  for (int i = 0; i < count; i += VEC) {
    const ints valid = inside(i, first, count);
    const floats weight = select(valid, exponential(load(scores + i) - maximum), floats{});
    const floats scaled = select(valid, weight * load(scales + i), floats{});
    total += weight, found = largest(found, scaled);
    store(scores + i, scaled);
  }
  return found;
}

int32_t to_shares(const float* weights, int count, float inverse, int16_t* shares) { // their sum
  ints total{};
  for (int i = 0; i < count; i += VEC) {
    const ints share = nearest(load(weights + i) * inverse);
    total += share;
    narrow(shares + i, share);
  }
  return sum(total);
}

constexpr uint32_t OFFSET = 128;            // of values, which then widen by a mask and a shift
constexpr int BYTE_OF[QUAD] = {0, 2, 1, 3}; // in a lane, of four positions: pairs of them are even or odd bytes

// Put a position's [width] values into their bytes of lanes [width].
void put(uint8_t* lanes, int byte, const int8_t* values, int width) {
  for (int k = 0; k < width; k += VEC) {
    const words value = cast<uint32_t>(load_bytes(values + k)) + OFFSET;
    const words others = load_quads(lanes + k * QUAD) & ~(0xFFu << 8 * byte);
    const words lane = others + (value << static_cast<uint32_t>(8 * byte));
    for (int i = 0; i < PARTS; ++i) write(lanes + (k + i * LANES) * QUAD, lane.part[i]);
  }
}

// Sums of values, by their shares: VECTORS vectors of QUERIES queries. They are too large by OFFSET times the sum
// of shares, and may wrap around until that is taken away.
template <int QUERIES, int VECTORS>
inline void mix(const int16_t* const* shares, const uint8_t* values, int count, int width, int from, words (&sums)[QUERIES][VECTORS]) {
  values += static_cast<size_t>(from) * QUAD;
  for (int at = 0; at < count; at += QUAD, values += static_cast<size_t>(width) * QUAD) {
    if (from == 0)
      for (int k = 0; k < width * QUAD; k += LINE) ahead(values + k, AHEAD_IN_ORDER);
    times<VECTORS>([&](auto v) {
      const words value = load_quads(values + v * VEC * QUAD), even = even_bytes(value), odd = odd_bytes(value);
      times<QUERIES>([&](auto q) {
        sums[q][v] = dot_pairs(sums[q][v], even, all(read<uint32_t>(shares[q] + at)));
        sums[q][v] = dot_pairs(sums[q][v], odd, all(read<uint32_t>(shares[q] + at + 2)));
      });
    });
  }
}

// The mixed values of both queries for VECTORS vectors of a head, from dimension `from` on.
template <int VECTORS>
void mix_both(const int16_t* const* shares, const uint32_t* shift, const uint8_t* structure, const uint8_t* appearance, int count,
              int width, int from, const float* scale, float* to_structure, float* to_appearance) {
  words sums[2][VECTORS], of_appearance[1][VECTORS];
  times<VECTORS>([&](auto v) { sums[0][v] = all(0 - shift[0]), sums[1][v] = all(0 - shift[1]), of_appearance[0][v] = all(0 - shift[2]); });
  mix<2, VECTORS>(shares, structure, count, width, from, sums);
  mix<1, VECTORS>(shares + 2, appearance, count, width, from, of_appearance);
  times<VECTORS>([&](auto v) {
    store(to_structure + from + v * VEC, convert<float>(cast<int32_t>(sums[0][v])) * scale[0]);
    store(to_appearance + from + v * VEC, convert<float>(cast<int32_t>(sums[1][v] + of_appearance[0][v])) * scale[1]);
  });
}

// Both queries of one row and head. The structure query is given structure keys and values alone. `next`
// is this thread's next task, whose keys are fetched meanwhile.
void Decoder::attend(int layer, int i, int head, int thread, int next) {
  const PatharBatch& b = *batch_;
  const int d = head_width_, p = b.position[i], sequence = b.sequence[i], count = p + 1;
  const int blocks = p / VEC + 1;
  const float scale = 1.f / std::sqrt(static_cast<float>(d));
  Query queries[2];
  const uint8_t *keys[2], *values[2];
  const float *key_scales[2], *value_scales[2];
  for (int stream = 0; stream < 2; ++stream) {
    const size_t first = place(layer, sequence, head, stream) * padded_steps_;
    const float* from = qkv_.at(static_cast<size_t>(2 * i + stream) * 3 * m_.width + head * d);
    const auto table = [&](const float* t, int kind) { return t + (static_cast<size_t>(kind) * m_.steps + p) * (d / 2); };
    alignas(64) float turned[MAX_HEAD_WIDTH];
    alignas(64) int8_t rounded[MAX_HEAD_WIDTH];
    Query& query = queries[stream];
    rotate(from, table(m_.cosine, stream), table(m_.sine, stream), d, turned);
    query.rounding = round_query(turned, d, rounded);
    query.rounding.scale *= scale;
    for (int k = 0; k < d; k += QUAD) query.quads[k / QUAD] = quad(read<uint32_t>(rounded + k));
    rotate(from + m_.width, table(m_.cosine, 2 + stream), table(m_.sine, 2 + stream), d, turned);
    key_scales_.at(first)[p] = round(turned, d, rounded).scale;
    uint8_t* key = keys_.at(first * d + static_cast<size_t>(p / VEC) * d * VEC + p % VEC * QUAD);
    for (int k = 0; k < d; k += QUAD) write(key + k * VEC, read<uint32_t>(rounded + k) ^ (ZERO ? 0x80808080u : 0u));
    value_scales_.at(first)[p] = round(from + 2 * m_.width, d, rounded).scale;
    put(values_.at(first * d + static_cast<size_t>(p / QUAD) * d * QUAD), BYTE_OF[p % QUAD], rounded, d);
    keys[stream] = keys_.at(first * d), values[stream] = values_.at(first * d);
    key_scales[stream] = key_scales_.at(first), value_scales[stream] = value_scales_.at(first);
  }
  const bool far = b.sequences > 2; // the keys and values of a single image lie in caches
  if (far)
    for (const uint8_t* of_stream : values) fetch(of_stream, static_cast<size_t>(count) * d);
  float* s = scores_.at(static_cast<size_t>(thread) * 3 * padded_steps_);
  int16_t* w = shares_.at(static_cast<size_t>(thread) * 3 * padded_steps_);
  float* const scores[] = {s, s + padded_steps_, s + 2 * padded_steps_};
  int16_t* const shares[] = {w, w + padded_steps_, w + 2 * padded_steps_};
  score<2>(queries, keys[0], key_scales[0], blocks, d, scores);
  score<1>(queries + 1, keys[1], key_scales[1], blocks, d, scores + 2);
  if (far && next < b.sequences * m_.heads)
    for (int stream = 0; stream < 2; ++stream) {
      const int p = b.position[next / m_.heads];
      const size_t first = place(layer, b.sequence[next / m_.heads], next % m_.heads, stream) * padded_steps_ * d;
      fetch(keys_.at(first), static_cast<size_t>(p / VEC + 1) * VEC * d);
      // And where its own key and value go.
      fetch(keys_.at(first + static_cast<size_t>(p / VEC) * VEC * d), static_cast<size_t>(VEC) * d);
      fetch(values_.at(first + static_cast<size_t>(p / QUAD) * QUAD * d), static_cast<size_t>(QUAD) * d);
    }
  const floats none = all(-INFINITY);
  const floats top_s = all(top(largest(scores[0], 0, count, none)));
  const floats top_a = all(top(largest(scores[2], 1, count, largest(scores[1], 0, count, none))));
  floats total[2] = {};
  float most[2];
  most[0] = top(weigh(scores[0], value_scales[0], 0, count, top_s, total[0], floats{}));
  const floats of_structure = weigh(scores[1], value_scales[0], 0, count, top_a, total[1], floats{});
  most[1] = top(weigh(scores[2], value_scales[1], 1, count, top_a, total[1], of_structure));
  float inverse[2];
  for (int q = 0; q < 2; ++q) inverse[q] = most[q] / (static_cast<float>(share_limit_) * sum(total[q]));
  uint32_t shift[3];
  for (int q = 0; q < 3; ++q) shift[q] = OFFSET * static_cast<uint32_t>(to_shares(scores[q], count, steps_of(most[q > 0], share_limit_), shares[q]));
  float* to = mixed_.at(static_cast<size_t>(2 * i) * m_.width + head * d);
  int k = 0;
  for (; k + BLOCKS_TOGETHER * VEC <= d; k += BLOCKS_TOGETHER * VEC)
    mix_both<BLOCKS_TOGETHER>(shares, shift, values[0], values[1], count, d, k, inverse, to, to + m_.width);
  for (; k < d; k += VEC) mix_both<1>(shares, shift, values[0], values[1], count, d, k, inverse, to, to + m_.width);
}

// A key that sorts by value, largest first, then by id, lowest first.
inline uint64_t sort_key(float value, uint32_t id) {
  uint32_t bits;
  value += 0.f; // -0 equals 0
  std::memcpy(&bits, &value, sizeof bits);
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~bits) << 32 | id;
}

// log softmax(logits)[token]. The logarithm is taken in double, so libraries of other versions give the
// same float.
float log_probability(const float* logits, int size, int token) {
  floats most = all(-INFINITY), total{};
  for (int i = 0; i < size; i += VEC) most = largest(most, load(logits + i));
  const float maximum = top(most);
  for (int i = 0; i < size; i += VEC) total += exponential(load(logits + i) - maximum);
  return logits[token] - maximum - static_cast<float>(std::log(static_cast<double>(sum(total))));
}

// One token, given or drawn, and its probability. The begin token, which is given, has none.
void Decoder::take(int thread, int image, int stream) {
  const PatharBatch& b = *batch_;
  const int size = m_.codebook_size, place = 2 * image + stream;
  const float* label = logits(stream) + static_cast<size_t>(b.label_row[image]) * size;
  const int32_t token = b.given[place] < 0 ? draw(thread, image, stream, label) : b.given[place];
  b.ids[place] = token;
  b.log_probability[place] = token < size ? log_probability(label, size, token) : 0.f;
}

// Guidance and sampling of one token, as in model/sampling.py.
int32_t Decoder::draw(int thread, int image, int stream, const float* label) {
  const PatharBatch& b = *batch_;
  const int size = m_.codebook_size, place = 2 * image + stream;
  const float* null = logits(stream) + static_cast<size_t>(b.null_row[place]) * size;
  uint64_t* order = order_.at(static_cast<size_t>(thread) * size);
  float* weight = weight_.at(static_cast<size_t>(thread) * size);
  const float scale = b.cfg_scale[place], temperature = b.temperature[place];
  for (int id = 0; id < size; ++id) {
    weight[id] = null[id] + scale * (label[id] - null[id]);
    order[id] = sort_key(weight[id], id);
  }
  const auto id_at = [&](int rank) { return static_cast<uint32_t>(order[rank]); };
  if (temperature == 0.f) return static_cast<int32_t>(static_cast<uint32_t>(*std::min_element(order, order + size)));
  const int kept = b.top_k[place] ? std::min(b.top_k[place], size) : size;
  int sorted = 0; // ranks that are in order; later ones are put in order as they are reached
  const auto sort_until = [&](int end) {
    if (end < size) std::nth_element(order + sorted, order + end - 1, order + size);
    std::sort(order + sorted, order + end);
    sorted = end;
  };
  sort_until(kept < size ? kept : std::min(SORTED_TOGETHER, size));
  const float most = weight[id_at(0)];
  floats total{};
  for (int id = 0; id < size; id += VEC) {
    const floats share = exponential((load(weight + id) - most) / temperature);
    store(weight + id, share), total += share;
  }
  float weight_kept = sum(total);
  if (kept < size) {
    weight_kept = 0.f;
    for (int rank = 0; rank < kept; ++rank) weight_kept += weight[id_at(rank)];
  }
  // Go along the ranks until their weight reaches top-p, or the target if top-p is off.
  const float top_p = b.top_p[place], uniform = b.uniform[place];
  float* cumulative = ranked_.at(static_cast<size_t>(thread) * size);
  int last = 0;
  for (float reached = 0.f;; ++last) {
    if (last == sorted) sort_until(std::min(sorted + SORTED_TOGETHER, size));
    cumulative[last] = reached += weight[id_at(last)];
    if (last + 1 == kept || (top_p < 1.f ? reached >= top_p * weight_kept : reached > uniform * weight_kept)) break;
  }
  if (top_p >= 1.f) return static_cast<int32_t>(id_at(last));
  const float target = uniform * cumulative[last];
  return static_cast<int32_t>(id_at(static_cast<int>(std::upper_bound(cumulative, cumulative + last, target) - cumulative)));
}

} // namespace

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

EXPORTED Decoder* pathar_create(const PatharModel* model) { return new Decoder(*model); }
EXPORTED void pathar_destroy(Decoder* decoder) { delete decoder; }
EXPORTED void pathar_step(Decoder* decoder, const PatharBatch* batch) { decoder->step(*batch); }
EXPORTED const float* pathar_logits(const Decoder* decoder, int32_t stream) { return decoder->logits(stream); }

// Whether this processor has what this file was compiled for, and the system lets it be used.
EXPORTED int32_t pathar_supported() {
#if defined(__AMX_INT8__)
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18; // of arch_prctl
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
         !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
#elif defined(__AVX512VNNI__)
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
#elif defined(__AVXVNNI__)
  return __builtin_cpu_supports("avxvnni");
#elif defined(__AVX2__)
  return __builtin_cpu_supports("avx2");
#elif defined(__ARM_FEATURE_DOTPROD) && defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return 1;
#endif
}

} // extern "C"
