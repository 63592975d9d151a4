// The cpu backend's C interface: codebook operations on host memory.
//
// Every function takes the geometry of a codebook (ddcm_cpu_geometry), dense row-major arrays and the
// number of threads to use, and returns 0, 1 if memory ran out, or 2 if a signal ended it (pool.h). Shapes: B rows, D = dim, G = groups,
// K = size. Residuals `w` and sums `y` are float32 (B, D) in codebook order (docs/noise-law.md). The
// caller checks shapes and ranges. Results are independent of the number of threads.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "kernels.h"
#include "pool.h"

#if defined(_WIN32)
#define DDCM_EXPORT extern "C" __declspec(dllexport)
#else
#define DDCM_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace ddcm {
namespace cpu {

GaussianTable gaussian_table;

namespace {

const Kernels* kernels = nullptr;

bool supported(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!std::strcmp(name, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
  if (!std::strcmp(name, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return !std::strcmp(name, "portable");
}

// Whether a table of kernels makes every one of the 65536 grid Gaussians as the law's table says: some
// 50 microseconds, and a wrong vector unit or rounding mode cannot go unnoticed.
bool makes_gaussians(const Kernels& k) {
  constexpr int64_t halves = 2048;
  uint32_t words[halves / 2];
  float q[halves];
  for (int64_t first = 0; first < 2 * kGaussianTableSize; first += halves) {
    for (int64_t i = 0; i < halves; i += 2)
      words[i / 2] = static_cast<uint32_t>(first + i) | static_cast<uint32_t>(first + i + 1) << 16;
    k.gaussian_integers(words, halves, q);
    for (int64_t i = 0; i < halves; ++i) {
      const float expected = gaussian_table.value[(first + i) & 0x7fff];
      if (q[i] != ((first + i) & 0x8000 ? -expected : expected)) return false;
    }
  }
  return true;
}

// 64 byte aligned memory, freed at the end of its scope. Throws std::bad_alloc.
class Memory {
 public:
  explicit Memory(int64_t bytes)
      : raw_(new char[static_cast<size_t>(bytes) + 64]),
        start_(raw_.get() + (64 - reinterpret_cast<uintptr_t>(raw_.get()) % 64) % 64) {}
  char* get() const { return start_; }

 private:
  std::unique_ptr<char[]> raw_;
  char* start_;
};

constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Threads worth waking for some amount of work: each should have about 100 microseconds or more. On a
// busy machine a thread can lose its core in the middle of a task, and the caller waits for it.
int useful_threads(double vector_operations, int threads) {
  const double share = vector_operations / 200000.0;
  return share < threads ? std::max(1, static_cast<int>(share)) : threads;
}

// How the scores of a codebook are cut into tasks: (group, run of atoms, run of rows).
struct Plan {
  int64_t chunk;       // atoms a task
  int64_t chunks;      // tasks a group
  int row_block;       // rows a task
  int64_t row_blocks;
  int threads;
  int64_t stride;      // floats of scores a row and task
  int64_t scores_bytes, scratch_bytes;  // a thread

  Plan(const Geometry& g, int64_t rows, int requested) {
    const double size = static_cast<double>(g.size);
    double work;  // in operations on 16 entries
    if (g.kind == kHadamard) {
      const double n = g.hadamard_n;
      chunk = g.hadamard_n;
      chunks = g.pairs();
      work = static_cast<double>(g.groups * chunks * rows) * (g.sub_blocks + 1) * n / 4;
    } else {
      const double per_entry = (g.kind == kSign ? 0.1 : 1.0) + (g.kind == kSign ? 0.05 : 0.1) * rows;
      work = size * static_cast<double>(g.dim) * per_entry;
      chunk = round_up(ceil_div(g.size, 4 * std::max(1, requested)), kChunkStep);
      chunk = std::min<int64_t>(std::max<int64_t>(chunk, 512), kMaxChunk);
      chunk = std::min(chunk, round_up(g.size, kChunkStep));
      // A task lasts some 0.1 seconds at most, or a call could not be interrupted in time.
      const int64_t shared_rows = std::min<int64_t>(rows, kMaxRows);
      const int64_t longest = (int64_t{1} << 28) / (g.max_group_dim * (1 + shared_rows / 8));
      if (g.kind == kGaussian)  // tables of `sign` are made anew for every task
        chunk = std::min(chunk, std::max<int64_t>(longest / kChunkStep, 1) * kChunkStep);
      chunks = ceil_div(g.size, chunk);
    }
    threads = useful_threads(work, requested);
    row_block = static_cast<int>(std::min<int64_t>(rows, kMaxRows));
    if (g.kind == kHadamard && g.groups * chunks < 2 * threads)  // rows share little: split them
      row_block = static_cast<int>(
          std::min<int64_t>(row_block, ceil_div(rows * g.groups * chunks, 2 * threads)));
    row_blocks = ceil_div(rows, row_block);
    stride = round_up(chunk, 16);
    scores_bytes = round_up(row_block * stride * 4, 64);
    scratch_bytes = round_up(kernels->scratch_bytes(g, row_block), 64);
  }

  int64_t bytes() const { return scores_bytes + scratch_bytes; }
};

// One task's scores in a thread's memory.
struct Chunk {
  int64_t group;
  int64_t first;    // atom
  int count;        // atoms inside the codebook
  int64_t row;      // first row
  int rows;
  const float* scores;
  int64_t stride;
  const uint64_t* norms;  // ScoreTask's
};

Chunk score_chunk(const Geometry& g, const Plan& plan, const float* w, int64_t batch, uint32_t step,
                  int64_t group, int64_t chunk, int64_t row_block, char* memory, uint64_t* norms) {
  Chunk out;
  out.group = group;
  out.first = chunk * plan.chunk;
  out.count = static_cast<int>(std::min(plan.chunk, g.size - out.first));
  out.row = row_block * plan.row_block;
  out.rows = static_cast<int>(std::min<int64_t>(plan.row_block, batch - out.row));
  out.scores = reinterpret_cast<float*>(memory);
  out.stride = plan.stride;
  out.norms = norms;
  ScoreTask task;
  task.geometry = &g;
  task.w = w + out.row * g.dim + g.group_start(group);
  task.row_stride = g.dim;
  task.rows = out.rows;
  task.group = group;
  task.group_dim = g.group_dim(group);
  task.step = step;
  task.first = static_cast<uint64_t>(out.first);
  task.count = g.kind == kHadamard ? g.hadamard_n : out.count;
  task.scores = reinterpret_cast<float*>(memory);
  task.stride = plan.stride;
  task.norms = norms;
  task.scratch = memory + plan.scores_bytes;
  kernels->scores(task);
  return out;
}

// Calls use(chunk, worker) for every task of a codebook. With `norms` (`gaussian` only), the tasks of the
// first rows make their atoms' squared norms too.
template <class Use>
void for_each_chunk(const Geometry& g, const float* w, int64_t batch, uint32_t step, int threads,
                    bool norms, Use&& use) {
  const Plan plan(g, batch, threads);
  const int64_t bytes = plan.bytes() + (norms ? plan.chunk * 8 : 0);
  const Memory memory(bytes * plan.threads);
  parallel(g.groups * plan.chunks * plan.row_blocks, plan.threads, [&](int64_t task, int worker) {
    const int64_t row_block = task % plan.row_blocks;
    const int64_t chunk = task / plan.row_blocks % plan.chunks;
    const int64_t group = task / plan.row_blocks / plan.chunks;
    char* mine = memory.get() + bytes * worker;
    uint64_t* squares =
        norms && row_block == 0 ? reinterpret_cast<uint64_t*>(mine + plan.bytes()) : nullptr;
    use(score_chunk(g, plan, w, batch, step, group, chunk, row_block, mine, squares));
  });
}

bool finite(const float* x, int64_t count) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    bad |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
  }
  return bad == 0;
}

const float* bias_of(const Geometry& g, const float* bias, int per_group, int64_t group,
                     int64_t first) {
  return bias == nullptr ? nullptr : bias + (per_group ? group * g.size : 0) + first;
}

struct Candidate {
  float value, score;
  uint32_t index;
};

bool better(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.index < b.index;
}

// The m best candidates of one row, under the lock of whoever shares them.
struct Selection {
  std::vector<Candidate> best;
  float threshold;  // candidates below it cannot be among the m best

  void reset() {
    best.clear();
    threshold = -__builtin_inff();
  }
  void push(const Candidate& c, int64_t m) {
    if (best.size() == best.capacity()) shrink(m);
    if (c.value >= threshold) best.push_back(c);
  }
  void shrink(int64_t m) {
    if (static_cast<int64_t>(best.size()) <= m) return;
    std::nth_element(best.begin(), best.begin() + (m - 1), best.end(), better);
    best.resize(static_cast<size_t>(m));
    threshold = best.back().value;
  }
};

template <class Function>
int guarded(Function&& function) {
  try {
    Call call;
    function();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  } catch (const Interrupted&) {
    return 2;
  }
}

// ---- rotation: units of 4096 coordinates, the last extended to the end ---------------------------

constexpr int64_t kUnit = kMaxRotationBlock;

int64_t rotation_units(const Geometry& g) { return std::max<int64_t>(1, g.dim / kUnit); }

// First coordinate and number of coordinates of a unit. The overlapping block that closes a D not
// divisible by b lies inside the last unit.
void unit_range(const Geometry& g, int64_t unit, int64_t* start, int64_t* count) {
  *start = unit * kUnit;
  *count = (unit + 1 == rotation_units(g) ? g.dim : *start + kUnit) - *start;
}

void full_blocks(float* x, int64_t count, int b) {
  for (int64_t m = 0; m + b <= count; m += b) {
    kernels->transform(x + m, b);
    kernels->scale(x + m, b, hadamard_scale(b));
  }
}

void flip_unit(const Geometry& g, int64_t start, int64_t count, float* x) {
  uint32_t words[2 * kUnit / 32];
  kernels->block_words(g.key(), static_cast<uint32_t>(start / kSignsPerCall),
                       ceil_div(count, kSignsPerCall), 0, 0, kStreamRotation, words);
  kernels->flip(x, words, count, x);
}

void rotation(const Geometry& g, int64_t batch, int threads, void (*unit)(const Geometry&, int64_t, const float*, float*),
              const float* in, float* out) {
  const int64_t units = rotation_units(g);
  const int useful = useful_threads(static_cast<double>(batch) * static_cast<double>(g.dim), threads);
  parallel(batch * units, useful, [&](int64_t task, int) {
    const int64_t row = task / units * g.dim;
    unit(g, task % units, in + row, out + row);
  });
}

// Bits of the largest magnitude: as integers they are ordered like magnitudes, infinity and then NaN on top.
uint32_t peak_bits(const float* x, int64_t count) {
  int32_t peak = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, 4);
    peak = std::max(peak, bits & 0x7fffffff);
  }
  return static_cast<uint32_t>(peak);
}

// Power of two that brings a magnitude into range, and its inverse: ddcm_fast.codebook.reference.enter.
struct Power {
  float scale, unit;
  explicit Power(uint32_t peak) {
    const int exponent = static_cast<int>(peak >> 23);
    const int shift = peak == 0 ? 0 : std::min(std::max(exponent, 67), 187) - exponent;
    scale = __builtin_ldexpf(1.0f, shift);
    unit = __builtin_ldexpf(1.0f, -shift);
  }
};

void unit_to_codebook_order(const Geometry& g, int64_t unit, const float* r, float* w) {
  int64_t start, count;
  unit_range(g, unit, &start, &count);
  float* x = w + start;
  kernels->gather(r, g.dim, g.image_position(start), g.stride, count, x);
  if (!g.rotated()) return;
  flip_unit(g, start, count, x);
  const int b = g.rotation_block;
  const bool last = start + count == g.dim;
  if (last && g.dim % b) full_blocks(w + g.dim - b, b, b);
  full_blocks(x, count, b);
}

void unit_to_image_order(const Geometry& g, int64_t unit, const float* y, float* z) {
  int64_t start, count;
  unit_range(g, unit, &start, &count);
  alignas(64) float x[2 * kUnit];
  std::memcpy(x, y + start, static_cast<size_t>(count) * 4);
  if (g.rotated()) {
    const int b = g.rotation_block;
    full_blocks(x, count, b);
    if (start + count == g.dim && g.dim % b) full_blocks(x + count - b, b, b);
    flip_unit(g, start, count, x);
  }
  int64_t position = g.image_position(start);
  for (int64_t i = 0; i < count; ++i) {
    z[position] = x[i];
    position += g.stride;
    if (position >= g.dim) position -= g.dim;
  }
}

// ---- synthesis -----------------------------------------------------------------------------------

// Had_n(e) of a pair and sub-block, exact.
void hadamard_spectrum(const Geometry& g, uint32_t block, uint32_t pair, uint32_t step,
                       uint32_t* words, float* s) {
  const int n = g.hadamard_n;
  kernels->block_words(g.key(), block, g.calls_per_sub_block(), pair, step, kStreamInner, words);
  std::fill(s, s + n, 1.0f);
  kernels->flip(s, words, n, s);
  kernels->transform(s, n);
  kernels->scale(s, n, hadamard_scale(n));
}

uint64_t clamp_index(const Geometry& g, int64_t index) {
  return static_cast<uint64_t>(std::min(std::max<int64_t>(index, 0), g.size - 1));
}

void combine_hadamard(const Geometry& g, const int64_t* index, const float* coefficient, int64_t batch,
                      int64_t m, uint32_t step, float* y, int threads) {
  const int n = g.hadamard_n;
  const int64_t calls = g.calls_per_sub_block();
  const int64_t bytes = calls * 32 + static_cast<int64_t>(n) * 4;
  const double work = static_cast<double>(batch * m) * static_cast<double>(g.dim) * 0.4;
  const int useful = useful_threads(work, threads);
  const int64_t blocks = g.groups * g.sub_blocks;
  // Rows share the spectra of their pairs, so they are split only where blocks are too few.
  const int64_t parts = blocks >= 2 * useful ? 1 : std::min<int64_t>(batch, 2 * useful);
  const Memory memory(bytes * useful);
  parallel(blocks * parts, useful, [&](int64_t task, int worker) {
    const int64_t part = task % parts, group = task / parts / g.sub_blocks;
    const int64_t c = task / parts % g.sub_blocks;
    const int64_t entries =
        std::min<int64_t>(n, g.group_dim(group) - c * n);
    if (entries <= 0) return;
    float* s = reinterpret_cast<float*>(memory.get() + bytes * worker);
    uint32_t* outer = reinterpret_cast<uint32_t*>(s + n);
    uint32_t* inner = outer + calls * 4;
    const uint32_t block = g.block(group, c * calls);
    bool made = false;
    uint32_t made_pair = 0;
    for (int64_t row = batch * part / parts; row < batch * (part + 1) / parts; ++row) {
      float* out = y + row * g.dim + g.group_start(group) + c * n;
      std::fill(out, out + entries, 0.0f);
      for (int64_t j = 0; j < m; ++j) {
        const int64_t at = (row * g.groups + group) * m + j;
        const uint64_t k = clamp_index(g, index[at]);
        const uint32_t pair = static_cast<uint32_t>(k / static_cast<uint64_t>(n));
        if (!made || pair != made_pair) {
          hadamard_spectrum(g, block, pair, step, inner, s);
          kernels->block_words(g.key(), block, calls, pair, step, kStreamOuter, outer);
          made = true;
          made_pair = pair;
        }
        kernels->add_hadamard(out, outer, s, static_cast<int>(k % static_cast<uint64_t>(n)), entries,
                              coefficient[at]);
      }
    }
  });
}

void combine_independent(const Geometry& g, const int64_t* index, const float* coefficient,
                         int64_t batch, int64_t m, uint32_t step, float* y, int threads) {
  constexpr int64_t part = 8192;  // coordinates a task
  const bool is_sign = g.kind == kSign;
  const int64_t per_call = is_sign ? kSignsPerCall : kGaussiansPerCall;
  const int64_t parts = ceil_div(g.max_group_dim, part);
  const double work = static_cast<double>(batch * m) * static_cast<double>(g.dim) * (is_sign ? 0.2 : 1.5);
  parallel(batch * g.groups * parts, useful_threads(work, threads), [&](int64_t task, int) {
    const int64_t start = task % parts * part, group = task / parts % g.groups;
    const int64_t row = task / parts / g.groups;
    const int64_t entries = std::min(part, g.group_dim(group) - start);
    if (entries <= 0) return;
    alignas(64) uint32_t words[part / 2];
    float* out = y + row * g.dim + g.group_start(group) + start;
    std::fill(out, out + entries, 0.0f);
    for (int64_t j = 0; j < m; ++j) {
      const int64_t at = (row * g.groups + group) * m + j;
      const uint32_t atom = static_cast<uint32_t>(clamp_index(g, index[at]));
      kernels->block_words(g.key(), g.block(group, start / per_call), ceil_div(entries, per_call),
                           atom, step, is_sign ? kStreamSign : kStreamGaussian, words);
      if (is_sign)
        kernels->add_signs(out, words, entries, coefficient[at]);
      else
        kernels->add_gaussians(out, words, entries, coefficient[at]);
    }
  });
}

// ---- norms ---------------------------------------------------------------------------------------

// sum of s[l ^ j]^2 over l < entries, for all j: [0, entries) is a union of aligned runs of 2^b
// entries, one for each bit of `entries`, and l ^ j carries an aligned run to an aligned run.
void add_hadamard_norms(int n, int64_t entries, const float* s, double* tree, double* norms) {
  for (int i = 0; i < n; ++i) tree[i] = static_cast<double>(s[i]) * s[i];
  int64_t begin = entries;
  for (int run = 1; run < n; run *= 2) {
    if (entries & run) {
      begin -= run;
      for (int j = 0; j < n; ++j) norms[j] += tree[(begin ^ j) / run];
    }
    for (int i = 0; i < n / run / 2; ++i) tree[i] = tree[2 * i] + tree[2 * i + 1];
  }
}

// `hadamard`: full sub-blocks give n each, so only a pair's cut one takes a transform. out (G, K).
void hadamard_norms(const Geometry& g, uint32_t step, float* out, int threads) {
  const int n = g.hadamard_n;
  const int64_t calls = g.calls_per_sub_block(), chunks = g.pairs();
  const int64_t bytes = round_up(static_cast<int64_t>(n) * 20 + calls * 16, 64);
  const Memory memory(bytes * threads);
  parallel(g.groups * chunks, threads, [&](int64_t task, int worker) {
    const int64_t group = task / chunks, pair = task % chunks;
    const int64_t full = g.group_dim(group) / n, cut = g.group_dim(group) % n;
    double* norms = reinterpret_cast<double*>(memory.get() + bytes * worker);
    double* tree = norms + n;
    float* s = reinterpret_cast<float*>(tree + n);
    uint32_t* words = reinterpret_cast<uint32_t*>(s + n);
    std::fill(norms, norms + n, static_cast<double>(full * n));
    if (cut != 0) {
      hadamard_spectrum(g, g.block(group, full * calls), static_cast<uint32_t>(pair), step, words, s);
      add_hadamard_norms(n, cut, s, tree, norms);
    }
    const int64_t first = pair * n, count = std::min<int64_t>(n, g.size - first);
    for (int64_t i = 0; i < count; ++i) out[group * g.size + first + i] = static_cast<float>(norms[i]);
  });
}

}  // namespace
}  // namespace cpu
}  // namespace ddcm

