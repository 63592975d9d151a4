// The CUDA kernels on the host: the same templates, a block at a time (block.h). For tests only: it proves maps, tails,
// reductions and ties without a GPU, not speed.

#include <cstdlib>
#include <memory>
#include <thread>

#include "driver.h"

namespace ddcm {

// What a block may have on every GPU from compute capability 8.0 on (8.0 and 9.0 have more, 8.6, 8.9 and 12.0 have not).
constexpr int64_t kSharedBytes = 99 * 1024;

struct HostLaunch {
  void* stream = nullptr;

  template <class Kernel>
  int run(const Kernel& kernel, int64_t blocks, int cluster, bool) const {
    using Block = HostBlock<typename Kernel::State, Kernel::kThreads>;
    if (kernel.shared_bytes() > kSharedBytes || blocks % cluster != 0) std::abort();
    for (int64_t first = 0; first < blocks; first += cluster) {
      HostCluster together(cluster);
      std::vector<std::unique_ptr<Block>> team;
      for (int rank = 0; rank < cluster; ++rank) {
        team.push_back(std::make_unique<Block>(static_cast<int>(first) + rank, kernel.shared_bytes(), together));
      }
      std::vector<std::thread> others;
      for (int rank = 1; rank < cluster; ++rank) others.emplace_back([&, rank] { kernel(*team[rank]); });
      kernel(*team[0]);
      for (std::thread& other : others) other.join();
    }
    return 0;
  }

  int zero(void* at, int64_t bytes) const {
    std::memset(at, 0, static_cast<size_t>(bytes));
    return 0;
  }

  static const char* describe(int) { return "emulation error"; }
};

}  // namespace ddcm

#define DDCM_LAUNCH ddcm::HostLaunch
#include "interface.h"
