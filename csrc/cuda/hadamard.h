// The `hadamard` kind: all n scores of a sign pair from fast transforms (transform.h), and its atoms' squared norms.

#pragma once

#include "candidate.h"
#include "residual.h"
#include "transform.h"

namespace ddcm {

// The sign words of a range of pairs, once for all rows of a batch: out[(pair * G + g) * ns + c][stream][call], inner e before
// outer d. They are 2 / n bits an atom and coordinate. Flat grid over the calls.
struct HadamardSignKernel {
  static constexpr int kThreads = 256, kMinBlocks = 4;
  struct State {};

  GroupRange geometry;
  const int64_t* step;
  Vec4* out;
  int64_t first_pair, items;

  static constexpr int64_t shared_bytes() { return 0; }

  // Vectors of a pair.
  static DDCM_FN int64_t vectors(const Geometry& geometry) {
    return geometry.groups * geometry.sub_blocks * 2 * geometry.calls_per_sub_block();
  }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    block.each([&](int thread, State&) {
      const int64_t item = static_cast<int64_t>(block.index()) * kThreads + thread;
      if (item >= items) return;
      const int64_t calls = geometry.calls_per_sub_block(), call = item % calls, sub_block = item / calls / 2;
      const int stream = static_cast<int>(item / calls % 2);
      const int64_t c = sub_block % geometry.sub_blocks, rest = sub_block / geometry.sub_blocks;
      const int64_t g = rest % geometry.groups, pair = first_pair + rest / geometry.groups;
      out[item] = sign_words(geometry, g, c, call, pair, static_cast<uint32_t>(*step), stream);
    });
  }
};

// Scores or the best candidate. Pair p, group g: n scores = 2^(-LogN / 2) * H(sum_c e_c * H(d_c * w_c)), H unscaled.
// Grid: (chunks, G, B); a block's units take neighbouring pairs. Outputs as SearchKernel's; where there are more pairs than
// one launch takes, the candidates wait in the results until the last picks.
template <int LogN, bool Scores>
struct HadamardKernel {
  using T = Transform<LogN>;
  static constexpr int kLast = T::kPasses - 1;
  static constexpr int kThreads = T::kThreads, kMinBlocks = T::kMinBlocks;
  struct State {
    float x[16], sum[16];
  };

  GroupsOf<!Scores> geometry;
  Ranking ranking;
  const float* w;            // (B, D)
  const uint32_t* max_bits;  // (B, G)
  const int64_t* step;
  const Vec4* signs;         // of HadamardSignKernel, from atom `first` on; null: made here
  Picking picking;
  float* scores;
  int64_t score_stride;
  int64_t first, last;  // atoms; first is a multiple of n
  int32_t tiles, chunks;
  int32_t merges;  // the results hold candidates of other atoms already
  int32_t picks;   // no more atoms come

  static constexpr int64_t kSignsAt = T::kBufferBytes;
  static constexpr int64_t kBestAt = kSignsAt + 2 * T::kSignBytes;
  static constexpr int64_t kLastAt = kBestAt + static_cast<int64_t>(sizeof(Candidate)) * kThreads;
  static constexpr int64_t shared_bytes() { return Scores ? kBestAt : kLastAt + static_cast<int64_t>(sizeof(int)); }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const int chunk = block.index() % chunks, row = block.index() / chunks;
    const int groups = static_cast<int>(geometry.groups), g = row % groups, b = row / groups;
    const float* part = w + b * geometry.dim + geometry.group_start(g);
    const uint32_t size = static_cast<uint32_t>(geometry.group_dim(g));
    float* buffer = reinterpret_cast<float*>(block.shared());
    char* inner = block.shared() + kSignsAt;
    const char* outer = inner + T::kSignBytes;

