// One pass of a plain decoder (RMS norms, rotary grouped-query attention, gated SiLU) on a CPU with
// AVX-512 and its bf16 products, and the matrix products by themselves. Compiled when first needed
// by build.py; the readable reference is worthit.nn.decoder, the layouts are those of layout.py.
//
// Whatever is multiplied are the numbers that are stored: codes of 4 and 8 bits become bf16, which
// holds them exactly, products are summed in fp32, and the scale of a group is applied to its sum.
// Every row of a product and every query of attention is summed in an order of its own columns and
// keys alone: its bits do not depend on how many others there are, nor on how a prompt was cut.
//
// A matrix is cut into tiles of 16 outputs that stand in the 16 lanes of a register: nothing is
// summed across lanes, and memory is read once from front to back. So it is with attention, whose
// lanes are 16 queries that share keys: the heads of a group, and neighbours of a prompt.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#if !defined(__AVX512BF16__) || !defined(__AVX512BW__) || !defined(__AVX512VL__)
#error "needs AVX-512 with BW, VL and BF16"
#endif

namespace {

typedef uint16_t bf16;
constexpr int LANES = 16;   // outputs of a tile, queries of a block
constexpr int ROWS = 8;     // tokens that share one reading of a tile
constexpr int CHAINS = 2;   // sums that run beside each other, whatever the number of rows
constexpr int GROUP = 32;   // columns whose inputs are also summed, for the zeros of their codes
constexpr int WIDEN_FROM = 17;  // rows from which a tile's codes are unpacked only once
constexpr int FEW = 4;      // queries of a block for which keys stand in the lanes, not they
constexpr int KEYS = 32;    // keys between two corrections of the running maximum
constexpr int AHEAD = 4096; // bytes of a matrix that are fetched before they are multiplied

enum Kind : int32_t { FP32, BF16, INT4, INT8 };

}  // namespace

extern "C" {

struct Matrix {
  int32_t kind, rows, cols, group;
  const void* codes;
  const void* scales;
  const float* bias;
};

struct Layer {
  Matrix qkv, out, up, down;
  const float *mixer_norm, *ffn_norm;
};

struct Model {
  int32_t n_layers, d_model, d_ff, n_heads, n_kv_heads, head_dim, is_fp32, unused;
  float eps, scale;
  const Layer* layers;
};

// `n` new tokens behind `past`: rows from `start` on. Its slot j is j, or in blocks where they are. A
// tree says which of the last `n_among` slots each token sees, (n, n_among), and where it stands.
struct Sequence {
  int32_t start, n, past, n_among;
  const int32_t* blocks;
  const uint8_t* among;
  const int32_t* places;
  int64_t offset;  // of its first slot, in elements
};

struct Pass {
  int32_t n_tokens, n_sequences, n_threads, block_tokens;
  int64_t head_stride;  // from one head's keys to the next one's, in elements
  float* x;             // (n_tokens, d_model): embeddings, and in the end what leaves the layers
  const Sequence* sequences;
  void* const* keys;  // of each layer
  void* const* values;
  const float *cosines, *sines;  // (positions, head_dim / 2)
  float* const* taps;            // of each layer: where its output is wanted too; may be null
};

}  // extern "C"

