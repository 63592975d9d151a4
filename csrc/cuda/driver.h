// The operations as sequences of kernel launches, and their workspace: the same code drives the device
// (kernels.cu) and its emulation on the host (emulate.cpp). Nothing here allocates, synchronises or reads device memory.

#pragma once

#include "combine.h"
#include "hadamard.h"
#include "residual.h"
#include "rotate.h"
#include "search.h"
#include "select.h"

namespace ddcm {

// What Python passes: a codebook, the device's number of multiprocessors and the most blocks of a cluster (1: it has none).
struct Spec {
  int32_t kind, multiprocessors, max_cluster;
  int64_t dim, size, groups;
  uint64_t seed;
};

constexpr int64_t kSignTableBytes = 4 << 20;  // of the sign words of `hadamard` at a time, unless one pair has more

constexpr int kTooLarge = -1;  // a grid of more than 2^31 - 1 blocks

// Tables on the device: q as int16 (64 KB), then q as float16 (64 KB).
struct Tables {
  const int16_t* integers;

  const char* halves() const { return reinterpret_cast<const char*>(integers + kGaussianTableSize); }
};

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

// Atoms whose scores a topk holds at once, for B * G rows: at most 2^22 scores, but whole transforms.
inline int64_t topk_chunk(const Geometry& geometry, int64_t rows) {
  const int64_t wanted = ceil_div((int64_t{1} << 22) / rows, kSliceAtoms) * kSliceAtoms;
  return smaller(larger(wanted, kSliceAtoms), ceil_div(geometry.size, kSliceAtoms) * kSliceAtoms);
}

// Launch is how a kernel runs: template <class K> int run(const K&, int64_t blocks, int cluster) in clusters of so many
// blocks, int zero(void*, int64_t).
// The first error ends an operation.
template <class Launch>
struct Driver {
  Launch launch;
  Spec spec;
  Geometry geometry;
  const int64_t* step;
  Tables tables;
  int error = 0;

  Driver(Launch launch_, const Spec& spec_, const int64_t* step_, const void* tables_)
      : launch(launch_),
        spec(spec_),
        geometry(make_geometry(spec_.kind, spec_.dim, spec_.size, spec_.groups, spec_.seed)),
        step(step_),
        tables{static_cast<const int16_t*>(tables_)} {}

  template <class Kernel>
  void run(const Kernel& kernel, int64_t blocks, int cluster = 1) {
    if (error != 0 || blocks == 0) return;
    error = blocks > 0x7fffffff ? kTooLarge : launch.run(kernel, blocks, cluster);
  }

  void zero(void* at, int64_t bytes) {
    if (error == 0) error = launch.zero(at, bytes);
  }

  // ---- rotation, synthesis, norms -------------------------------------------------------------------

  int rotate(const float* in, float* out, int64_t batch, bool inverse, const Entering& entering = Entering{}) {
    if (geometry.rotated()) {
      RotateKernel kernel{geometry, in, out, geometry.dim / geometry.rotation_block, inverse, 0, entering};
      run(kernel, kernel.blocks * batch);
    } else {
      const int64_t chunks = ceil_div(geometry.dim, PermuteKernel::kCoordinates);
      PermuteKernel kernel{geometry, in, out, chunks, inverse, 0, entering};
      run(kernel, kernel.chunks * batch);
    }
    return error;
  }

  template <int LogN>
  void combine_hadamard(const int64_t* index, const float* coefficient, float* y, int64_t batch, int64_t m) {
    HadamardCombineKernel<LogN> kernel{
        geometry, step, index, coefficient, y, m, ceil_div(geometry.sub_blocks, Transform<LogN>::kUnits)};
    run(kernel, kernel.tiles * geometry.groups * batch);
  }

  template <int KindOf>
  void combine_calls(const int64_t* index, const float* coefficient, float* y, int64_t batch, int64_t m) {
    using Kernel = CombineKernel<KindOf>;
    Kernel kernel{geometry, step, index, coefficient, tables.integers, y, m,
                  ceil_div(geometry.max_group_dim, Kernel::kCoordinates)};
    run(kernel, kernel.tiles * geometry.groups * batch);
  }

