// The passes of mmpsa/ops/torch_passes.py over X, each in one go, for CPUs.
//
// X and its gradients are N×C×P, float32 or bfloat16, without gaps, and all of
// one call have either the positions of a channel or the channels of a position
// adjacent in memory (NCHW, channels_last). A tile of it, all channels of
// some positions, fits into a core's cache, so that what sums over channels
// and what uses that sum read memory once. Spans of an image's positions are
// dealt out to threads; what sums over positions is put together afterwards.
// Sums, and whatever is not of X's size, are float32.

#include <ATen/Parallel.h>
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

// Compiled for several instruction sets: a machine takes the best it has.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_TARGET \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_TARGET
#endif

namespace {

using at::Tensor;
using Optional = c10::optional<Tensor>;
using Vector = std::vector<float>;

constexpr int64_t kTile = 128 * 1024;  // elements: half a core's cache
constexpr int64_t kNarrowest = 32;    // positions

// e^x to 2 units in the last place, in a form that compilers vectorise: 2^n e^r
// with |r| <= ln 2 / 2. NaN stays NaN; what float32 cannot hold is its edge.
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
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
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

// a = e^(factor (logits - top)); returns their sum. The difference comes first:
// the product may be too large.
FOR_EACH_TARGET float exponentials(
    const float* logits,
    float top,
    float factor,
    float* __restrict a,
    int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < count; ++j) {
    a[j] = exponential((logits[j] - top) * factor);
    sum += a[j];
  }
  return sum;
}

// bfloat16 is the upper half of a float32. Sums are float32 either way.
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

// A tile as rows of adjacent elements: rows are channels, or positions.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  int64_t count;
  int64_t length;

  T* operator[](int64_t i) const { return data + i * stride; }
};

// Rows are taken by four: one by one, a sum would wait for itself, and sums
// over rows would be read and written as often as the rows.

// sums += Σ_i weights_i row_i
template <class T>
FOR_EACH_TARGET void add_rows(
    const Rows<T>& x, const float* weights, float* __restrict sums) {
  int64_t i = 0;
  for (; i + 4 <= x.count; i += 4) {
    const T *r0 = x[i], *r1 = x[i + 1], *r2 = x[i + 2], *r3 = x[i + 3];
    const float w0 = weights[i], w1 = weights[i + 1], w2 = weights[i + 2],
                w3 = weights[i + 3];
#pragma omp simd
    for (int64_t j = 0; j < x.length; ++j) {
      sums[j] += w0 * widen(r0[j]) + w1 * widen(r1[j]) +
          (w2 * widen(r2[j]) + w3 * widen(r3[j]));
    }
  }
  for (; i < x.count; ++i) {
    const T* row = x[i];
    const float w = weights[i];
#pragma omp simd
    for (int64_t j = 0; j < x.length; ++j) sums[j] += w * widen(row[j]);
  }
}

// sums_i += row_i · weights
template <class T>
FOR_EACH_TARGET void add_products(
    const Rows<T>& x, const float* weights, float* sums) {
  int64_t i = 0;
  for (; i + 4 <= x.count; i += 4) {
    const T *r0 = x[i], *r1 = x[i + 1], *r2 = x[i + 2], *r3 = x[i + 3];
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t j = 0; j < x.length; ++j) {
      const float w = weights[j];
      s0 += widen(r0[j]) * w;
      s1 += widen(r1[j]) * w;
      s2 += widen(r2[j]) * w;
      s3 += widen(r3[j]) * w;
    }
    sums[i] += s0;
    sums[i + 1] += s1;
    sums[i + 2] += s2;
    sums[i + 3] += s3;
  }
  for (; i < x.count; ++i) {
    const T* row = x[i];
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < x.length; ++j) sum += widen(row[j]) * weights[j];
    sums[i] += sum;
  }
}

