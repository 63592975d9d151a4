// How an operation is cut for the device: which kernel of a family, how many rows and atoms a block takes, into how many
// parts the coordinates fall, and what workspace that needs. Reads nothing but shapes.

#pragma once

#include "hadamard.h"
#include "search.h"
#include "select.h"
#include "trellis.h"

namespace ddcm {

// What Python passes: a codebook, the device's number of multiprocessors, the most blocks of a cluster (1: it has none), and
// whether its matrix units multiply single bits (8.0 to 9.0; later ones emulate that).
struct Spec {
  int32_t kind, multiprocessors, max_cluster, bit_products;
  int64_t dim, size, groups;
  uint64_t seed;
};

constexpr int64_t kSignTableBytes = 4 << 20;  // of the sign words of `hadamard` at a time, unless one pair has more

constexpr int64_t kClearedBytes = 16;         // of a (row, group), of what is zero before a residual is prepared

// Hands out 256 byte aligned pieces of a workspace; with a null base it only counts.
struct Arena {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* at = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += ceil_div(count * static_cast<int64_t>(sizeof(T)), 256) * 256;
    return at;
  }
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Atoms whose scores a topk holds at once, for B * G rows: about 2^22 scores, but whole transforms, or all atoms.
inline int64_t topk_chunk(const Geometry& geometry, int64_t rows) {
  constexpr int64_t kWhole = 1 << 14;
  return smaller(larger(1, ceil_div((int64_t{1} << 22) / rows, kWhole)) * kWhole, geometry.size);
}

// Scores of a trellis that are held at once, 16 MB, unless a group of all rows has more.
constexpr int64_t kTrellisScores = int64_t{1} << 22;

// Scores of a group from which a block is worth its share of them, more than blocks that meet can have, and a launch.
constexpr int64_t kTrellisShare = int64_t{1} << 16;

// How a trellis search goes through its groups.
struct Stretches {
  Trellis trellis;
  int64_t groups;  // whose scores are held at once
  int parts;       // blocks of a row
  bool meet;       // they are a cluster, and a launch takes a stretch; else a group
};

// A residual ready for scoring: what every scoring kernel of an operation shares.
struct Prepared {
  int64_t* correction;  // these three lie together, to be cleared at once
  uint32_t* max_bits;
  int* arrived;         // of Picking
  void* fragments;
  int64_t batch;
  int column_tiles, row_groups;  // of SearchKernel
  int cut, split, warp_steps;
  int64_t batch_tiles;
  Vec4* signs;          // `hadamard`: of sign_pairs pairs at a time; null for one row
  int64_t sign_pairs;
};

// The plans of a codebook's operations on a device.
struct Planner {
  Spec spec;
  GroupRange geometry;

  explicit Planner(const Spec& spec_)
      : spec(spec_), geometry(all_groups_of(make_geometry(spec_.kind, spec_.dim, spec_.size, spec_.groups, spec_.seed))) {}

  // Whether a batch has so few rows that the residual of `sign` is bit planes.
  bool in_planes(int64_t batch) const { return geometry.kind == kSign && batch <= 2 && spec.bit_products; }

  // f of the Traits of a batch (search.h).
  template <class F>
  auto with_traits(const Prepared& p, F f) const {
    return in_planes(p.batch) ? f(SignPlaneTraits{}) : geometry.kind == kSign ? f(SignTraits{}) : f(GaussianTraits{});
  }

  int warps(const Prepared& p) const {
    return with_traits(p, [&](auto traits) { return traits.warps(p.column_tiles); });
  }

  int64_t steps() const { return ceil_div(geometry.calls_per_group, kCallsPerStep); }

  // Sets how many rows share a generation of the noise, and so the batch tiles.
  void choose_rows(Prepared& p) const {
    p.row_groups = 1;
    if (geometry.kind == kSign) {
      // Sixteen rows keep the matrix units busy for longer than it takes to make the words.
      p.column_tiles = in_planes(p.batch) ? 3 * static_cast<int>(p.batch) : p.batch <= 8 ? 3 : 6;
      p.batch_tiles = ceil_div(p.batch, rows(p));
      return;
    }
    // The smallest kernel for all rows: making the entries is dearer than multiplying them with any number of rows.
    p.column_tiles = p.batch <= 2 ? 1 : p.batch <= 4 ? 2 : p.batch <= 8 ? 3 : p.batch <= 16 ? 6 : 12;
    while (p.row_groups < 8 && rows(p) * p.row_groups < p.batch &&
           ceil_div(steps(), warps(p) / (2 * p.row_groups)) <= GaussianTraits::segment(12)) {
      p.row_groups *= 2;
    }
    p.batch_tiles = ceil_div(p.batch, rows(p) * p.row_groups);
  }

  // Batch rows of a warp.
  int64_t rows(const Prepared& p) const {
    return with_traits(p, [&](auto traits) { return rows_of<decltype(traits)>(p.column_tiles); });
  }

  bool reads_together(const Prepared& p) const {
    return with_traits(p, [&](auto traits) { return traits.reads_together(p.column_tiles); });
  }

