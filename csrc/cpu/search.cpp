// The best atom of each group, and all scores.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <vector>

#include "coarse.h"

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

namespace {

// The best atom so far of each row and group.
class Leaders {
 public:
  Leaders(const Geometry& g, int64_t batch, const Chosen& chosen)
      : g_(g), batch_(batch), chosen_(chosen), value_(static_cast<size_t>(batch * g.groups)) {
    std::fill(chosen.index, chosen.index + batch * g.groups, int64_t{-1});
  }

  void offer(int64_t row, int64_t group, int64_t k, float value, float score) {
    const int64_t at = row * g_.groups + group;
    const std::lock_guard<std::mutex> lock(mutex_);
    float& best_value = value_[static_cast<size_t>(at)];
    const int64_t best_k = chosen_.index[at];
    if (best_k >= 0 && (value < best_value || (value == best_value && k > best_k))) return;
    best_value = value;
    chosen_.index[at] = k;
    chosen_.score[at] = score;
  }

  void finish(const float* w, bool is_signed) {
    for (int64_t row = 0; row < batch_; ++row) {
      const bool is_finite = finite(w + row * g_.dim, g_.dim);
      for (int64_t at = row * g_.groups; at < (row + 1) * g_.groups; ++at)
        chosen_.write(at, is_finite ? chosen_.index[at] : -1, chosen_.score[at], is_signed);
    }
  }

 private:
  const Geometry& g_;
  const int64_t batch_;
  const Chosen& chosen_;
  std::vector<float> value_;
  std::mutex mutex_;
};

// The larger of a value that is known to be reached and another.
float raise(std::atomic<float>& floor, float value) {
  float known = floor.load(std::memory_order_relaxed);
  while (value > known && !floor.compare_exchange_weak(known, value, std::memory_order_relaxed)) {
  }
  return value > known ? value : known;
}

// By coarse scores: exact ones of those atoms only that can be the best.
void coarse_search(const Geometry& g, const Plan& plan, const float* w, int64_t batch, uint32_t step,
                   const Ranking& ranking, Leaders& leaders) {
  const int64_t bytes = CoarseTask::bytes(plan);
  const Memory memory(bytes * plan.threads);
  std::vector<std::atomic<float>> floors(static_cast<size_t>(batch * g.groups));
  for (std::atomic<float>& floor : floors) floor.store(-__builtin_inff(), std::memory_order_relaxed);
  parallel(g.groups * plan.chunks * plan.row_blocks, plan.threads, [&](int64_t index, int worker) {
    const int64_t row_block = index % plan.row_blocks, chunk = index / plan.row_blocks % plan.chunks;
    const int64_t group = index / plan.row_blocks / plan.chunks;
    CoarseTask task(g, plan, w, batch, step, ranking, group, chunk, row_block, memory.get() + bytes * worker);
    for (int r = 0; r < task.chunk().rows; ++r) {
      const int64_t row = task.chunk().row + r;
      const float best = task.best(r), wrong = task.wrong(r, best);
      const float floor = raise(floors[static_cast<size_t>(row * g.groups + group)], best - wrong);
      task.score(r, task.list(r, floor - wrong),
                 [&](int64_t k, float value, float score) { leaders.offer(row, group, k, value, score); });
    }
  });
}

}  // namespace

void search(const Geometry& g, const float* w, int64_t batch, uint32_t step, const Ranking& ranking,
            const Chosen& chosen, int threads) {
  Leaders leaders(g, batch, chosen);
  const Plan plan(g, batch, threads);
  if (has_coarse(g, plan)) {
    coarse_search(g, plan, w, batch, step, ranking, leaders);
  } else {
    for_each_chunk(g, w, batch, step, threads, false, [&](const Chunk& c) {
      const float* bias = ranking.bias_of(c.group, c.first);
      for (int r = 0; r < c.rows; ++r) {
        const float* scores = c.scores + r * c.stride;
        const Best best = kernels->argmax(scores, bias, c.count, ranking.is_signed);
        leaders.offer(c.row + r, c.group, c.first + best.index, best.value, scores[best.index]);
      }
    });
  }
  leaders.finish(w, ranking.is_signed);
}

}  // namespace cpu
}  // namespace ddcm
