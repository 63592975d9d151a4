// How kernels run on a device, and which of them each part of the library (a .cu file) holds: parts are compiled side by
// side. No torch headers; links only the CUDA runtime.

#pragma once

#include <cuda_runtime.h>

#include "driver.h"

namespace ddcm {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    run_kernel(const __grid_constant__ Kernel kernel) {
  extern __shared__ __align__(16) char shared_memory[];
#if __CUDA_ARCH__ >= 900
  // The next kernel's blocks may take their places as soon as all of this one have theirs; they wait as this one does, for
  // the kernel before to end and for what it wrote. Whoever is launched otherwise waits for nothing here.
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
  DeviceBlock<typename Kernel::State, Kernel::kThreads> block;
  block.shared_memory = shared_memory;
  kernel(block);
}

struct DeviceLaunch {
  void* stream = nullptr;

  template <class Kernel>
  int run(const Kernel& kernel, int64_t blocks, int cluster, bool early) const {
    const int64_t shared = kernel.shared_bytes();
    if (shared > 48 * 1024) {
      const cudaError_t error = cudaFuncSetAttribute(
          run_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
      if (error != cudaSuccess) return clear_error(error);
    }
    cudaLaunchAttribute attributes[2]{};
    unsigned count = 0;
    if (cluster > 1) {
      attributes[count].id = cudaLaunchAttributeClusterDimension;
      attributes[count++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    }
    if (early && captures_early()) {
      attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(Kernel::kThreads);
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes;
    config.numAttrs = count;
    return clear_error(cudaLaunchKernelEx(&config, run_kernel<Kernel>, kernel));
  }

  // Whether the driver takes early launches into CUDA graphs: from 12.3 on.
  static bool captures_early() {
    static const bool known = [] {
      int version = 0;
      return cudaDriverGetVersion(&version) == cudaSuccess && version >= 12030;
    }();
    return known;
  }

  int zero(void* at, int64_t bytes) const {
    return clear_error(cudaMemsetAsync(at, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)));
  }

  // The runtime keeps an error until it is asked for the last one: whoever asks next, torch or we, would take it for
  // its own.
  static int clear_error(cudaError_t error) {
    if (error != cudaSuccess) cudaGetLastError();
    return error;
  }

  static const char* describe(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
};

// The functions that a part defines (TEMPLATE: template) and kernels.cu only declares (extern template).
#define DDCM_SIGN_PART(TEMPLATE)                                                              \
  TEMPLATE void Driver<DeviceLaunch>::score_signs<kBest>(const Prepared&, const Target&);     \
  TEMPLATE void Driver<DeviceLaunch>::score_signs<kScores>(const Prepared&, const Target&);

#define DDCM_GAUSSIAN_PART(TEMPLATE, WRITES) \
  TEMPLATE void Driver<DeviceLaunch>::score_gaussians<WRITES>(const Prepared&, const Target&);

#define DDCM_HADAMARD_PART(TEMPLATE)                                                                      \
  TEMPLATE void Driver<DeviceLaunch>::score_hadamards<false>(const Prepared&, const float*, const Target&); \
  TEMPLATE void Driver<DeviceLaunch>::score_hadamards<true>(const Prepared&, const float*, const Target&);

}  // namespace ddcm
