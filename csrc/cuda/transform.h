// Fast Hadamard transforms of a block's registers, and the signs before and after them.
//
// A thread holds 16 entries of a transform of n = 2^LogN. They are the 16 values of a 4 bit field of the entry's
// index; the thread's number in its unit (n / 16 threads) gives the other bits. A pass does the stages of one field in
// registers; between passes the entries change layout through shared memory (padded by one word in 16).

#pragma once

#include "block.h"

namespace ddcm {

template <int LogN>
struct Transform {
  static constexpr int kN = 1 << LogN;
  static constexpr int kUnitThreads = kN / 16;
  static constexpr int kThreads = kUnitThreads < 128 ? 128 : kUnitThreads;
  static constexpr int kMinBlocks = kThreads >= 1024 ? 1 : 512 / kThreads;
  static constexpr int kUnits = kThreads / kUnitThreads;  // transforms side by side in a block
  static constexpr int kPasses = (LogN + 3) / 4;
  static constexpr int kCalls = kN < kSignsPerCall ? 1 : kN / kSignsPerCall;  // Philox calls of n signs
  static constexpr int64_t kBufferBytes = int64_t{kThreads} * 17 * 4;
  static constexpr int64_t kSignBytes = int64_t{kUnits} * kCalls * 16;  // of one stream

  // Lowest bit of pass p's field; the last field may reach back over bits that are already done.
  static DDCM_FN constexpr int field(int pass) { return 4 * pass < LogN - 4 ? 4 * pass : LogN - 4; }

  // The thread's number; where registers are scarcest, what is derived from it is not kept over a phase.
  static DDCM_FN int fresh(int thread) { return kThreads >= 1024 ? opaque(thread) : thread; }

  // Entry of the unit that register i of a thread holds in pass p's layout: base | offset, disjoint bits. Every
  // address below is split the same way, into one register and constants.
  static DDCM_FN int base(int thread, int pass) {
    const int u = thread % kUnitThreads, f = field(pass);
    return (u >> f) << (f + 4) | (u & ((1 << f) - 1));
  }

  static DDCM_FN constexpr int offset(int i, int pass) { return i << field(pass); }

  static DDCM_FN int entry(int thread, int i, int pass) { return base(thread, pass) + offset(i, pass); }

  // Where an entry stands in the block's buffer: one word of padding in 16 avoids bank conflicts.
  static DDCM_FN int padded(int thread, int entry) {
    const int at = thread / kUnitThreads * kN + entry;
    return at + at / 16;
  }

  static DDCM_FN constexpr int padded_offset(int i, int pass) {
    return offset(i, pass) + offset(i, pass) / 16;
  }

  // The buffer from register 0's entry on: register i's stands padded_offset(i, pass) further.
  template <class Value>
  static DDCM_FN Value* at(Value* buffer, int thread, int pass) {
    return buffer + padded(thread, base(thread, pass));
  }

  // The stages of pass p, on registers in its layout.
  static DDCM_FN void butterflies(float (&x)[16], int pass) {
    DDCM_UNROLL
    for (int stage = 0; stage < 4; ++stage) {
      if (field(pass) + stage < 4 * pass) continue;
      DDCM_UNROLL
      for (int i = 0; i < 16; ++i) {
        if (i >> stage & 1) continue;
        const float a = x[i], b = x[i | 1 << stage];
        x[i] = add(a, b);
        x[i | 1 << stage] = add(a, -b);
      }
    }
  }

  // From pass p's layout to pass q's. Needs no sync at its end: until the next one a thread writes only what it has read.
  template <class Block>
  static DDCM_FN void exchange(Block& block, float* buffer, int p, int q) {
    block.each([&](int number, auto& s) {
      const int thread = fresh(number);
      DDCM_UNROLL
      for (int i = 0; i < 16; ++i) at(buffer, thread, p)[padded_offset(i, p)] = s.x[i];
    });
    block.sync();
    block.each([&](int number, auto& s) {
      const int thread = fresh(number);
      DDCM_UNROLL
      for (int i = 0; i < 16; ++i) s.x[i] = at(buffer, thread, q)[padded_offset(i, q)];
    });
  }

  // Unscaled transform of s.x from the last pass's layout (entries of consecutive threads are neighbours: what global
  // memory likes) to the first's (16 consecutive entries a thread).
  template <class Block>
  static DDCM_FN void descend(Block& block, float* buffer) {
    DDCM_UNROLL
    for (int pass = kPasses - 1; pass >= 0; --pass) {
      block.each([&](int, auto& s) { butterflies(s.x, pass); });
      if (pass > 0) exchange(block, buffer, pass, pass - 1);
    }
  }

  // The same from the first pass's layout to the last's.
  template <class Block>
  static DDCM_FN void ascend(Block& block, float* buffer) {
    DDCM_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      block.each([&](int, auto& s) { butterflies(s.x, pass); });
      if (pass + 1 < kPasses) exchange(block, buffer, pass, pass + 1);
    }
  }

  // x with the sign of entry (thread, i) in pass p's layout; `signs` holds the units' words of one stream.
  static DDCM_FN float with_sign(float x, const char* signs, int thread, int i, int pass) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(signs) +
                            thread / kUnitThreads * kCalls * 4 + base(thread, pass) / 32;
    const uint32_t word = words[offset(i, pass) / 32];
    const int top = 31 - base(thread, pass) % 32 - offset(i, pass) % 32;
    return bits_float(float_bits(x) ^ (word << top & 0x80000000u));
  }

  // Unscaled transform of the signs themselves, of one stream, into s.x in the first pass's layout.
  template <class Block>
  static DDCM_FN void descend_signs(Block& block, float* buffer, const char* signs) {
    block.each([&](int thread, auto& s) {
      DDCM_UNROLL
      for (int i = 0; i < 16; ++i) s.x[i] = with_sign(1.0f, signs, thread, i, kPasses - 1);
    });
    descend(block, buffer);
  }

  // Puts the sign words of the units' sub-blocks into shared memory: those of f(unit, stream, call), where it is true. Both
  // streams (inner e at `signs`, outer d after it) or only e. Needs a sync before use.
  template <class Block, class F>
  static DDCM_FN void put_signs(Block& block, char* signs, int streams, F f) {
    block.each([&](int number, auto&) {
      for (int q = fresh(number); q < streams * kUnits * kCalls; q += kThreads) {
        Vec4 words;
        if (f(q / kCalls % kUnits, q / (kUnits * kCalls), q % kCalls, words)) reinterpret_cast<Vec4*>(signs)[q] = words;
      }
    });
  }
};

// The words of one call of the signs of a sub-block; stream 0 is the inner e, 1 the outer d.
template <class Groups>
DDCM_FN Vec4 sign_words(const Groups& geometry, int64_t g, int64_t c, int64_t call, int64_t pair, uint32_t step, int stream) {
  const uint32_t number = geometry.block(g, c * geometry.calls_per_sub_block() + call);
  return vector_of(philox10(geometry.key(), number, static_cast<uint32_t>(pair), step, kStreamInner + stream));
}

}  // namespace ddcm
