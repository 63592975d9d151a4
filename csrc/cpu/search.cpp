// The best atom of each group, and all scores.

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "driver.h"

namespace ddcm {
namespace cpu {

void scores(const Geometry& g, const float* w, int64_t batch, uint32_t step, float* out, float* norms, int threads) {
  if (norms != nullptr && g.kind == kSign)
    for (int64_t group = 0; group < g.groups; ++group)
      std::fill(norms + group * g.size, norms + (group + 1) * g.size, static_cast<float>(g.group_dim(group)));
  if (norms != nullptr && g.kind == kHadamard) hadamard_norms(g, step, norms, threads);
  const bool squares = norms != nullptr && g.kind == kGaussian;
  for_each_chunk(g, w, batch, step, threads, squares, [&](const Chunk& c) {
    for (int r = 0; r < c.rows; ++r)
      std::memcpy(out + ((c.row + r) * g.groups + c.group) * g.size + c.first, c.scores + r * c.stride,
                  static_cast<size_t>(c.count) * 4);
    if (c.norms == nullptr) return;
    float* to = norms + c.group * g.size + c.first;
    for (int i = 0; i < c.count; ++i) to[i] = static_cast<float>(static_cast<double>(c.norms[i]) / 65536.0);
  });
}

void search(const Geometry& g, const float* w, int64_t batch, uint32_t step, const Ranking& ranking,
            const Chosen& chosen, int threads) {
  std::vector<float> value(static_cast<size_t>(batch * g.groups));
  std::fill(chosen.index, chosen.index + batch * g.groups, int64_t{-1});
  std::mutex mutex;
  for_each_chunk(g, w, batch, step, threads, false, [&](const Chunk& c) {
    const float* bias = ranking.bias_of(c.group, c.first);
    for (int r = 0; r < c.rows; ++r) {
      const float* s = c.scores + r * c.stride;
      const Best best = kernels->argmax(s, bias, c.count, ranking.is_signed);
      const int64_t k = c.first + best.index, at = (c.row + r) * g.groups + c.group;
      const std::lock_guard<std::mutex> lock(mutex);
      float& best_value = value[static_cast<size_t>(at)];
      const int64_t best_k = chosen.index[at];
      if (best_k >= 0 && (best.value < best_value || (best.value == best_value && k > best_k))) continue;
      best_value = best.value;
      chosen.index[at] = k;
      chosen.score[at] = s[best.index];
    }
  });
  for (int64_t row = 0; row < batch; ++row) {
    const bool is_finite = finite(w + row * g.dim, g.dim);
    for (int64_t at = row * g.groups; at < (row + 1) * g.groups; ++at)
      chosen.write(at, is_finite ? chosen.index[at] : -1, chosen.score[at], ranking.is_signed);
  }
}

}  // namespace cpu
}  // namespace ddcm
