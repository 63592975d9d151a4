// The kernels of `gaussian` search.

#include "launch.h"

namespace ddcm {
DDCM_GAUSSIAN_PART(template, kBest)
}  // namespace ddcm
