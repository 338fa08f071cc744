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

constexpr int64_t kTile = 32 * 1024;  // elements: 128 KiB of a core's cache
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

// A tile as rows of adjacent elements: rows are channels, or positions.
struct Rows {
  float* data;
  int64_t stride;
  int64_t count;
  int64_t length;
};

// sums += Σ_i weights_i row_i
FOR_EACH_TARGET void add_rows(
    const Rows& x, const float* weights, float* __restrict sums) {
  int64_t i = 0;
  for (; i + 4 <= x.count; i += 4) {
    const float* row = x.data + i * x.stride;
    const float *r1 = row + x.stride, *r2 = r1 + x.stride, *r3 = r2 + x.stride;
    const float w0 = weights[i], w1 = weights[i + 1], w2 = weights[i + 2],
                w3 = weights[i + 3];
#pragma omp simd
    for (int64_t j = 0; j < x.length; ++j) {
      sums[j] += w0 * row[j] + w1 * r1[j] + (w2 * r2[j] + w3 * r3[j]);
    }
  }
  for (; i < x.count; ++i) {
    const float* row = x.data + i * x.stride;
    const float w = weights[i];
#pragma omp simd
    for (int64_t j = 0; j < x.length; ++j) sums[j] += w * row[j];
  }
}

// sums_i += row_i · weights
FOR_EACH_TARGET void add_products(
    const Rows& x, const float* weights, float* sums) {
  for (int64_t i = 0; i < x.count; ++i) {
    const float* row = x.data + i * x.stride;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < x.length; ++j) sum += row[j] * weights[j];
    sums[i] += sum;
  }
}

// sums_i += row_i · weights, totals_i += Σ row_i
FOR_EACH_TARGET void add_products_and_totals(
    const Rows& x, const float* weights, float* sums, float* totals) {
  for (int64_t i = 0; i < x.count; ++i) {
    const float* row = x.data + i * x.stride;
    float sum = 0, total = 0;
#pragma omp simd reduction(+ : sum, total)
    for (int64_t j = 0; j < x.length; ++j) {
      sum += row[j] * weights[j];
      total += row[j];
    }
    sums[i] += sum;
    totals[i] += total;
  }
}

// sums += Σ_i weights_i row_i, totals += Σ_i row_i
FOR_EACH_TARGET void add_rows_and_totals(
    const Rows& x,
    const float* weights,
    float* __restrict sums,
    float* __restrict totals) {
  for (int64_t i = 0; i < x.count; ++i) {
    const float* row = x.data + i * x.stride;
    const float w = weights[i];
#pragma omp simd
    for (int64_t j = 0; j < x.length; ++j) {
      sums[j] += w * row[j];
      totals[j] += row[j];
    }
  }
}

// y = x (outer_i + inner_j), or x outer_i inner_j
FOR_EACH_TARGET void gate_rows(
    const Rows& x,
    const float* outer,
    const float* inner,
    bool product,
    const Rows& y) {
  for (int64_t i = 0; i < x.count; ++i) {
    const float* row = x.data + i * x.stride;
    float* __restrict out = y.data + i * y.stride;
    const float o = outer[i];
    if (product) {
#pragma omp simd
      for (int64_t j = 0; j < x.length; ++j) out[j] = row[j] * o * inner[j];
    } else {
#pragma omp simd
      for (int64_t j = 0; j < x.length; ++j) out[j] = row[j] * (o + inner[j]);
    }
  }
}

// Of v = x g: by_row_i += v_i · inner, by_column += Σ_i outer_i v_i
FOR_EACH_TARGET void add_products_of_two(
    const Rows& x,
    const Rows& g,
    const float* outer,
    const float* inner,
    float* by_row,
    float* __restrict by_column) {
  for (int64_t i = 0; i < x.count; ++i) {
    const float* row = x.data + i * x.stride;
    const float* other = g.data + i * g.stride;
    const float o = outer[i];
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < x.length; ++j) {
      const float v = row[j] * other[j];
      sum += v * inner[j];
      by_column[j] += o * v;
    }
    by_row[i] += sum;
  }
}

