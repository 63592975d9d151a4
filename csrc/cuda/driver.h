// The operations as sequences of kernel launches, and their workspace: the same code drives the device
// (kernels.cu) and its emulation on the host (emulate.cpp). Nothing here allocates, synchronises or reads device memory.

#pragma once

#include "combine.h"
#include "plan.h"
#include "rotate.h"

namespace ddcm {

constexpr int kTooLarge = -1;  // a grid of more than 2^31 - 1 blocks

// Tables on the device: q as int16 (64 KB), then q as float16 (64 KB).
struct Tables {
  const int16_t* integers;

  const char* halves() const { return reinterpret_cast<const char*>(integers + kGaussianTableSize); }
};

// Launch is how a kernel runs: template <class K> int run(const K&, int64_t blocks, int cluster, bool early) in clusters of
// so many blocks, `early` if it may be on its way while the operation's kernel before still runs (launch.h); int zero(void*,
// int64_t).
// The first error ends an operation.
template <class Launch>
struct Driver : Planner {
  Launch launch;
  const int64_t* step;
  Tables tables;
  int error = 0;
  bool follows_kernel = false;  // of this operation: all others are waited for as ever

  Driver(Launch launch_, const Spec& spec_, const int64_t* step_, const void* tables_)
      : Planner(spec_), launch(launch_), step(step_), tables{static_cast<const int16_t*>(tables_)} {}

  template <class Kernel>
  void run(const Kernel& kernel, int64_t blocks, int cluster = 1) {
    if (error != 0 || blocks == 0) return;
    // GPUs that have clusters have early launches.
    const bool early = follows_kernel && spec.max_cluster > 1;
    error = blocks > 0x7fffffff ? kTooLarge : launch.run(kernel, blocks, cluster, early);
    follows_kernel = true;
  }

