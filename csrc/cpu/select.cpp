// The m best atoms of each group, from a selection that the tasks' scores are filtered into.

#include <algorithm>
#include <mutex>
#include <vector>

#include "coarse.h"

namespace ddcm {
namespace cpu {

namespace {

struct Candidate {
  float value, score;
  uint32_t index;
};

bool better(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.index < b.index;
}

// The m best candidates of one row, under the lock of the threads that share them.
struct Selection {
  std::vector<Candidate> best;
  float threshold;  // candidates below it cannot be among the m best
  std::mutex mutex;

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

// topk of at most kMaxRows rows. An owner has a selection for each row: of many groups, a thread takes whole groups
// and is an owner; of few, all threads share one group at a time.
class TopK {
 public:
  TopK(const Geometry& g, const float* w, int64_t rows, uint32_t step, int64_t m, const Ranking& ranking, int threads)
      : g_(g), w_(w), rows_(rows), step_(step), m_(m), ranking_(ranking), plan_(g, rows, threads),
        thread_owns_(g.groups >= 2 * plan_.threads),
        coarse_(has_coarse(g, plan_)),
        thread_bytes_(coarse_ ? CoarseTask::bytes(plan_) : plan_.bytes() + round_up(plan_.chunk * 8, 64)),
        memory_(thread_bytes_ * plan_.threads),
        selections_(static_cast<size_t>(rows * (thread_owns_ ? plan_.threads : 1))) {
    for (Selection& s : selections_) s.best.reserve(static_cast<size_t>(2 * m + 64));
  }

  // chosen (rows, G, m).
  void run(const Chosen& chosen) {
    if (thread_owns_) {
      Call& call = Call::current();
      parallel(g_.groups, plan_.threads, [&](int64_t group, int worker) {
        begin(worker);
        for (int64_t chunk = 0; chunk < plan_.chunks; ++chunk) {
          if (call.interrupted(worker)) return;
          for (int64_t block = 0; block < plan_.row_blocks; ++block) collect(group, chunk, block, worker, worker);
        }
        finish(group, worker, chosen);
      });
      return;
    }
    for (int64_t group = 0; group < g_.groups; ++group) {
      begin(0);
      parallel(plan_.chunks * plan_.row_blocks, plan_.threads, [&](int64_t task, int worker) {
        collect(group, task / plan_.row_blocks, task % plan_.row_blocks, 0, worker);
      });
      finish(group, 0, chosen);
    }
  }

 private:
  Selection& selection(int owner, int64_t row) { return selections_[static_cast<size_t>(owner * rows_ + row)]; }

  void begin(int owner) {
    for (int64_t r = 0; r < rows_; ++r) selection(owner, r).reset();
  }

  // Scores a task and adds its candidates to the selections of its rows.
  void collect(int64_t group, int64_t chunk, int64_t row_block, int owner, int worker) {
    char* thread_memory = memory_.get() + thread_bytes_ * worker;
    if (coarse_) {
      collect_coarse(group, chunk, row_block, owner, thread_memory);
      return;
    }
    const Chunk c = score_chunk(g_, plan_, w_, rows_, step_, group, chunk, row_block, thread_memory, nullptr);
    int* position = reinterpret_cast<int*>(thread_memory + plan_.bytes());
    float* value = reinterpret_cast<float*>(position + plan_.chunk);
    const float* bias = ranking_.bias_of(group, c.first);
    for (int r = 0; r < c.rows; ++r) {
      Selection& best = selection(owner, c.row + r);
      const float* s = c.scores + r * c.stride;
      float threshold;
      {
        const std::lock_guard<std::mutex> lock(best.mutex);
        threshold = best.threshold;
      }
      const int found = kernels->filter(s, bias, c.count, ranking_.is_signed, threshold, position, value);
      const std::lock_guard<std::mutex> lock(best.mutex);
      for (int i = 0; i < found; ++i)
        best.push(Candidate{value[i], s[position[i]], static_cast<uint32_t>(c.first + position[i])}, m_);
      best.shrink(m_);  // so that the next task filters by the m-th best value so far
    }
  }

  // The same by coarse scores: exact ones of those atoms only that can be among the m best.
  void collect_coarse(int64_t group, int64_t chunk, int64_t row_block, int owner, char* memory) {
    CoarseTask task(g_, plan_, w_, rows_, step_, ranking_, group, chunk, row_block, memory);
    for (int r = 0; r < task.chunk().rows; ++r) {
      Selection& best = selection(owner, task.chunk().row + r);
      float threshold;
      {
        const std::lock_guard<std::mutex> lock(best.mutex);
        threshold = best.threshold;
      }
      const float wrong = task.wrong(r, task.best(r));
      int found = task.list(r, threshold - wrong);
      if (found > 2 * m_) {  // the chunk itself has m atoms that are better than most of these
        float* value = task.listed();
        std::nth_element(value, value + (m_ - 1), value + found, [](float a, float b) { return a > b; });
        found = task.list(r, value[m_ - 1] - 2 * wrong);
      }
      std::vector<Candidate> exact;
      exact.reserve(static_cast<size_t>(found));
      task.score(r, found, [&](int64_t k, float value, float score) {
        exact.push_back(Candidate{value, score, static_cast<uint32_t>(k)});
      });
      const std::lock_guard<std::mutex> lock(best.mutex);
      for (const Candidate& c : exact) best.push(c, m_);
      best.shrink(m_);
    }
  }

  void finish(int64_t group, int owner, const Chosen& chosen) {
    for (int64_t r = 0; r < rows_; ++r) {
      Selection& best = selection(owner, r);
      best.shrink(m_);
      std::sort(best.best.begin(), best.best.end(), better);
      const bool is_finite = finite(w_ + r * g_.dim, g_.dim);
      for (int64_t j = 0; j < m_; ++j) {
        const Candidate& c = best.best[static_cast<size_t>(j)];
        chosen.write((r * g_.groups + group) * m_ + j, is_finite ? static_cast<int64_t>(c.index) : -1, c.score,
                     ranking_.is_signed);
      }
    }
  }

  const Geometry& g_;
  const float* w_;
  const int64_t rows_;
  const uint32_t step_;
  const int64_t m_;
  const Ranking& ranking_;
  const Plan plan_;
  const bool thread_owns_, coarse_;
  const int64_t thread_bytes_;
  const Memory memory_;
  std::vector<Selection> selections_;
};

}  // namespace

void topk(const Geometry& g, const float* w, int64_t batch, uint32_t step, int64_t m, const Ranking& ranking,
          const Chosen& chosen, int threads) {
  for (int64_t row = 0; row < batch; row += kMaxRows) {
    const int64_t rows = std::min<int64_t>(kMaxRows, batch - row);
    const int64_t at = row * g.groups * m;
    TopK(g, w + row * g.dim, rows, step, m, ranking, threads)
        .run(Chosen{chosen.index + at, chosen.sign + at, chosen.score + at});
  }
}

}  // namespace cpu
}  // namespace ddcm