    // A thread's best so far waits in shared memory: registers are for the transform.
    Candidate* best = reinterpret_cast<Candidate*>(block.shared() + kBestAt);
    if (!Scores) block.each([&](int thread, State&) { best[thread] = no_candidate(); });
    DDCM_NO_UNROLL
    for (int tile = chunk; tile < tiles; tile += chunks) {
      const uint32_t first_pair = static_cast<uint32_t>(first / T::kN) + tile * T::kUnits;
      block.each([&](int, State& s) {
        DDCM_UNROLL
        for (int i = 0; i < 16; ++i) s.sum[i] = 0.0f;
      });
      DDCM_NO_UNROLL
      for (int c = 0; c < geometry.sub_blocks; ++c) {
        T::put_signs(block, inner, 2, [&](int unit, int stream, int call, Vec4& words) {
          const int64_t of_range = static_cast<int64_t>(tile) * T::kUnits + unit;
          if (first + of_range * T::kN >= last) return false;
          const int64_t sub_block = (of_range * geometry.groups + g) * geometry.sub_blocks + c;
          words = signs != nullptr ? load(signs + (sub_block * 2 + stream) * T::kCalls + call)
                                   : sign_words(geometry, g, c, call, first_pair + unit, static_cast<uint32_t>(*step), stream);
          return true;
        });
        block.sync();
        block.each([&](int number, State& s) {
          const int thread = T::fresh(number);
          const uint32_t first_entry = static_cast<uint32_t>(c) * T::kN + T::entry(thread, 0, kLast);
          const float* from = part + first_entry;
          const int left = static_cast<int>(size - first_entry);
          DDCM_UNROLL
          for (int i = 0; i < 16; ++i) {
            s.x[i] = 0.0f;
            if (T::offset(i, kLast) < left) s.x[i] = from[T::offset(i, kLast)];
          }
          // Scaled so that the largest magnitude is in [1, 2): sums cannot overflow.
          const Scale scale = scale_of(-floor_log2(max_bits[row]));
          DDCM_UNROLL
          for (int i = 0; i < 16; ++i) s.x[i] = T::with_sign(scale(s.x[i]), outer, thread, i, kLast);
        });
        T::descend(block, buffer);
        block.each([&](int number, State& s) {
          const int thread = T::fresh(number);
          DDCM_UNROLL
          for (int i = 0; i < 16; ++i) s.sum[i] += T::with_sign(s.x[i], inner, thread, i, 0);
        });
        block.sync();  // the signs are read; the next sub-block's may be written
      }
      block.each([&](int, State& s) {
        DDCM_UNROLL
        for (int i = 0; i < 16; ++i) s.x[i] = s.sum[i];
      });
      T::ascend(block, buffer);
      block.each([&](int number, State& s) {
        const int thread = T::fresh(number);
        const uint32_t pair = first_pair + thread / T::kUnitThreads;
        const uint32_t maximum = max_bits[row];  // read again: the transforms leave no register for it
        Scale scale = scale_of(floor_log2(maximum) - LogN / 2);
        if (!finite_maximum(maximum)) scale.second = quiet_nan();
        const int64_t k = static_cast<int64_t>(pair) * T::kN + T::entry(thread, 0, kLast);
        const int left = last - k < T::kN ? static_cast<int>(last - k) : T::kN;
        if (Scores) {
          float* to = scores + static_cast<int64_t>(row) * score_stride + k - first;
          DDCM_UNROLL
          for (int i = 0; i < 16; ++i) {
            if (T::offset(i, kLast) < left) to[T::offset(i, kLast)] = scale(s.x[i]);
          }
          return;
        }
        const float* bias = ranking.bias == nullptr ? nullptr : ranking.bias + g * ranking.bias_stride + k;
        DDCM_UNROLL
        for (int i = 0; i < 16; ++i) {
          s.sum[i] = 0.0f;
          if (bias != nullptr && T::offset(i, kLast) < left) s.sum[i] = bias[T::offset(i, kLast)];
        }
        Candidate leader = best[thread];
        DDCM_UNROLL
        for (int i = 0; i < 16; ++i) {
          const Candidate candidate =
              ranking.biased(scale(s.x[i]), s.sum[i], static_cast<uint32_t>(k) + T::offset(i, kLast));
          if ((T::offset(i, kLast) < left) & better(candidate, leader)) leader = candidate;
        }
        best[thread] = leader;
      });
    }
    if (!Scores) {
      block.sync();
      reduce_candidates<kThreads>(block, best, 1);
      block.each([&](int thread, State&) {
        if (thread != 0) return;
        Candidate& result = picking.results[static_cast<int64_t>(row) * chunks + chunk];
        if (merges && better(result, best[0])) best[0] = result;
        if (!picks) result = best[0];
      });
      if (!picks) return;
      block.sync();
      int* last_block = reinterpret_cast<int*>(block.shared() + kLastAt);
      pick<kThreads, 1>(block, picking, row, chunk, best, last_block, [&](int) { return static_cast<int64_t>(row); });
    }
  }
};