  int combine(const int64_t* index, const float* coefficient, float* y, int64_t batch, int64_t m) {
    if (geometry.kind == kSign) {
      combine_calls<kSign>(index, coefficient, y, batch, m);
    } else if (geometry.kind == kGaussian) {
      combine_calls<kGaussian>(index, coefficient, y, batch, m);
    } else {
      switch (geometry.hadamard_n) {
        case 64: combine_hadamard<6>(index, coefficient, y, batch, m); break;
        case 256: combine_hadamard<8>(index, coefficient, y, batch, m); break;
        case 1024: combine_hadamard<10>(index, coefficient, y, batch, m); break;
        case 4096: combine_hadamard<12>(index, coefficient, y, batch, m); break;
        default: combine_hadamard<14>(index, coefficient, y, batch, m); break;
      }
    }
    return error;
  }

  template <int LogN>
  void norms_hadamard(float* out) {
    HadamardNormKernel<LogN> kernel{geometry, step, out, ceil_div(geometry.pairs(), Transform<LogN>::kUnits)};
    run(kernel, kernel.tiles * geometry.groups);
  }

  // Squared norms of all atoms where they need no entries (`hadamard`: one transform a pair): out (G, K).
  void norms(float* out) {
    if (geometry.kind == kSign) {
      SignNormKernel kernel{geometry, out, ceil_div(geometry.size, SignNormKernel::kAtoms)};
      run(kernel, kernel.tiles * geometry.groups);
    } else {
      switch (geometry.hadamard_n) {
        case 64: norms_hadamard<6>(out); break;
        case 256: norms_hadamard<8>(out); break;
        case 1024: norms_hadamard<10>(out); break;
        case 4096: norms_hadamard<12>(out); break;
        default: norms_hadamard<14>(out); break;
      }
    }
  }

  // ---- scores and search ----------------------------------------------------------------------------

  // A residual ready for scoring: what every scoring kernel of an operation shares.
  struct Prepared {
    uint32_t* max_bits;
    int64_t* correction;
    void* fragments;
    int64_t batch;
    int column_tiles, row_groups, cluster;  // of SearchKernel
    int split, warp_steps;
    int64_t batch_tiles;  // a multiple of cluster
    Vec4* signs;          // `hadamard`: of sign_pairs pairs at a time; null for one row
    int64_t sign_pairs;
  };

  // f of the codebook's Traits (search.h).
  template <class F>
  auto with_traits(F f) const {
    return geometry.kind == kSign ? f(SignTraits{}) : f(GaussianTraits{});
  }

  int warps(const Prepared& p) const {
    return with_traits([&](auto traits) { return traits.warps(p.column_tiles); });
  }

  int64_t steps() const { return ceil_div(geometry.calls_per_group, kCallsPerStep); }

  // Sets how many rows share a generation of the noise, and so the batch tiles.
  void choose_rows(Prepared& p) const {
    p.row_groups = p.cluster = 1;
    if (geometry.kind == kSign) {
      // The smallest kernel for all rows; from 17 on, clusters of as few blocks as hold them, with as few rows each.
      const int64_t rounds = ceil_div(p.batch, int64_t{rows_of(12)} * spec.max_cluster), rows = ceil_div(p.batch, rounds);
      p.cluster = static_cast<int>(ceil_div(rows, rows_of(12)));
      for (const int tiles : {1, 2, 3, 6, 9, 12}) {
        p.column_tiles = tiles;
        if (int64_t{rows_of(tiles)} * p.cluster >= rows) break;
      }
      p.batch_tiles = rounds * p.cluster;
      return;
    }
    // The smallest kernel for all rows: making the entries is dearer than multiplying them with any number of rows.
    p.column_tiles = p.batch <= 2 ? 1 : p.batch <= 4 ? 2 : p.batch <= 8 ? 3 : p.batch <= 16 ? 6 : 12;
    while (p.row_groups < 8 && rows_of(p.column_tiles) * p.row_groups < p.batch &&
           ceil_div(steps(), warps(p) / (2 * p.row_groups)) <= GaussianTraits::segment(12)) {
      p.row_groups *= 2;
    }
    p.batch_tiles = ceil_div(p.batch, rows_of(p.column_tiles) * p.row_groups);
  }

