// The kernels of `gaussian` scores.

#include "launch.h"

namespace ddcm {
DDCM_GAUSSIAN_PART(template, kScores)
}  // namespace ddcm
