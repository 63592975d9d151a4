// The CUDA kernels under ThreadSanitizer, each CUDA thread a fiber that it takes for a thread of its own: a barrier that
// is missing is a data race it reports, one that not all threads reach ends as a deadlock. test_cuda_races.py runs it.
//
//   cuda list    names of the cases
//   cuda CASE    runs a case's operations; exit status 1 if they differ from emulate.cpp's, 66 at a race, 3 at a deadlock
//   cuda racy    a kernel with a race
//   cuda stuck   a kernel with a barrier that not all threads reach

#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <string>

#include "../../../csrc/cuda/emulate.cpp"
#include "fibers.h"

namespace ddcm {

using fibers::Barrier;

// What the threads of a block share.
template <int Threads>
struct Shared {
  struct Warp {
    Operands operands[32];
    void* accumulators[32];
    Barrier barrier{32};
  };
  std::vector<Vec4> memory;
  Barrier all{Threads};
  std::vector<std::unique_ptr<Barrier>> parts;  // 1, 2, 4 ... equal parts of the block, one after another
  std::vector<Warp> warps;

  explicit Shared(int64_t bytes) : memory(bytes / sizeof(Vec4) + 1), warps(Threads / 32) {
    std::memset(static_cast<void*>(memory.data()), 0xA5, memory.size() * sizeof(Vec4));
    for (int count = 1; count <= Threads / 32; count *= 2) {
      for (int i = 0; i < count; ++i) parts.push_back(std::make_unique<Barrier>(Threads / count));
    }
  }
};

// What the blocks of a cluster share.
template <int Threads>
struct Together {
  std::vector<std::unique_ptr<Shared<Threads>>> blocks;
  Barrier all;

  Together(int size, int64_t bytes) : all(size * Threads) {
    for (int rank = 0; rank < size; ++rank) blocks.push_back(std::make_unique<Shared<Threads>>(bytes));
  }
};

// A block as one of its threads sees it.
template <class State, int Threads>
struct ThreadBlock {
  State state;
  Together<Threads>& cluster;
  Shared<Threads>& common;
  int thread, block_index;

  ThreadBlock(Together<Threads>& cluster_, int thread_, int index_)
      : cluster(cluster_), common(*cluster_.blocks[index_ % cluster_.blocks.size()]), thread(thread_), block_index(index_) {
    std::memset(static_cast<void*>(&state), 0xA5, sizeof(State));
  }

  int index() const { return block_index; }
  char* shared() { return reinterpret_cast<char*>(common.memory.data()); }
  void sync() { common.all.wait(); }

  template <int N>
  void sync_part() {
    constexpr int kCount = Threads / N;
    common.parts[kCount - 1 + thread / N]->wait();
  }

  void sync_cluster() { cluster.all.wait(); }
  char* shared_of(int rank) { return reinterpret_cast<char*>(cluster.blocks[rank]->memory.data()); }

  template <class F>
  void each(F f) {
    f(thread, state);
  }

  template <class Op, class F>
  void mma(F f) {
    using Accumulator = typename Op::Accumulator;
    auto& warp = common.warps[thread / 32];
    f(thread, state,
      [&](Accumulator(&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
        warp.operands[thread % 32] = Operands{{a0, a1, a2, a3}, {b0, b1}};
        warp.accumulators[thread % 32] = c;
      });
    warp.barrier.wait(
        [](void* at) {
          auto& warp = *static_cast<typename Shared<Threads>::Warp*>(at);
          Op::host(warp.operands, reinterpret_cast<Accumulator* const*>(warp.accumulators));
        },
        &warp);
  }
};

struct ThreadLaunch {
  template <class Kernel>
  int run(const Kernel& kernel, int64_t blocks, int cluster, bool) const {
    for (int64_t first = 0; first < blocks; first += cluster) {
      Together<Kernel::kThreads> together(cluster, kernel.shared_bytes());
      auto body = [&](int fiber) {
        const int thread = fiber % Kernel::kThreads, index = static_cast<int>(first) + fiber / Kernel::kThreads;
        ThreadBlock<typename Kernel::State, Kernel::kThreads> block(together, thread, index);
        kernel(block);
      };
      fibers::run(
          cluster * Kernel::kThreads, [](void* at, int fiber) { (*static_cast<decltype(body)*>(at))(fiber); }, &body);
    }
    return 0;
  }

