// The CPU kernels of mmpsa::psa and mmpsa::psa_backward: each a whole
// direction in one call.
//
// X, Y and their gradients are float32 or bfloat16, NCHW or channels_last.
// Everything else is float32. A tile of X has all channels of some positions
// and fits into a core's cache. So a sum over channels and the code that uses
// the sum read X from memory once. Each thread takes spans of an image's
// positions. Sums over positions are made per span and added up afterwards.
//
// The equations and the names are those of mmpsa/ops/algebra.py.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <array>
#include <limits>
#include <tuple>
#include <vector>

#include "contract.h"
#include "rows.h"

namespace {

using at::Tensor;
using Vector = std::vector<float>;
using Matrix = Rows<const float>;

constexpr int64_t kTile = 64 * 1024;  // elements: a quarter of a core's cache
constexpr int64_t kNarrowest = 32;   // positions
constexpr int64_t kCached = 8 << 20;  // bytes: more does not stay in a cache
constexpr int64_t kLeastWork = 16 * 1024;  // elements that are worth a thread
constexpr float kEps = 1e-5f;  // of LayerNorm

// The weights, or the gradients of those that have one, as float32.
class Weights {
 public:
  Weights(const Spec& spec, at::TensorList tensors) {
    const auto names = names_of(spec);
    for (size_t i = 0; i < tensors.size(); ++i) {
      tensors_[names[i]] = tensors[i].to(at::kFloat).contiguous();
    }
  }

  float* operator[](Name name) const {
    const Tensor& tensor = tensors_[name];
    return tensor.defined() ? tensor.data_ptr<float>() : nullptr;
  }

  float mask_scale() const {
    return tensors_[kMaskScale].defined() ? *(*this)[kMaskScale] : 1;
  }

  Matrix matrix(Name name) const {
    const int64_t count = tensors_[name].size(0);
    const int64_t length = tensors_[name].numel() / count;
    return {(*this)[name], length, count, length};
  }

 private:
  std::array<Tensor, kNames> tensors_;
};

// What is kept of each image: vectors of C numbers at most, and scalars.
// kFocus: the authors' form alone, the sum of the positions by the softmax of
// the spatial logits.
enum Slot {
  kContext, kMean, kValue, kNormed, kChannel, kSoftmax, kBase, kQuery, kFocus,
  kSlots
};
enum Scalar {
  kPeak, kWeight, kBias, kDeviation, kFocusPeak, kFocusWeight, kScalars
};

class Records {
 public:
  Records(float* data, int64_t images, int64_t channels)
      : data_(data), images_(images), channels_(channels) {}

  static int64_t size(int64_t channels) { return kSlots * channels + 8; }

  Rows<float> operator[](Slot slot) const { return at(slot * channels_); }

  float& operator()(Scalar scalar, int64_t image) const {
    return at(kSlots * channels_ + scalar)[image][0];
  }

 private:
  Rows<float> at(int64_t offset) const {
    return {data_ + offset, size(channels_), images_, channels_};
  }

  float* data_;
  int64_t images_, channels_;
};

// A vector for each image.
class Scratch {
 public:
  Scratch(int64_t images, int64_t length)
      : data_(images * length), images_(images), length_(length) {}

  operator Rows<float>() { return {data_.data(), length_, images_, length_}; }
  float* operator[](int64_t image) { return data_.data() + image * length_; }

 private:
  Vector data_;
  int64_t images_, length_;
};

int64_t grain(int64_t work) {
  return std::max<int64_t>(kLeastWork / std::max<int64_t>(work, 1), 1);
}

// y_n = W x_n + b, or without b
void multiply(
    const Matrix& w,
    const float* b,
    const Rows<float>& x,
    const Rows<float>& y) {
  const int64_t block = std::max(4096 / w.length / 4 * 4, int64_t(4));
  at::parallel_for(
      0, w.count, grain(x.count * w.length), [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; k += block) {
          const int64_t count = std::min(block, end - k);
          for (int64_t n = 0; n < x.count; ++n) {
            for (int64_t i = k; i < k + count; ++i) y[n][i] = b ? b[i] : 0;
            add_products(w.from(k, count), x[n], y[n] + k);
          }
        }
      });
}

