// Between image order and codebook order, in tasks of units: 4096 coordinates, the last extended to the end.

#include <algorithm>
#include <cstring>

#include "driver.h"

namespace ddcm {
namespace cpu {

namespace {

constexpr int64_t kUnit = kMaxRotationBlock;

int64_t rotation_units(const Geometry& g) { return std::max<int64_t>(1, g.dim / kUnit); }

// First coordinate and number of coordinates of a unit. The overlapping block that closes a D not
// divisible by b lies inside the last unit.
void unit_range(const Geometry& g, int64_t unit, int64_t* start, int64_t* count) {
  *start = unit * kUnit;
  *count = (unit + 1 == rotation_units(g) ? g.dim : *start + kUnit) - *start;
}

void full_blocks(float* x, int64_t count, int b) {
  for (int64_t m = 0; m + b <= count; m += b) {
    kernels->transform(x + m, b);
    kernels->scale(x + m, b, hadamard_scale(b));
  }
}

void flip_unit(const Geometry& g, int64_t start, int64_t count, float* x) {
  uint32_t words[2 * kUnit / 32];
  kernels->block_words(g.key(), static_cast<uint32_t>(start / kSignsPerCall),
                       ceil_div(count, kSignsPerCall), 0, 0, kStreamRotation, words);
  kernels->flip(x, words, count, x);
}

void rotate(const Geometry& g, int64_t batch, int threads, void (*unit)(const Geometry&, int64_t, const float*, float*),
              const float* in, float* out) {
  const int64_t units = rotation_units(g);
  const int useful = useful_threads(static_cast<double>(batch) * static_cast<double>(g.dim), threads);
  parallel(batch * units, useful, [&](int64_t task, int) {
    const int64_t row = task / units * g.dim;
    unit(g, task % units, in + row, out + row);
  });
}

void unit_to_codebook_order(const Geometry& g, int64_t unit, const float* r, float* w) {
  int64_t start, count;
  unit_range(g, unit, &start, &count);
  float* x = w + start;
  kernels->gather(r, g.dim, g.image_position(start), g.stride, count, x);
  if (!g.rotated()) return;
  flip_unit(g, start, count, x);
  const int b = g.rotation_block;
  const bool last = start + count == g.dim;
  if (last && g.dim % b) full_blocks(w + g.dim - b, b, b);
  full_blocks(x, count, b);
}

void unit_to_image_order(const Geometry& g, int64_t unit, const float* y, float* z) {
  int64_t start, count;
  unit_range(g, unit, &start, &count);
  alignas(64) float x[2 * kUnit];
  std::memcpy(x, y + start, static_cast<size_t>(count) * 4);
  if (g.rotated()) {
    const int b = g.rotation_block;
    full_blocks(x, count, b);
    if (start + count == g.dim && g.dim % b) full_blocks(x + count - b, b, b);
    flip_unit(g, start, count, x);
  }
  int64_t position = g.image_position(start);
  for (int64_t i = 0; i < count; ++i) {
    z[position] = x[i];
    position += g.stride;
    if (position >= g.dim) position -= g.dim;
  }
}

}  // namespace

void to_codebook_order(const Geometry& g, const float* r, int64_t batch, float* w, int threads) {
  rotate(g, batch, threads, unit_to_codebook_order, r, w);
}

void to_image_order(const Geometry& g, const float* y, int64_t batch, float* z, int threads) {
  rotate(g, batch, threads, unit_to_image_order, y, z);
}

}  // namespace cpu
}  // namespace ddcm
