// One decode step of the prior on CPUs, called from model/native_decoder.py.
//
// Computes what model/transformer.py's `step` computes: both queries of every live sequence through
// all layers, then sampling. Matrices and caches are bf16, sums and everything else fp32.
//
// Every output element is one sum in one fixed order: along the inner dimension in a matrix
// product, along a sequence's own positions in attention. Neither the number of rows, nor their places,
// nor the number of threads changes it, so a row has the same bits at any load with no padding.
//
// Compiled once for each instruction set (pyproject.toml). Vectors are the compiler's own, of the
// width that the instruction set has; AVX-512 BF16 alone multiplies pairs of bf16 in one
// instruction, elsewhere they are widened. Knows no labels, no slots and no Python objects: flat
// arrays in, flat arrays out.

#if defined(__x86_64__)
#include <immintrin.h>
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
#include <vector>

namespace {

using bf16 = uint16_t;
#if defined(__AVX512BF16__)
constexpr int VEC = 16; // floats in a vector
#elif defined(__AVX2__)
constexpr int VEC = 8;
#else
constexpr int VEC = 4;
#endif
constexpr int COLUMNS = 2 * VEC;               // output columns of one register block
constexpr int ROWS_TOGETHER = VEC == 16 ? 8 : 4; // rows of one; AVX2 has half the registers
constexpr int BLOCKS_TOGETHER = VEC == 16 ? 4 : 2;

// ---- memory, threads ------------------------------------------------------------------------

template <class T> class Buffer { // zeroed, aligned to a cache line
 public:
  explicit Buffer(size_t count = 0) : data_(count ? make(count) : nullptr, &std::free) {}
  T* get() const { return data_.get(); }
  T* at(size_t i) const { return data_.get() + i; }

 private:
  static T* make(size_t count) {
    size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, bytes);
    if (!memory) throw std::bad_alloc();
    std::memset(memory, 0, bytes);
    return static_cast<T*>(memory);
  }
  std::unique_ptr<T, decltype(&std::free)> data_;
};

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

typedef float floats __attribute__((vector_size(4 * VEC)));
typedef int32_t ints __attribute__((vector_size(4 * VEC)));
typedef uint32_t words __attribute__((vector_size(4 * VEC)));
typedef uint16_t halves __attribute__((vector_size(2 * VEC)));

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

inline floats all(float value) { return value - floats{}; }
inline floats load(const float* p) { return read<floats>(p); }
inline void store(float* p, floats v) { std::memcpy(p, &v, sizeof v); }
inline floats largest(floats a, floats b) { return a > b ? a : b; }

inline float sum(floats v) {
  for (int width = VEC / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  return v[0];
}
inline float top(floats v) {
  float found = v[0];
  for (int i = 1; i < VEC; ++i) found = std::max(found, v[i]);
  return found;
}

inline bf16 to_bf16(float value) { // round to nearest even
  const uint32_t b = bits<uint32_t>(value);
  return static_cast<bf16>((b + 0x7FFF + (b >> 16 & 1)) >> 16);
}
inline void store_bf16(bf16* p, floats v) {
#if defined(__AVX512BF16__)
  const auto rounded = _mm512_cvtneps_pbh((__m512)v);
#else
  const words b = bits<words>(v);
  const halves rounded = __builtin_convertvector((b + 0x7FFF + (b >> 16 & 1)) >> 16, halves);
#endif
  std::memcpy(p, &rounded, sizeof rounded);
}
inline floats widen(const bf16* p) { return bits<floats>(__builtin_convertvector(read<halves>(p), words) << 16); }

// VEC pairs of bf16 side by side, and one pair for all of them.
inline words load_pairs(const bf16* p) { return read<words>(p); }
inline words broadcast_pair(const bf16* p) { return read<uint32_t>(p) - words{}; }

// sum + the products of both members of each pair
inline floats dot(floats sum, words pairs, words with) {
#if defined(__AVX512BF16__)
  return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pairs, (__m512bh)with);
#else
  sum += bits<floats>(pairs << 16) * bits<floats>(with << 16);
  return sum + bits<floats>(pairs & 0xFFFF0000u) * bits<floats>(with & 0xFFFF0000u);
#endif
}

