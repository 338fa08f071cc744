// What is done with the rows of a tile: sums over them, and their gates.
//
// A tile is rows of adjacent elements; the rows are channels or positions, as
// the tensor lies in memory. Sums are float32, whatever the elements are.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

// Compiled for several instruction sets: a machine takes the best it has.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define FOR_EACH_TARGET \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else  // it does not know levels here
#define FOR_EACH_TARGET \
  __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define FOR_EACH_TARGET
#endif
// Code that each of them gets for itself.
#define ALWAYS_INLINE __attribute__((always_inline))

namespace {

// bfloat16 is the upper half of a float32.
using BFloat16 = uint16_t;

inline float widen(float x) { return x; }

inline float widen(BFloat16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void narrow(float x, float& to) { to = x; }

// To the nearest, ties to even; NaN stays NaN.
inline void narrow(float x, BFloat16& to) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}

// e^x to 2 units in the last place, in a form that compilers vectorise:
// 2^n e^r with |r| <= ln 2 / 2. NaN stays NaN. x is clamped to [-87.3, 88.3],
// so that the result is a normal float32.
inline float exponential(float x) {
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.3f ? 88.3f : x;
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float e = 1.98756915e-4f;
  e = e * r + 1.39819995e-3f;
  e = e * r + 8.33345175e-3f;
  e = e * r + 4.16657962e-2f;
  e = e * r + 1.66666655e-1f;
  e = e * r + 5.00000013e-1f;
  e = e * r * r + r + 1;
  // No integer has the value of NaN; for NaN, e is NaN already.
  const int32_t bits = (static_cast<int32_t>(n == n ? n : 0) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return e * power;
}

// masks = scale · sigmoid(logits)
FOR_EACH_TARGET void sigmoids(
    const float* logits, float scale, float* __restrict masks, int64_t count) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    masks[j] = scale / (1 + exponential(-logits[j]));
  }
}

// a = share · e^(logits - top); returns their sum.
FOR_EACH_TARGET float exponentials(
    const float* logits,
    float top,
    float share,
    float* __restrict a,
    int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < count; ++j) {
    a[j] = share * exponential(logits[j] - top);
    sum += a[j];
  }
  return sum;
}

template <class T>
struct Rows {
  T* data;
  int64_t stride;
  int64_t count;
  int64_t length;

  T* operator[](int64_t i) const { return data + i * stride; }

  Rows from(int64_t first, int64_t number) const {
    return {data + first * stride, stride, number, length};
  }
};

// What `reduce` sums.
struct Sums {
  const float* outer = nullptr;  // a weight for each row
  const float* inner = nullptr;  // a weight for each column
  float* columns = nullptr;      // += Σ_i outer_i v_ij
  float* column_totals = nullptr;  // += Σ_i v_ij
  float* rows = nullptr;         // += Σ_j v_ij inner_j
  float* row_totals = nullptr;   // += Σ_j v_ij
};

// `reduce` for rows i to i + Count - 1 at once. With one row at a time, each
// addition along a row would wait for the one before, and each row would read
// and write the sums of all columns again.
template <int Count, int Columns, int Across, bool Product, class T>
inline ALWAYS_INLINE void reduce_rows(
    const Rows<T>& x, const Rows<T>& g, const Sums& sums, int64_t i) {
  static_assert(Count == 1 || Count == 4, "rows are taken by one or by four");
  constexpr int k1 = Count > 1 ? 1 : 0, k2 = 2 * k1, k3 = 3 * k1;
  const T *x0 = x[i], *x1 = x[i + k1], *x2 = x[i + k2], *x3 = x[i + k3];
  const T *g0 = g[i], *g1 = g[i + k1], *g2 = g[i + k2], *g3 = g[i + k3];
  const float* inner = sums.inner;
  float* __restrict columns = sums.columns;
  float* __restrict totals = sums.column_totals;
  float o0 = 0, o1 = 0, o2 = 0, o3 = 0;
  if (Columns > 0) {
    o0 = sums.outer[i], o1 = sums.outer[i + k1], o2 = sums.outer[i + k2],
    o3 = sums.outer[i + k3];
  }
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0, t0 = 0, t1 = 0, t2 = 0, t3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3, t0, t1, t2, t3)
  for (int64_t j = 0; j < x.length; ++j) {
    float v0 = widen(x0[j]), v1 = 0, v2 = 0, v3 = 0;
    if (Count > 1) v1 = widen(x1[j]), v2 = widen(x2[j]), v3 = widen(x3[j]);
    if (Product) v0 *= widen(g0[j]);
    if (Product && Count > 1) {
      v1 *= widen(g1[j]), v2 *= widen(g2[j]), v3 *= widen(g3[j]);
    }
    if (Columns > 0) {
      columns[j] += Count > 1 ? o0 * v0 + o1 * v1 + (o2 * v2 + o3 * v3)
                              : o0 * v0;
    }
    if (Columns > 1) totals[j] += Count > 1 ? v0 + v1 + (v2 + v3) : v0;
    if (Across > 0) {
      const float w = inner[j];
      s0 += v0 * w, s1 += v1 * w, s2 += v2 * w, s3 += v3 * w;
    }
    if (Across > 1) t0 += v0, t1 += v1, t2 += v2, t3 += v3;
  }
  const float s[] = {s0, s1, s2, s3}, t[] = {t0, t1, t2, t3};
  for (int k = 0; k < Count; ++k) {
    if (Across > 0) sums.rows[i + k] += s[k];
    if (Across > 1) sums.row_totals[i + k] += t[k];
  }
}