// sums_i += row_i · weights, totals_i += Σ row_i
template <class T>
FOR_EACH_TARGET void add_products_and_totals(
    const Rows<T>& x, const float* weights, float* sums, float* totals) {
  int64_t i = 0;
  for (; i + 4 <= x.count; i += 4) {
    const T *r0 = x[i], *r1 = x[i + 1], *r2 = x[i + 2], *r3 = x[i + 3];
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0, t0 = 0, t1 = 0, t2 = 0, t3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3, t0, t1, t2, t3)
    for (int64_t j = 0; j < x.length; ++j) {
      const float w = weights[j];
      const float v0 = widen(r0[j]), v1 = widen(r1[j]), v2 = widen(r2[j]),
                  v3 = widen(r3[j]);
      s0 += v0 * w;
      s1 += v1 * w;
      s2 += v2 * w;
      s3 += v3 * w;
      t0 += v0;
      t1 += v1;
      t2 += v2;
      t3 += v3;
    }
    sums[i] += s0;
    sums[i + 1] += s1;
    sums[i + 2] += s2;
    sums[i + 3] += s3;
    totals[i] += t0;
    totals[i + 1] += t1;
    totals[i + 2] += t2;
    totals[i + 3] += t3;
  }
  for (; i < x.count; ++i) {
    const T* row = x[i];
    float sum = 0, total = 0;
#pragma omp simd reduction(+ : sum, total)
    for (int64_t j = 0; j < x.length; ++j) {
      sum += widen(row[j]) * weights[j];
      total += widen(row[j]);
    }
    sums[i] += sum;
    totals[i] += total;
  }
}

// sums += Σ_i weights_i row_i, totals += Σ_i row_i
template <class T>
FOR_EACH_TARGET void add_rows_and_totals(
    const Rows<T>& x,
    const float* weights,
    float* __restrict sums,
    float* __restrict totals) {
  int64_t i = 0;
  for (; i + 4 <= x.count; i += 4) {
    const T *r0 = x[i], *r1 = x[i + 1], *r2 = x[i + 2], *r3 = x[i + 3];
    const float w0 = weights[i], w1 = weights[i + 1], w2 = weights[i + 2],
                w3 = weights[i + 3];
#pragma omp simd
    for (int64_t j = 0; j < x.length; ++j) {
      const float v0 = widen(r0[j]), v1 = widen(r1[j]), v2 = widen(r2[j]),
                  v3 = widen(r3[j]);
      sums[j] += w0 * v0 + w1 * v1 + (w2 * v2 + w3 * v3);
      totals[j] += v0 + v1 + (v2 + v3);
    }
  }
  for (; i < x.count; ++i) {
    const T* row = x[i];
    const float w = weights[i];
#pragma omp simd
    for (int64_t j = 0; j < x.length; ++j) {
      sums[j] += w * widen(row[j]);
      totals[j] += widen(row[j]);
    }
  }
}

// y = x (outer_i + inner_j), or x outer_i inner_j
template <class T>
FOR_EACH_TARGET void gate_rows(
    const Rows<T>& x,
    const float* outer,
    const float* inner,
    bool product,
    const Rows<T>& y) {
  for (int64_t i = 0; i < x.count; ++i) {
    const T* row = x[i];
    T* __restrict out = y[i];
    const float o = outer[i];
    if (product) {
#pragma omp simd
      for (int64_t j = 0; j < x.length; ++j) {
        narrow(widen(row[j]) * o * inner[j], out[j]);
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < x.length; ++j) {
        narrow(widen(row[j]) * (o + inner[j]), out[j]);
      }
    }
  }
}

// Of v = x g: by_row_i += v_i · inner, by_column += Σ_i outer_i v_i
template <class T>
FOR_EACH_TARGET void add_products_of_two(
    const Rows<T>& x,
    const Rows<T>& g,
    const float* outer,
    const float* inner,
    float* by_row,
    float* __restrict by_column) {
  int64_t i = 0;
  for (; i + 4 <= x.count; i += 4) {
    const T *r0 = x[i], *r1 = x[i + 1], *r2 = x[i + 2], *r3 = x[i + 3];
    const T *g0 = g[i], *g1 = g[i + 1], *g2 = g[i + 2], *g3 = g[i + 3];
    const float o0 = outer[i], o1 = outer[i + 1], o2 = outer[i + 2],
                o3 = outer[i + 3];
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t j = 0; j < x.length; ++j) {
      const float v0 = widen(r0[j]) * widen(g0[j]),
                  v1 = widen(r1[j]) * widen(g1[j]),
                  v2 = widen(r2[j]) * widen(g2[j]),
                  v3 = widen(r3[j]) * widen(g3[j]);
      s0 += v0 * inner[j];
      s1 += v1 * inner[j];
      s2 += v2 * inner[j];
      s3 += v3 * inner[j];
      by_column[j] += o0 * v0 + o1 * v1 + (o2 * v2 + o3 * v3);
    }
    by_row[i] += s0;
    by_row[i + 1] += s1;
    by_row[i + 2] += s2;
    by_row[i + 3] += s3;
  }
  for (; i < x.count; ++i) {
    const T *row = x[i], *other = g[i];
    const float o = outer[i];
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < x.length; ++j) {
      const float v = widen(row[j]) * widen(other[j]);
      sum += v * inner[j];
      by_column[j] += o * v;
    }
    by_row[i] += sum;
  }
}

