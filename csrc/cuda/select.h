// The m best of each row's scores (topk). Blocks find those of slices of the scores, then those of several slices' lists
// at a time, until a list is left.
//
// What is among the m best is found without an order: the highest byte of all values is counted, the byte that the m-th
// best has follows from the counts, and what equals it there goes on to the next byte; where values are equal, by index.
// Random values differ in their first three or four bytes. Only the answer is sorted.

#pragma once

#include "candidate.h"
#include "group_range.h"

namespace ddcm {

constexpr int kTopThreads = 256;
constexpr int kTopEach = 16;                             // candidates of a thread
constexpr int64_t kSliceAtoms = kTopThreads * kTopEach;  // of a block

struct TopState {
  uint64_t key[kTopEach];  // by which this thread's candidates are told apart, larger is better
  uint32_t open;           // bit e: not yet known whether candidate e is among the best
  uint32_t taken;          // bit e: it is
  int want;                // how many of all threads' open ones are
};

// The m best of at most kSliceAtoms candidates, found by a block in shared memory.
struct TopSelection {
  static constexpr int kBytes = 256, kParts = 16;  // values of a byte; sums of 16 counts each
  struct Found {
    int byte, above, all, taken;  // the byte of the m-th best, open ones above it, whether all that have it are taken
  };

  int* counts;      // open candidates by byte, then the sums
  Found* found;
  Candidate* list;  // the best, then "none" up to room
  int room, m;      // power of two >= m

  static DDCM_FN int room_for(int64_t m) {
    int room = 1;
    while (room < m) room *= 2;
    return room;
  }

  static DDCM_FN int64_t shared_bytes(int64_t m) {
    return (kBytes + kParts) * sizeof(int) + sizeof(Found) + room_for(m) * sizeof(Candidate);
  }

  DDCM_FN TopSelection(char* shared, int64_t m_)
      : counts(reinterpret_cast<int*>(shared)),
        found(reinterpret_cast<Found*>(counts + kBytes + kParts)),
        list(reinterpret_cast<Candidate*>(found + 1)),
        room(room_for(m_)),
        m(static_cast<int>(m_)) {}

  // Integers in the order of the values; equal for both zeros.
  static DDCM_FN uint64_t key_of(double value) {
    const uint64_t bits = value == 0.0 ? 0 : double_bits(value);
    return bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
  }

  // Leaves in the list the best of source(0) ... source(size - 1), in no order.
  template <class Block, class Source>
  DDCM_FN void select(Block& block, int size, Source source) const {
    block.each([&](int thread, TopState& s) {
      s.open = s.taken = 0;
      s.want = m;
      DDCM_UNROLL
      for (int e = 0; e < kTopEach; ++e) {
        const int i = e * kTopThreads + thread;
        const Candidate c = i < size ? source(i) : no_candidate();
        s.key[e] = key_of(c.value);
        if (better(c, no_candidate())) s.open |= 1u << e;
      }
      counts[thread] = 0;
      if (thread == 0) found->taken = 0;
      for (int i = thread; i < room; i += kTopThreads) list[i] = no_candidate();
    });
    block.sync();
    int shift = 56;
    DDCM_NO_UNROLL
    for (bool by_index = false; !narrow_down(block, shift); shift -= 8) {
      if (shift > 0 || by_index) continue;
      // What is left has the value of the last wanted.
      block.each([&](int thread, TopState& s) {
        DDCM_UNROLL
        for (int e = 0; e < kTopEach; ++e) {
          if (s.open >> e & 1u) s.key[e] = static_cast<uint64_t>(~source(e * kTopThreads + thread).index) << 32;
        }
      });
      by_index = true;
      shift = 64;
    }
    block.each([&](int thread, TopState& s) {
      for (uint32_t rest = s.taken; rest != 0; rest &= rest - 1) {
        list[atomic_next(&found->taken)] = source(highest_bit(rest & (0 - rest)) * kTopThreads + thread);
      }
    });
    block.sync();
  }

  // Takes what is above the byte of the last wanted, and keeps open what has it; whether no more are wanted.
  template <class Block>
  DDCM_FN bool narrow_down(Block& block, int shift) const {
    count_bytes(block, shift);
    find_byte(block);
    const int byte = found->byte, above = found->above, least = found->all ? byte : byte + 1;
    block.each([&](int thread, TopState& s) {
      counts[thread] = 0;
      s.want -= above;
      if (s.open == 0) return;
      DDCM_UNROLL
      for (int e = 0; e < kTopEach; ++e) {
        const int own = byte_of(s.key[e], shift);
        const uint32_t bit = s.open & (1u << e);
        if (own >= least) s.taken |= bit;
        if (own != byte) s.open &= ~bit;
      }
    });
    const bool all = found->all != 0;
    block.sync();
    return all;
  }

  static DDCM_FN int byte_of(uint64_t key, int shift) { return static_cast<int>(key >> shift & 255u); }

  // How many open candidates have each byte, and how many have those of each part.
  template <class Block>
  DDCM_FN void count_bytes(Block& block, int shift) const {
    block.each([&](int, TopState& s) {
      if (s.open == 0) return;
      DDCM_UNROLL
      for (int e = 0; e < kTopEach; ++e) {
        if (s.open >> e & 1u) atomic_next(counts + byte_of(s.key[e], shift));
      }
    });
    block.sync();
    block.each([&](int thread, TopState&) {
      if (thread >= kParts) return;
      int sum = 0;
      DDCM_UNROLL
      for (int i = 0; i < kBytes / kParts; ++i) sum += counts[thread * (kBytes / kParts) + i];
      counts[kBytes + thread] = sum;
    });
    block.sync();
  }

