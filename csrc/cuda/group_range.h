// Some neighbouring groups of a codebook: what scoring kernels see, so that an operation need not hold the scores of
// all groups.

#pragma once

#include <type_traits>

#include "scalar.h"

namespace ddcm {

// A codebook whose group g is group first_group + g of the whole one; `groups` is how many there are.
struct GroupRange : Geometry {
  int64_t first_group, all_groups;

  DDCM_FN int64_t group_start(int64_t group) const { return (first_group + group) * dim / all_groups; }

  DDCM_FN int64_t group_dim(int64_t group) const { return group_start(group + 1) - group_start(group); }

  DDCM_FN uint32_t block(int64_t group, int64_t call) const { return Geometry::block(first_group + group, call); }
};

// What a kernel sees that ranks atoms, of all groups at once, or writes scores: searches have no register for a range.
template <bool Ranks>
using GroupsOf = std::conditional_t<Ranks, Geometry, GroupRange>;

inline GroupRange all_groups_of(const Geometry& geometry) { return GroupRange{geometry, 0, geometry.groups}; }

}  // namespace ddcm
