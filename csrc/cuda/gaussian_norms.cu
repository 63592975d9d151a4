// The kernels of `gaussian` scores with norms.

#include "launch.h"

namespace ddcm {
DDCM_GAUSSIAN_PART(template, kNorms)
}  // namespace ddcm