namespace {

// --- numbers ------------------------------------------------------------------------------------

inline __m512 widened(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

inline __m256i narrowed(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

// Have a line of a matrix brought near: with several rows a line takes longer to multiply than the
// processor looks ahead by itself, and its own guesses end with every page. One row needs no help.
inline void fetch(const void* at) {
  _mm_prefetch(static_cast<const char*>(at) + AHEAD, _MM_HINT_T0);
}

inline __m512bh pair_at(const bf16* a) {
  return (__m512bh)_mm512_set1_epi32(*reinterpret_cast<const int32_t*>(a));
}

// e^x for x <= 0: Cephes' polynomial on [-ln 2 / 2, ln 2 / 2], 1 at 0 exactly.
inline __m512 exp_of(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5e-1f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

// What products read: rows in bf16 with the sums of each GROUP, or in fp32.
struct Inputs {
  bool is_fp32;
  int cols;
  bf16* narrow;
  float *sums, *wide;

  // Put `n` channels, a multiple of GROUP, from `at` on of row `i`.
  void put(int i, int at, int n, const float* x) const {
    if (is_fp32) {
      std::copy(x, x + n, wide + int64_t(i) * cols + at);
      return;
    }
    for (int c = 0; c < n; c += GROUP) {
      const __m256i a = narrowed(_mm512_loadu_ps(x + c));
      const __m256i b = narrowed(_mm512_loadu_ps(x + c + LANES));
      bf16* to = narrow + int64_t(i) * cols + at + c;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + LANES), b);
      sums[int64_t(i) * (cols / GROUP) + (at + c) / GROUP] =
          _mm512_reduce_add_ps(_mm512_add_ps(widened(a), widened(b)));
    }
  }
};

// --- products -----------------------------------------------------------------------------------

// Each returns sums of one tile for N rows of inputs from `row` on.

template <int N>
inline void tile_fp32(const Matrix& w, int tile, const Inputs& in, int row, __m512* total) {
  const float* codes = static_cast<const float*>(w.codes) + int64_t(tile) * w.cols * LANES;
  const float* a = in.wide + int64_t(row) * w.cols;
  __m512 sum[N][CHAINS];
  for (auto& chains : sum)
    for (auto& one : chains) one = _mm512_setzero_ps();
  for (int c = 0; c < w.cols; c += CHAINS)
    for (int k = 0; k < CHAINS; k++) {
      if (N > 1) fetch(codes + int64_t(c + k) * LANES);
      const __m512 v = _mm512_loadu_ps(codes + int64_t(c + k) * LANES);
      for (int m = 0; m < N; m++)
        sum[m][k] = _mm512_fmadd_ps(v, _mm512_set1_ps(a[int64_t(m) * w.cols + c + k]), sum[m][k]);
    }
  for (int m = 0; m < N; m++) total[m] = _mm512_add_ps(sum[m][0], sum[m][1]);
}

template <int N>
inline void tile_bf16(const Matrix& w, int tile, const Inputs& in, int row, __m512* total) {
  const bf16* codes = static_cast<const bf16*>(w.codes) + int64_t(tile) * w.cols * LANES;
  const bf16* a = in.narrow + int64_t(row) * w.cols;
  __m512 sum[N][CHAINS];
  for (auto& chains : sum)
    for (auto& one : chains) one = _mm512_setzero_ps();
  for (int c = 0; c < w.cols; c += 2 * CHAINS)
    for (int k = 0; k < CHAINS; k++) {
      if (N > 1) fetch(codes + int64_t(c + 2 * k) * LANES);
      const __m512bh v = (__m512bh)_mm512_loadu_si512(codes + int64_t(c + 2 * k) * LANES);
      for (int m = 0; m < N; m++)
        sum[m][k] = _mm512_dpbf16_ps(sum[m][k], v, pair_at(a + int64_t(m) * w.cols + c + 2 * k));
    }
  for (int m = 0; m < N; m++) total[m] = _mm512_add_ps(sum[m][0], sum[m][1]);
}

// Two columns of a tile.
inline __m512bh pair_of_int8(const int8_t* codes) {
  const auto* at = reinterpret_cast<const __m128i*>(codes);
  const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at)));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at + 1)));
  return _mm512_cvtne2ps_pbh(high, low);
}

template <int N>
inline void tile_int8(const Matrix& w, int tile, const Inputs& in, int row, __m512* total) {
  const int8_t* codes = static_cast<const int8_t*>(w.codes) + int64_t(tile) * w.cols * LANES;
  const int n_groups = w.cols / w.group;
  const bf16* scales = static_cast<const bf16*>(w.scales) + int64_t(tile) * n_groups * LANES;
  const bf16* a = in.narrow + int64_t(row) * w.cols;
  for (int m = 0; m < N; m++) total[m] = _mm512_setzero_ps();
  for (int g = 0; g < n_groups; g++) {
    __m512 sum[N][CHAINS];
    for (auto& chains : sum)
      for (auto& one : chains) one = _mm512_setzero_ps();
    for (int c = g * w.group; c < (g + 1) * w.group; c += 2 * CHAINS) {
      if (N > 1) fetch(codes + int64_t(c) * LANES);
      for (int k = 0; k < CHAINS; k++) {
        const __m512bh v = pair_of_int8(codes + int64_t(c + 2 * k) * LANES);
        for (int m = 0; m < N; m++)
          sum[m][k] = _mm512_dpbf16_ps(sum[m][k], v, pair_at(a + int64_t(m) * w.cols + c + 2 * k));
      }
    }
    const __m512 scale =
        widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales + g * LANES)));
    for (int m = 0; m < N; m++)
      total[m] = _mm512_fmadd_ps(scale, _mm512_add_ps(sum[m][0], sum[m][1]), total[m]);
  }
}

// bf16 of code - 8, for both values of the fifth bit, which belongs to the next code.
inline const bf16* code_values() {
  struct Table {
    alignas(64) bf16 values[32];
    Table() {
      for (int i = 0; i < 32; i++) {
        const float value = float(i % 16 - 8);
        uint32_t bits;
        __builtin_memcpy(&bits, &value, 4);
        values[i] = bits >> 16;
      }
    }
  };
  static const Table table;
  return table.values;
}