// y_n = Wᵀ x_n
void multiply_transposed(
    const Matrix& w, const Rows<float>& x, const Rows<float>& y) {
  const int64_t block = std::max(4096 / w.length / 4 * 4, int64_t(4));
  at::parallel_for(
      0, w.length, std::max<int64_t>(grain(x.count * w.count), 16),
      [&](int64_t begin, int64_t end) {
        const Matrix part{w.data + begin, w.stride, w.count, end - begin};
        for (int64_t n = 0; n < x.count; ++n) {
          std::fill(y[n] + begin, y[n] + end, 0);
        }
        for (int64_t k = 0; k < w.count; k += block) {
          const int64_t count = std::min(block, w.count - k);
          for (int64_t n = 0; n < x.count; ++n) {
            add_rows(part.from(k, count), x[n] + k, y[n] + begin);
          }
        }
      });
}

// dW = Σ_n a_n b_nᵀ; db = Σ_n a_n, where there is one
void add_outer_products(
    const Rows<float>& a,
    const Rows<float>& b,
    int64_t count,
    int64_t length,
    float* dw,
    float* db) {
  const Matrix rows{b.data, b.stride, b.count, length};
  at::parallel_for(
      0, count, grain(a.count * length), [&](int64_t begin, int64_t end) {
        Vector column(a.count);
        for (int64_t k = begin; k < end; ++k) {
          float sum = 0;
          for (int64_t n = 0; n < a.count; ++n) {
            column[n] = a[n][k];
            sum += column[n];
          }
          if (db) db[k] = sum;
          std::fill_n(dw + k * length, length, 0);
          add_rows(rows, column.data(), dw + k * length);
        }
      });
}

// How an N×C×H×W tensor lies in memory, tile by tile.
template <class T>
class Maps {
 public:
  explicit Maps(const Tensor& x)
      : data_(static_cast<T*>(x.data_ptr())),
        channels_(x.size(1)),
        positions_(x.size(2) * x.size(3)),
        bytes_(x.nbytes()),
        by_channel_(x.is_contiguous()) {}

  bool by_channel() const { return by_channel_; }
  bool streamed() const { return bytes_ > kCached; }

  Rows<T> tile(int64_t image, int64_t first, int64_t width) const {
    T* start = data_ + image * channels_ * positions_;
    if (by_channel_) return {start + first, positions_, channels_, width};
    return {start + first * channels_, channels_, width, channels_};
  }

  // by_position_p += weights · x_p
  void project(const Rows<T>& tile, const float* weights, float* by_position)
      const {
    if (by_channel_) {
      add_rows(tile, weights, by_position);
    } else {
      add_products(tile, weights, by_position);
    }
  }

  // by_channel += Σ_p weights_p x_p
  void pool(const Rows<T>& tile, const float* weights, float* by_channel)
      const {
    if (by_channel_) {
      add_products(tile, weights, by_channel);
    } else {
      add_rows(tile, weights, by_channel);
    }
  }

  // The same, and totals += Σ_p x_p
  void pool(
      const Rows<T>& tile,
      const float* weights,
      float* by_channel,
      float* totals) const {
    Sums sums;
    if (by_channel_) {
      sums.inner = weights, sums.rows = by_channel, sums.row_totals = totals;
      reduce<0, 2, false>(tile, tile, sums);
    } else {
      sums.outer = weights, sums.columns = by_channel;
      sums.column_totals = totals;
      reduce<2, 0, false>(tile, tile, sums);
    }
  }

  // Of v = x g: by_channel_c += Σ_p of_position_p v_cp,
  // by_position_p += Σ_c of_channel_c v_cp
  void products(
      const Rows<T>& tile,
      const Rows<T>& g,
      const float* of_channel,
      const float* of_position,
      float* by_channel,
      float* by_position) const {
    Sums sums;
    if (by_channel_) {
      sums.outer = of_channel, sums.inner = of_position;
      sums.columns = by_position, sums.rows = by_channel;
    } else {
      sums.outer = of_position, sums.inner = of_channel;
      sums.columns = by_channel, sums.rows = by_position;
    }
    reduce<1, 1, true>(tile, g, sums);
  }

 private:
  T* data_;
  int64_t channels_;
  int64_t positions_;
  int64_t bytes_;
  bool by_channel_;
};

// How the positions of the images are dealt out.
struct Plan {
  int64_t images, channels, positions, spans, span, width;