  int zero(void* at, int64_t bytes) const { return HostLaunch{}.zero(at, bytes); }
};

// Lanes read what another lane may not have written.
struct RacyKernel {
  static constexpr int kThreads = 64;
  struct State {
    int sum;
  };
  int* out;
  static constexpr int64_t shared_bytes() { return kThreads * sizeof(int); }
  template <class Block>
  void operator()(Block& block) const {
    int* shared = reinterpret_cast<int*>(block.shared());
    block.each([&](int thread, State&) { shared[thread] = thread; });
    block.each([&](int thread, State& s) { s.sum = shared[(thread + 1) % kThreads]; });
    block.sync();
    block.each([&](int thread, State& s) { out[thread] = s.sum; });
  }
};

struct StuckKernel {
  static constexpr int kThreads = 64;
  struct State {};
  static constexpr int64_t shared_bytes() { return 0; }
  template <class Block>
  void operator()(Block& block) const {
    bool first = false;
    block.each([&](int thread, State&) { first = thread < 32; });
    if (first) block.sync();
  }
};

struct Case {
  const char* name;
  int32_t kind, multiprocessors, max_cluster;
  int64_t dim, size, groups, batch, m;
  int letter_bits = 0;  // of a trellis; 0: none
};

// Every kernel at least once, with few blocks and matrix instructions: each is a barrier here.
constexpr Case kCases[] = {
    {"sign-1", kSign, 1, 1, 1100, 70, 1, 1, 3},
    {"sign-split", kSign, 64, 1, 2100, 40, 1, 3, 0},
    {"sign-2", kSign, 64, 1, 1100, 40, 1, 2, 0},
    {"sign-8", kSign, 1, 1, 300, 33, 2, 5, 0},
    {"sign-16", kSign, 64, 1, 2600, 20, 1, 9, 0},
    {"sign-16-tiles", kSign, 1, 1, 600, 600, 1, 20, 0},
    {"sign-cut", kSign, 64, 2, 8300, 20, 1, 1, 0},
    {"gaussian-1", kGaussian, 1, 1, 40, 70, 2, 1, 3},
    {"gaussian-8", kGaussian, 64, 1, 130, 20, 1, 5, 0},
    {"gaussian-32", kGaussian, 64, 1, 100, 50, 1, 20, 0},
    {"gaussian-64", kGaussian, 1, 1, 130, 20, 1, 40, 0},
    {"gaussian-128-split", kGaussian, 64, 1, 600, 20, 1, 70, 0},
    {"gaussian-256", kGaussian, 1, 1, 600, 60, 1, 130, 0},
    {"gaussian-cut", kGaussian, 64, 2, 1100, 20, 1, 1, 0},
    {"hadamard-64", kHadamard, 1, 1, 130, 100, 1, 2, 3},
    {"hadamard-256", kHadamard, 1, 1, 500, 250, 2, 1, 0},
    {"hadamard-1024", kHadamard, 1, 1, 1500, 1000, 1, 1, 40},
    {"hadamard-4096", kHadamard, 1, 1, 5000, 4000, 1, 1, 0},
    {"hadamard-16384", kHadamard, 1, 1, 300, 16000, 1, 1, 5},
    {"topk", kHadamard, 1, 1, 70, 17000, 1, 1, 1000},
    {"trellis", kHadamard, 1, 1, 70, 64, 9, 2, 0, 2},
    {"trellis-cluster", kHadamard, 1, 2, 60, 1024, 40, 1, 0, 1},
    {"trellis-apart", kHadamard, 64, 1, 30, 131072, 3, 1, 0, 8},
};

// Everything the operations write.
struct Outputs {
  std::vector<int64_t> index;
  std::vector<int8_t> sign;
  std::vector<float> floats;
  bool operator==(const Outputs& o) const {
    return index == o.index && sign == o.sign &&
           std::memcmp(floats.data(), o.floats.data(), floats.size() * sizeof(float)) == 0;
  }
};

template <class Launch>
Outputs run(const Case& c) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const Spec spec{c.kind, c.multiprocessors, c.max_cluster, 1, c.dim, c.size, c.groups, 12345};
  std::vector<float> w(c.batch * c.dim);
  for (float& x : w) x = normal(random);
  // Any table does: q, then q as float16, positive and below 1108 as the law's.
  std::vector<int16_t> table(2 * kGaussianTableSize);
  for (int i = 0; i < kGaussianTableSize; ++i) {
    table[i] = static_cast<int16_t>(i % 1108);
    table[kGaussianTableSize + i] = static_cast<int16_t>(half_of_integer(table[i]));
  }
  const int64_t step = 3, rows = c.batch * c.groups;
  Driver<Launch> driver(Launch{}, spec, &step, table.data());
  auto workspace = [&](auto operation) {
    Arena count{nullptr};
    operation(count);
    std::vector<Vec4> memory(count.used / sizeof(Vec4) + 1, Vec4{{1, 2, 3, 4}});
    Arena arena{reinterpret_cast<char*>(memory.data())};
    operation(arena);
  };
  const int64_t m = std::max<int64_t>(c.m, 1);
  Outputs out;
  out.index.resize(rows * (1 + m));
  out.sign.resize(rows * (1 + m));
  std::vector<float> score(rows * (1 + m)), scores(rows * c.size), norms(c.groups * c.size), y(w.size()), turned(w.size());
  std::vector<float> back(w.size());
  const Chosen one{out.index.data(), out.sign.data(), score.data()};
  const Chosen many{out.index.data() + rows, out.sign.data() + rows, score.data() + rows};
  driver.rotate(w.data(), turned.data(), c.batch, false);
  driver.rotate(turned.data(), back.data(), c.batch, true);
  workspace([&](Arena& arena) { driver.search(arena, turned.data(), c.batch, Ranking{nullptr, 0, 1, 0}, one); });
  workspace([&](Arena& arena) {
    driver.scores(arena, turned.data(), c.batch, 0, c.size, scores.data(), c.kind == kSign ? nullptr : norms.data());
  });
  if (c.m > 0) {
    workspace([&](Arena& arena) { driver.topk(arena, turned.data(), c.batch, c.m, Ranking{}, many); });
    driver.combine(many.index, many.score, y.data(), c.batch, c.m);
  }
  if (c.letter_bits > 0) {
    std::vector<int64_t> letters(rows);
    workspace([&](Arena& arena) { driver.trellis(arena, turned.data(), c.batch, c.letter_bits, letters.data()); });
    out.index.insert(out.index.end(), letters.begin(), letters.end());
  }
  for (const auto* part : {&turned, &back, &score, &scores, &norms, &y}) {
    out.floats.insert(out.floats.end(), part->begin(), part->end());
  }
  return out;
}

}  // namespace ddcm

int main(int count, char** arguments) {
  using namespace ddcm;
  const std::string wanted = count == 2 ? arguments[1] : "";
  if (wanted == "racy") {
    int out[RacyKernel::kThreads];
    return ThreadLaunch{}.run(RacyKernel{out}, 1, 1, false);
  }
  if (wanted == "stuck") return ThreadLaunch{}.run(StuckKernel{}, 1, 1, false);
  if (wanted == "list") {
    for (const Case& c : kCases) std::puts(c.name);
    return 0;
  }
  for (const Case& c : kCases) {
    if (wanted == c.name) return run<ThreadLaunch>(c) == run<HostLaunch>(c) ? 0 : 1;
  }
  std::fprintf(stderr, "no case %s\n", wanted.c_str());
  return 2;
}