// A word holds four codes of one row, of columns c, c + 2, c + 4 and c + 6, the lowest bits first.
template <int N>
inline void tile_int4(const Matrix& w, int tile, const Inputs& in, int row, __m512* total) {
  const auto* codes = static_cast<const uint8_t*>(w.codes) + int64_t(tile) * w.cols * (LANES / 2);
  const auto* both =
      static_cast<const uint32_t*>(w.scales) + int64_t(tile) * (w.cols / w.group) * LANES;
  const bf16* a = in.narrow + int64_t(row) * w.cols;
  const int n_sums = w.cols / GROUP, n_shared = w.group / GROUP;
  const __m512i table = _mm512_load_si512(code_values());
  for (int m = 0; m < N; m++) total[m] = _mm512_setzero_ps();
  for (int g = 0; g < n_sums; g++) {
    __m512 sum[N][CHAINS];
    for (auto& chains : sum)
      for (auto& one : chains) one = _mm512_setzero_ps();
    const bf16* of_group = a + g * GROUP;
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
      if (N > 1) fetch(codes + (int64_t(g) * 4 + q) * 64);
      const __m512i words = _mm512_loadu_si512(codes + (int64_t(g) * 4 + q) * 64);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const __m512i shifted = j ? _mm512_srli_epi16(words, 4 * j) : words;
        const __m512bh v = (__m512bh)_mm512_permutexvar_epi16(shifted, table);
        for (int m = 0; m < N; m++)
          sum[m][j % CHAINS] = _mm512_dpbf16_ps(
              sum[m][j % CHAINS], v, pair_at(of_group + int64_t(m) * w.cols + q * 8 + 2 * j));
      }
    }
    const __m512i pair = _mm512_loadu_si512(both + int64_t(g / n_shared) * LANES);
    const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
    const __m512 zero = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(~0xffff)));
    for (int m = 0; m < N; m++) {
      total[m] = _mm512_fmadd_ps(scale, _mm512_add_ps(sum[m][0], sum[m][1]), total[m]);
      const float inputs = in.sums[int64_t(row + m) * n_sums + g];
      total[m] = _mm512_fmadd_ps(zero, _mm512_set1_ps(inputs), total[m]);
    }
  }
}

// The codes of a tile as bf16, where many rows are to be multiplied by them.
void widen(const Matrix& w, int tile, bf16* to) {
  if (w.kind == INT4) {
    const __m512i table = _mm512_load_si512(code_values());
    const auto* codes = static_cast<const uint8_t*>(w.codes) + int64_t(tile) * w.cols * (LANES / 2);
    for (int c = 0; c < w.cols; c += 8) {
      const __m512i words = _mm512_loadu_si512(codes + int64_t(c) * (LANES / 2));
      for (int j = 0; j < 4; j++)
        _mm512_storeu_si512(to + (c + 2 * j) * LANES,
                            _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * j), table));
    }
    return;
  }
  const auto* codes = static_cast<const int8_t*>(w.codes) + int64_t(tile) * w.cols * LANES;
  for (int c = 0; c < w.cols; c += 2)
    _mm512_storeu_si512(to + c * LANES, (__m512i)pair_of_int8(codes + int64_t(c) * LANES));
}

// `tile_int4` and `tile_int8` on what `widen` made: the same sums in the same order.
template <int N>
inline void tile_widened(const Matrix& w, int tile, const bf16* codes, const Inputs& in, int row,
                         __m512* total) {
  const bool has_zeros = w.kind == INT4;
  const int n_groups = w.cols / w.group, size = has_zeros ? GROUP : w.group;
  const auto* both = static_cast<const uint32_t*>(w.scales) + int64_t(tile) * n_groups * LANES;
  const auto* scales = static_cast<const bf16*>(w.scales) + int64_t(tile) * n_groups * LANES;
  const bf16* a = in.narrow + int64_t(row) * w.cols;
  for (int m = 0; m < N; m++) total[m] = _mm512_setzero_ps();
  for (int from = 0; from < w.cols; from += size) {
    __m512 sum[N][CHAINS];
    for (auto& chains : sum)
      for (auto& one : chains) one = _mm512_setzero_ps();
    for (int c = from; c < from + size; c += 2 * CHAINS)
      for (int k = 0; k < CHAINS; k++) {
        const __m512bh v = (__m512bh)_mm512_loadu_si512(codes + (c + 2 * k) * LANES);
        for (int m = 0; m < N; m++)
          sum[m][k] = _mm512_dpbf16_ps(sum[m][k], v, pair_at(a + int64_t(m) * w.cols + c + 2 * k));
      }
    const int64_t g = int64_t(from / w.group) * LANES;
    if (!has_zeros) {
      const __m512 scale = widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales + g)));
      for (int m = 0; m < N; m++)
        total[m] = _mm512_fmadd_ps(scale, _mm512_add_ps(sum[m][0], sum[m][1]), total[m]);
      continue;
    }
    const __m512i pair = _mm512_loadu_si512(both + g);
    const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
    const __m512 zero = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(~0xffff)));
    for (int m = 0; m < N; m++) {
      total[m] = _mm512_fmadd_ps(scale, _mm512_add_ps(sum[m][0], sum[m][1]), total[m]);
      const float inputs = in.sums[int64_t(row + m) * (w.cols / GROUP) + from / GROUP];
      total[m] = _mm512_fmadd_ps(zero, _mm512_set1_ps(inputs), total[m]);
    }
  }
}