using namespace ddcm;
using namespace ddcm::cpu;

// ---- the C interface -----------------------------------------------------------------------------

// Takes T of section 4 (32768 int16). Must be called once, before anything else.
DDCM_EXPORT void ddcm_cpu_set_table(const int16_t* table) {
  for (int j = 0; j < kGaussianTableSize; ++j) gaussian_table.value[j] = table[j];
}

// Takes Python's functions: see Interpreter. For a caller that holds the interpreter's lock.
DDCM_EXPORT void ddcm_cpu_set_interpreter(void* (*save_thread)(), void (*restore_thread)(void*),
                                          int (*check_signals)()) {
  interpreter = Interpreter{save_thread, restore_thread, check_signals};
}

// Chooses the instruction set: "avx512", "avx2", "portable", or "auto" for the best one here.
// Returns 0, or 1 if it is unknown, was not compiled, this machine lacks it, or its Gaussians are wrong.
DDCM_EXPORT int ddcm_cpu_select(const char* name) {
  const Kernels* all[] = {avx512_kernels(), avx2_kernels(), portable_kernels()};
  for (const Kernels* k : all) {
    if (k == nullptr || !supported(k->name)) continue;
    if (std::strcmp(name, "auto") && std::strcmp(name, k->name)) continue;
    if (!makes_gaussians(*k)) continue;
    kernels = k;
    return 0;
  }
  return 1;
}