  void zero(void* at, int64_t bytes) {
    if (error == 0) error = launch.zero(at, bytes);
    follows_kernel = false;
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

  template <class Traits>
  void prepare_fragments(const Prepared& p, const float* w) {
    const int64_t steps = fragment_steps(p);
    const int64_t items =
        p.batch_tiles * p.row_groups * p.column_tiles * geometry.groups * steps * Traits::kVectors * 32;
    PrepareKernel<Traits> kernel{geometry, w, p.max_bits, static_cast<typename Traits::Fragment*>(p.fragments),
                                 p.correction, p.batch, p.column_tiles, steps, items};
    run(kernel, ceil_div(items, PrepareKernel<Traits>::kThreads));
  }

  void prepare(const Prepared& p, const float* w) {
    const int64_t rows = p.batch * geometry.groups;
    zero(p.correction, rows * kClearedBytes);
    MaxKernel kernel{geometry, w, p.max_bits, ceil_div(geometry.max_group_dim, kMaxCoordinates)};
    run(kernel, kernel.chunks * rows);
    if (geometry.kind != kHadamard) with_traits(p, [&](auto traits) { prepare_fragments<decltype(traits)>(p, w); });
  }

  // Where a scoring kernel's results go.
  struct Target {
    Ranking ranking;
    Picking picking;     // search: its chunks are the blocks a (group, batch tile)
    float* scores;       // scores
    float* norms;        // `gaussian` scores: norms too, or null
    int64_t score_stride, first, last;
  };

  template <class Traits, int Writes, int ColumnTiles, int RowGroups = 1>
  void score_products(const Prepared& p, const Target& target) {
    if constexpr (can_cut<Traits>(ColumnTiles, Writes)) {
      if (p.cut > 1) return score_products<Traits, kBestOfCut, ColumnTiles>(p, target);
    }
    const int64_t tiles = ceil_div(target.last - target.first, tile_atoms(p));
    const int64_t chunks = SearchKernel<Traits, ColumnTiles, RowGroups, Writes>::kRanks ? target.picking.chunks : tiles;
    int32_t split_bits = 0;
    while (1 << split_bits < p.split) ++split_bits;
    SearchKernel<Traits, ColumnTiles, RowGroups, Writes> kernel{
        geometry, make_round_keys(geometry.seed), target.ranking, step, tables.halves(),
        static_cast<const typename Traits::Fragment*>(p.fragments),
        p.max_bits, p.correction, target.picking, target.scores, target.norms, target.score_stride,
        target.first, target.last, static_cast<int32_t>(p.batch), static_cast<int32_t>(tiles),
        static_cast<int32_t>(chunks), p.cut, split_bits, p.warp_steps, 1};
    run(kernel, chunks * geometry.groups * p.batch_tiles * p.cut, kernel.cluster);
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
      const int64_t chunks = Scores ? tiles : target.picking.chunks;
      HadamardKernel<LogN, Scores> kernel{
          geometry, target.ranking, w, p.max_bits, step, p.signs, target.picking,
          target.scores + (Scores ? first - target.first : 0), target.score_stride, first, last,
          static_cast<int32_t>(tiles), static_cast<int32_t>(chunks), first > target.first, last == target.last};
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

  int search(Arena& arena, const float* w, int64_t batch, const Ranking& ranking, const Chosen& chosen) {
    const Prepared p = plan(arena, batch, geometry.size, kBest);
    const int64_t chunks = search_chunks(p);
    Candidate* results = arena.take<Candidate>(batch * geometry.groups * chunks);
    if (arena.base == nullptr) return 0;
    prepare(p, w);
    const Picking picking{results, p.arrived, chosen, static_cast<int32_t>(chunks), ranking.is_signed};
    score<false>(p, w, Target{ranking, picking, nullptr, nullptr, 0, 0, geometry.size});
    return error;
  }

  int scores(Arena& arena, const float* w, int64_t batch, int64_t first, int64_t count, float* out,
             float* squared_norms) {
    const Prepared p = plan(arena, batch, count, kScores);
    if (arena.base == nullptr) return 0;
    prepare(p, w);
    if (squared_norms != nullptr && geometry.kind != kGaussian) norms(squared_norms);
    score<true>(p, w, Target{Ranking{}, Picking{}, out, squared_norms, count, first, first + count});
    return error;
  }

  int topk(Arena& arena, const float* w, int64_t batch, int64_t m, const Ranking& ranking,
           const Chosen& chosen) {
    const int64_t rows = batch * geometry.groups, chunk = topk_chunk(geometry, rows);
    const Prepared p = plan(arena, batch, chunk, kScores);
    float* chunk_scores = arena.take<float>(rows * chunk);
    // A list a slice, one of the best so far, and what those are merged into.
    const int64_t row_lists = MergeKernel::row_lists(ceil_div(chunk, kSliceAtoms) + (chunk < geometry.size ? 1 : 0), m);
    TopTarget target{arena.take<Candidate>(rows * row_lists * m), chosen, row_lists, m, ranking.is_signed, 0};
    if (arena.base == nullptr) return 0;
    prepare(p, w);
    for (int64_t first = 0; first < geometry.size; first += chunk) {
      const int64_t last = smaller(first + chunk, geometry.size);
      score<true>(p, w, Target{Ranking{}, Picking{}, chunk_scores, nullptr, chunk, first, last});
      const int32_t kept = first > 0 ? 1 : 0, slices = static_cast<int32_t>(ceil_div(last - first, kSliceAtoms));
      int32_t list = 0, lists = kept + slices;
      target.is_answer = lists == 1;
      run(SliceKernel{target, ranking, chunk_scores, chunk, first, last - first, slices,
                      static_cast<int32_t>(geometry.groups), kept, 0},
          slices * rows);
      while (lists > 1) {
        const int32_t merged = static_cast<int32_t>(ceil_div(lists, MergeKernel::fan(m)));
        const int32_t into = merged == 1 ? 0 : list + lists;
        target.is_answer = merged == 1 && last == geometry.size;
        run(MergeKernel{target, list, lists, into, 0}, merged * rows);
        list = into;
        lists = merged;
      }
    }
    return error;
  }

  // Workspace of the scores of so many groups.
  int64_t scoring_bytes(int64_t batch, int64_t groups) {
    Arena arena{nullptr};
    select(0, groups);
    plan(arena, batch, geometry.size, kScores);
    return arena.used;
  }

  // letters (B, G). Scores of a stretch of groups, then the paths, until all are extended; then the way back.
  int trellis(Arena& arena, const float* w, int64_t batch, int letter_bits, int64_t* letters) {
    const Stretches s = stretches(batch, letter_bits);
    const int64_t groups = geometry.all_groups, states = s.trellis.states();
    const int64_t last = (groups - 1) % s.groups + 1;  // of the last stretch
    uint8_t* origins = arena.take<uint8_t>(batch * groups * states);
    float* sums = arena.take<float>(batch * 2 * states);
    float* held = arena.take<float>(batch * s.groups * geometry.size);
    char* scoring = arena.take<char>(larger(scoring_bytes(batch, s.groups), scoring_bytes(batch, last)));
    for (int64_t first = 0; arena.base != nullptr && first < groups; first += s.groups) {
      const int64_t count = smaller(s.groups, groups - first);
      select(first, count);
      Arena own{scoring};
      scores(own, w, batch, 0, geometry.size, held, nullptr);
      PathKernel paths{s.trellis, held, sums, origins, geometry.size, groups, first, count, 0, count, s.parts};
      for (int64_t i = 0; i < count; i += s.meet ? count : 1) {
        paths.begin = i;
        paths.end = s.meet ? count : i + 1;
        run(paths, batch * s.parts, s.meet ? s.parts : 1);
      }
    }
    select(0, groups);
    if (arena.base != nullptr) run(TraceKernel{s.trellis, sums, origins, letters, groups}, batch);
    return error;
  }
};

template <class Launch>
template <int Writes>
void Driver<Launch>::score_signs(const Prepared& p, const Target& target) {
  with_traits(p, [&](auto traits) {
    using Traits = decltype(traits);
    if constexpr (Traits::kSigns) {
      if (p.column_tiles == 3) return score_products<Traits, Writes, 3>(p, target);
      score_products<Traits, Writes, 6>(p, target);
    }
  });
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