template <int N>
inline void tile_of(const Matrix& w, int tile, const bf16* wide, const Inputs& in, int row,
                    float* y, bool adds) {
  __m512 total[N];
  if (wide) tile_widened<N>(w, tile, wide, in, row, total);
  else switch (w.kind) {
    case FP32: tile_fp32<N>(w, tile, in, row, total); break;
    case BF16: tile_bf16<N>(w, tile, in, row, total); break;
    case INT4: tile_int4<N>(w, tile, in, row, total); break;
    default: tile_int8<N>(w, tile, in, row, total);
  }
  for (int m = 0; m < N; m++) {
    float* to = y + int64_t(row + m) * w.rows + tile * LANES;
    if (w.bias) total[m] = _mm512_add_ps(total[m], _mm512_loadu_ps(w.bias + tile * LANES));
    if (adds) total[m] = _mm512_add_ps(total[m], _mm512_loadu_ps(to));
    _mm512_storeu_ps(to, total[m]);
  }
}

// This thread's share of y = in w^T (or of y += ...), for `n` rows.
void multiply(const Matrix& w, const Inputs& in, int n, float* y, bool adds) {
  static thread_local std::vector<bf16> held;
  const bool is_widened = n >= WIDEN_FROM && (w.kind == INT4 || w.kind == INT8);
  if (is_widened && held.size() < size_t(w.cols) * LANES) held.resize(size_t(w.cols) * LANES);
  const bf16* wide = is_widened ? held.data() : nullptr;
  const int n_tiles = w.rows / LANES, id = omp_get_thread_num(), of = omp_get_num_threads();
  for (int tile = n_tiles * id / of; tile < n_tiles * (id + 1) / of; tile++) {
    if (is_widened) widen(w, tile, held.data());
    for (int row = 0; row < n; row += ROWS) switch (std::min(ROWS, n - row)) {
        case 1: tile_of<1>(w, tile, wide, in, row, y, adds); break;
        case 2: tile_of<2>(w, tile, wide, in, row, y, adds); break;
        case 3: tile_of<3>(w, tile, wide, in, row, y, adds); break;
        case 4: tile_of<4>(w, tile, wide, in, row, y, adds); break;
        case 5: tile_of<5>(w, tile, wide, in, row, y, adds); break;
        case 6: tile_of<6>(w, tile, wide, in, row, y, adds); break;
        case 7: tile_of<7>(w, tile, wide, in, row, y, adds); break;
        default: tile_of<8>(w, tile, wide, in, row, y, adds);
      }
  }
}

// --- what stands between products ---------------------------------------------------------------

void normalise(const float* x, const float* weight, float eps, int d, const Inputs& to, int row) {
  __m512 squares = _mm512_setzero_ps();
  for (int c = 0; c < d; c += LANES) {
    const __m512 v = _mm512_loadu_ps(x + c);
    squares = _mm512_fmadd_ps(v, v, squares);
  }
  const __m512 by = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / d + eps));
  float some[GROUP];
  for (int c = 0; c < d; c += GROUP) {
    for (int k = 0; k < GROUP; k += LANES)
      _mm512_storeu_ps(some + k, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + c + k), by),
                                               _mm512_loadu_ps(weight + c + k)));
    to.put(row, c, GROUP, some);
  }
}

void activate(const float* up, int d_ff, int from, int to_, const Inputs& to, int row) {
  const __m512 one = _mm512_set1_ps(1.0f);
  float some[GROUP];
  for (int c = from; c < to_; c += GROUP) {
    for (int k = 0; k < GROUP; k += LANES) {
      const __m512 gate = _mm512_loadu_ps(up + c + k), value = _mm512_loadu_ps(up + d_ff + c + k);
      // x sigmoid(x), by e^-|x|, which cannot overflow.
      const __m512 e = exp_of(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(gate)));
      const __mmask16 is_negative = _mm512_cmp_ps_mask(gate, _mm512_setzero_ps(), _CMP_LT_OQ);
      const __m512 top = _mm512_mask_mov_ps(one, is_negative, e);
      const __m512 sigmoid = _mm512_div_ps(top, _mm512_add_ps(one, e));
      _mm512_storeu_ps(some + k, _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid), value));
    }
    to.put(row, c, GROUP, some);
  }
}

void turn(float* x, const float* cosines, const float* sines, int half) {
  for (int i = 0; i < half; i++) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cosines[i] - b * sines[i];
    x[i + half] = b * cosines[i] + a * sines[i];
  }
}

int64_t slot_of(const Sequence& s, int j, int block_tokens) {
  return s.blocks ? int64_t(s.blocks[j / block_tokens]) * block_tokens + j % block_tokens : j;
}