  explicit Plan(const Tensor& x)
      : images(x.size(0)), channels(x.size(1)),
        positions(x.size(2) * x.size(3)) {
    width = std::max(kTile / channels / 16 * 16, kNarrowest);
    const int64_t tiles = (positions + width - 1) / width;
    const int64_t wanted = (2 * at::get_num_threads() + images - 1) / images;
    const int64_t each = (tiles + wanted - 1) / wanted;
    span = std::min(each * width, positions);
    width = std::min(width, positions);
    spans = (positions + span - 1) / span;
  }

  // Calls f(part, image, first, last) for each span, on all threads.
  template <class F>
  void each_span(const F& f) const {
    at::parallel_for(
        0, images * spans, grain(channels * span),
        [&](int64_t begin, int64_t end) {
          for (int64_t part = begin; part < end; ++part) {
            const int64_t first = part % spans * span;
            f(part, part / spans, first, std::min(first + span, positions));
          }
        });
  }

  // to_n = Σ of the parts of image n, from rows of `stride` numbers per part
  void combine(const float* parts, int64_t stride, float* to, int64_t image)
      const {
    std::fill_n(to, channels, 0);
    for (int64_t part = image * spans; part < (image + 1) * spans; ++part) {
      for (int64_t c = 0; c < channels; ++c) to[c] += parts[part * stride + c];
    }
  }
};

// Pools by attention, online; writes its logits and what normalises it.
template <class T>
void attend(
    const Plan& plan,
    const Maps<T>& maps,
    const Records& records,
    const Rows<float>& query,
    float bias,
    float* logits,
    Slot to,
    Scalar to_peak,
    Scalar to_weight,
    bool with_mean) {
  const int64_t size = 2 * plan.channels + 2;
  Vector parts(plan.images * plan.spans * size);
  plan.each_span([&](int64_t part, int64_t image, int64_t first,
                     int64_t last) {
    Vector a(plan.width);
    float* sums = parts.data() + part * size;
    float* totals = sums + plan.channels;
    float peak = -std::numeric_limits<float>::infinity(), weight = 0;
    for (int64_t p = first; p < last; p += plan.width) {
      const int64_t width = std::min(plan.width, last - p);
      const Rows<T> tile = maps.tile(image, p, width);
      float* logit = logits + image * plan.positions + p;
      std::fill_n(logit, width, bias);
      maps.project(tile, query[image], logit);
      float top = peak;
#pragma omp simd reduction(max : top)
      for (int64_t j = 0; j < width; ++j) top = std::max(top, logit[j]);
      const float shrink = std::exp(peak - top);
      if (shrink != 1) {
        for (int64_t c = 0; c < plan.channels; ++c) sums[c] *= shrink;
      }
      weight = weight * shrink +
          exponentials(logit, top, 1, a.data(), width);
      peak = top;
      if (with_mean) {
        maps.pool(tile, a.data(), sums, totals);
      } else {
        maps.pool(tile, a.data(), sums);
      }
    }
    sums[size - 2] = peak;
    sums[size - 1] = weight;
  });
  // The spans of each image put together.
  for (int64_t n = 0; n < plan.images; ++n) {
    float* first = parts.data() + n * plan.spans * size;
    float peak = first[size - 2], weight = 0;
    for (int64_t s = 1; s < plan.spans; ++s) {
      peak = std::max(peak, first[(s + 1) * size - 2]);
    }
    for (int64_t s = 0; s < plan.spans; ++s) {
      float* sums = first + s * size;
      const float share = std::exp(sums[size - 2] - peak);
      weight += share * sums[size - 1];
      for (int64_t c = 0; c < plan.channels; ++c) sums[c] *= share;
    }
    plan.combine(parts.data(), size, records[to][n], n);
    for (int64_t c = 0; c < plan.channels; ++c) records[to][n][c] /= weight;
    records(to_peak, n) = peak;
    records(to_weight, n) = weight;
    if (!with_mean) continue;
    float* mean = records[kMean][n];
    plan.combine(parts.data() + plan.channels, size, mean, n);
    for (int64_t c = 0; c < plan.channels; ++c) mean[c] /= plan.positions;
  }
}