  bool in_clusters(const Prepared& p) const {
    return with_traits([&](auto traits) { return traits.in_clusters(p.column_tiles); });
  }

  // Atoms of a block's tile.
  int64_t tile_atoms(const Prepared& p) const {
    const int row_tiles = with_traits([&](auto traits) { return traits.row_tiles(p.column_tiles); });
    return 16 * row_tiles * (warps(p) / p.row_groups / p.split);
  }

  // The plan and workspace for scoring `count` atoms at a time; with a null arena base, only the sizes.
  Prepared plan(Arena& arena, int64_t batch, int64_t count) {
    Prepared p{};
    const int64_t rows = batch * geometry.groups;
    p.batch = batch;
    p.max_bits = arena.take<uint32_t>(rows);
    p.correction = arena.take<int64_t>(rows);
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
    const int segment = with_traits([&](auto traits) { return traits.segment(p.column_tiles); });
    // Split the k steps among warps until there are enough blocks to fill the device several times over (once with the
    // kernels of shared entries: one block fills a multiprocessor and reads the whole residual for its atoms), and
    // whenever a warp would need more than one segment.
    const int64_t wanted_blocks = int64_t{p.row_groups > 1 || in_clusters(p) ? 1 : 8} * spec.multiprocessors;
    p.split = 1;
    while (p.split < teams &&
           ((p.split < steps() && ceil_div(count, tile_atoms(p)) * geometry.groups * p.batch_tiles < wanted_blocks) ||
            ceil_div(steps(), p.split) > segment)) {
      p.split *= 2;
    }
    p.warp_steps = static_cast<int>(ceil_div(ceil_div(steps(), p.split), p.row_groups) * p.row_groups);
    const int64_t bytes = with_traits([](auto traits) { return traits.kVectors * 32 * sizeof(traits.no_digits()); });
    p.fragments = arena.take<char>(p.batch_tiles * p.row_groups * p.column_tiles * geometry.groups * p.split *
                                   int64_t{p.warp_steps} * bytes);
    return p;
  }

  template <class Traits>
  void prepare_fragments(const Prepared& p, const float* w) {
    const int64_t steps = int64_t{p.split} * p.warp_steps;
    const int64_t items =
        p.batch_tiles * p.row_groups * p.column_tiles * geometry.groups * steps * Traits::kVectors * 32;
    PrepareKernel<Traits> kernel{geometry, w, p.max_bits, static_cast<typename Traits::Fragment*>(p.fragments),
                                 p.correction, p.batch, p.column_tiles, steps, items};
    run(kernel, ceil_div(items, PrepareKernel<Traits>::kThreads));
  }

  void prepare(const Prepared& p, const float* w) {
    const int64_t rows = p.batch * geometry.groups;
    zero(p.max_bits, rows * static_cast<int64_t>(sizeof(uint32_t)));
    MaxKernel kernel{geometry, w, p.max_bits, ceil_div(geometry.max_group_dim, kMaxCoordinates)};
    run(kernel, kernel.chunks * rows);
    if (geometry.kind == kSign) {
      zero(p.correction, rows * static_cast<int64_t>(sizeof(int64_t)));
      prepare_fragments<SignTraits>(p, w);
    } else if (geometry.kind == kGaussian) {
      prepare_fragments<GaussianTraits>(p, w);
    }
  }

  // Where a scoring kernel's results go.
  struct Target {
    Ranking ranking;
    Candidate* results;  // search
    float* scores;       // scores
    float* norms;        // `gaussian` scores: norms too, or null
    int64_t score_stride, first, last;
    int64_t chunks;      // blocks a (group, batch tile); 0: as many as there are tiles
  };