// Name of the chosen instruction set.
DDCM_EXPORT const char* ddcm_cpu_selected() { return kernels == nullptr ? "" : kernels->name; }

DDCM_EXPORT void ddcm_cpu_geometry(int kind, int64_t dim, int64_t size, int64_t groups, uint64_t seed,
                                   Geometry* out) {
  *out = make_geometry(kind, dim, size, groups, seed);
}

// w = R^T r: (B, D) -> (B, D).
DDCM_EXPORT int ddcm_cpu_to_codebook_order(const Geometry* g, const float* r, int64_t batch, float* w,
                                           int threads) {
  return guarded([&] { rotation(*g, batch, threads, unit_to_codebook_order, r, w); });
}

// The same of rows brought into range: ddcm_fast.codebook.reference.enter, by whose rule unit (B) is filled. Returns 3 if any
// of them is not 1, 2 if r has NaN or infinite entries (w and unit are then not written).
DDCM_EXPORT int ddcm_cpu_enter(const Geometry* g, const float* r, int64_t batch, int together, float* w,
                               float* unit, int threads) {
  int status = 0;
  const int failed = guarded([&] {
    std::vector<uint32_t> peaks(static_cast<size_t>(batch));
    const int useful = useful_threads(static_cast<double>(batch) * static_cast<double>(g->dim) / 8, threads);
    parallel(batch, useful, [&](int64_t row, int) {
      peaks[static_cast<size_t>(row)] = peak_bits(r + row * g->dim, g->dim);
    });
    const uint32_t top = *std::max_element(peaks.begin(), peaks.end());
    if (top >= 0x7f800000u) {
      status = 2;
      return;
    }
    if (together) std::fill(peaks.begin(), peaks.end(), top);
    bool scaled = false;
    for (int64_t row = 0; row < batch; ++row) {
      unit[row] = Power(peaks[static_cast<size_t>(row)]).unit;
      scaled = scaled || unit[row] != 1.0f;
    }
    if (!scaled) {
      rotation(*g, batch, threads, unit_to_codebook_order, r, w);
      return;
    }
    status = 3;
    std::vector<float> x(static_cast<size_t>(g->dim));
    for (int64_t row = 0; row < batch; ++row) {
      const float scale = Power(peaks[static_cast<size_t>(row)]).scale;
      for (int64_t i = 0; i < g->dim; ++i) x[static_cast<size_t>(i)] = r[row * g->dim + i] * scale;
      rotation(*g, 1, threads, unit_to_codebook_order, x.data(), w + row * g->dim);
    }
  });
  return failed ? failed : status;
}