  // The byte of the last candidate that is wanted, by the thread of that number; -1 where fewer are open.
  template <class Block>
  DDCM_FN void find_byte(Block& block) const {
    block.each([&](int thread, TopState& s) {
      constexpr int kPart = kBytes / kParts;
      const int part = thread / kPart, own = counts[thread];
      int above = 0;
      DDCM_UNROLL
      for (int i = 0; i < kParts; ++i) above += i > part ? counts[kBytes + i] : 0;
      DDCM_UNROLL
      for (int i = 0; i < kPart; ++i) above += part * kPart + i > thread ? counts[part * kPart + i] : 0;
      if (above < s.want && s.want <= above + own) {
        found->byte = thread;
        found->above = above;
        found->all = s.want == above + own;
      } else if (thread == 0 && above + own < s.want) {
        found->byte = -1;
        found->above = above + own;
        found->all = 1;
      }
    });
    block.sync();
  }

  // Sorts the list, best first (bitonic).
  template <class Block>
  DDCM_FN void sort(Block& block) const {
    for (int run = 2; run <= room; run *= 2) {
      for (int gap = run / 2; gap >= 1; gap /= 2) {
        block.each([&](int thread, TopState&) {
          for (int p = thread; p < room / 2; p += kTopThreads) {
            const int i = 2 * p - (p & (gap - 1)), j = i + gap;
            const Candidate first = list[i], second = list[j];
            if ((i & run) == 0 ? better(second, first) : better(first, second)) {
              list[i] = second;
              list[j] = first;
            }
          }
        });
        block.sync();
      }
    }
  }
};
static_assert(TopSelection::kBytes == kTopThreads, "a thread a byte");

// Where a block's m best go: into a list, or sorted into the answer of row `row` if it has seen all candidates.
struct TopTarget {
  Candidate* lists;  // (B * G, row_lists, m)
  Chosen chosen;     // (B, G, m)
  int64_t row_lists, m;  // m <= 1024
  int32_t is_signed, is_answer;

  DDCM_FN Candidate* list(int64_t row, int64_t number) const { return lists + (row * row_lists + number) * m; }

  template <class Block>
  DDCM_FN void write(Block& block, const TopSelection& top, int64_t row, int64_t number) const {
    if (is_answer) top.sort(block);
    block.each([&](int thread, TopState&) {
      for (int i = thread; i < top.m; i += kTopThreads) {
        if (is_answer) {
          chosen.write(row * m + i, top.list[i], is_signed != 0);
        } else {
          list(row, number)[i] = top.list[i];
        }
      }
    });
  }
};

// The best of each slice of a chunk of scores, into the lists from `first_list` on. Grid: (slices, G, B).
struct SliceKernel {
  static constexpr int kThreads = kTopThreads, kMinBlocks = 2;
  using State = TopState;

  TopTarget target;
  Ranking ranking;
  const float* scores;  // (B, G, stride): atoms first .. first + count - 1
  int64_t stride, first, count;
  int32_t slices, groups, first_list, reserved;

  int64_t shared_bytes() const { return TopSelection::shared_bytes(target.m); }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const int slice = block.index() % slices, row = block.index() / slices, g = row % groups;
    const TopSelection top(block.shared(), target.m);
    const int64_t begin = slice * kSliceAtoms;
    const int size = static_cast<int>(count - begin < kSliceAtoms ? count - begin : kSliceAtoms);
    const float* from = scores + row * stride + begin;
    top.select(block, size, [&](int i) { return ranking.candidate(from[i], g, first + begin + i); });
    target.write(block, top, row, first_list + slice);
  }
};

// The best of every `fan` of a row's `count` lists from `first_list` on, into lists from `first_merged` on. Where they are
// merged into one, that may be the first of those read: one block does all of the row. Grid: (ceil(count / fan), B * G).
struct MergeKernel {
  static constexpr int kThreads = kTopThreads, kMinBlocks = 2;
  using State = TopState;

  TopTarget target;
  int32_t first_list, count, first_merged, reserved;

  static DDCM_FN int64_t fan(int64_t m) { return kSliceAtoms / m; }

  // Lists of a row that begins with so many and merges until one is left.
  static int64_t row_lists(int64_t lists, int64_t m) {
    int64_t all = lists;
    while (lists > fan(m)) all += lists = ceil_div(lists, fan(m));
    return all;
  }

  int64_t shared_bytes() const { return TopSelection::shared_bytes(target.m); }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const int fan = static_cast<int>(MergeKernel::fan(target.m)), parts = (count + fan - 1) / fan;
    const int part = block.index() % parts, row = block.index() / parts, begin = part * fan;
    const TopSelection top(block.shared(), target.m);
    const Candidate* from = target.list(row, first_list + begin);
    top.select(block, (count - begin < fan ? count - begin : fan) * top.m, [&](int i) { return from[i]; });
    target.write(block, top, row, first_merged + part);
  }
};

}  // namespace ddcm
