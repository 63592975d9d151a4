// One thread block, on the device or emulated on the host.
//
// A kernel is a functor with a `State` (what a thread keeps in registers), `kThreads`, `kMinBlocks` and
// `template <class Block> void operator()(Block& block) const`. Its body is written in phases:
// `block.each(f)` runs f(thread, state) for every thread, `block.sync()` is __syncthreads(), `block.sync_part<N>()` is
// that among each N consecutive threads, `block.mma<Op>(f)` is one warp-wide matrix instruction for every warp. Blocks
// launched as a cluster (consecutive ones, from compute capability 9.0 on) meet at `block.sync_cluster()` and reach each
// other's shared memory, `block.shared_of(rank)`. On the device each thread runs its own share; on the host `HostBlock`
// loops over the threads and over the 32 lanes of a warp (the blocks of a cluster have a host thread each), so that the
// very code whose maps, tails and reductions matter is tested without a GPU (tests/backends/test_cuda_emulation.py).
// Phases that pass data through shared memory must be separated by a barrier; tests/backends/races finds those that are not.

#pragma once

#include "mma.h"

#if !defined(__CUDACC__)
#include <condition_variable>
#include <mutex>
#endif

namespace ddcm {

#if defined(__CUDACC__)

template <class State, int Threads>
struct DeviceBlock {
  State state;
  char* shared_memory;

  __device__ __forceinline__ int index() const { return static_cast<int>(blockIdx.x); }
  __device__ __forceinline__ char* shared() { return shared_memory; }
  __device__ __forceinline__ void sync() { __syncthreads(); }

  // Barriers 1 to 15; 0 is that of sync().
  template <int N>
  __device__ __forceinline__ void sync_part() {
    static_assert(N % 32 == 0 && Threads % N == 0 && Threads / N < 16, "a part is whole warps");
    asm volatile("bar.sync %0, %1;" ::"r"(1 + static_cast<int>(threadIdx.x) / N), "n"(N) : "memory");
  }

#if __CUDA_ARCH__ >= 900
  __device__ __forceinline__ void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  }

  __device__ __forceinline__ char* shared_of(int rank) {
    char* at;
    asm("mapa.u64 %0, %1, %2;" : "=l"(at) : "l"(shared_memory), "r"(rank));
    return at;
  }
#else  // a block is its cluster
  __device__ __forceinline__ void sync_cluster() { __syncthreads(); }
  __device__ __forceinline__ char* shared_of(int) { return shared_memory; }
#endif

  template <class F>
  __device__ __forceinline__ void each(F f) {
    f(static_cast<int>(threadIdx.x), state);
  }

  template <class Op, class F>
  __device__ __forceinline__ void mma(F f) {
    f(static_cast<int>(threadIdx.x), state,
      [](typename Op::Accumulator (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
         uint32_t b0, uint32_t b1) { Op::device(c, a0, a1, a2, a3, b0, b1); });
  }
};

#else

// What the blocks of a cluster share, each run by a thread of its own.
class HostCluster {
 public:
  std::vector<char*> shared;  // of the blocks

  explicit HostCluster(int size) : shared(size) {}

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const uint64_t generation = generation_;
    if (++arrived_ == shared.size()) {
      arrived_ = 0;
      ++generation_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return generation_ != generation; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  size_t arrived_ = 0;
  uint64_t generation_ = 0;
};

// Shared memory and thread states start as garbage, as on a device, so that reading what nothing
// wrote shows. Threads of a phase run backwards: a phase that relies on their order fails.
template <class State, int Threads>
struct HostBlock {
  std::vector<State> states;
  std::vector<Vec4> memory;
  int block_index;
  HostCluster& cluster;

  HostBlock(int index, int64_t shared_bytes, HostCluster& cluster_)
      : states(Threads), memory(shared_bytes / sizeof(Vec4) + 1), block_index(index), cluster(cluster_) {
    cluster.shared[index % cluster.shared.size()] = shared();
    std::memset(static_cast<void*>(states.data()), 0xA5, states.size() * sizeof(State));
    std::memset(static_cast<void*>(memory.data()), 0xA5, memory.size() * sizeof(Vec4));
  }

  int index() const { return block_index; }
  char* shared() { return reinterpret_cast<char*>(memory.data()); }
  void sync() {}

  template <int N>
  void sync_part() {}

  void sync_cluster() { cluster.wait(); }
  char* shared_of(int rank) { return cluster.shared[rank]; }

  template <class F>
  void each(F f) {
    for (int thread = Threads - 1; thread >= 0; --thread) f(thread, states[thread]);
  }

  template <class Op, class F>
  void mma(F f) {
    static_assert(Threads % 32 == 0, "whole warps");
    for (int warp = 0; warp < Threads / 32; ++warp) {
      Operands operands[32];
      typename Op::Accumulator* accumulators[32];
      for (int lane = 0; lane < 32; ++lane) {
        f(warp * 32 + lane, states[warp * 32 + lane],
          [&](typename Op::Accumulator(&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
              uint32_t b0, uint32_t b1) {
            operands[lane] = Operands{{a0, a1, a2, a3}, {b0, b1}};
            accumulators[lane] = c;
          });
      }
      Op::host(operands, accumulators);
    }
  }
};

#endif

}  // namespace ddcm