  // Atoms of a block's tile.
  int64_t tile_atoms(const Prepared& p) const {
    const int row_tiles = with_traits(p, [&](auto traits) { return traits.row_tiles(p.column_tiles); });
    return 16 * row_tiles * (warps(p) / p.row_groups / p.split);
  }

  // k steps of a residual's fragments.
  static int64_t fragment_steps(const Prepared& p) { return int64_t{p.cut} * p.split * p.warp_steps; }

  // The plan and workspace for scoring `count` atoms at a time, for what a kernel writes; with a null arena base, only the
  // sizes.
  Prepared plan(Arena& arena, int64_t batch, int64_t count, Output writes) const {
    Prepared p{};
    const int64_t rows = batch * geometry.groups;
    p.batch = batch;
    p.correction = arena.take<int64_t>(kClearedBytes / 8 * rows);
    p.max_bits = reinterpret_cast<uint32_t*>(p.correction + rows);
    p.arrived = reinterpret_cast<int*>(p.max_bits + rows);
    if (geometry.kind == kHadamard) {
      p.sign_pairs = ceil_div(count, geometry.hadamard_n);
      if (batch > 1) {  // one row shares its signs with no one
        const int64_t vectors = HadamardSignKernel::vectors(geometry);
        p.sign_pairs = smaller(larger(1, kSignTableBytes / (vectors * static_cast<int64_t>(sizeof(Vec4)))), p.sign_pairs);
        p.signs = arena.take<Vec4>(p.sign_pairs * vectors);
      }
      return p;
    }
    choose_rows(p);
    const int teams = warps(p) / p.row_groups;
    const int segment = with_traits(p, [&](auto traits) { return traits.segment(p.column_tiles); });
    // Split the k steps among warps until there are enough blocks to fill the device several times over (once, or nearly,
    // where warps share entries or read together: one block fills a multiprocessor), and whenever a warp would need more
    // than one segment.
    const int64_t wanted_blocks = (p.row_groups > 1 ? 8 : reads_together(p) ? 7 : 64) * int64_t{spec.multiprocessors} / 8;
    p.split = 1;
    while (p.split < teams &&
           ((p.split < steps() && ceil_div(count, tile_atoms(p)) * geometry.groups * p.batch_tiles < wanted_blocks) ||
            ceil_div(steps(), p.split) > segment)) {
      p.split *= 2;
    }
    // Cut them among the blocks of a cluster too while there are multiprocessors without a block.
    const int64_t blocks = ceil_div(count, tile_atoms(p)) * geometry.groups * p.batch_tiles;
    p.cut = 1;
    const bool may_cut = with_traits(p, [&](auto traits) { return can_cut<decltype(traits)>(p.column_tiles, writes); });
    while (may_cut && 2 * p.cut <= spec.max_cluster && 2 * p.cut * p.split <= steps() &&
           2 * p.cut * blocks <= spec.multiprocessors) {
      p.cut *= 2;
    }
    p.warp_steps = static_cast<int>(ceil_div(ceil_div(steps(), p.cut * p.split), p.row_groups) * p.row_groups);
    const int64_t bytes = with_traits(p, [](auto traits) { return traits.kVectors * 32 * sizeof(traits.no_digits()); });
    p.fragments = arena.take<char>(p.batch_tiles * p.row_groups * p.column_tiles * geometry.groups *
                                   fragment_steps(p) * bytes);
    return p;
  }

  // The groups first .. first + count - 1 alone, for what scores them.
  void select(int64_t first, int64_t count) {
    geometry.first_group = first;
    geometry.groups = count;
  }

  Stretches stretches(int64_t batch, int letter_bits) const {
    Stretches s{};
    s.trellis.letter_bits = letter_bits;
    while (int64_t{1} << (s.trellis.memory + letter_bits - 1) < geometry.size) ++s.trellis.memory;
    s.groups = smaller(geometry.all_groups, larger(1, kTrellisScores / (batch * geometry.size)));
    const int64_t blocks = ceil_div(s.trellis.pairs(), PathKernel::kThreads);
    s.parts = 1;
    while (2 * s.parts <= spec.max_cluster && 2 * s.parts <= blocks) s.parts *= 2;
    s.meet = batch * s.parts >= spec.multiprocessors || geometry.size <= kTrellisShare * s.parts;
    if (!s.meet) s.parts = static_cast<int>(smaller(blocks, larger(s.parts, 4 * int64_t{spec.multiprocessors} / batch)));
    return s;
  }

  // Blocks a (group, batch tile) of a search, so that candidates stay O(B * G * tiles) and few: about 16 blocks a
  // multiprocessor in all. Shared by the plan and the launch.
  int64_t search_chunks(const Prepared& p) const {
    const int64_t rows = geometry.groups * (geometry.kind == kHadamard ? p.batch : p.batch_tiles);
    const int64_t atoms =
        geometry.kind != kHadamard ? tile_atoms(p) : geometry.hadamard_n <= 2048 ? 2048 : geometry.hadamard_n;
    return smaller(larger(1, ceil_div(int64_t{16} * spec.multiprocessors, rows)), ceil_div(geometry.size, atoms));
  }
};

}  // namespace ddcm
