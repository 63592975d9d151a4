// Plain C++: 8 lanes in arrays, which compilers turn into whatever vectors the machine has.

#include "kernels.h"

namespace ddcm {
namespace cpu {
namespace {

struct Simd {
  static constexpr int lanes = 8;
  struct F {
    float v[8];
  };
  struct U {
    uint32_t v[8];
  };
  struct Wide {
    uint64_t v[8];
  };

  template <class To, class Function>
  static To each(Function f) {
    To out;
    for (int l = 0; l < 8; ++l) out.v[l] = f(l);
    return out;
  }

  static F load(const float* p) {
    return each<F>([&](int l) { return p[l]; });
  }
  static void store(float* p, const F& x) {
    for (int l = 0; l < 8; ++l) p[l] = x.v[l];
  }
  static F set1(float x) {
    return each<F>([&](int) { return x; });
  }
  static F add(const F& a, const F& b) {
    return each<F>([&](int l) { return a.v[l] + b.v[l]; });
  }
  static F sub(const F& a, const F& b) {
    return each<F>([&](int l) { return a.v[l] - b.v[l]; });
  }
  static F mul(const F& a, const F& b) {
    return each<F>([&](int l) { return a.v[l] * b.v[l]; });
  }
  static F fma(const F& a, const F& b, const F& c) {
    return each<F>([&](int l) { return a.v[l] * b.v[l] + c.v[l]; });
  }
  static F max_(const F& a, const F& b) {
    return each<F>([&](int l) { return a.v[l] > b.v[l] ? a.v[l] : b.v[l]; });
  }
  static F abs_(const F& a) {
    return each<F>([&](int l) { return a.v[l] < 0 ? -a.v[l] : a.v[l]; });
  }

  static U load_u(const uint32_t* p) {
    return each<U>([&](int l) { return p[l]; });
  }
  static void store_u(uint32_t* p, const U& x) {
    for (int l = 0; l < 8; ++l) p[l] = x.v[l];
  }
  static U set1_u(uint32_t x) {
    return each<U>([&](int) { return x; });
  }
  static U iota_u() {
    return each<U>([](int l) { return static_cast<uint32_t>(l); });
  }
  static U add_u(const U& a, const U& b) {
    return each<U>([&](int l) { return a.v[l] + b.v[l]; });
  }
  static U xor_u(const U& a, const U& b) {
    return each<U>([&](int l) { return a.v[l] ^ b.v[l]; });
  }
  static U shift4(const U& a) {
    return each<U>([&](int l) { return a.v[l] >> 4; });
  }

  static Wide widen(const U& x) {
    return each<Wide>([&](int l) { return static_cast<uint64_t>(x.v[l]); });
  }
  static U narrow(const Wide& x) {
    return each<U>([&](int l) { return static_cast<uint32_t>(x.v[l]); });
  }
  static Wide product(const Wide& x, uint32_t m) {
    return each<Wide>([&](int l) { return (x.v[l] & 0xffffffffu) * m; });
  }
  static Wide high(const Wide& p) {
    return each<Wide>([&](int l) { return p.v[l] >> 32; });
  }
  static Wide xor2(const Wide& x, uint32_t k) {
    return each<Wide>([&](int l) { return x.v[l] ^ k; });
  }
  static Wide xor3(const Wide& x, const Wide& y, uint32_t k) {
    return each<Wide>([&](int l) { return x.v[l] ^ y.v[l] ^ k; });
  }

  static U lookup16(const int32_t* table, const U& index) {
    return each<U>([&](int l) { return static_cast<uint32_t>(table[index.v[l] & 15]); });
  }
  static F to_float(const U& x) {
    return each<F>([&](int l) { return static_cast<float>(static_cast<int32_t>(x.v[l])); });
  }

  static U to_int(const F& x) {
    return each<U>([&](int l) {
      const float v = x.v[l] + (x.v[l] < 0 ? -0.5f : 0.5f);
      // Numbers of 2^31 and more, infinite ones and NaN would have no defined value.
      return v > -0x1p31f && v < 0x1p31f ? static_cast<uint32_t>(static_cast<int32_t>(v)) : 0u;
    });
  }
  static float gaussian_of(uint32_t half) {
    const float q = gaussian_table.value[half & 0x7fff];
    return half & 0x8000 ? -q : q;
  }
  static void gaussians(const U (&words)[2], F (&low)[2], F (&high)[2]) {
    for (int i = 0; i < 2; ++i) {
      low[i] = each<F>([&](int l) { return gaussian_of(words[i].v[l] & 0xffff); });
      high[i] = each<F>([&](int l) { return gaussian_of(words[i].v[l] >> 16); });
    }
  }

  static F flip(const F& x, uint32_t bits) {
    return each<F>([&](int l) { return bits >> l & 1 ? -x.v[l] : x.v[l]; });
  }
  template <int h>
  static F butterfly(const F& x) {
    return each<F>([&](int l) { return l & h ? x.v[l ^ h] - x.v[l] : x.v[l] + x.v[l ^ h]; });
  }
  static F exchange(const F& x, int row) {
    return each<F>([&](int l) { return x.v[l ^ row]; });
  }
  static uint32_t above(const F& a, const F& b) {
    uint32_t bits = 0;
    for (int l = 0; l < 8; ++l) bits |= static_cast<uint32_t>(a.v[l] > b.v[l]) << l;
    return bits;
  }
  static uint32_t at_least(const F& a, const F& b) {
    uint32_t bits = 0;
    for (int l = 0; l < 8; ++l) bits |= static_cast<uint32_t>(a.v[l] >= b.v[l]) << l;
    return bits;
  }
  static F select(uint32_t bits, const F& a, const F& b) {
    return each<F>([&](int l) { return bits >> l & 1 ? a.v[l] : b.v[l]; });
  }
  static U select_u(uint32_t bits, const U& a, const U& b) {
    return each<U>([&](int l) { return bits >> l & 1 ? a.v[l] : b.v[l]; });
  }
  static F gather(const float* x, const U& position) {
    return each<F>([&](int l) { return x[position.v[l]]; });
  }
  static F permute(const F& x, const U& position) {
    return each<F>([&](int l) { return x.v[position.v[l]]; });
  }
  static void keep_larger(const F& x, const U& at, F& best, U& best_at) {
    for (int l = 0; l < 8; ++l) {
      if (!(x.v[l] > best.v[l])) continue;
      best.v[l] = x.v[l];
      best_at.v[l] = at.v[l];
    }
  }
  static U advance(const U& position, const U& stride, const U& dim) {
    return each<U>([&](int l) {
      const uint32_t sum = position.v[l] + stride.v[l];
      return sum >= dim.v[l] ? sum - dim.v[l] : sum;
    });
  }
};

}  // namespace

#include "simd.h"

const Kernels* portable_kernels() {
  static constexpr Kernels kernels = make_kernels("portable");
  return &kernels;
}

}  // namespace cpu
}  // namespace ddcm