// Which of 16 keys from `from` on a token sees of those that are not behind it.
inline __mmask16 seen_by(const Sequence& s, int token, int from) {
  const int first = s.past + s.n - s.n_among;
  if (!s.among || from + LANES <= first) return 0xffff;
  __mmask16 sees = 0xffff;
  for (int i = std::max(0, first - from); i < LANES && from + i < s.past + s.n; i++)
    if (!s.among[int64_t(token) * s.n_among + from + i - first]) sees &= ~(1u << i);
  return sees;
}

void store(const float* x, void* cache, int64_t at, int n, bool is_fp32) {
  if (is_fp32) {
    std::copy(x, x + n, static_cast<float*>(cache) + at);
    return;
  }
  for (int c = 0; c < n; c += LANES)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<bf16*>(cache) + at + c),
                        narrowed(_mm512_loadu_ps(x + c)));
}

// --- attention ----------------------------------------------------------------------------------

// Up to LANES queries of one key/value head of one sequence: `n_lanes` from number `first` on, where
// number i is head i % group of token i / group.
void attend(const Model& m, const Pass& p, const Sequence& s, const void* keys, const void* values,
            int head, int first, int n_lanes, const float* qkv, const Inputs& to) {
  const int d = m.head_dim, group = m.n_heads / m.n_kv_heads;
  const int width = (m.n_heads + 2 * m.n_kv_heads) * d;
  alignas(64) float packed[256 * LANES], sums[256 * LANES], weights[KEYS * LANES];
  alignas(64) float wide[KEYS * 256];
  alignas(64) int32_t last[LANES];
  auto* pairs = reinterpret_cast<bf16*>(packed);
  for (int i = 0; i < d * LANES; i++) sums[i] = packed[i] = 0;
  int n_keys = 0;
  for (int lane = 0; lane < LANES; lane++) {
    last[lane] = INT32_MAX;
    if (lane >= n_lanes) continue;
    const int token = (first + lane) / group, own = (first + lane) % group;
    last[lane] = s.past + token;
    n_keys = std::max(n_keys, last[lane] + 1);
    const float* q = qkv + int64_t(s.start + token) * width + (head * group + own) * d;
    for (int c = 0; c < d; c++)
      if (m.is_fp32) {
        packed[c * LANES + lane] = q[c];
      } else {
        const __m128bh one = _mm_cvtneps_pbh(_mm_set_ss(q[c]));
        __builtin_memcpy(pairs + (c / 2 * LANES + lane) * 2 + c % 2, &one, 2);
      }
  }
  const __m512i limits = _mm512_load_si512(last);
  const __m512 scale = _mm512_set1_ps(m.scale), lowest = _mm512_set1_ps(-INFINITY);
  __m512 top = lowest, total = _mm512_setzero_ps();
  const int64_t base = s.offset + head * p.head_stride;
  for (int from = 0; from < n_keys; from += KEYS) {
    const int n = std::min(KEYS, n_keys - from);
    int64_t at[KEYS];
    for (int j = 0; j < KEYS; j++)
      at[j] = base + slot_of(s, from + std::min(j, n - 1), p.block_tokens) * d;
    __m512 highest = lowest;
    for (int j = 0; j < n; j += 8) {
      __m512 dot[8];
      for (auto& one : dot) one = _mm512_setzero_ps();
      if (m.is_fp32) {
        const auto* k = static_cast<const float*>(keys);
        for (int c = 0; c < d; c++) {
          const __m512 q = _mm512_load_ps(packed + c * LANES);
          for (int i = 0; i < 8; i++)
            dot[i] = _mm512_fmadd_ps(q, _mm512_set1_ps(k[at[j + i] + c]), dot[i]);
        }
      } else {
        const auto* k = static_cast<const bf16*>(keys);
        for (int c = 0; c < d; c += 2) {
          const __m512bh q = (__m512bh)_mm512_load_ps(packed + c / 2 * LANES);
          for (int i = 0; i < 8; i++)
            dot[i] = _mm512_dpbf16_ps(dot[i], q, pair_at(k + at[j + i] + c));
        }
      }
      for (int i = 0; i < 8; i++) {
        __mmask16 sees = 0;
        if (j + i < n)
          sees = _mm512_cmple_epi32_mask(_mm512_set1_epi32(from + j + i), limits);
        if (s.among)
          for (int lane = 0; lane < n_lanes; lane++)
            if (!(seen_by(s, (first + lane) / group, from + j + i) & 1)) sees &= ~(1u << lane);
        const __m512 score = _mm512_mask_mul_ps(lowest, sees, dot[i], scale);
        highest = _mm512_max_ps(highest, score);
        _mm512_store_ps(weights + (j + i) * LANES, score);
      }
    }
    highest = _mm512_max_ps(highest, top);
    const __m512 kept = exp_of(_mm512_sub_ps(top, highest));
    top = highest;
    total = _mm512_mul_ps(total, kept);
    for (int j = 0; j < n; j++) {
      const __m512 score = _mm512_load_ps(weights + j * LANES);
      const __mmask16 sees = _mm512_cmp_ps_mask(score, lowest, _CMP_GT_OQ);
      const __m512 weight = _mm512_maskz_mov_ps(sees, exp_of(_mm512_sub_ps(score, top)));
      total = _mm512_add_ps(total, weight);
      _mm512_store_ps(weights + j * LANES, weight);
      if (m.is_fp32) {
        std::copy_n(static_cast<const float*>(values) + at[j], d, wide + j * d);
      } else {
        const auto* v = static_cast<const bf16*>(values) + at[j];
        for (int c = 0; c < d; c += LANES)
          _mm512_store_ps(wide + j * d + c,
                          widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + c))));
      }
    }
    for (int c = 0; c < d; c += LANES) {
      __m512 sum[LANES];
      for (int i = 0; i < LANES; i++)
        sum[i] = _mm512_mul_ps(_mm512_load_ps(sums + (c + i) * LANES), kept);
      for (int j = 0; j < n; j++) {
        const __m512 weight = _mm512_load_ps(weights + j * LANES);
        for (int i = 0; i < LANES; i++)
          sum[i] = _mm512_fmadd_ps(weight, _mm512_set1_ps(wide[j * d + c + i]), sum[i]);
      }
      for (int i = 0; i < LANES; i++) _mm512_store_ps(sums + (c + i) * LANES, sum[i]);
    }
  }
  alignas(64) float divisors[LANES];
  _mm512_store_ps(divisors, total);
  for (int lane = 0; lane < n_lanes; lane++) {
    const int token = (first + lane) / group, own = (first + lane) % group;
    float out[256];
    for (int c = 0; c < d; c++) out[c] = sums[c * LANES + lane] / divisors[lane];
    to.put(s.start + token, (head * group + own) * d, d, out);
  }
}

