// `hadamard` atoms: their sums and squared norms, from fast transforms of the pairs' signs.

#include <algorithm>

#include "driver.h"

namespace ddcm {
namespace cpu {

namespace {

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

}  // namespace

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
    int64_t spectrum_pair = -1;  // whose spectrum s holds
    for (int64_t row = batch * part / parts; row < batch * (part + 1) / parts; ++row) {
      float* out = y + row * g.dim + g.group_start(group) + c * n;
      std::fill(out, out + entries, 0.0f);
      for (int64_t j = 0; j < m; ++j) {
        const int64_t at = (row * g.groups + group) * m + j;
        const uint64_t k = clamp_index(g, index[at]);
        const uint32_t pair = static_cast<uint32_t>(k / static_cast<uint64_t>(n));
        if (pair != spectrum_pair) {
          hadamard_spectrum(g, block, pair, step, inner, s);
          kernels->block_words(g.key(), block, calls, pair, step, kStreamOuter, outer);
          spectrum_pair = pair;
        }
        kernels->add_hadamard(out, outer, s, static_cast<int>(k % static_cast<uint64_t>(n)), entries,
                              coefficient[at]);
      }
    }
  });
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

}  // namespace cpu
}  // namespace ddcm