// Sums of v = x, or of v = x g if Product. Columns: how many sums over rows, 1
// for the weighted one, 2 for the plain one too. Across: the same along a row.
template <int Columns, int Across, bool Product, class T>
FOR_EACH_TARGET void reduce(
    const Rows<T>& x, const Rows<T>& g, const Sums& sums) {
  int64_t i = 0;
  for (; i + 4 <= x.count; i += 4) {
    reduce_rows<4, Columns, Across, Product>(x, g, sums, i);
  }
  for (; i < x.count; ++i) {
    reduce_rows<1, Columns, Across, Product>(x, g, sums, i);
  }
}

// sums_j += Σ_i weights_i x_ij
template <class T>
inline void add_rows(const Rows<T>& x, const float* weights, float* sums) {
  Sums to;
  to.outer = weights, to.columns = sums;
  reduce<1, 0, false>(x, x, to);
}

// sums_i += Σ_j x_ij weights_j
template <class T>
inline void add_products(const Rows<T>& x, const float* weights, float* sums) {
  Sums to;
  to.inner = weights, to.rows = sums;
  reduce<0, 1, false>(x, x, to);
}

// to = from, past the caches: what they hold stays, and lines that will be
// overwritten are not read first.
template <class T>
inline void stream(const T* from, T* to, int64_t count) {
#if defined(__SSE2__)
  constexpr int64_t kBytes = sizeof(__m128i);
  constexpr int64_t kLanes = kBytes / sizeof(T);
  for (; count > 0 && reinterpret_cast<uintptr_t>(to) % kBytes; --count) {
    *to++ = *from++;
  }
  for (; count >= kLanes; count -= kLanes, from += kLanes, to += kLanes) {
    _mm_stream_si128(
        reinterpret_cast<__m128i*>(to),
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
#endif
  std::copy_n(from, count, to);
}

// y_ij = of(i)(j), streamed or not. A piece of a row that is streamed is
// computed into a buffer first.
template <class T, class Of>
inline ALWAYS_INLINE void write_rows(
    const Rows<T>& y, bool streamed, const Of& of) {
  constexpr int64_t kPiece = 512;
  alignas(64) T piece[kPiece];
  for (int64_t i = 0; i < y.count; ++i) {
    const auto value = of(i);
    const auto write = [&](int64_t first, int64_t count, T* to) ALWAYS_INLINE {
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) narrow(value(first + j), to[j]);
    };
    if (!streamed) {
      write(0, y.length, y[i]);
      continue;
    }
    for (int64_t first = 0; first < y.length; first += kPiece) {
      const int64_t count = std::min(kPiece, y.length - first);
      write(first, count, piece);
      stream(piece, y[i] + first, count);
    }
  }
#if defined(__SSE2__)
  if (streamed) _mm_sfence();
#endif
}

// y = x (outer_i + inner_j), or x outer_i inner_j
template <bool Product, class T>
FOR_EACH_TARGET void gate_rows(
    const Rows<T>& x,
    const float* outer,
    const float* inner,
    const Rows<T>& y,
    bool streamed) {
  write_rows(y, streamed, [=](int64_t i) ALWAYS_INLINE {
    const T* row = x[i];
    const float o = outer[i];
    return [=](int64_t j) ALWAYS_INLINE {
      return widen(row[j]) * (Product ? o * inner[j] : o + inner[j]);
    };
  });
}

// dx = g (outer_0i + inner_0j), or g outer_0i inner_0j, + Σ_k outer_ki inner_kj
template <bool Product, class T>
FOR_EACH_TARGET void input_gradient_rows(
    const Rows<T>& g,
    const float* const* outer,
    const float* const* inner,
    const Rows<T>& dx,
    bool streamed) {
  const float *n0 = inner[0], *n1 = inner[1], *n2 = inner[2], *n3 = inner[3],
              *n4 = inner[4];
  write_rows(dx, streamed, [=](int64_t i) ALWAYS_INLINE {
    const T* row = g[i];
    const float o0 = outer[0][i], o1 = outer[1][i], o2 = outer[2][i],
                o3 = outer[3][i], o4 = outer[4][i];
    return [=](int64_t j) ALWAYS_INLINE {
      const float gate = Product ? o0 * n0[j] : o0 + n0[j];
      return widen(row[j]) * gate + o1 * n1[j] + o2 * n2[j] + o3 * n3[j] +
          o4 * n4[j];
    };
  });
}

}  // namespace
