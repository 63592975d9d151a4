// A CUDA runtime that runs nothing and records what it is asked for: linked to the parts of csrc/cuda in the place of the
// real one, it shows without a GPU how kernels are launched (tests/backends/test_cuda_launch.py). What is not defined
// here the library does not call, or it would not link.

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>

namespace {

// Made at the first use: kernels are registered while the library loads.
std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> by_address;
  return by_address;
}

std::ostringstream calls;
std::string taken;
int until_failure = -1;
cudaError_t last_error = cudaSuccess;

cudaError_t result() {
  if (until_failure < 0 || until_failure-- > 0) return cudaSuccess;
  return last_error = cudaErrorInvalidValue;
}

}  // namespace

// ---- for the test ----

extern "C" {

__attribute__((visibility("default"))) const char* recorder_take() {
  taken = calls.str();
  calls.str("");
  return taken.c_str();
}

// The call after so many more fails.
__attribute__((visibility("default"))) void recorder_fail(int calls_before) { until_failure = calls_before; }

// ---- what the library calls ----

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) std::abort();
  calls << "allow " << names().at(function) << ' ' << value << '\n';
  return result();
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void**) {
  unsigned cluster = 1;
  int early = 0;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      early = attribute.val.programmaticStreamSerializationAllowed;
    } else if (attribute.id == cudaLaunchAttributeClusterDimension) {
      cluster = attribute.val.clusterDim.x * attribute.val.clusterDim.y * attribute.val.clusterDim.z;
    } else {
      std::abort();
    }
  }
  if (config->gridDim.y * config->gridDim.z * config->blockDim.y * config->blockDim.z != 1) std::abort();
  calls << "launch " << names().at(function) << ' ' << reinterpret_cast<uintptr_t>(config->stream) << ' '
        << config->gridDim.x << ' ' << config->blockDim.x << ' ' << config->dynamicSmemBytes << ' ' << cluster << ' '
        << early << '\n';
  return result();
}

cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t stream) {
  calls << "zero - " << reinterpret_cast<uintptr_t>(stream) << '\n';
  return result();
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 12030;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t) { return "recorded failure"; }

// ---- what nvcc adds ----

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}

void __cudaRegisterFunction(void**, const char* host, char*, const char* device, int, void*, void*, void*, void*, int*) {
  names()[host] = device;
}

void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

// Of the <<<>>> syntax, which the library does not use.
void __cudaGetKernel() { std::abort(); }
void __cudaLaunchKernel() { std::abort(); }
void __cudaPopCallConfiguration() { std::abort(); }

}  // extern "C"
