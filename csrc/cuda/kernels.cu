// The CUDA backend's C interface, and the kernels that are in no other part. Built by ddcm_fast/codebook/build.py.

#include "launch.h"

namespace ddcm {
DDCM_SIGN_PART(extern template)
DDCM_GAUSSIAN_PART(extern template, kBest)
DDCM_GAUSSIAN_PART(extern template, kScores)
DDCM_GAUSSIAN_PART(extern template, kNorms)
DDCM_HADAMARD_PART(extern template)
}  // namespace ddcm

#define DDCM_LAUNCH ddcm::DeviceLaunch
#include "interface.h"