// dx = g (outer_0i + inner_0j), or g outer_0i inner_0j, + Σ_k outer_ki inner_kj
template <class T>
FOR_EACH_TARGET void input_gradient_rows(
    const Rows<T>& g,
    const float* const* outer,
    const float* const* inner,
    bool product,
    const Rows<T>& dx) {
  const float *n0 = inner[0], *n1 = inner[1], *n2 = inner[2], *n3 = inner[3],
              *n4 = inner[4];
  for (int64_t i = 0; i < g.count; ++i) {
    const T* row = g[i];
    T* __restrict out = dx[i];
    const float o0 = outer[0][i], o1 = outer[1][i], o2 = outer[2][i],
                o3 = outer[3][i], o4 = outer[4][i];
    if (product) {
#pragma omp simd
      for (int64_t j = 0; j < g.length; ++j) {
        narrow(
            widen(row[j]) * o0 * n0[j] + o1 * n1[j] + o2 * n2[j] +
                o3 * n3[j] + o4 * n4[j],
            out[j]);
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < g.length; ++j) {
        narrow(
            widen(row[j]) * (o0 + n0[j]) + o1 * n1[j] + o2 * n2[j] +
                o3 * n3[j] + o4 * n4[j],
            out[j]);
      }
    }
  }
}

// How an N×C×P tensor lies in memory, tile by tile.
template <class T>
class Maps {
 public:
  explicit Maps(const Tensor& x)
      : data_(static_cast<T*>(x.data_ptr())),
        channels_(x.size(1)),
        positions_(x.size(2)),
        by_channel_(x.is_contiguous()) {}

  bool by_channel() const { return by_channel_; }

  Rows<T> tile(int64_t image, int64_t first, int64_t width) const {
    T* start = data_ + image * channels_ * positions_;
    if (by_channel_) return {start + first, positions_, channels_, width};
    return {start + first * channels_, channels_, width, channels_};
  }

 private:
  T* data_;
  int64_t channels_;
  int64_t positions_;
  bool by_channel_;
};

// How the positions of the images are dealt out.
struct Plan {
  int64_t channels, positions, spans, span, width;

  explicit Plan(const Tensor& x) : channels(x.size(1)), positions(x.size(2)) {
    width = std::max(kTile / channels / 16 * 16, kNarrowest);
    const int64_t tiles = (positions + width - 1) / width;
    const int64_t wanted =
        (2 * at::get_num_threads() + x.size(0) - 1) / x.size(0);
    const int64_t each = (tiles + wanted - 1) / wanted;
    span = std::min(each * width, positions);
    width = std::min(width, positions);
    spans = (positions + span - 1) / span;
  }

  // Calls f(part, image, first, last) for each span, on all threads.
  template <class F>
  void each_span(int64_t images, const F& f) const {
    at::parallel_for(0, images * spans, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t first = part % spans * span;
        f(part, part / spans, first, std::min(first + span, positions));
      }
    });
  }
};

Tensor contiguous(const Optional& x) {
  return x.has_value() ? x->contiguous() : Tensor();
}

const float* row_of(const Tensor& x, int64_t image) {
  return x.defined() ? x.data_ptr<float>() + image * x.stride(0) : nullptr;
}