// z = R y: (B, D) -> (B, D).
DDCM_EXPORT int ddcm_cpu_to_image_order(const Geometry* g, const float* y, int64_t batch, float* z,
                                        int threads) {
  return guarded([&] { rotation(*g, batch, threads, unit_to_image_order, y, z); });
}

// All scores: out (B, G, K). norms (G, K), or null: squared norms of all atoms.
DDCM_EXPORT int ddcm_cpu_scores(const Geometry* g, const float* w, int64_t batch, uint32_t step,
                                float* out, float* norms, int threads) {
  return guarded([&] {
    if (norms != nullptr && g->kind == kSign)
      for (int64_t group = 0; group < g->groups; ++group)
        std::fill(norms + group * g->size, norms + (group + 1) * g->size,
                  static_cast<float>(g->group_dim(group)));
    if (norms != nullptr && g->kind == kHadamard) hadamard_norms(*g, step, norms, threads);
    const bool squares = norms != nullptr && g->kind == kGaussian;
    for_each_chunk(*g, w, batch, step, threads, squares, [&](const Chunk& c) {
      for (int r = 0; r < c.rows; ++r)
        std::memcpy(out + ((c.row + r) * g->groups + c.group) * g->size + c.first,
                    c.scores + r * c.stride, static_cast<size_t>(c.count) * 4);
      if (c.norms == nullptr) return;
      float* to = norms + c.group * g->size + c.first;
      for (int i = 0; i < c.count; ++i)
        to[i] = static_cast<float>(static_cast<double>(c.norms[i]) / 65536.0);
    });
  });
}

