// Baseline for gpu_check.py: one thread a candidate, each drawing its D normals from its own sequential cuRAND Philox
// generator and multiplying as it goes, the way DiffC's kernel scores candidates. scores (K,) float32.

#include <cuda_runtime.h>
#include <curand_kernel.h>

#include <cstdint>

__global__ void score_candidates(const float* residual, float* scores, int64_t candidates, int dim,
                                 unsigned long long seed) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= candidates) return;
  curandStatePhilox4_32_10_t state;
  curand_init(seed, static_cast<unsigned long long>(k), 0, &state);
  float sum = 0.0f;
  for (int i = 0; i < dim; i += 4) {
    const float4 z = curand_normal4(&state);
    sum += z.x * residual[i];
    if (i + 1 < dim) sum += z.y * residual[i + 1];
    if (i + 2 < dim) sum += z.z * residual[i + 2];
    if (i + 3 < dim) sum += z.w * residual[i + 3];
  }
  scores[k] = sum;
}

extern "C" int curand_baseline(const float* residual, float* scores, int64_t candidates, int dim,
                               unsigned long long seed, void* stream) {
  score_candidates<<<static_cast<unsigned>((candidates + 255) / 256), 256, 0,
                     static_cast<cudaStream_t>(stream)>>>(residual, scores, candidates, dim, seed);
  return cudaGetLastError();
}
