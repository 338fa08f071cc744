// What mmpsa::psa and mmpsa::psa_backward take, and what the CPU's kernels
// refuse: they read and write memory unchecked. mmpsa/ops/checks.py is the
// same for shapes without data and for the kernels in Triton.

#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

namespace {

// What a block computes, without its weights: mmpsa.ops.Spec.
struct Spec {
  bool official, has_channel, has_spatial, sequential;

  Spec(c10::string_view variant, c10::string_view layout)
      : official(variant == "official"),
        has_channel(layout != "spatial"),
        has_spatial(layout != "channel"),
        sequential(layout == "sequential") {
    TORCH_CHECK(
        official || variant == "paper",
        "variant must be one of ('paper', 'official'), got '", variant, "'");
    const bool one_mask = !has_channel || !has_spatial;
    TORCH_CHECK(
        layout == "parallel" || sequential || (one_mask && !official),
        "layout must be one of ('parallel', 'sequential'",
        official ? "" : ", 'channel', 'spatial'", ") for variant='", variant,
        "', got '", layout, "'");
    TORCH_CHECK(
        !official || !sequential,
        "variant='official' with layout='sequential' has no kernel");
  }

  // Whether the masks are multiplied, not added; one alone is, by ones.
  bool product() const { return sequential || !has_channel || !has_spatial; }
  // Whether a mask is its sigmoid times a number among the weights.
  bool has_mask_scale() const { return product() && !official; }
};

// In the order of mmpsa.ops.Weights, without those of the value map.
enum Name {
  kChWq, kChBq, kChWv, kChBv, kChWz, kChBz, kGamma, kBeta,
  kSpWq, kSpBq, kSpWv, kSpBv, kMaskScale, kNames
};

constexpr const char* kNamesInPython[kNames] = {
    "ch_wq", "ch_bq", "ch_wv", "ch_bv", "ch_wz", "ch_bz", "ln_weight",
    "ln_bias", "sp_wq", "sp_bq", "sp_wv", "sp_bv", "mask_scale"};

// Those that a spec has.
inline std::vector<Name> names_of(const Spec& spec) {
  if (spec.official) return {kChWq, kChWv, kChWz, kSpWq, kSpWv};
  std::vector<Name> names;
  const int first = spec.has_channel ? kChWq : kSpWq;
  const int last = spec.has_spatial ? kMaskScale : kSpWq;
  for (int name = first; name < last; ++name) names.push_back(Name(name));
  // The last, as it has no gradient.
  if (spec.has_mask_scale()) names.push_back(kMaskScale);
  return names;
}

inline std::vector<int64_t> shape_of(Name name, int64_t channels) {
  const int64_t inner = std::max<int64_t>(channels / 2, 1);
  switch (name) {
    case kChWq: return {1, channels, 1, 1};
    case kChBq: return {1};
    case kChWz: return {channels, inner, 1, 1};
    case kChBz: case kGamma: case kBeta: return {channels};
    case kChBv: case kSpBq: case kSpBv: return {inner};
    case kMaskScale: return {};
    default: return {inner, channels, 1, 1};  // kChWv, kSpWq, kSpWv
  }
}

inline void check_device(
    const at::Tensor& tensor, const char* name, const at::Tensor& x) {
  TORCH_CHECK(
      tensor.device() == x.device(), name, " must be on the device of x, ",
      x.device(), ", got ", tensor.device());
}

inline void check_forward(
    const at::Tensor& x, at::TensorList weights, const Spec& spec) {
  TORCH_CHECK(
      x.dim() == 4, "x must be of shape N×C×H×W, got ", x.sizes());
  TORCH_CHECK(x.numel() > 0, "x must have elements, got shape ", x.sizes());
  TORCH_CHECK(
      x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16,
      "x must be of one of (torch.float32, torch.bfloat16), got ",
      x.scalar_type());
  const auto names = names_of(spec);
  TORCH_CHECK(
      names.size() == weights.size(), "weights must be ", names.size(),
      " tensors, got ", weights.size());
  for (size_t i = 0; i < names.size(); ++i) {
    const char* name = kNamesInPython[names[i]];
    const auto shape = shape_of(names[i], x.size(1));
    TORCH_CHECK(
        weights[i].sizes() == at::IntArrayRef(shape), name,
        " must be of shape ", at::IntArrayRef(shape), " for ", x.size(1),
        " channels, got ", weights[i].sizes());
    TORCH_CHECK(
        weights[i].is_floating_point(), name,
        " must be of a floating-point dtype, got ", weights[i].scalar_type());
    check_device(weights[i], name, x);
    TORCH_CHECK(
        names[i] != kMaskScale || !weights[i].requires_grad(),
        "mask_scale must not require a gradient, because no backend computes "
        "one; keep it a buffer");
  }
}

// Beside what the forward checks; `numbers` is how many an image keeps.
inline void check_backward(
    const at::Tensor& g,
    const at::Tensor& x,
    const at::Tensor& maps,
    const at::Tensor& vectors,
    const Spec& spec,
    int64_t numbers) {
  const auto check = [&](const char* name, const at::Tensor& tensor,
                         at::IntArrayRef shape, at::ScalarType dtype) {
    TORCH_CHECK(
        tensor.sizes() == shape && tensor.scalar_type() == dtype, name,
        " must be of shape ", shape, " and ", dtype, ", got ",
        tensor.sizes(), " and ", tensor.scalar_type());
    check_device(tensor, name, x);
  };
  check("g", g, x.sizes(), x.scalar_type());
  check(
      "maps", maps,
      {spec.has_channel + spec.has_spatial, x.size(0), x.size(2) * x.size(3)},
      at::kFloat);
  check("vectors", vectors, {x.size(0), numbers}, at::kFloat);
}

}  // namespace