// The best atom of each group: index, sign, score (B, G). bias is null, (K,) or, with
// bias_per_group, (G, K). A row with NaN or infinite entries gets index -1.
DDCM_EXPORT int ddcm_cpu_search(const Geometry* g, const float* w, int64_t batch, uint32_t step,
                                int is_signed, const float* bias, int bias_per_group, int64_t* index,
                                int8_t* sign, float* score, int threads) {
  return guarded([&] {
    std::vector<float> value(static_cast<size_t>(batch * g->groups));
    std::fill(index, index + batch * g->groups, int64_t{-1});
    std::mutex mutex;
    for_each_chunk(*g, w, batch, step, threads, false, [&](const Chunk& c) {
      const float* b = bias_of(*g, bias, bias_per_group, c.group, c.first);
      for (int r = 0; r < c.rows; ++r) {
        const float* s = c.scores + r * c.stride;
        const Best best = kernels->argmax(s, b, c.count, is_signed != 0);
        const int64_t k = c.first + best.index, at = (c.row + r) * g->groups + c.group;
        const std::lock_guard<std::mutex> lock(mutex);
        const size_t v = static_cast<size_t>(at);
        if (index[at] >= 0 &&
            (best.value < value[v] || (best.value == value[v] && k > index[at])))
          continue;
        value[v] = best.value;
        index[at] = k;
        score[at] = s[best.index];
      }
    });
    for (int64_t row = 0; row < batch; ++row) {
      const bool good = finite(w + row * g->dim, g->dim);
      for (int64_t at = row * g->groups; at < (row + 1) * g->groups; ++at) {
        sign[at] = is_signed && score[at] < 0 ? -1 : 1;
        if (sign[at] < 0) score[at] = -score[at];
        if (!good) index[at] = -1;
      }
    }
  });
}