// Rows and columns of 16 x 16 words.
inline void transpose(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  __m512i u[16];  // u[4 i + c]: column 4 k + c of rows 4 i to 4 i + 3 in its quarter k
  for (int i = 0; i < 16; i += 4) {
    u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int c = 0; c < 4; c++) {
    const __m512i even = _mm512_shuffle_i32x4(u[c], u[4 + c], 0x88);
    const __m512i odd = _mm512_shuffle_i32x4(u[c], u[4 + c], 0xdd);
    const __m512i even2 = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0x88);
    const __m512i odd2 = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0xdd);
    r[c] = _mm512_shuffle_i32x4(even, even2, 0x88);
    r[4 + c] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
    r[8 + c] = _mm512_shuffle_i32x4(even, even2, 0xdd);
    r[12 + c] = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
  }
}

// `attend` for up to FEW queries, as while decoding: keys in the lanes for scores, channels for what
// is read. Every number is made of the same operations in the same order as there.
void attend_few(const Model& m, const Pass& p, const Sequence& s, const void* keys,
                const void* values, int head, int first, int n_lanes, const float* qkv,
                const Inputs& to) {
  const int d = m.head_dim, group = m.n_heads / m.n_kv_heads;
  const int n_words = m.is_fp32 ? d : d / 2, parts = d / LANES;
  const int width = (m.n_heads + 2 * m.n_kv_heads) * d;
  alignas(64) uint32_t words[FEW][256];
  alignas(64) float weights[FEW][KEYS], sums[FEW][256];
  float top[FEW], total[FEW];
  int last[FEW], n_keys = 0;
  for (int lane = 0; lane < n_lanes; lane++) {
    const int token = (first + lane) / group, own = (first + lane) % group;
    last[lane] = s.past + token;
    n_keys = std::max(n_keys, last[lane] + 1);
    top[lane] = -INFINITY;
    total[lane] = 0;
    const float* q = qkv + int64_t(s.start + token) * width + (head * group + own) * d;
    store(q, words[lane], 0, d, m.is_fp32);
    for (int c = 0; c < d; c++) sums[lane][c] = 0;
  }
  const __m512 scale = _mm512_set1_ps(m.scale), lowest = _mm512_set1_ps(-INFINITY);
  const __m512i counted =
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const int64_t base = s.offset + head * p.head_stride;
  const auto* key_words = static_cast<const uint32_t*>(keys);
  for (int from = 0; from < n_keys; from += KEYS) {
    const int n = std::min(KEYS, n_keys - from);
    int64_t at[KEYS];
    for (int j = 0; j < KEYS; j++)
      at[j] = base + slot_of(s, from + std::min(j, n - 1), p.block_tokens) * d;
    __m512 score[FEW][KEYS / LANES];
    for (int half = 0; half < KEYS / LANES; half++) {
      __m512 dot[FEW];
      for (auto& one : dot) one = _mm512_setzero_ps();
      if (half * LANES < n) {
        for (int c = 0; c < n_words; c += LANES) {
          __m512i r[LANES];
          for (int i = 0; i < LANES; i++)
            r[i] = _mm512_loadu_si512(key_words + at[half * LANES + i] / (m.is_fp32 ? 1 : 2) + c);
          transpose(r);
          for (int i = 0; i < LANES; i++)
            for (int lane = 0; lane < n_lanes; lane++) {
              const __m512i q = _mm512_set1_epi32(words[lane][c + i]);
              dot[lane] = m.is_fp32 ? _mm512_fmadd_ps(_mm512_castsi512_ps(q),
                                                      _mm512_castsi512_ps(r[i]), dot[lane])
                                    : _mm512_dpbf16_ps(dot[lane], (__m512bh)q, (__m512bh)r[i]);
            }
        }
      }
      const __m512i place = _mm512_add_epi32(counted, _mm512_set1_epi32(from + half * LANES));
      for (int lane = 0; lane < n_lanes; lane++) {
        const __mmask16 sees =
            _mm512_cmple_epi32_mask(place,
                                    _mm512_set1_epi32(std::min(last[lane], from + n - 1))) &
            seen_by(s, (first + lane) / group, from + half * LANES);
        score[lane][half] = _mm512_mask_mul_ps(lowest, sees, dot[lane], scale);
      }
    }
    float kept[FEW];
    for (int lane = 0; lane < n_lanes; lane++) {
      const float highest = std::max(
          top[lane], _mm512_reduce_max_ps(_mm512_max_ps(score[lane][0], score[lane][1])));
      kept[lane] = _mm512_cvtss_f32(exp_of(_mm512_set1_ps(top[lane] - highest)));
      top[lane] = highest;
      total[lane] *= kept[lane];
      for (int half = 0; half < KEYS / LANES; half++) {
        const __m512 one = score[lane][half];
        const __mmask16 sees = _mm512_cmp_ps_mask(one, lowest, _CMP_GT_OQ);
        _mm512_store_ps(
            weights[lane] + half * LANES,
            _mm512_maskz_mov_ps(sees, exp_of(_mm512_sub_ps(one, _mm512_set1_ps(highest)))));
      }
      for (int j = 0; j < n; j++) total[lane] += weights[lane][j];
    }
    for (int c = 0; c < parts; c++) {
      __m512 sum[FEW];
      for (int lane = 0; lane < n_lanes; lane++)
        sum[lane] = _mm512_mul_ps(_mm512_load_ps(sums[lane] + c * LANES), _mm512_set1_ps(kept[lane]));
      for (int j = 0; j < n; j++) {
        const __m512 v =
            m.is_fp32 ? _mm512_loadu_ps(static_cast<const float*>(values) + at[j] + c * LANES)
                      : widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(
                            static_cast<const bf16*>(values) + at[j] + c * LANES)));
        for (int lane = 0; lane < n_lanes; lane++)
          sum[lane] = _mm512_fmadd_ps(_mm512_set1_ps(weights[lane][j]), v, sum[lane]);
      }
      for (int lane = 0; lane < n_lanes; lane++) _mm512_store_ps(sums[lane] + c * LANES, sum[lane]);
    }
  }
  for (int lane = 0; lane < n_lanes; lane++) {
    const int token = (first + lane) / group, own = (first + lane) % group;
    for (int c = 0; c < d; c++) sums[lane][c] /= total[lane];
    to.put(s.start + token, (head * group + own) * d, d, sums[lane]);
  }
}