  template <class Traits, int Writes, int ColumnTiles, int RowGroups = 1>
  void score_products(const Prepared& p, const Target& target) {
    const int64_t tiles = ceil_div(target.last - target.first, tile_atoms(p));
    const int64_t chunks = target.chunks == 0 ? tiles : smaller(target.chunks, tiles);
    int32_t split_bits = 0;
    while (1 << split_bits < p.split) ++split_bits;
    SearchKernel<Traits, ColumnTiles, RowGroups, Writes> kernel{
        geometry, make_round_keys(geometry.seed), target.ranking, step, tables.halves(),
        static_cast<const typename Traits::Fragment*>(p.fragments),
        p.max_bits, p.correction, target.results, target.scores, target.norms, target.score_stride,
        target.first, target.last, static_cast<int32_t>(p.batch), static_cast<int32_t>(tiles),
        static_cast<int32_t>(chunks), p.cluster, split_bits, p.warp_steps, 1};
    run(kernel, chunks * geometry.groups * p.batch_tiles, p.cluster);
  }

  template <int LogN, bool Scores>
  void score_hadamard(const Prepared& p, const float* w, const Target& target) {
    using T = Transform<LogN>;
    for (int64_t first = target.first; first < target.last; first += p.sign_pairs * T::kN) {
      const int64_t last = smaller(first + p.sign_pairs * T::kN, target.last);
      const int64_t pairs = ceil_div(last - first, int64_t{T::kN}), tiles = ceil_div(pairs, int64_t{T::kUnits});
      if (p.signs != nullptr) {
        const int64_t items = pairs * HadamardSignKernel::vectors(geometry);
        HadamardSignKernel make{geometry, step, p.signs, first / T::kN, items};
        run(make, ceil_div(items, HadamardSignKernel::kThreads));
      }
      const int64_t chunks = Scores ? tiles : target.chunks;
      HadamardKernel<LogN, Scores> kernel{
          geometry, target.ranking, w, p.max_bits, step, p.signs, target.results,
          target.scores + (Scores ? first - target.first : 0), target.score_stride, first, last,
          static_cast<int32_t>(tiles), static_cast<int32_t>(chunks), first > target.first};
      run(kernel, chunks * geometry.groups * p.batch);
    }
  }

  // Defined below the class, so that they are not inline: a part of the library defines each (launch.h).
  template <int Writes>
  void score_signs(const Prepared& p, const Target& target);
  template <int Writes>
  void score_gaussians(const Prepared& p, const Target& target);
  template <bool Scores>
  void score_hadamards(const Prepared& p, const float* w, const Target& target);

  template <bool Scores>
  void score(const Prepared& p, const float* w, const Target& target) {
    if (geometry.kind == kSign) {
      score_signs<Scores ? kScores : kBest>(p, target);
    } else if (geometry.kind == kGaussian) {
      if (Scores && target.norms != nullptr) {
        score_gaussians<kNorms>(p, target);
      } else {
        score_gaussians<Scores ? kScores : kBest>(p, target);
      }
    } else {
      score_hadamards<Scores>(p, w, target);
    }
  }

  // Blocks a (group, batch tile) of a search, so that candidates stay O(B * G * tiles) and few: about 16 blocks a
  // multiprocessor in all. Shared by the plan and the launch.
  int64_t search_chunks(const Prepared& p) const {
    const int64_t rows = geometry.groups * (geometry.kind == kHadamard ? p.batch : p.batch_tiles);
    const int64_t atoms =
        geometry.kind != kHadamard ? tile_atoms(p) : geometry.hadamard_n <= 2048 ? 2048 : geometry.hadamard_n;
    return smaller(larger(1, ceil_div(int64_t{16} * spec.multiprocessors, rows)), ceil_div(geometry.size, atoms));
  }

  int search(Arena& arena, const float* w, int64_t batch, const Ranking& ranking, const Chosen& chosen) {
    const Prepared p = plan(arena, batch, geometry.size);
    const int64_t chunks = search_chunks(p);
    Candidate* results = arena.take<Candidate>(batch * geometry.groups * chunks);
    if (arena.base == nullptr) return 0;
    prepare(p, w);
    score<false>(p, w, Target{ranking, results, nullptr, nullptr, 0, 0, geometry.size, chunks});
    FinalKernel final_kernel{results, chosen, chunks, ranking.is_signed, 0};
    run(final_kernel, batch * geometry.groups);
    return error;
  }