Tensor vectors(const Tensor& x, c10::IntArrayRef sizes) {
  return at::zeros(sizes, x.options().dtype(at::kFloat));
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> pool(
    const Tensor& x,
    const Tensor& query,
    const Optional& bias,
    const Optional& scale) {
  const int64_t images = x.size(0);
  const Plan plan(x);
  const Maps<T> maps(x);
  // rows of an expanded query stay one
  const Tensor q = query.stride(1) == 1 ? query : query.contiguous();
  const Tensor b = contiguous(bias), s = contiguous(scale);
  Tensor logits = vectors(x, {images, plan.positions});
  Tensor sums = vectors(x, {images * plan.spans, 2, plan.channels});
  Tensor peaks = vectors(x, {images * plan.spans, 2});
  plan.each_span(images, [&](int64_t part, int64_t image, int64_t first,
                             int64_t last) {
    Vector a(plan.width);
    const float offset = b.defined() ? *row_of(b, image) : 0;
    const float factor = s.defined() ? *row_of(s, image) : 1;
    float* context = sums.data_ptr<float>() + part * 2 * plan.channels;
    float* total = context + plan.channels;
    float peak = -std::numeric_limits<float>::infinity(), weight = 0;
    for (int64_t p = first; p < last; p += plan.width) {
      const int64_t width = std::min(plan.width, last - p);
      const Rows<T> rows = maps.tile(image, p, width);
      float* logit = logits.data_ptr<float>() + image * plan.positions + p;
      if (maps.by_channel()) {
        add_rows(rows, row_of(q, image), logit);
      } else {
        add_products(rows, row_of(q, image), logit);
      }
      float top = peak;
#pragma omp simd reduction(max : top)
      for (int64_t j = 0; j < width; ++j) {
        logit[j] += offset;
        top = std::max(top, logit[j]);
      }
      const float shrink = std::exp((peak - top) * factor);
      if (shrink != 1) {
        for (int64_t c = 0; c < plan.channels; ++c) context[c] *= shrink;
      }
      weight = weight * shrink +
          exponentials(logit, top, factor, a.data(), width);
      peak = top;
      if (maps.by_channel()) {
        add_products_and_totals(rows, a.data(), context, total);
      } else {
        add_rows_and_totals(rows, a.data(), context, total);
      }
    }
    float* mine = peaks.data_ptr<float>() + part * 2;
    mine[0] = peak;
    mine[1] = weight;
  });
  // The spans of each image put together.
  sums = sums.view({images, plan.spans, 2, plan.channels});
  peaks = peaks.view({images, plan.spans, 2});
  Tensor peak = peaks.select(2, 0);
  peak = peak - peak.amax(1, true);
  const Tensor share = (s.defined() ? peak * s : peak).exp();
  const Tensor weight = (peaks.select(2, 1) * share).sum(1, true);
  Tensor context = (sums.select(2, 0) * share.unsqueeze(2)).sum(1) / weight;
  Tensor mean = sums.select(2, 1).sum(1) / plan.positions;
  return {context, mean, logits};
}

template <class T>
std::tuple<Tensor, Tensor> gate(
    const Tensor& x,
    const Optional& channel,
    const Optional& query,
    const Optional& bias,
    double mask_scale,
    c10::string_view layout) {
  const int64_t images = x.size(0);
  const bool has_spatial = layout != "channel";
  const bool product = layout != "parallel";
  const Plan plan(x);
  Tensor y = at::empty_like(x);
  const Maps<T> from(x), to(y);
  const Tensor ch = contiguous(channel), q = contiguous(query);
  const Tensor b = contiguous(bias);
  const bool is_map = b.defined() && b.size(1) == plan.positions;
  Tensor z = vectors(x, {has_spatial ? images * plan.positions : 0});
  const Vector ones(std::max(plan.channels, plan.width), 1);
  plan.each_span(images, [&](int64_t, int64_t image, int64_t first,
                             int64_t last) {
    Vector mask(plan.width);
    const float* by_channel = ch.defined() ? row_of(ch, image) : ones.data();
    for (int64_t p = first; p < last; p += plan.width) {
      const int64_t width = std::min(plan.width, last - p);
      const Rows<T> rows = from.tile(image, p, width);
      const float* by_position = ones.data();
      if (has_spatial) {
        float* logit = z.data_ptr<float>() + image * plan.positions + p;
        const float* offset = row_of(b, image);
        for (int64_t j = 0; j < width; ++j) {
          logit[j] = is_map ? offset[p + j] : *offset;
        }
        if (q.defined() && from.by_channel()) {
          add_rows(rows, row_of(q, image), logit);
        } else if (q.defined()) {
          add_products(rows, row_of(q, image), logit);
        }
        sigmoids(logit, mask_scale, mask.data(), width);
        by_position = mask.data();
      }
      const Rows<T> out = to.tile(image, p, width);
      if (from.by_channel()) {
        gate_rows(rows, by_channel, by_position, product, out);
      } else {
        gate_rows(rows, by_position, by_channel, product, out);
      }
    }
  });
  if (has_spatial) z = z.view({images, plan.positions});
  return {y, z};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> gate_backward(
    const Tensor& x,
    const Tensor& g,
    const Optional& channel,
    const Tensor& z,
    double mask_scale,
    c10::string_view layout,
    const Optional& focus) {
  const int64_t images = x.size(0);
  const bool has_spatial = layout != "channel";
  const bool sequential = layout == "sequential";
  const Plan plan(x);
  const Maps<T> maps(x), gradients(g);
  const Tensor ch = contiguous(channel), zs = z.contiguous();
  Tensor dlogits = vectors(x, {has_spatial ? images * plan.positions : 0});
  Tensor sums = vectors(x, {images * plan.spans, 2, plan.channels});
  const Vector ones(std::max(plan.channels, plan.width), 1);
  plan.each_span(images, [&](int64_t part, int64_t image, int64_t first,
                             int64_t last) {
    Vector mask(plan.width), unused(plan.width);
    float* dchannel = sums.data_ptr<float>() + part * 2 * plan.channels;
    float* dquery = dchannel + plan.channels;
    const float* by_channel = sequential ? row_of(ch, image) : ones.data();
    for (int64_t p = first; p < last; p += plan.width) {
      const int64_t width = std::min(plan.width, last - p);
      const Rows<T> rows = maps.tile(image, p, width);
      const Rows<T> g_rows = gradients.tile(image, p, width);
      const float* logit = nullptr;
      const float* by_position = ones.data();
      float* dlogit = unused.data();
      if (has_spatial) {
        logit = row_of(zs, image) + p;
        dlogit = dlogits.data_ptr<float>() + image * plan.positions + p;
        sigmoids(logit, mask_scale, mask.data(), width);
        if (sequential) by_position = mask.data();
      }
      if (maps.by_channel()) {
        add_products_of_two(
            rows, g_rows, by_channel, by_position, dchannel, dlogit);
      } else {
        add_products_of_two(
            rows, g_rows, by_position, by_channel, dlogit, dchannel);
      }
      if (!has_spatial) continue;
      for (int64_t j = 0; j < width; ++j) {
        dlogit[j] *= mask[j] * (1 - mask[j] / mask_scale);
        // weighted, where the logits went through a softmax
        mask[j] = focus.has_value() ? logit[j] * dlogit[j] : dlogit[j];
      }
      if (maps.by_channel()) {
        add_products(rows, mask.data(), dquery);
      } else {
        add_rows(rows, mask.data(), dquery);
      }
    }
  });
  sums = sums.view({images, plan.spans, 2, plan.channels}).sum(1);
  Tensor none = vectors(x, {0});
  Tensor dquery = has_spatial ? sums.select(1, 1) : none;
  if (has_spatial) dlogits = dlogits.view({images, plan.positions});
  if (focus.has_value()) {
    // What the softmax takes off was not known before the last position.
    const Tensor offset = (zs * dlogits).sum(-1, true);
    dlogits = zs * (dlogits - offset);
    dquery = dquery - offset * *focus;
  }
  return {ch.defined() ? sums.select(1, 0) : none, dquery, dlogits};
}

template <class T>
std::tuple<Tensor, Tensor> input_backward(
    const Tensor& x,
    const Tensor& g,
    const Optional& channel,
    const Tensor& z,
    double mask_scale,
    c10::string_view layout,
    const Tensor& dlogits,
    const Optional& query,
    const Tensor& dmean,
    const Optional& a,
    const Optional& dcontext,
    const Optional& pool_query,
    const Optional& context) {
  const int64_t images = x.size(0);
  const bool product = layout != "parallel";
  const bool has_spatial = layout != "channel", pooled = a.has_value();
  const Plan plan(x);
  Tensor dx = at::empty_like(x);
  const Maps<T> maps(x), gradients(g), to(dx);
  const Tensor ch = contiguous(channel), zs = z.contiguous();
  const Tensor dz = dlogits.contiguous(), q = contiguous(query);
  const Tensor as = contiguous(a), dc = contiguous(dcontext);
  const Tensor wq = pooled && pool_query->stride(1) == 1
      ? *pool_query
      : contiguous(pool_query);
  const Tensor shift = pooled
      ? (*dcontext * *context).sum(1, true).contiguous()
      : Tensor();
  const Tensor even = (dmean / plan.positions).contiguous();
  Tensor sums = vectors(x, {images * plan.spans, plan.channels});
  const int64_t longest = std::max(plan.channels, plan.width);
  const Vector ones(longest, 1), zeros(longest, 0);
  plan.each_span(images, [&](int64_t part, int64_t image, int64_t first,
                             int64_t last) {
    Vector mask(plan.width), da(plan.width);
    const float* by_channel[5] = {
        ch.defined() ? row_of(ch, image) : ones.data(),
        row_of(even, image),
        has_spatial ? row_of(q, image) : zeros.data(),
        pooled ? row_of(dc, image) : zeros.data(),
        pooled ? row_of(wq, image) : zeros.data()};
    const float* by_position[5] = {
        ones.data(), ones.data(), zeros.data(), zeros.data(), zeros.data()};
    for (int64_t p = first; p < last; p += plan.width) {
      const int64_t width = std::min(plan.width, last - p);
      if (has_spatial) {
        const float* logit = row_of(zs, image) + p;
        sigmoids(logit, mask_scale, mask.data(), width);
        by_position[0] = mask.data();
        by_position[2] = row_of(dz, image) + p;
      }
      if (pooled) {
        const Rows<T> rows = maps.tile(image, p, width);
        const float* weight = row_of(as, image) + p;
        std::fill_n(da.data(), width, -*row_of(shift, image));
        if (maps.by_channel()) {
          add_rows(rows, row_of(dc, image), da.data());
        } else {
          add_products(rows, row_of(dc, image), da.data());
        }
        for (int64_t j = 0; j < width; ++j) da[j] *= weight[j];
        float* dquery = sums.data_ptr<float>() + part * plan.channels;
        if (maps.by_channel()) {
          add_products(rows, da.data(), dquery);
        } else {
          add_rows(rows, da.data(), dquery);
        }
        by_position[3] = weight;
        by_position[4] = da.data();
      }
      const Rows<T> g_rows = gradients.tile(image, p, width);
      const Rows<T> out = to.tile(image, p, width);
      if (maps.by_channel()) {
        input_gradient_rows(g_rows, by_channel, by_position, product, out);
      } else {
        input_gradient_rows(g_rows, by_position, by_channel, product, out);
      }
    }
  });
  Tensor dquery = vectors(x, {0});
  if (pooled) dquery = sums.view({images, plan.spans, plan.channels}).sum(1);
  return {dx, dquery};
}

// Calls the pass for the type of X.
template <auto Float, auto Half>
struct ByType;

template <class Result, class... Args,
          Result (*Float)(const Tensor&, Args...),
          Result (*Half)(const Tensor&, Args...)>
struct ByType<Float, Half> {
  static Result call(const Tensor& x, Args... args) {
    return (x.scalar_type() == at::kFloat ? Float : Half)(x, args...);
  }
};

}  // namespace

TORCH_LIBRARY(mmpsa_cpp, library) {
  library.def(
      "pool(Tensor x, Tensor query, Tensor? bias, Tensor? scale)"
      " -> (Tensor, Tensor, Tensor)",
      &ByType<pool<float>, pool<BFloat16>>::call);
  library.def(
      "gate(Tensor x, Tensor? channel, Tensor? query, Tensor? bias,"
      " float mask_scale, str layout) -> (Tensor, Tensor)",
      &ByType<gate<float>, gate<BFloat16>>::call);
  library.def(
      "gate_backward(Tensor x, Tensor g, Tensor? channel, Tensor z,"
      " float mask_scale, str layout, Tensor? focus)"
      " -> (Tensor, Tensor, Tensor)",
      &ByType<gate_backward<float>, gate_backward<BFloat16>>::call);
  library.def(
      "input_backward(Tensor x, Tensor g, Tensor? channel, Tensor z,"
      " float mask_scale, str layout, Tensor dlogits, Tensor? query,"
      " Tensor dmean, Tensor? a, Tensor? dcontext, Tensor? pool_query,"
      " Tensor? context) -> (Tensor, Tensor)",
      &ByType<input_backward<float>, input_backward<BFloat16>>::call);
}
