// Weighted sums of atoms (section 6), bit for bit: in tasks of one row, group and run of coordinates.

#include <algorithm>

#include "driver.h"

namespace ddcm {
namespace cpu {

uint64_t clamp_index(const Geometry& g, int64_t index) {
  return static_cast<uint64_t>(std::min(std::max<int64_t>(index, 0), g.size - 1));
}

namespace {

void combine_independent(const Geometry& g, const int64_t* index, const float* coefficient,
                         int64_t batch, int64_t m, uint32_t step, float* y, int threads) {
  constexpr int64_t part = 8192;  // coordinates a task
  const bool is_sign = g.kind == kSign;
  const int64_t per_call = is_sign ? kSignsPerCall : kGaussiansPerCall;
  const int64_t parts = ceil_div(g.max_group_dim, part);
  const double work = static_cast<double>(batch * m) * static_cast<double>(g.dim) * (is_sign ? 0.2 : 1.5);
  parallel(batch * g.groups * parts, useful_threads(work, threads), [&](int64_t task, int) {
    const int64_t start = task % parts * part, group = task / parts % g.groups;
    const int64_t row = task / parts / g.groups;
    const int64_t entries = std::min(part, g.group_dim(group) - start);
    if (entries <= 0) return;
    alignas(64) uint32_t words[part / 2];
    float* out = y + row * g.dim + g.group_start(group) + start;
    std::fill(out, out + entries, 0.0f);
    for (int64_t j = 0; j < m; ++j) {
      const int64_t at = (row * g.groups + group) * m + j;
      const uint32_t atom = static_cast<uint32_t>(clamp_index(g, index[at]));
      kernels->block_words(g.key(), g.block(group, start / per_call), ceil_div(entries, per_call),
                           atom, step, is_sign ? kStreamSign : kStreamGaussian, words);
      if (is_sign)
        kernels->add_signs(out, words, entries, coefficient[at]);
      else
        kernels->add_gaussians(out, words, entries, coefficient[at]);
    }
  });
}

}  // namespace

void combine(const Geometry& g, const int64_t* index, const float* coefficient, int64_t batch, int64_t m,
             uint32_t step, float* y, int threads) {
  if (g.kind == kHadamard)
    combine_hadamard(g, index, coefficient, batch, m, step, y, threads);
  else
    combine_independent(g, index, coefficient, batch, m, step, y, threads);
}

}  // namespace cpu
}  // namespace ddcm
