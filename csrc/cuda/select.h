// Selection: the M best of many candidates.

#pragma once

#include "candidate.h"

namespace ddcm {

constexpr int kTopThreads = 256;

// The m best of a stream of candidates, in shared memory: a sorted list of m and a buffer of those that beat its
// last; when the buffer is full, both are sorted together. The order is total, so the result depends neither
// on the order in which threads append nor on how the stream is cut.
template <class State>
struct TopList {
  Candidate* list;  // 2 * half: the best m, "none" up to half, then the buffer
  int* count;       // entries in the buffer
  int half;         // power of two >= m, at least 2 * kTopThreads
  int m;

  static DDCM_FN int half_of(int64_t m) {
    int half = 2 * kTopThreads;
    while (half < m) half *= 2;
    return half;
  }

  static int64_t shared_bytes(int64_t m) { return 2 * half_of(m) * int64_t{sizeof(Candidate)} + 16; }

  DDCM_FN TopList(char* shared, int64_t m_)
      : list(reinterpret_cast<Candidate*>(shared + 16)),
        count(reinterpret_cast<int*>(shared)),
        half(half_of(m_)),
        m(static_cast<int>(m_)) {}

  template <class Block>
  DDCM_FN void clear(Block& block) const {
    block.each([&](int thread, State&) {
      for (int i = thread; i < 2 * half; i += kTopThreads) list[i] = no_candidate();
      if (thread == 0) *count = 0;
    });
    block.sync();
  }

  // Offers one candidate a thread and round; source(i) is candidate i of `size`.
  template <class Block, class Source>
  DDCM_FN void add(Block& block, int64_t size, Source source) const {
    for (int64_t begin = 0; begin < size; begin += kTopThreads) {
      block.each([&](int thread, State&) {
        if (begin + thread >= size) return;
        const Candidate c = source(begin + thread);
        if (better(c, list[m - 1])) list[half + atomic_next(count)] = c;
      });
      block.sync();
      const bool full = *count > half - kTopThreads;
      block.sync();  // every thread has read the count before any appends again
      if (full) settle(block);
    }
    settle(block);
  }

  // Sorts list and buffer together (bitonic, best first), then empties the buffer.
  template <class Block>
  DDCM_FN void settle(Block& block) const {
    for (int run = 2; run <= 2 * half; run *= 2) {
      for (int gap = run / 2; gap >= 1; gap /= 2) {
        block.each([&](int thread, State&) {
          for (int p = thread; p < half; p += kTopThreads) {
            const int i = (p / gap) * 2 * gap + p % gap, j = i + gap;
            const bool swap = (i & run) == 0 ? better(list[j], list[i]) : better(list[i], list[j]);
            if (swap) {
              const Candidate c = list[i];
              list[i] = list[j];
              list[j] = c;
            }
          }
        });
        block.sync();
      }
    }
    block.each([&](int thread, State&) {
      // The tail of the list past m is dropped too: it must not survive as a stale duplicate.
      for (int i = m + thread; i < 2 * half; i += kTopThreads) list[i] = no_candidate();
      if (thread == 0) *count = 0;
    });
    block.sync();
  }
};

constexpr int64_t kSliceAtoms = 16384;

// The m best of one slice of a chunk of scores: lists[((b * G + g) * slices + slice) * m ..]. Grid: (slices, G, B).
struct SliceKernel {
  static constexpr int kThreads = kTopThreads, kMinBlocks = 1;
  struct State {};

  Ranking ranking;
  const float* scores;  // (B, G, stride): atoms first .. first + count - 1
  int64_t stride, first, count;
  Candidate* lists;
  int64_t slices, groups, m;

  int64_t shared_bytes() const { return TopList<State>::shared_bytes(m); }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const int64_t slice = block.index() % slices, row = block.index() / slices, g = row % groups;
    const TopList<State> top(block.shared(), m);
    top.clear(block);
    const int64_t begin = slice * kSliceAtoms;
    const int64_t size = count - begin < kSliceAtoms ? count - begin : kSliceAtoms;
    const float* from = scores + row * stride + begin;
    top.add(block, size, [&](int64_t i) { return ranking.candidate(from[i], g, first + begin + i); });
    block.each([&](int thread, State&) {
      for (int64_t i = thread; i < m; i += kThreads) lists[block.index() * m + i] = top.list[i];
    });
  }
};

// Merges the slices' lists and, unless this is the first chunk, the list so far. Writes the answer after the last
// chunk. Grid: B * G.
struct MergeKernel {
  static constexpr int kThreads = kTopThreads, kMinBlocks = 1;
  struct State {};

  const Candidate* lists;  // (B, G, slices, m)
  Candidate* best;         // (B, G, m)
  Chosen chosen;           // (B, G, m)
  int64_t slices, m;
  int32_t is_signed, is_first, is_last, reserved;

  int64_t shared_bytes() const { return TopList<State>::shared_bytes(m); }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const int64_t row = block.index();
    const TopList<State> top(block.shared(), m);
    top.clear(block);
    if (!is_first) top.add(block, m, [&](int64_t i) { return best[row * m + i]; });
    top.add(block, slices * m, [&](int64_t i) { return lists[row * slices * m + i]; });
    block.each([&](int thread, State&) {
      for (int64_t i = thread; i < m; i += kThreads) {
        if (is_last) {
          chosen.write(row * m + i, top.list[i], is_signed != 0);
        } else {
          best[row * m + i] = top.list[i];
        }
      }
    });
  }
};

}  // namespace ddcm
