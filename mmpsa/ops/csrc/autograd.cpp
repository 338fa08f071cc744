// Autograd of mmpsa::psa, for all devices: mmpsa::psa_backward.
//
// The schemas are in mmpsa/ops/registration.py, and the derivative of
// mmpsa::psa_backward is too. Where this is not built, its _Autograd does the
// same.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "contract.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::tuple<Tensor, Tensor, Tensor> call_psa(
    const Tensor& x,
    at::TensorList weights,
    c10::string_view variant,
    c10::string_view layout) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mmpsa::psa", "")
          .typed<std::tuple<Tensor, Tensor, Tensor>(
              const Tensor&, at::TensorList, c10::string_view,
              c10::string_view)>();
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(x, weights, variant, layout);
}

class PSA : public torch::autograd::Function<PSA> {
 public:
  static variable_list forward(
      AutogradContext* context,
      const Tensor& x,
      at::TensorList weights,
      const std::string& variant,
      const std::string& layout) {
    auto [y, maps, vectors] = call_psa(x, weights, variant, layout);
    variable_list saved = {x, maps, vectors};
    saved.insert(saved.end(), weights.begin(), weights.end());
    if (Spec(variant, layout).has_mask_scale()) {
      // Others may write it before the backward.
      saved.back() = saved.back().detach().clone();
    }
    context->save_for_backward(saved);
    context->mark_non_differentiable({maps, vectors});
    context->saved_data["variant"] = variant;
    context->saved_data["layout"] = layout;
    return {y, maps, vectors};
  }

  static variable_list backward(
      AutogradContext* context, const variable_list& gradients) {
    static const auto op =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("mmpsa::psa_backward", "")
            .typed<std::tuple<Tensor, std::vector<Tensor>>(
                const Tensor&, const Tensor&, at::TensorList, const Tensor&,
                const Tensor&, c10::string_view, c10::string_view)>();
    const variable_list saved = context->get_saved_variables();
    const std::string variant = context->saved_data["variant"].toStringRef();
    const std::string layout = context->saved_data["layout"].toStringRef();
    const at::TensorList weights = at::TensorList(saved).slice(3);
    const auto call = [&] {
      return op.call(
          gradients[0], saved[0], weights, saved[1], saved[2], variant,
          layout);
    };
    std::tuple<Tensor, std::vector<Tensor>> grads;
    if (at::GradMode::is_enabled()) {  // to be differentiated itself
      grads = call();
    } else {
      at::AutoDispatchBelowADInplaceOrView guard;
      grads = call();
    }
    variable_list all = {std::get<0>(grads)};
    const auto& dweights = std::get<1>(grads);
    all.insert(all.end(), dweights.begin(), dweights.end());
    // Neither mask_scale nor the spec has a gradient.
    all.resize(1 + weights.size() + 2);
    return all;
  }
};

std::tuple<Tensor, Tensor, Tensor> psa(
    const Tensor& x,
    at::TensorList weights,
    c10::string_view variant,
    c10::string_view layout) {
  if (!at::GradMode::is_enabled()) {
    return call_psa(x, weights, variant, layout);
  }
  const variable_list results =
      PSA::apply(x, weights, std::string(variant), std::string(layout));
  return {results[0], results[1], results[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmpsa, Autograd, library) {
  library.impl("psa", &psa);
}