// exp(x) for x <= 0: 2^n times a polynomial of degree 6, relative error about 2e-7.
inline floats exponential(floats x) {
  const floats t = largest(x, all(-87.f)) * 1.44269504f;
  const ints n = __builtin_convertvector(t - 0.5f, ints); // the nearest integer, for t <= 0
  const floats f = t - __builtin_convertvector(n, floats);
  constexpr float terms[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                             2.4022651e-1f, 6.9314718e-1f, 1.f};
  floats value = all(terms[0]);
  for (int i = 1; i < 7; ++i) value = value * f + terms[i];
  return value * bits<floats>((n + 127) << 23);
}

// ---- matrix products ------------------------------------------------------------------------

// A linear layer's weights [out, in] as [out / COLUMNS][in / 2][COLUMNS][2] bf16: one load gives two inner
// elements of VEC output columns, to be multiplied with one pair of a row.
struct Linear {
  int in = 0, out = 0;
  Buffer<bf16> packed;
  const float* bias = nullptr;

  Linear() = default;
  Linear(const float* weights, const float* bias_, int in_, int out_)
      : in(in_), out(out_), packed(static_cast<size_t>(in_) * out_), bias(bias_) {
    for (int n = 0; n < out; ++n)
      for (int k = 0; k < in; ++k) {
        const size_t block = static_cast<size_t>(n / COLUMNS) * (in / 2) + k / 2;
        packed.get()[(block * COLUMNS + n % COLUMNS) * 2 + k % 2] =
            to_bf16(weights[static_cast<size_t>(n) * in + k]);
      }
  }
};

// ROWS rows times COLUMNS columns; each sum runs over the inner dimension in order.
template <int ROWS, class Emit>
inline void block_product(const bf16* x, int in, const bf16* weights, Emit emit) {
  floats low[ROWS], high[ROWS];
  for (int r = 0; r < ROWS; ++r) low[r] = high[r] = floats{};
  for (int k = 0; k < in; k += 2, weights += 2 * COLUMNS) {
    const words a = load_pairs(weights), b = load_pairs(weights + COLUMNS);
    for (int r = 0; r < ROWS; ++r) {
      const words pair = broadcast_pair(x + static_cast<size_t>(r) * in + k);
      low[r] = dot(low[r], a, pair);
      high[r] = dot(high[r], b, pair);
    }
  }
  for (int r = 0; r < ROWS; ++r) emit(r, low[r], high[r]);
}

// Rows [rows, in] times this thread's share of the columns; emit(row, column, low, high).
template <class Emit>
void product(const Linear& layer, const bf16* x, int rows, int thread, int threads, Emit emit) {
  const int blocks = layer.out / COLUMNS;
  for (int block = blocks * thread / threads; block < blocks * (thread + 1) / threads; ++block) {
    const bf16* weights = layer.packed.at(static_cast<size_t>(block) * layer.in * COLUMNS);
    for (int row = 0; row < rows;) {
      const bf16* from = x + static_cast<size_t>(row) * layer.in;
      auto put = [&](int r, floats a, floats b) { emit(row + r, block * COLUMNS, a, b); };
      if (rows - row >= ROWS_TOGETHER) block_product<ROWS_TOGETHER>(from, layer.in, weights, put), row += ROWS_TOGETHER;
      else if (rows - row >= 4) block_product<4>(from, layer.in, weights, put), row += 4;
      else if (rows - row >= 2) block_product<2>(from, layer.in, weights, put), row += 2;
      else block_product<1>(from, layer.in, weights, put), row += 1;
    }
  }
}

void layer_norm(const float* x, const float* scale, const float* shift, int width, bf16* out) {
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
    store_bf16(out + i, (load(x + i) - mean) * inverse * load(scale + i) + load(shift + i));
}