struct Block {
  int32_t sequence, head, first, n;
};

template <class T>
T* carve(char*& from, int64_t n) {
  T* found = reinterpret_cast<T*>(from);
  from += (n * int64_t(sizeof(T)) + 63) / 64 * 64;
  return found;
}

// Memory of one calling thread, kept: a pass takes what the largest one took.
char* workspace(int64_t n_bytes) {
  static thread_local std::vector<char> held;
  if (int64_t(held.size()) < n_bytes + 64) held.resize(n_bytes + 64);
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(held.data()) + 63) / 64 * 64);
}

Inputs inputs_for(char*& memory, int n, int cols, bool is_fp32) {
  Inputs made{is_fp32, cols, nullptr, nullptr, nullptr};
  if (is_fp32) {
    made.wide = carve<float>(memory, int64_t(n) * cols);
  } else {
    made.narrow = carve<bf16>(memory, int64_t(n) * cols);
    made.sums = carve<float>(memory, int64_t(n) * (cols / GROUP));
  }
  return made;
}

int64_t bytes_of_inputs(int n, int cols) { return int64_t(n) * cols * 5 + 256; }

}  // namespace

extern "C" {

// y (n, rows) = x (n, cols) w^T, all in fp32 but what `w` stores and multiplies.
void worthit_multiply(const Matrix* w, const float* x, int32_t n, float* y, int32_t n_threads) {
  const bool is_fp32 = w->kind == FP32;
  char* memory = workspace(bytes_of_inputs(n, w->cols));
  const Inputs in = inputs_for(memory, n, w->cols, is_fp32);
#pragma omp parallel num_threads(n_threads)
  {
#pragma omp for schedule(static)
    for (int i = 0; i < n; i++) in.put(i, 0, w->cols, x + int64_t(i) * w->cols);
    multiply(*w, in, n, y, false);
  }
}

// One pass through all layers; keys and values are stored where the pass says.
void worthit_pass(const Model* model, const Pass* pass) {
  const Model& m = *model;
  const Pass& p = *pass;
  const int n = p.n_tokens, d = m.d_model, hd = m.head_dim;
  const int queries = m.n_heads * hd, width = queries + 2 * m.n_kv_heads * hd;
  const int group = m.n_heads / m.n_kv_heads, of_row = d + queries + m.d_ff;
  char* memory = workspace(int64_t(n) * 4 * (width + 2 * m.d_ff) + 512 +
                           3 * bytes_of_inputs(n, 0) + int64_t(n) * of_row * 5);
  float* qkv = carve<float>(memory, int64_t(n) * width);
  float* up = carve<float>(memory, int64_t(n) * 2 * m.d_ff);
  const Inputs normal = inputs_for(memory, n, d, m.is_fp32);
  const Inputs read = inputs_for(memory, n, queries, m.is_fp32);
  const Inputs active = inputs_for(memory, n, m.d_ff, m.is_fp32);

  // Longest first, and what is short fills the gaps.
  std::vector<Block> blocks;
  for (int i = 0; i < p.n_sequences; i++) {
    const int n_queries = p.sequences[i].n * group;
    for (int first = 0; first < n_queries; first += LANES)
      for (int head = 0; head < m.n_kv_heads; head++)
        blocks.push_back({i, head, first, std::min(LANES, n_queries - first)});
  }
  auto n_keys = [&](const Block& b) { return p.sequences[b.sequence].past + (b.first + b.n) / group; };
  std::stable_sort(blocks.begin(), blocks.end(),
                   [&](const Block& a, const Block& b) { return n_keys(a) > n_keys(b); });
  std::vector<const Sequence*> owner(n);
  for (int i = 0; i < p.n_sequences; i++)
    for (int k = 0; k < p.sequences[i].n; k++) owner[p.sequences[i].start + k] = p.sequences + i;
  std::vector<std::atomic<int>> next(m.n_layers);
  for (auto& one : next) one = 0;

  const int chunks = n == 1 ? 4 : 1, part = (m.d_ff / GROUP + chunks - 1) / chunks * GROUP;
#pragma omp parallel num_threads(p.n_threads)
  for (int l = 0; l < m.n_layers; l++) {
    const Layer& layer = m.layers[l];
#pragma omp for schedule(static)
    for (int i = 0; i < n; i++)
      normalise(p.x + int64_t(i) * d, layer.mixer_norm, m.eps, d, normal, i);
    multiply(layer.qkv, normal, n, qkv, false);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int i = 0; i < n; i++) {
      float* own = qkv + int64_t(i) * width;
      const Sequence& s = *owner[i];
      const int position = s.past + i - s.start;
      const int64_t angle = int64_t(s.places ? s.places[i - s.start] : position) * (hd / 2);
      for (int h = 0; h < m.n_heads + m.n_kv_heads; h++)
        turn(own + h * hd, p.cosines + angle, p.sines + angle, hd / 2);
      const int64_t slot = slot_of(s, position, p.block_tokens);
      for (int h = 0; h < m.n_kv_heads; h++) {
        const int64_t at = s.offset + h * p.head_stride + slot * hd;
        store(own + queries + h * hd, p.keys[l], at, hd, m.is_fp32);
        store(own + queries + (m.n_kv_heads + h) * hd, p.values[l], at, hd, m.is_fp32);
      }
    }
    for (int i = next[l]++; i < int(blocks.size()); i = next[l]++) {
      const Block& b = blocks[i];
      (b.n <= FEW ? attend_few : attend)(m, p, p.sequences[b.sequence], p.keys[l], p.values[l],
                                         b.head, b.first, b.n, qkv, read);
    }
#pragma omp barrier
    multiply(layer.out, read, n, p.x, true);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int i = 0; i < n; i++)
      normalise(p.x + int64_t(i) * d, layer.ffn_norm, m.eps, d, normal, i);
    multiply(layer.up, normal, n, up, false);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int i = 0; i < n * chunks; i++) {
      const int row = i / chunks, from = i % chunks * part;
      activate(up + int64_t(row) * 2 * m.d_ff, m.d_ff, from, std::min(m.d_ff, from + part), active,
               row);
    }
    multiply(layer.down, active, n, p.x, true);
#pragma omp barrier
    if (p.taps && p.taps[l]) {
#pragma omp for schedule(static)
      for (int i = 0; i < n; i++)
        std::copy_n(p.x + int64_t(i) * d, d, p.taps[l] + int64_t(i) * d);
    }
  }
}

}  // extern "C"