  int scores(Arena& arena, const float* w, int64_t batch, int64_t first, int64_t count, float* out,
             float* squared_norms) {
    const Prepared p = plan(arena, batch, count);
    if (arena.base == nullptr) return 0;
    prepare(p, w);
    if (squared_norms != nullptr && geometry.kind != kGaussian) norms(squared_norms);
    score<true>(p, w, Target{Ranking{}, nullptr, out, squared_norms, count, first, first + count, 0});
    return error;
  }

  int topk(Arena& arena, const float* w, int64_t batch, int64_t m, const Ranking& ranking,
           const Chosen& chosen) {
    const int64_t rows = batch * geometry.groups;
    const int64_t chunk = topk_chunk(geometry, rows), slices = chunk / kSliceAtoms;
    const Prepared p = plan(arena, batch, chunk);
    float* chunk_scores = arena.take<float>(rows * chunk);
    Candidate* lists = arena.take<Candidate>(rows * slices * m);
    Candidate* best = arena.take<Candidate>(rows * m);
    if (arena.base == nullptr) return 0;
    prepare(p, w);
    for (int64_t first = 0; first < geometry.size; first += chunk) {
      const int64_t last = smaller(first + chunk, geometry.size), used = ceil_div(last - first, kSliceAtoms);
      score<true>(p, w, Target{Ranking{}, nullptr, chunk_scores, nullptr, chunk, first, last, 0});
      SliceKernel slice{ranking, chunk_scores, chunk, first, last - first, lists, used, geometry.groups, m};
      run(slice, used * rows);
      MergeKernel merge{lists, best, chosen, used, m, ranking.is_signed, first == 0, last == geometry.size, 0};
      run(merge, rows);
    }
    return error;
  }
};

template <class Launch>
template <int Writes>
void Driver<Launch>::score_signs(const Prepared& p, const Target& target) {
  switch (p.column_tiles) {
    case 1: score_products<SignTraits, Writes, 1>(p, target); break;
    case 2: score_products<SignTraits, Writes, 2>(p, target); break;
    case 3: score_products<SignTraits, Writes, 3>(p, target); break;
    case 6: score_products<SignTraits, Writes, 6>(p, target); break;
    case 9: score_products<SignTraits, Writes, 9>(p, target); break;
    default: score_products<SignTraits, Writes, 12>(p, target); break;
  }
}

template <class Launch>
template <int Writes>
void Driver<Launch>::score_gaussians(const Prepared& p, const Target& target) {
  switch (p.column_tiles * p.row_groups) {
    case 1: score_products<GaussianTraits, Writes, 1>(p, target); break;
    case 2: score_products<GaussianTraits, Writes, 2>(p, target); break;
    case 3: score_products<GaussianTraits, Writes, 3>(p, target); break;
    case 6: score_products<GaussianTraits, Writes, 6>(p, target); break;
    case 12: score_products<GaussianTraits, Writes, 12>(p, target); break;
    case 24: score_products<GaussianTraits, Writes, 12, 2>(p, target); break;
    case 48: score_products<GaussianTraits, Writes, 12, 4>(p, target); break;
    default: score_products<GaussianTraits, Writes, 12, 8>(p, target); break;
  }
}

template <class Launch>
template <bool Scores>
void Driver<Launch>::score_hadamards(const Prepared& p, const float* w, const Target& target) {
  switch (geometry.hadamard_n) {
    case 64: score_hadamard<6, Scores>(p, w, target); break;
    case 256: score_hadamard<8, Scores>(p, w, target); break;
    case 1024: score_hadamard<10, Scores>(p, w, target); break;
    case 4096: score_hadamard<12, Scores>(p, w, target); break;
    default: score_hadamard<14, Scores>(p, w, target); break;
  }
}

}  // namespace ddcm