// ---- the model ------------------------------------------------------------------------------

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
  const int32_t *label_row, *null_row; // [images], places in the arrays above
  const float *cfg_scale, *temperature, *top_p; // [images]
  const int32_t* top_k;                         // [images], 0 is off
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
  void attend(int layer, int row, int head);
  void take(int thread, int image, int stream);
  int32_t draw(int thread, int image, int stream, const float* label);
  bf16* keys(int layer, int sequence, int head, int stream) const { return cache(keys_, layer, sequence, head, stream); }
  bf16* values(int layer, int sequence, int head, int stream) const { return cache(values_, layer, sequence, head, stream); }
  bf16* cache(const Buffer<bf16>& of, int layer, int sequence, int head, int stream) const {
    const size_t place = ((static_cast<size_t>(layer) * m_.sequences + sequence) * m_.heads + head) * 2 + stream;
    return of.at(place * padded_steps_ * head_width_);
  }

  const PatharModel m_;
  const int head_width_, padded_steps_, padded_codebook_;
  std::vector<Block> blocks_;
  Linear heads_[2];
  Buffer<bf16> keys_;   // of a head and stream [padded_steps / 16][head_width / 2][16][2]
  Buffer<bf16> values_; // of a head and stream [padded_steps / 2][head_width][2]
  Buffer<float> x_, qkv_, logits_, scores_, weight_, ranked_;
  Buffer<bf16> normed_, mixed_, hidden_, last_, shares_;
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
      padded_codebook_((model.codebook_size + VEC - 1) / VEC * VEC), barrier_(model.threads) {
  const int w = m_.width, rows = 2 * m_.sequences;
  for (int layer = 0; layer < m_.layers; ++layer) {
    const float* const* p = m_.blocks + layer * 10;
    blocks_.push_back({p[0], p[1], p[4], p[5], Linear(p[2], nullptr, w, 3 * w), Linear(p[3], nullptr, w, w),
                       Linear(p[6], p[7], w, m_.hidden), Linear(p[8], p[9], m_.hidden, w)});
  }
  heads_[0] = Linear(m_.structure_head, nullptr, w, m_.codebook_size);
  heads_[1] = Linear(m_.appearance_head, nullptr, w, m_.codebook_size);
  const size_t cached = static_cast<size_t>(m_.layers) * rows * padded_steps_ * w;
  keys_ = Buffer<bf16>(cached), values_ = Buffer<bf16>(cached);
  x_ = Buffer<float>(static_cast<size_t>(rows) * w), qkv_ = Buffer<float>(static_cast<size_t>(rows) * 3 * w);
  logits_ = Buffer<float>(static_cast<size_t>(rows) * m_.codebook_size);
  scores_ = Buffer<float>(static_cast<size_t>(m_.sequences) * m_.heads * 3 * padded_steps_);
  shares_ = Buffer<bf16>(static_cast<size_t>(m_.sequences) * m_.heads * 3 * padded_steps_);
  weight_ = Buffer<float>(static_cast<size_t>(m_.threads) * m_.codebook_size);
  ranked_ = Buffer<float>(static_cast<size_t>(m_.threads) * padded_codebook_);
  order_ = Buffer<uint64_t>(static_cast<size_t>(m_.threads) * m_.codebook_size);
  normed_ = Buffer<bf16>(static_cast<size_t>(rows) * w), mixed_ = Buffer<bf16>(static_cast<size_t>(rows) * w);
  last_ = Buffer<bf16>(static_cast<size_t>(rows) * w);
  hidden_ = Buffer<bf16>(static_cast<size_t>(rows) * m_.hidden);
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
  float* x = x_.get();
  for (int i = thread; i < b.sequences; i += n) embed(i);
  barrier_.wait();
  for (int layer = 0; layer < m_.layers; ++layer) {
    const Block& block = blocks_[layer];
    for (int r = thread; r < rows; r += n)
      layer_norm(x + static_cast<size_t>(r) * w, block.norm1_scale, block.norm1_shift, w, normed_.at(static_cast<size_t>(r) * w));
    barrier_.wait();
    product(block.qkv, normed_.get(), rows, thread, n, [&](int r, int c, floats low, floats high) {
      float* to = qkv_.at(static_cast<size_t>(r) * 3 * w + c);
      store(to, low), store(to + VEC, high);
    });
    barrier_.wait();
    for (int task = thread; task < b.sequences * m_.heads; task += n) attend(layer, task / m_.heads, task % m_.heads);
    barrier_.wait();
    product(block.out, mixed_.get(), rows, thread, n, [&](int r, int c, floats low, floats high) {
      float* to = x + static_cast<size_t>(r) * w + c;
      store(to, load(to) + low), store(to + VEC, load(to + VEC) + high);
    });
    barrier_.wait();
    for (int r = thread; r < rows; r += n)
      layer_norm(x + static_cast<size_t>(r) * w, block.norm2_scale, block.norm2_shift, w, normed_.at(static_cast<size_t>(r) * w));
    barrier_.wait();
    product(block.up, normed_.get(), rows, thread, n, [&](int r, int c, floats low, floats high) {
      low = largest(low + load(block.up.bias + c), floats{});
      high = largest(high + load(block.up.bias + c + VEC), floats{});
      bf16* to = hidden_.at(static_cast<size_t>(r) * m_.hidden + c);
      store_bf16(to, low * low), store_bf16(to + VEC, high * high);
    });
    barrier_.wait();
    product(block.down, hidden_.get(), rows, thread, n, [&](int r, int c, floats low, floats high) {
      float* to = x + static_cast<size_t>(r) * w + c;
      low += load(block.down.bias + c), high += load(block.down.bias + c + VEC);
      store(to, load(to) + low), store(to + VEC, load(to + VEC) + high);
    });
    barrier_.wait();
  }
  for (int r = thread; r < rows; r += n) // structure rows first, then appearance rows
    layer_norm(x + static_cast<size_t>(r) * w, m_.norm_scale, m_.norm_shift, w,
               last_.at((static_cast<size_t>(r % 2) * b.sequences + r / 2) * w));
  barrier_.wait();
  for (int stream = 0; stream < 2; ++stream) {
    float* logits = const_cast<float*>(this->logits(stream));
    product(heads_[stream], last_.at(static_cast<size_t>(stream) * b.sequences * w), b.sequences, thread, n,
            [&](int r, int c, floats low, floats high) {
              float* to = logits + static_cast<size_t>(r) * m_.codebook_size + c;
              store(to, low), store(to + VEC, high);
            });
  }
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

// Turn by the tables of one kind (0, 1: queries; 2, 3: keys) and round to bf16.
void rotate(const float* from, const float* cosine, const float* sine, int width, float scale, bf16* out) {
  for (int i = 0, half = width / 2; i < half; ++i) {
    const float a = from[i] * scale, b = from[i + half] * scale;
    out[i] = to_bf16(a * cosine[i] - b * sine[i]);
    out[i + half] = to_bf16(a * sine[i] + b * cosine[i]);
  }
}

// Scores of QUERIES queries [QUERIES, width] against BLOCKS blocks of 16 keys, each a sum along width.
template <int QUERIES, int BLOCKS>
void score_blocks(const bf16* queries, const bf16* keys, int width, float* const* out, int first) {
  floats sum[QUERIES][BLOCKS];
  for (auto& of_query : sum)
    for (auto& of_block : of_query) of_block = floats{};
  for (int d = 0; d < width; d += 2) {
    words key[BLOCKS];
    for (int b = 0; b < BLOCKS; ++b) key[b] = load_pairs(keys + static_cast<size_t>(b) * width * VEC + d * VEC);
    for (int q = 0; q < QUERIES; ++q) {
      const words query = broadcast_pair(queries + q * width + d);
      for (int b = 0; b < BLOCKS; ++b) sum[q][b] = dot(sum[q][b], key[b], query);
    }
  }
  for (int q = 0; q < QUERIES; ++q)
    for (int b = 0; b < BLOCKS; ++b) store(out[q] + (first + b) * VEC, sum[q][b]);
}

template <int QUERIES>
void score(const bf16* queries, const bf16* keys, int blocks, int width, float* const* out) {
  int block = 0;
  const auto at = [&] { return keys + static_cast<size_t>(block) * width * VEC; };
  for (; block + BLOCKS_TOGETHER <= blocks; block += BLOCKS_TOGETHER) score_blocks<QUERIES, BLOCKS_TOGETHER>(queries, at(), width, out, block);
  for (; block < blocks; ++block) score_blocks<QUERIES, 1>(queries, at(), width, out, block);
}

inline ints inside(int i, int first, int count) { // which of i .. i + VEC - 1 are in [first, count)
  ints place;
  for (int lane = 0; lane < VEC; ++lane) place[lane] = i + lane;
  return (place >= first) & (place < count);
}

floats largest(const float* scores, int first, int count, floats found) {
  for (int i = 0; i < count; i += VEC) found = inside(i, first, count) ? largest(found, load(scores + i)) : found;
  return found;
}

// exp(scores - maximum) as bf16, zero outside [first, count); the sum of the rounded weights is
// added to `total`, so that they sum to one after division.
void weigh(const float* scores, int first, int count, floats maximum, bf16* weights, floats& total) {
  for (int i = 0; i < count; i += VEC) {
    store_bf16(weights + i, inside(i, first, count) ? exponential(load(scores + i) - maximum) : floats{});
    total += widen(weights + i);
  }
}

// Weighted sums of values [count / 2][width][2]: VECTORS vectors of QUERIES queries, along positions.
template <int QUERIES, int VECTORS>
void mix(const bf16* const* weights, const bf16* values, int count, int width, int from, floats (&sum)[QUERIES][VECTORS]) {
  for (int at = 0; at < count; at += 2) {
    words value[VECTORS];
    for (int v = 0; v < VECTORS; ++v) value[v] = load_pairs(values + (static_cast<size_t>(at / 2) * width + from + v * VEC) * 2);
    for (int q = 0; q < QUERIES; ++q) {
      const words weight = broadcast_pair(weights[q] + at);
      for (int v = 0; v < VECTORS; ++v) sum[q][v] = dot(sum[q][v], value[v], weight);
    }
  }
}

// The mixed values of both queries for VECTORS vectors of a head, from dimension `from` on.
template <int VECTORS>
void mix_both(const bf16* const* weights, const bf16* structure, const bf16* appearance, int count, int width, int from,
              const float* inverse, bf16* to_structure, bf16* to_appearance) {
  floats of_structure[2][VECTORS] = {}, of_appearance[1][VECTORS] = {};
  mix<2, VECTORS>(weights, structure, count, width, from, of_structure);
  mix<1, VECTORS>(weights + 2, appearance, count, width, from, of_appearance);
  for (int v = 0; v < VECTORS; ++v) {
    store_bf16(to_structure + from + v * VEC, of_structure[0][v] * inverse[0]);
    store_bf16(to_appearance + from + v * VEC, (of_structure[1][v] + of_appearance[0][v]) * inverse[1]);
  }
}

// Both queries of one row and head. The structure query is given structure keys and values alone.
void Decoder::attend(int layer, int i, int head) {
  const PatharBatch& b = *batch_;
  const int d = head_width_, p = b.position[i], sequence = b.sequence[i], count = p + 1;
  const int blocks = p / VEC + 1;
  const float scale = 1.f / std::sqrt(static_cast<float>(d));
  alignas(64) bf16 query[2 * 256], key[256], value[256];
  for (int stream = 0; stream < 2; ++stream) {
    const float* from = qkv_.at(static_cast<size_t>(2 * i + stream) * 3 * m_.width + head * d);
    const auto table = [&](const float* t, int kind) { return t + (static_cast<size_t>(kind) * m_.steps + p) * (d / 2); };
    rotate(from, table(m_.cosine, stream), table(m_.sine, stream), d, scale, query + stream * d);
    rotate(from + m_.width, table(m_.cosine, 2 + stream), table(m_.sine, 2 + stream), d, 1.f, key);
    bf16* block = keys(layer, sequence, head, stream) + static_cast<size_t>(p / VEC) * d * VEC + p % VEC * 2;
    for (int k = 0; k < d; k += 2) std::memcpy(block + k * VEC, key + k, 2 * sizeof(bf16));
    for (int k = 0; k < d; k += VEC) store_bf16(value + k, load(from + 2 * m_.width + k));
    bf16* pair = values(layer, sequence, head, stream) + static_cast<size_t>(p / 2) * d * 2 + p % 2;
    for (int k = 0; k < d; ++k) pair[2 * k] = value[k];
  }
  const size_t task = static_cast<size_t>(i) * m_.heads + head;
  float* s = scores_.at(task * 3 * padded_steps_);
  bf16* w = shares_.at(task * 3 * padded_steps_);
  float* const scores[] = {s, s + padded_steps_, s + 2 * padded_steps_};
  const bf16* const weights[] = {w, w + padded_steps_, w + 2 * padded_steps_};
  score<2>(query, keys(layer, sequence, head, 0), blocks, d, scores);
  score<1>(query + d, keys(layer, sequence, head, 1), blocks, d, scores + 2);
  const floats none = all(-INFINITY);
  const floats top_s = all(top(largest(scores[0], 0, count, none)));
  const floats top_a = all(top(largest(scores[2], 1, count, largest(scores[1], 0, count, none))));
  floats total[2] = {};
  weigh(scores[0], 0, count, top_s, w, total[0]);
  weigh(scores[1], 0, count, top_a, w + padded_steps_, total[1]);
  weigh(scores[2], 1, count, top_a, w + 2 * padded_steps_, total[1]);
  const float inverse[2] = {1.f / sum(total[0]), 1.f / sum(total[1])};
  bf16* to = mixed_.at(static_cast<size_t>(2 * i) * m_.width + head * d);
  const bf16 *vs = values(layer, sequence, head, 0), *va = values(layer, sequence, head, 1);
  int k = 0;
  for (; k + BLOCKS_TOGETHER * VEC <= d; k += BLOCKS_TOGETHER * VEC)
    mix_both<BLOCKS_TOGETHER>(weights, vs, va, count, d, k, inverse, to, to + m_.width);
  for (; k < d; k += VEC) mix_both<1>(weights, vs, va, count, d, k, inverse, to, to + m_.width);
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
  const int size = m_.codebook_size;
  const float* null = logits(stream) + static_cast<size_t>(b.null_row[image]) * size;
  uint64_t* order = order_.at(static_cast<size_t>(thread) * size);
  float* weight = weight_.at(static_cast<size_t>(thread) * size);
  const float scale = b.cfg_scale[image], temperature = b.temperature[image];
  for (int id = 0; id < size; ++id) {
    weight[id] = null[id] + scale * (label[id] - null[id]);
    order[id] = sort_key(weight[id], id);
  }
  if (temperature == 0.f) return static_cast<int32_t>(*std::min_element(order, order + size));
  const int kept = b.top_k[image] ? std::min(b.top_k[image], size) : size;
  if (kept < size) std::nth_element(order, order + kept - 1, order + size);
  std::sort(order, order + kept);
  const auto id_at = [&](int rank) { return static_cast<uint32_t>(order[rank]); };
  float* ranked = ranked_.at(static_cast<size_t>(thread) * padded_codebook_);
  for (int rank = 0; rank < kept; ++rank) ranked[rank] = (weight[id_at(rank)] - weight[id_at(0)]) / temperature;
  float sum = 0.f;
  for (int rank = 0; rank < kept; rank += VEC) store(ranked + rank, exponential(load(ranked + rank)));
  for (int rank = 0; rank < kept; ++rank) ranked[rank] = sum += ranked[rank]; // cumulative
  int last = 0; // the last rank that top-p keeps: the first whose cumulative weight reaches it
  while (last + 1 < kept && (b.top_p[image] >= 1.f || ranked[last] < b.top_p[image] * sum)) ++last;
  const float target = b.uniform[2 * image + stream] * ranked[last];
  return static_cast<int32_t>(id_at(static_cast<int>(std::upper_bound(ranked, ranked + last, target) - ranked)));
}

} // namespace

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

EXPORTED Decoder* pathar_create(const PatharModel* model) { return new Decoder(*model); }
EXPORTED void pathar_destroy(Decoder* decoder) { delete decoder; }
EXPORTED void pathar_step(Decoder* decoder, const PatharBatch* batch) { decoder->step(*batch); }
EXPORTED const float* pathar_logits(const Decoder* decoder, int32_t stream) { return decoder->logits(stream); }

// Whether this processor has what this file was compiled for, and what that is.
EXPORTED int32_t pathar_supported() {
#if defined(__AVX512BF16__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16");
#elif defined(__AVX2__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return 1;
#endif
}
EXPORTED const char* pathar_compiler() { return __VERSION__; }

} // extern "C"