// The m best atoms of each group, best first: index, sign, score (B, G, m); otherwise as search.
DDCM_EXPORT int ddcm_cpu_topk(const Geometry* g, const float* w, int64_t batch, uint32_t step, int64_t m,
                              int is_signed, const float* bias, int bias_per_group, int64_t* index,
                              int8_t* sign, float* score, int threads) {
  return guarded([&] {
    for (int64_t row0 = 0; row0 < batch; row0 += kMaxRows) {
      const int64_t rows = std::min<int64_t>(kMaxRows, batch - row0);
      const float* w0 = w + row0 * g->dim;
      const Plan plan(*g, rows, threads);
      // Many groups: a thread takes whole groups. Few: all threads share one group at a time.
      const bool own = g->groups >= 2 * plan.threads;
      const int64_t owners = own ? plan.threads : 1;
      const int64_t found_bytes = round_up(plan.chunk * 8, 64);
      const int64_t bytes = plan.bytes() + found_bytes;
      const Memory memory(bytes * plan.threads);
      std::vector<Selection> selections(static_cast<size_t>(rows * owners));
      for (Selection& s : selections) s.best.reserve(static_cast<size_t>(2 * m + 64));
      std::vector<std::mutex> mutexes(static_cast<size_t>(rows * owners));

      const auto collect = [&](int64_t group, int64_t chunk, int64_t row_block, int owner, int worker) {
        char* mine = memory.get() + bytes * worker;
        const Chunk c = score_chunk(*g, plan, w0, rows, step, group, chunk, row_block, mine, nullptr);
        int* position = reinterpret_cast<int*>(mine + plan.bytes());
        float* value = reinterpret_cast<float*>(position + plan.chunk);
        const float* b = bias_of(*g, bias, bias_per_group, group, c.first);
        for (int r = 0; r < c.rows; ++r) {
          const size_t at = static_cast<size_t>(owner * rows + c.row + r);
          Selection& selection = selections[at];
          const float* s = c.scores + r * c.stride;
          float threshold;
          {
            const std::lock_guard<std::mutex> lock(mutexes[at]);
            threshold = selection.threshold;
          }
          const int found =
              kernels->filter(s, b, c.count, is_signed != 0, threshold, position, value);
          const std::lock_guard<std::mutex> lock(mutexes[at]);
          for (int i = 0; i < found; ++i)
            selection.push(Candidate{value[i], s[position[i]],
                                     static_cast<uint32_t>(c.first + position[i])},
                           m);
          selection.shrink(m);  // so that the next task filters by the m-th best value so far
        }
      };
      const auto begin = [&](int owner) {
        for (int64_t r = 0; r < rows; ++r) selections[static_cast<size_t>(owner * rows + r)].reset();
      };
      const auto finish = [&](int64_t group, int owner) {
        for (int64_t r = 0; r < rows; ++r) {
          Selection& selection = selections[static_cast<size_t>(owner * rows + r)];
          selection.shrink(m);
          std::sort(selection.best.begin(), selection.best.end(), better);
          const bool good = finite(w0 + r * g->dim, g->dim);
          for (int64_t j = 0; j < m; ++j) {
            const Candidate& c = selection.best[static_cast<size_t>(j)];
            const int64_t at = ((row0 + r) * g->groups + group) * m + j;
            sign[at] = is_signed && c.score < 0 ? -1 : 1;
            score[at] = sign[at] < 0 ? -c.score : c.score;
            index[at] = good ? static_cast<int64_t>(c.index) : -1;
          }
        }
      };
      if (own) {
        Call& call = Call::current();
        parallel(g->groups, plan.threads, [&](int64_t group, int worker) {
          begin(worker);
          for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
            if (call.interrupted(worker)) return;
            for (int64_t block = 0; block < plan.row_blocks; ++block)
              collect(group, chunk, block, worker, worker);
          }
          finish(group, worker);
        });
      } else {
        for (int64_t group = 0; group < g->groups; ++group) {
          begin(0);
          parallel(plan.chunks * plan.row_blocks, plan.threads, [&](int64_t task, int worker) {
            collect(group, task / plan.row_blocks, task % plan.row_blocks, 0, worker);
          });
          finish(group, 0);
        }
      }
    }
  });
}

// Weighted sums of atoms (section 6): index, coefficient (B, G, M) -> y (B, D). Indices outside the
// codebook are clamped into it.
DDCM_EXPORT int ddcm_cpu_combine(const Geometry* g, const int64_t* index, const float* coefficient,
                                 int64_t batch, int64_t m, uint32_t step, float* y, int threads) {
  return guarded([&] {
    if (g->kind == kHadamard)
      combine_hadamard(*g, index, coefficient, batch, m, step, y, threads);
    else
      combine_independent(*g, index, coefficient, batch, m, step, y, threads);
  });
}
