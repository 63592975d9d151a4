// The CUDA kernels on the host: the same templates, a block at a time (block.h). For tests only: it proves maps, tails,
// reductions and ties without a GPU, not speed.

#include <cstdlib>

#include "block.h"

namespace ddcm {

// What a block may have on every GPU from compute capability 8.0 on (8.0 and 9.0 have more, 8.6, 8.9 and 12.0 have not).
constexpr int64_t kSharedBytes = 99 * 1024;

struct HostLaunch {
  void* stream = nullptr;

  template <class Kernel>
  int run(const Kernel& kernel, int64_t blocks) const {
    if (kernel.shared_bytes() > kSharedBytes) std::abort();
    for (int64_t i = 0; i < blocks; ++i) {
      HostBlock<typename Kernel::State, Kernel::kThreads> block(static_cast<int>(i), kernel.shared_bytes());
      kernel(block);
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
#include "driver.h"