// Squared norms, exact: full sub-blocks give n each; the last one, cut to `rest` entries, gives
// sum of s[l ^ j]^2 over l < rest, made of one aligned interval for each bit of `rest`.
// out (G, K). Grid: (tiles of pairs, G).
template <int LogN>
struct HadamardNormKernel {
  using T = Transform<LogN>;
  static constexpr int kLast = T::kPasses - 1;
  static constexpr int kThreads = T::kThreads, kMinBlocks = T::kMinBlocks;
  struct State {
    float x[16];
    int32_t total[16], next[16];
  };

  Geometry geometry;
  const int64_t* step;
  float* out;
  int64_t tiles;

  static constexpr int64_t shared_bytes() { return T::kBufferBytes + T::kSignBytes; }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const int64_t tile = block.index() % tiles, g = block.index() / tiles;
    const int64_t c = geometry.sub_blocks - 1, rest = geometry.group_dim(g) - c * T::kN;
    float* buffer = reinterpret_cast<float*>(block.shared());
    int32_t* squares = reinterpret_cast<int32_t*>(block.shared());
    char* inner = block.shared() + T::kBufferBytes;
    T::put_signs(block, inner, 1, [&](int unit, int stream, int call, Vec4& words) {
      words = sign_words(geometry, g, c, call, tile * T::kUnits + unit, static_cast<uint32_t>(*step), stream);
      return true;
    });
    block.sync();
    T::descend_signs(block, buffer, inner);
    block.each([&](int thread, State& s) {
      DDCM_UNROLL
      for (int i = 0; i < 16; ++i) {
        s.total[i] = 0;
        const int32_t value = static_cast<int32_t>(s.x[i]);
        T::at(squares, thread, 0)[T::padded_offset(i, 0)] = value * value;
      }
    });
    block.sync();
    // squares[l] = sum over the aligned interval of 2^level entries that holds l.
    DDCM_NO_UNROLL
    for (int level = 0; level <= LogN; ++level) {
      const int start = static_cast<int>(rest >> (level + 1) << (level + 1));
      block.each([&](int thread, State& s) {
        DDCM_UNROLL
        for (int i = 0; i < 16; ++i) {
          const int j = T::entry(thread, i, kLast);
          if (rest >> level & 1) s.total[i] += squares[T::padded(thread, (start ^ j) & (T::kN - 1))];
          s.next[i] = T::at(squares, thread, kLast)[T::padded_offset(i, kLast)];
          if (level < LogN) s.next[i] += squares[T::padded(thread, j ^ 1 << level)];
        }
      });
      block.sync();
      block.each([&](int thread, State& s) {
        DDCM_UNROLL
        for (int i = 0; i < 16; ++i) {
          T::at(squares, thread, kLast)[T::padded_offset(i, kLast)] = s.next[i];
        }
      });
      block.sync();
    }
    block.each([&](int thread, State& s) {
      const int64_t pair = tile * T::kUnits + thread / T::kUnitThreads;
      DDCM_UNROLL
      for (int i = 0; i < 16; ++i) {
        const int64_t k = pair * T::kN + T::entry(thread, i, kLast);
        if (k >= geometry.size) continue;
        out[g * geometry.size + k] = static_cast<float>(static_cast<double>(c) * T::kN +
                                                        static_cast<double>(s.total[i]) / T::kN);
      }
    });
  }
};

}  // namespace ddcm