// dx = g (outer_0i + inner_0j), or g outer_0i inner_0j, + Σ_k outer_ki inner_kj
FOR_EACH_TARGET void input_gradient_rows(
    const Rows& g,
    const float* const* outer,
    const float* const* inner,
    bool product,
    const Rows& dx) {
  const float *n0 = inner[0], *n1 = inner[1], *n2 = inner[2], *n3 = inner[3],
              *n4 = inner[4];
  for (int64_t i = 0; i < g.count; ++i) {
    const float* row = g.data + i * g.stride;
    float* __restrict out = dx.data + i * dx.stride;
    const float o0 = outer[0][i], o1 = outer[1][i], o2 = outer[2][i],
                o3 = outer[3][i], o4 = outer[4][i];
    if (product) {
#pragma omp simd
      for (int64_t j = 0; j < g.length; ++j) {
        out[j] = row[j] * o0 * n0[j] + o1 * n1[j] + o2 * n2[j] + o3 * n3[j] +
            o4 * n4[j];
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < g.length; ++j) {
        out[j] = row[j] * (o0 + n0[j]) + o1 * n1[j] + o2 * n2[j] +
            o3 * n3[j] + o4 * n4[j];
      }
    }
  }
}

FOR_EACH_TARGET void widen(const uint16_t* from, float* to, int64_t length) {
  auto bits = reinterpret_cast<uint32_t*>(to);
#pragma omp simd
  for (int64_t j = 0; j < length; ++j) bits[j] = uint32_t(from[j]) << 16;
}

// To the nearest, ties to even; NaN stays NaN.
FOR_EACH_TARGET void narrow(const float* from, uint16_t* to, int64_t length) {
  auto bits = reinterpret_cast<const uint32_t*>(from);
#pragma omp simd
  for (int64_t j = 0; j < length; ++j) {
    const uint32_t rounded = bits[j] + 0x7fff + ((bits[j] >> 16) & 1);
    const bool nan = (bits[j] & 0x7fffffff) > 0x7f800000;
    to[j] = nan ? 0x7fc0 : rounded >> 16;
  }
}

// How an N×C×P tensor lies in memory, tile by tile.
class Maps {
 public:
  explicit Maps(const Tensor& x)
      : base_(static_cast<char*>(x.data_ptr())),
        size_(x.element_size()),
        channels_(x.size(1)),
        image_stride_(x.size(1) * x.size(2)),
        by_channel_(x.is_contiguous()),
        row_stride_(by_channel_ ? x.size(2) : x.size(1)) {}

  bool by_channel() const { return by_channel_; }

  // A tile as float32: as it lies, or widened into `buffer`.
  Rows read(int64_t image, int64_t first, int64_t width, Vector& buffer)
      const {
    Rows rows = place(image, first, width, buffer);
    if (size_ == 2) {
      for (int64_t i = 0; i < rows.count; ++i) {
        widen(half(image, first, i), rows.data + i * rows.stride, rows.length);
      }
    }
    return rows;
  }

  // Where to write a tile, for `write` to bring to its place.
  Rows place(int64_t image, int64_t first, int64_t width, Vector& buffer)
      const {
    const int64_t count = by_channel_ ? channels_ : width;
    const int64_t length = by_channel_ ? width : channels_;
    if (size_ == 4) {
      auto data = reinterpret_cast<float*>(base_) + offset(image, first);
      return {data, row_stride_, count, length};
    }
    buffer.resize(count * length);
    return {buffer.data(), length, count, length};
  }

  void write(int64_t image, int64_t first, const Rows& rows) const {
    if (size_ == 4) return;
    for (int64_t i = 0; i < rows.count; ++i) {
      narrow(rows.data + i * rows.stride, half(image, first, i), rows.length);
    }
  }

 private:
  int64_t offset(int64_t image, int64_t first) const {
    return image * image_stride_ + first * (by_channel_ ? 1 : row_stride_);
  }
  uint16_t* half(int64_t image, int64_t first, int64_t row) const {
    return reinterpret_cast<uint16_t*>(base_) + offset(image, first) +
        row * row_stride_;
  }

