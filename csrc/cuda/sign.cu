// The kernels of `sign` search and scores.

#include "launch.h"

namespace ddcm {
DDCM_SIGN_PART(template)
}  // namespace ddcm
