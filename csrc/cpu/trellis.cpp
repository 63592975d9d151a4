// The best path through a trellis of atoms: scores and the Viterbi algorithm, a stretch of groups at a time.

#include <algorithm>
#include <cstring>

#include "driver.h"

namespace ddcm {
namespace cpu {

namespace {

constexpr int64_t kScoresAtOnce = int64_t{1} << 20;   // 4 MB of scores: what a cache holds
constexpr int64_t kOriginsAtOnce = int64_t{1} << 26;  // bytes; one row takes what it takes
constexpr int64_t kShared = int64_t{1} << 15;         // scores of a group from which threads share it
constexpr int64_t kPadding = 16;                      // floats that a vector may read past the metrics
constexpr int64_t kPairStep = 64;                     // pairs of states in a part: whole vectors

class Trellis {
 public:
  Trellis(const Geometry& g, const float* w, int64_t rows, uint32_t step, int letter_bits, int threads)
      : g_(g), w_(w), rows_(rows), step_(step), bits_(letter_bits), memory_(memory_of(g, letter_bits)),
        threads_(threads), states_(int64_t{1} << memory_), plan_(g, rows, threads),
        stretch_(std::min(g.groups, std::max<int64_t>(1, kScoresAtOnce / (rows * g.size)))),
        scratch_(plan_.bytes() * plan_.threads),
        scores_(rows * stretch_ * g.size * 4),
        metrics_(rows * 2 * (states_ + kPadding) * 4),
        origins_(rows * g.groups * states_) {}

  static int memory_of(const Geometry& g, int letter_bits) {
    int bits = 0;
    while ((int64_t{1} << bits) < g.size) ++bits;
    return bits - letter_bits + 1;
  }

  // Rows that are worth holding at once.
  static int64_t rows_at_once(const Geometry& g, int letter_bits) {
    const int64_t origins = g.groups << memory_of(g, letter_bits);
    return std::max<int64_t>(1, std::min(4 * kScoresAtOnce / g.size, kOriginsAtOnce / origins));
  }

  // letters (rows, G).
  void run(int64_t* letters) {
    for (int64_t row = 0; row < rows_; ++row) {
      std::fill(metric(row, 0), metric(row, 0) + 2 * (states_ + kPadding), -__builtin_inff());
      metric(row, 0)[0] = 0;
    }
    for (int64_t first = 0; first < g_.groups; first += stretch_) {
      const int64_t count = std::min(stretch_, g_.groups - first);
      score(first, count);
      extend(first, count);
    }
    for (int64_t row = 0; row < rows_; ++row) trace_back(row, letters + row * g_.groups);
  }

 private:
  // Best value of a path to each state; those after a group are the other half's.
  float* metric(int64_t row, int64_t group) const {
    return reinterpret_cast<float*>(metrics_.get()) + (2 * row + group % 2) * (states_ + kPadding);
  }
  float* scores(int64_t row, int64_t within) const {
    return reinterpret_cast<float*>(scores_.get()) + (row * stretch_ + within) * g_.size;
  }
  uint8_t* origin(int64_t row, int64_t group) const {
    return reinterpret_cast<uint8_t*>(origins_.get()) + (row * g_.groups + group) * states_;
  }

  void score(int64_t first, int64_t count) {
    parallel(count * plan_.chunks * plan_.row_blocks, plan_.threads, [&](int64_t task, int worker) {
      const int64_t row_block = task % plan_.row_blocks, chunk = task / plan_.row_blocks % plan_.chunks;
      const int64_t within = task / plan_.row_blocks / plan_.chunks;
      const Chunk c = score_chunk(g_, plan_, w_, rows_, step_, first + within, chunk, row_block,
                                  scratch_.get() + plan_.bytes() * worker, nullptr);
      for (int r = 0; r < c.rows; ++r)
        std::memcpy(scores(c.row + r, within) + c.first, c.scores + r * c.stride, static_cast<size_t>(c.count) * 4);
    });
  }

  void extend(int64_t first, int64_t count) {
    const int64_t pairs = states_ / 2;
    const double group_work = static_cast<double>(rows_ * g_.size) * 0.4;
    if (rows_ >= threads_ || g_.size < kShared) {
      const int useful = useful_threads(group_work * static_cast<double>(count), threads_);
      parallel(rows_, useful, [&](int64_t row, int) {
        for (int64_t i = 0; i < count; ++i) extend_one(row, first + i, i, 0, pairs);
      });
      return;
    }
    // Few rows of many states: the states of a group are shared out, and all wait for each other after it.
    const int useful = useful_threads(group_work, threads_);
    int64_t parts = 1;
    while (parts < useful && 2 * parts * kPairStep <= pairs) parts *= 2;
    for (int64_t i = 0; i < count; ++i)
      parallel(rows_ * parts, useful, [&](int64_t task, int) {
        const int64_t part = task % parts;
        extend_one(task / parts, first + i, i, pairs / parts * part, pairs / parts * (part + 1));
      });
  }

  void extend_one(int64_t row, int64_t group, int64_t within, int64_t begin, int64_t end) {
    PathTask task;
    task.scores = scores(row, within);
    task.metric = metric(row, group);
    task.next = metric(row, group + 1);
    task.origin = origin(row, group);
    task.letter_bits = bits_;
    task.memory = memory_;
    task.first = begin;
    task.last = end;
    kernels->extend_paths(task);
  }

  void trace_back(int64_t row, int64_t* letters) const {
    if (!finite(w_ + row * g_.dim, g_.dim)) {
      std::fill(letters, letters + g_.groups, int64_t{-1});
      return;
    }
    const float* last = metric(row, g_.groups);
    int64_t state = std::max_element(last, last + states_) - last;  // the first of equals
    for (int64_t group = g_.groups - 1; group >= 0; --group) {
      const int64_t high = origin(row, group)[state];
      letters[group] = state & ((int64_t{1} << bits_) - 1);
      state = (high << (memory_ - bits_)) + (state >> bits_);
    }
  }

  const Geometry& g_;
  const float* w_;
  const int64_t rows_;
  const uint32_t step_;
  const int bits_, memory_, threads_;
  const int64_t states_;
  const Plan plan_;
  const int64_t stretch_;  // groups whose scores are held
  const Memory scratch_, scores_, metrics_, origins_;
};

}  // namespace

void trellis_search(const Geometry& g, const float* w, int64_t batch, uint32_t step, int letter_bits,
                    int64_t* letters, int threads) {
  const int64_t most = Trellis::rows_at_once(g, letter_bits);
  for (int64_t row = 0; row < batch; row += most) {
    Trellis trellis(g, w + row * g.dim, std::min(most, batch - row), step, letter_bits, threads);
    trellis.run(letters + row * g.groups);
  }
}

}  // namespace cpu
}  // namespace ddcm