  char* base_;
  int64_t size_;
  int64_t channels_;
  int64_t image_stride_;
  bool by_channel_;
  int64_t row_stride_;
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

std::tuple<Tensor, Tensor, Tensor> pool(
    const Tensor& x,
    const Tensor& query,
    const Optional& bias,
    const Optional& scale) {
  const int64_t images = x.size(0);
  const Plan plan(x);
  const Maps maps(x);
  // rows of an expanded query stay one
  const Tensor q = query.stride(1) == 1 ? query : query.contiguous();
  const Tensor b = contiguous(bias), s = contiguous(scale);
  Tensor logits = vectors(x, {images, plan.positions});
  Tensor sums = vectors(x, {images * plan.spans, 2, plan.channels});
  Tensor peaks = vectors(x, {images * plan.spans, 2});
  plan.each_span(images, [&](int64_t part, int64_t image, int64_t first,
                             int64_t last) {
    Vector buffer, a(plan.width);
    const float offset = b.defined() ? *row_of(b, image) : 0;
    const float factor = s.defined() ? *row_of(s, image) : 1;
    float* context = sums.data_ptr<float>() + part * 2 * plan.channels;
    float* total = context + plan.channels;
    float peak = -std::numeric_limits<float>::infinity(), weight = 0;
    for (int64_t p = first; p < last; p += plan.width) {
      const int64_t width = std::min(plan.width, last - p);
      const Rows rows = maps.read(image, p, width, buffer);
      float* logit = logits.data_ptr<float>() + image * plan.positions + p;
      if (maps.by_channel()) {
        add_rows(rows, row_of(q, image), logit);
      } else {
        add_products(rows, row_of(q, image), logit);
      }
      float top = peak;
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
  const Maps from(x), to(y);
  const Tensor ch = contiguous(channel), q = contiguous(query);
  const Tensor b = contiguous(bias);
  const bool is_map = b.defined() && b.size(1) == plan.positions;
  Tensor z = vectors(x, {has_spatial ? images * plan.positions : 0});
  const Vector ones(std::max(plan.channels, plan.width), 1);
  plan.each_span(images, [&](int64_t, int64_t image, int64_t first,
                             int64_t last) {
    Vector buffer, out_buffer, mask(plan.width);
    const float* by_channel = ch.defined() ? row_of(ch, image) : ones.data();
    for (int64_t p = first; p < last; p += plan.width) {
      const int64_t width = std::min(plan.width, last - p);
      const Rows rows = from.read(image, p, width, buffer);
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
      const Rows out = to.place(image, p, width, out_buffer);
      if (from.by_channel()) {
        gate_rows(rows, by_channel, by_position, product, out);
      } else {
        gate_rows(rows, by_position, by_channel, product, out);
      }
      to.write(image, p, out);
    }
  });
  if (has_spatial) z = z.view({images, plan.positions});
  return {y, z};
}

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
  const Maps maps(x), gradients(g);
  const Tensor ch = contiguous(channel), zs = z.contiguous();
  Tensor dlogits = vectors(x, {has_spatial ? images * plan.positions : 0});
  Tensor sums = vectors(x, {images * plan.spans, 2, plan.channels});
  const Vector ones(std::max(plan.channels, plan.width), 1);
  plan.each_span(images, [&](int64_t part, int64_t image, int64_t first,
                             int64_t last) {
    Vector buffer, g_buffer, mask(plan.width), unused(plan.width);
    float* dchannel = sums.data_ptr<float>() + part * 2 * plan.channels;
    float* dquery = dchannel + plan.channels;
    const float* by_channel = sequential ? row_of(ch, image) : ones.data();
    for (int64_t p = first; p < last; p += plan.width) {
      const int64_t width = std::min(plan.width, last - p);
      const Rows rows = maps.read(image, p, width, buffer);
      const Rows g_rows = gradients.read(image, p, width, g_buffer);
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
  const Maps maps(x), gradients(g), to(dx);
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
    Vector buffer, g_buffer, out_buffer, mask(plan.width), da(plan.width);
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
        const Rows rows = maps.read(image, p, width, buffer);
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
      const Rows g_rows = gradients.read(image, p, width, g_buffer);
      const Rows out = to.place(image, p, width, out_buffer);
      if (maps.by_channel()) {
        input_gradient_rows(g_rows, by_channel, by_position, product, out);
      } else {
        input_gradient_rows(g_rows, by_position, by_channel, product, out);
      }
      to.write(image, p, out);
    }
  });
  Tensor dquery = vectors(x, {0});
  if (pooled) dquery = sums.view({images, plan.spans, plan.channels}).sum(1);
  return {dx, dquery};
}

}  // namespace

TORCH_LIBRARY(mmpsa_cpp, library) {
  library.def(
      "pool(Tensor x, Tensor query, Tensor? bias, Tensor? scale)"
      " -> (Tensor, Tensor, Tensor)",
      &pool);
  library.def(
      "gate(Tensor x, Tensor? channel, Tensor? query, Tensor? bias,"
      " float mask_scale, str layout) -> (Tensor, Tensor)",
      &gate);
  library.def(
      "gate_backward(Tensor x, Tensor g, Tensor? channel, Tensor z,"
      " float mask_scale, str layout, Tensor? focus)"
      " -> (Tensor, Tensor, Tensor)",
      &gate_backward);
  library.def(
      "input_backward(Tensor x, Tensor g, Tensor? channel, Tensor z,"
      " float mask_scale, str layout, Tensor dlogits, Tensor? query,"
      " Tensor dmean, Tensor? a, Tensor? dcontext, Tensor? pool_query,"
      " Tensor? context) -> (Tensor, Tensor)",
      &input_backward);
}
