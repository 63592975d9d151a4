// The best of a task's scores, and those that a selection has to look at. Included by simd.h.

#pragma once

namespace {

inline float scalar_value(const float* scores, const float* bias, int i, bool is_signed) {
  float v = scores[i];
  if (is_signed && v < 0) v = -v;
  return bias ? v + bias[i] : v;
}

inline F vector_value(const float* scores, const float* bias, int i, bool is_signed) {
  F v = Simd::load(scores + i);
  if (is_signed) v = Simd::abs_(v);
  return bias ? Simd::add(v, Simd::load(bias + i)) : v;
}

Best argmax(const float* scores, const float* bias, int count, bool is_signed) {
  const float lowest = -__builtin_inff();
  Best best{lowest, 0};
  int i = 0;
  if (count >= L) {
    // Each lane keeps its first largest value, so the lower index wins inside a lane.
    F value = Simd::set1(lowest);
    U index = Simd::iota_u(), at = Simd::iota_u();
    const U lanes = Simd::set1_u(L);
    for (; i + L <= count; i += L) {
      const F v = vector_value(scores, bias, i, is_signed);
      const uint32_t better = Simd::above(v, value);
      value = Simd::select(better, v, value);
      index = Simd::select_u(better, at, index);
      at = Simd::add_u(at, lanes);
    }
    float values[L];
    uint32_t indices[L];
    Simd::store(values, value);
    Simd::store_u(indices, index);
    best.index = static_cast<int>(indices[0]);
    best.value = values[0];
    for (int l = 1; l < L; ++l) {
      const int k = static_cast<int>(indices[l]);
      if (values[l] > best.value || (values[l] == best.value && k < best.index))
        best = Best{values[l], k};
    }
  }
  for (; i < count; ++i) {
    const float v = scalar_value(scores, bias, i, is_signed);
    if (v > best.value) best = Best{v, i};
  }
  return best;
}

int filter(const float* scores, const float* bias, int count, bool is_signed, float threshold,
           int* position, float* value) {
  const float lowest = -__builtin_inff();
  const F least = Simd::set1(threshold), floor = Simd::set1(lowest);
  int found = 0, i = 0;
  for (; i + L <= count; i += L) {
    // max_ takes its second operand where the first is NaN.
    const F v = Simd::max_(vector_value(scores, bias, i, is_signed), floor);
    uint32_t bits = Simd::at_least(v, least);
    if (!bits) continue;
    float values[L];
    Simd::store(values, v);
    for (; bits; bits &= bits - 1) {
      const int l = __builtin_ctz(bits);
      position[found] = i + l;
      value[found++] = values[l];
    }
  }
  for (; i < count; ++i) {
    float v = scalar_value(scores, bias, i, is_signed);
    if (!(v > lowest)) v = lowest;
    if (v >= threshold) {
      position[found] = i;
      value[found++] = v;
    }
  }
  return found;
}

}  // namespace
