// The kernels of `hadamard` search and scores.

#include "launch.h"

namespace ddcm {
DDCM_HADAMARD_PART(template)
}  // namespace ddcm