// The mean of the positions alone.
template <class T>
void average(const Plan& plan, const Maps<T>& maps, const Records& records) {
  Vector parts(plan.images * plan.spans * plan.channels);
  const Vector ones(plan.width, 1);
  plan.each_span([&](int64_t part, int64_t image, int64_t first,
                     int64_t last) {
    for (int64_t p = first; p < last; p += plan.width) {
      const int64_t width = std::min(plan.width, last - p);
      maps.pool(
          maps.tile(image, p, width), ones.data(),
          parts.data() + part * plan.channels);
    }
  });
  for (int64_t n = 0; n < plan.images; ++n) {
    float* mean = records[kMean][n];
    plan.combine(parts.data(), plan.channels, mean, n);
    for (int64_t c = 0; c < plan.channels; ++c) mean[c] /= plan.positions;
  }
}

void softmax(const float* t, float* q, int64_t count) {
  const float top = *std::max_element(t, t + count);
  const float sum = exponentials(t, top, 1, q, count);
  for (int64_t m = 0; m < count; ++m) q[m] /= sum;
}

float dot(const float* a, const float* b, int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// Computes the channel masks and the spatial queries from the pooled vectors.
void vectors_of(
    const Plan& plan,
    const Spec& spec,
    const Weights& weights,
    const Records& records) {
  const int64_t channels = plan.channels, images = plan.images;
  if (spec.has_channel) {
    Scratch z(images, channels);
    multiply(
        weights.matrix(kChWv), weights[kChBv], records[kContext],
        records[kValue]);
    multiply(weights.matrix(kChWz), weights[kChBz], records[kValue], z);
    for (int64_t n = 0; n < images; ++n) {
      float *row = z[n], *channel = records[kChannel][n];
      if (!spec.official) {
        float mean = 0, variance = 0;
        for (int64_t c = 0; c < channels; ++c) mean += row[c];
        mean /= channels;
        for (int64_t c = 0; c < channels; ++c) {
          row[c] -= mean;
          variance += row[c] * row[c];
        }
        const float deviation = std::sqrt(variance / channels + kEps);
        records(kDeviation, n) = deviation;
        float* normed = records[kNormed][n];
        for (int64_t c = 0; c < channels; ++c) {
          normed[c] = row[c] / deviation;
          row[c] = normed[c] * weights[kGamma][c] + weights[kBeta][c];
        }
      }
      sigmoids(row, weights.mask_scale(), channel, channels);
    }
  }
  if (!spec.has_spatial) return;
  const Matrix wq = weights.matrix(kSpWq), wv = weights.matrix(kSpWv);
  Scratch t(images, wq.count), gated(spec.sequential ? images : 0, channels);
  if (spec.sequential) {
    for (int64_t n = 0; n < images; ++n) {
      for (int64_t c = 0; c < channels; ++c) {
        gated[n][c] = records[kMean][n][c] * records[kChannel][n][c];
      }
    }
  }
  const Rows<float> mean = spec.sequential ? gated : records[kMean];
  multiply(wq, weights[kSpBq], mean, t);
  for (int64_t n = 0; n < images; ++n) {
    float* q = records[kSoftmax][n];
    if (spec.official) {
      std::copy_n(t[n], wq.count, q);
    } else {
      softmax(t[n], q, wq.count);
      records(kBias, n) = dot(q, weights[kSpBv], wq.count);
    }
  }
  const Slot base = spec.sequential ? kBase : kQuery;
  multiply_transposed(wv, records[kSoftmax], records[base]);
  for (int64_t n = 0; n < images; ++n) {
    float* query = records[kQuery][n];
    if (spec.sequential) {
      for (int64_t c = 0; c < channels; ++c) {
        query[c] = records[kBase][n][c] * records[kChannel][n][c];
      }
    }
  }
}

// masks = the spatial mask of some positions. In the official variant, a = the
// softmax of their logits, and the sigmoid reads a. Otherwise, a is not used.
void spatial_masks(
    const Spec& spec,
    float mask_scale,
    const Records& records,
    int64_t image,
    const float* logits,
    float* a,
    float* masks,
    int64_t width) {
  if (spec.official) {
    exponentials(
        logits, records(kFocusPeak, image), 1 / records(kFocusWeight, image),
        a, width);
    logits = a;
  }
  sigmoids(logits, mask_scale, masks, width);
}

// y = X gated
template <class T>
void gate(
    const Plan& plan,
    const Spec& spec,
    float mask_scale,
    const Maps<T>& maps,
    const Records& records,
    float* logits,
    const Maps<T>& to) {
  const Vector ones(std::max(plan.channels, plan.width), 1);
  plan.each_span([&](int64_t, int64_t image, int64_t first, int64_t last) {
    Vector mask(plan.width), a(plan.width);
    const float* of_channel =
        spec.has_channel ? records[kChannel][image] : ones.data();
    for (int64_t p = first; p < last; p += plan.width) {
      const int64_t width = std::min(plan.width, last - p);
      const Rows<T> tile = maps.tile(image, p, width);
      const float* of_position = ones.data();
      if (spec.has_spatial) {
        float* logit = logits + image * plan.positions + p;
        if (!spec.official) {
          std::fill_n(logit, width, records(kBias, image));
          maps.project(tile, records[kQuery][image], logit);
        }
        spatial_masks(
            spec, mask_scale, records, image, logit, a.data(), mask.data(),
            width);
        of_position = mask.data();
      }
      const float* outer = maps.by_channel() ? of_channel : of_position;
      const float* inner = maps.by_channel() ? of_position : of_channel;
      const Rows<T> out = to.tile(image, p, width);
      if (spec.product()) {
        gate_rows<true>(tile, outer, inner, out, to.streamed());
      } else {
        gate_rows<false>(tile, outer, inner, out, to.streamed());
      }
    }
  });
}

// The maps of logits: the attention's, the spatial mask's.
struct Logits {
  float *attention, *spatial;

  Logits(const Spec& spec, const Plan& plan, const Tensor& maps) {
    attention = maps.data_ptr<float>();
    spatial = attention;
    if (spec.has_channel) spatial += plan.images * plan.positions;
  }
};

template <class T>
void forward(
    const Tensor& x,
    const Spec& spec,
    const Weights& weights,
    const Tensor& y,
    const Tensor& saved_maps,
    const Tensor& saved_vectors) {
  const Plan plan(x);
  const Maps<T> maps(x);
  const Records records(
      saved_vectors.data_ptr<float>(), plan.images, plan.channels);
  const Logits logits(spec, plan, saved_maps);
  if (spec.has_channel) {
    const Rows<float> query{weights[kChWq], 0, plan.images, plan.channels};
    attend(
        plan, maps, records, query, spec.official ? 0 : *weights[kChBq],
        logits.attention, kContext, kPeak, kWeight, spec.has_spatial);
  } else {
    average(plan, maps, records);
  }
  vectors_of(plan, spec, weights, records);
  if (spec.official) {
    attend(
        plan, maps, records, records[kQuery], 0, logits.spatial, kFocus,
        kFocusPeak, kFocusWeight, false);
  }
  gate(
      plan, spec, weights.mask_scale(), maps, records, logits.spatial,
      Maps<T>(y));
}

// The gradients of an image's vectors.
struct Gradients {
  Scratch channel, query, mean, context;
  Vector bias, offset;

  explicit Gradients(const Plan& plan)
      : channel(plan.images, plan.channels),
        query(plan.images, plan.channels),
        mean(plan.images, plan.channels),
        context(plan.images, plan.channels),
        bias(plan.images), offset(plan.images) {}
};

// Backward of the gates: the gradients of the channel mask, of the spatial
// query, of its bias and of the spatial logits.
template <class T>
void gate_backward(
    const Plan& plan,
    const Spec& spec,
    float mask_scale,
    const Maps<T>& maps,
    const Maps<T>& gradients,
    const Records& records,
    const float* logits,
    float* dlogits,
    Gradients& to) {
  const int64_t size = 2 * plan.channels + 1;
  Vector parts(plan.images * plan.spans * size);
  const Vector ones(std::max(plan.channels, plan.width), 1);
  plan.each_span([&](int64_t part, int64_t image, int64_t first,
                     int64_t last) {
    Vector mask(plan.width), a(plan.width), unused(plan.width);
    float* dchannel = parts.data() + part * size;
    float* dquery = dchannel + plan.channels;
    float& dbias = dquery[plan.channels];
    const float* of_channel =
        spec.sequential ? records[kChannel][image] : ones.data();
    for (int64_t p = first; p < last; p += plan.width) {
      const int64_t width = std::min(plan.width, last - p);
      const Rows<T> tile = maps.tile(image, p, width);
      const Rows<T> g = gradients.tile(image, p, width);
      const float* of_position = ones.data();
      float* dlogit = unused.data();
      if (spec.has_spatial) {
        const int64_t place = image * plan.positions + p;
        dlogit = dlogits + place;
        std::fill_n(dlogit, width, 0);
        spatial_masks(
            spec, mask_scale, records, image, logits + place, a.data(),
            mask.data(), width);
        if (spec.sequential) of_position = mask.data();
      }
      maps.products(tile, g, of_channel, of_position, dchannel, dlogit);
      if (!spec.has_spatial) continue;
      float sum = 0;  // of a tile: a span is too long for one float
      for (int64_t j = 0; j < width; ++j) {
        dlogit[j] *= mask[j] * (1 - mask[j] / mask_scale);
        // weighted, where the logits went through a softmax
        if (spec.official) dlogit[j] *= a[j];
        sum += dlogit[j];
      }
      dbias += sum;
      maps.pool(tile, dlogit, dquery);
    }
  });
  for (int64_t n = 0; n < plan.images; ++n) {
    plan.combine(parts.data(), size, to.channel[n], n);
    plan.combine(parts.data() + plan.channels, size, to.query[n], n);
    for (int64_t s = n * plan.spans; s < (n + 1) * plan.spans; ++s) {
      to.bias[n] += parts[(s + 1) * size - 1];
    }
    if (!spec.official) continue;
    // The softmax's gradient subtracts bias * focus. The bias is a sum over
    // all positions, so it is known only here.
    for (int64_t c = 0; c < plan.channels; ++c) {
      to.query[n][c] -= to.bias[n] * records[kFocus][n][c];
    }
  }
}

// Backward of vectors_of. Also writes the gradients of all weights but those
// of the attention's query.
void vectors_backward(
    const Plan& plan,
    const Spec& spec,
    const Weights& weights,
    const Records& records,
    Gradients& of,
    const Weights& to) {
  const int64_t channels = plan.channels, images = plan.images;
  if (spec.has_spatial) {
    const Matrix wq = weights.matrix(kSpWq), wv = weights.matrix(kSpWv);
    Scratch dq(images, wq.count), mean(images, channels);
    for (int64_t n = 0; n < images; ++n) {
      std::copy_n(records[kMean][n], channels, mean[n]);
      if (!spec.sequential) continue;
      const float *channel = records[kChannel][n], *base = records[kBase][n];
      for (int64_t c = 0; c < channels; ++c) {
        of.channel[n][c] += of.query[n][c] * base[c];
        of.query[n][c] *= channel[c];
        mean[n][c] *= channel[c];
      }
    }
    multiply(wv, nullptr, of.query, dq);
    add_outer_products(
        records[kSoftmax], of.query, wv.count, channels, to[kSpWv], nullptr);
    if (!spec.official) {
      std::fill_n(to[kSpBv], wv.count, 0);
      for (int64_t n = 0; n < images; ++n) {
        const float* q = records[kSoftmax][n];
        for (int64_t m = 0; m < wv.count; ++m) {
          dq[n][m] += of.bias[n] * weights[kSpBv][m];
          to[kSpBv][m] += of.bias[n] * q[m];
        }
        const float sum = dot(q, dq[n], wv.count);
        for (int64_t m = 0; m < wv.count; ++m) {
          dq[n][m] = q[m] * (dq[n][m] - sum);
        }
      }
    }
    add_outer_products(dq, mean, wq.count, channels, to[kSpWq], to[kSpBq]);
    multiply_transposed(wq, dq, of.mean);
    for (int64_t n = 0; spec.sequential && n < images; ++n) {
      for (int64_t c = 0; c < channels; ++c) {
        of.channel[n][c] += of.mean[n][c] * records[kMean][n][c];
        of.mean[n][c] *= records[kChannel][n][c];
      }
    }
  }
  if (!spec.has_channel) return;
  const Matrix wv = weights.matrix(kChWv), wz = weights.matrix(kChWz);
  const float mask_scale = weights.mask_scale();
  for (int64_t n = 0; n < images; ++n) {
    const float* channel = records[kChannel][n];
    float* dz = of.channel[n];
    for (int64_t c = 0; c < channels; ++c) {
      dz[c] *= channel[c] * (1 - channel[c] / mask_scale);
    }
  }
  if (!spec.official) {
    std::fill_n(to[kGamma], channels, 0);
    std::fill_n(to[kBeta], channels, 0);
    for (int64_t n = 0; n < images; ++n) {
      const float* normed = records[kNormed][n];
      float *dz = of.channel[n], mean = 0, slope = 0;
      for (int64_t c = 0; c < channels; ++c) {
        to[kGamma][c] += dz[c] * normed[c];
        to[kBeta][c] += dz[c];
        dz[c] *= weights[kGamma][c];
        mean += dz[c];
        slope += dz[c] * normed[c];
      }
      mean /= channels;
      slope /= channels;
      for (int64_t c = 0; c < channels; ++c) {
        dz[c] = (dz[c] - mean - slope * normed[c]) / records(kDeviation, n);
      }
    }
  }
  Scratch dv(images, wv.count);
  multiply_transposed(wz, of.channel, dv);
  add_outer_products(
      of.channel, records[kValue], channels, wz.length, to[kChWz],
      to[kChBz]);
  add_outer_products(
      dv, records[kContext], wv.count, channels, to[kChWv], to[kChBv]);
  multiply_transposed(wv, dv, of.context);
  for (int64_t n = 0; n < images; ++n) {
    of.offset[n] = dot(of.context[n], records[kContext][n], channels);
  }
}

// The gradients of X and of the attention's query.
template <class T>
void input_backward(
    const Plan& plan,
    const Spec& spec,
    const Weights& weights,
    const Maps<T>& maps,
    const Maps<T>& gradients,
    const Records& records,
    const Logits& logits,
    const float* dlogits,
    Gradients& of,
    const Maps<T>& dx,
    float* dquery) {
  Vector parts(plan.images * plan.spans * plan.channels);
  const float mask_scale = weights.mask_scale();
  const int64_t longest = std::max(plan.channels, plan.width);
  const Vector ones(longest, 1), zeros(longest, 0);
  for (int64_t n = 0; n < plan.images; ++n) {
    for (int64_t c = 0; c < plan.channels; ++c) {
      of.mean[n][c] /= plan.positions;
    }
  }
  plan.each_span([&](int64_t part, int64_t image, int64_t first,
                     int64_t last) {
    Vector mask(plan.width), dz(plan.width), a(plan.width), da(plan.width);
    const float* of_channel[5] = {
        spec.has_channel ? records[kChannel][image] : ones.data(),
        of.mean[image],
        spec.has_spatial ? records[kQuery][image] : zeros.data(),
        spec.has_channel ? of.context[image] : zeros.data(),
        spec.has_channel ? weights[kChWq] : zeros.data()};
    const float* of_position[5] = {
        ones.data(), ones.data(), zeros.data(), zeros.data(), zeros.data()};
    for (int64_t p = first; p < last; p += plan.width) {
      const int64_t width = std::min(plan.width, last - p);
      const int64_t place = image * plan.positions + p;
      if (spec.has_spatial) {
        spatial_masks(
            spec, mask_scale, records, image, logits.spatial + place,
            a.data(), mask.data(), width);
        of_position[0] = mask.data();
        of_position[2] = dlogits + place;
        if (spec.official) {
          for (int64_t j = 0; j < width; ++j) {
            dz[j] = dlogits[place + j] - a[j] * of.bias[image];
          }
          of_position[2] = dz.data();
        }
      }
      if (spec.has_channel) {
        const Rows<T> tile = maps.tile(image, p, width);
        exponentials(
            logits.attention + place, records(kPeak, image),
            1 / records(kWeight, image), a.data(), width);
        std::fill_n(da.data(), width, -of.offset[image]);
        maps.project(tile, of.context[image], da.data());
        for (int64_t j = 0; j < width; ++j) da[j] *= a[j];
        maps.pool(tile, da.data(), parts.data() + part * plan.channels);
        of_position[3] = a.data();
        of_position[4] = da.data();
      }
      const float** outer = maps.by_channel() ? of_channel : of_position;
      const float** inner = maps.by_channel() ? of_position : of_channel;
      const Rows<T> g = gradients.tile(image, p, width);
      const Rows<T> out = dx.tile(image, p, width);
      if (spec.product()) {
        input_gradient_rows<true>(g, outer, inner, out, dx.streamed());
      } else {
        input_gradient_rows<false>(g, outer, inner, out, dx.streamed());
      }
    }
  });
  if (!spec.has_channel) return;
  std::fill_n(dquery, plan.channels, 0);
  for (int64_t part = 0; part < plan.images * plan.spans; ++part) {
    for (int64_t c = 0; c < plan.channels; ++c) {
      dquery[c] += parts[part * plan.channels + c];
    }
  }
}

template <class T>
void backward(
    const Tensor& g,
    const Tensor& x,
    const Spec& spec,
    const Weights& weights,
    const Tensor& saved_maps,
    const Tensor& saved_vectors,
    const Tensor& dx,
    const Weights& dweights) {
  const Plan plan(x);
  const Maps<T> maps(x), gradients(g);
  const Records records(
      saved_vectors.data_ptr<float>(), plan.images, plan.channels);
  const Logits logits(spec, plan, saved_maps);
  Gradients vectors(plan);
  Vector dlogits(spec.has_spatial ? plan.images * plan.positions : 0);
  gate_backward(
      plan, spec, weights.mask_scale(), maps, gradients, records,
      logits.spatial, dlogits.data(), vectors);
  vectors_backward(plan, spec, weights, records, vectors, dweights);
  input_backward(
      plan, spec, weights, maps, gradients, records, logits, dlogits.data(),
      vectors, Maps<T>(dx), dweights[kChWq]);
  // The bias shifts all logits alike, so the softmax does not change.
  if (dweights[kChBq]) *dweights[kChBq] = 0;
}

// Without gaps, NCHW or channels_last.
Tensor dense(const Tensor& x) {
  return x.is_contiguous(at::MemoryFormat::ChannelsLast) ? x : x.contiguous();
}

std::tuple<Tensor, Tensor, Tensor> psa(
    const Tensor& input,
    at::TensorList weights,
    c10::string_view variant,
    c10::string_view layout) {
  const Spec spec(variant, layout);
  check_forward(input, weights, spec);
  const Tensor x = dense(input);
  const auto wide = x.options().dtype(at::kFloat).memory_format(
      at::MemoryFormat::Contiguous);
  const int64_t images = x.size(0), positions = x.size(2) * x.size(3);
  Tensor y = at::empty_like(x);
  Tensor maps = at::empty(
      {spec.has_channel + spec.has_spatial, images, positions}, wide);
  // Slots that the layout does not use are zero.
  Tensor vectors = at::zeros({images, Records::size(x.size(1))}, wide);
  const Weights all(spec, weights);
  (x.scalar_type() == at::kFloat ? forward<float> : forward<BFloat16>)(
      x, spec, all, y, maps, vectors);
  return {y, maps, vectors};
}

std::tuple<Tensor, std::vector<Tensor>> psa_backward(
    const Tensor& gradient,
    const Tensor& input,
    at::TensorList weights,
    const Tensor& maps,
    const Tensor& vectors,
    c10::string_view variant,
    c10::string_view layout) {
  const Spec spec(variant, layout);
  check_forward(input, weights, spec);
  check_backward(
      gradient, input, maps, vectors, spec, Records::size(input.size(1)));
  const Tensor x = dense(input);
  const Tensor g = gradient.contiguous(
      x.is_contiguous() ? at::MemoryFormat::Contiguous
                        : at::MemoryFormat::ChannelsLast);
  Tensor dx = at::empty_like(x);
  std::vector<Tensor> dweights;
  const at::TensorList learnt =
      weights.slice(0, weights.size() - spec.has_mask_scale());
  for (const Tensor& weight : learnt) {
    dweights.push_back(
        at::empty(weight.sizes(), weight.options().dtype(at::kFloat)));
  }
  const Weights all(spec, weights), gradients(spec, dweights);
  (x.scalar_type() == at::kFloat ? backward<float> : backward<BFloat16>)(
      g, x, spec, all, maps.contiguous(), vectors.contiguous(), dx, gradients);
  for (size_t i = 0; i < dweights.size(); ++i) {
    dweights[i] = dweights[i].to(weights[i].scalar_type());
  }
  return {dx, dweights};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmpsa, CPU, library) {
  library.impl("psa", &psa);
  library.impl("psa_backward", &psa_backward);
}
