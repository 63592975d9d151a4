// The kernels as templates over one instruction set. The including file defines, in an anonymous
// namespace inside ddcm::cpu, a struct `Simd` with
//
//   lanes                      8 or 16
//   F, U, Wide                 vectors of `lanes` float32, uint32, and 64 bit products
//   load, store, set1, add, sub, mul, fma, max_, abs_   on F (load and store unaligned)
//   load_u, store_u, set1_u, iota_u, add_u, shift4      on U
//   widen, narrow, product, high, xor2, xor3            Philox arithmetic (see philox() below)
//   lookup16(table, index)     table[index & 15] of 16 int32
//   to_float, to_int           between F and U read as int32; to the nearest integer
//   gaussians(words, low, high)  grid Gaussians, in 1/256ths, of the low and high halfwords of two vectors
//   flip(x, bits)              x with the sign of lane l flipped where bit l is set
//   butterfly<h>(x)            one Hadamard stage inside a vector, h = 1, 2, 4 (and 8)
//   exchange(x, row)           lane l <- lane l ^ row
//   above(a, b)                bit l: a[l] > b[l]; at_least(a, b): a[l] >= b[l]
//   select(bits, a, b)         lane l: bit l ? a : b; select_u the same for U
//   gather(x, position)        x[position[l]]
//   permute(x, position)       lane l <- lane position[l]
//   keep_larger(x, at, best, best_at)  where x > best: best = x, best_at = at
//   advance(position, stride, dim)  (position + stride) mod dim, unsigned, sums below 2^32
//
// Lanes are atoms in the score kernels and neighbouring coordinates everywhere else.

namespace {

using F = Simd::F;
using U = Simd::U;
using Wide = Simd::Wide;
constexpr int L = Simd::lanes;

}  // namespace

#include "philox_simd.h"
// The rest in the order in which they use each other.
#include "hadamard_simd.h"
#include "search_simd.h"
#include "select_simd.h"
#include "trellis_simd.h"
#include "combine_simd.h"
#include "rotate_simd.h"

namespace {

int64_t scratch_bytes(const Geometry& geometry, int rows) {
  if (geometry.kind == kHadamard)
    return geometry.calls_per_sub_block() * 32 + geometry.hadamard_n * 4;
  if (geometry.kind == kSign) return static_cast<int64_t>(rows) * kSignTables * 16 * 4;
  return static_cast<int64_t>(rows) * kGaussianVectors * L * 4;
}

void scores(const ScoreTask& task) {
  if (task.geometry->kind == kGaussian)
    gaussian_scores(task);
  else if (task.geometry->kind == kSign)
    sign_scores(task);
  else
    hadamard_scores(task);
}

constexpr Kernels make_kernels(const char* name, decltype(Kernels::coarse_scores) coarse_scores = nullptr,
                               decltype(Kernels::listed_scores) listed_scores = nullptr) {
  return Kernels{name,      scratch_bytes, scores,       coarse_scores, listed_scores, argmax, filter,
                 extend_paths, block_words, flip, add_signs, add_gaussians, gaussian_integers, add_hadamard,
                 transform, scale, gather};
}

}  // namespace
