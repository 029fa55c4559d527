// Activation checkpointing: an autograd node whose backward runs a closure of the other language again.
//
// PyTorch's own (torch.utils.checkpoint) is Python; this is its reentrant form, with the trainable tensors that the
// closure holds listed as inputs, so that their gradients come back whether a caller asks for them by name or
// accumulates them.

#include <cstring>
#include <stdexcept>
#include <vector>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Runs the closure on `count` inputs and puts `outputs` new tensors into `out`; 0, or 1 and a message.
using Run = int (*)(
    void* closure,
    const at::Tensor* const* inputs,
    size_t count,
    at::Tensor** out,
    size_t outputs,
    char* message,
    size_t capacity);
using Drop = void (*)(void* closure);

struct Closure : torch::CustomClassHolder {
  void* state;
  Run run;
  Drop drop;
  size_t inputs;
  size_t outputs;

  Closure(void* state, Run run, Drop drop, size_t inputs, size_t outputs)
      : state(state), run(run), drop(drop), inputs(inputs), outputs(outputs) {}
  ~Closure() override { drop(state); }

  variable_list call(const variable_list& all) const {
    std::vector<const at::Tensor*> in;
    for (size_t i = 0; i < inputs; ++i) in.push_back(&all[i]);
    std::vector<at::Tensor*> out(outputs, nullptr);
    char message[1024] = "a checkpointed block gave too few tensors";
    int code = run(state, in.data(), in.size(), out.data(), outputs, message, sizeof message);
    variable_list results;
    for (at::Tensor* tensor : out) {
      if (tensor != nullptr) {
        results.push_back(*tensor);
        delete tensor;
      }
    }
    if (code != 0 || results.size() != outputs) throw std::runtime_error(message);
    return results;
  }
};

struct Checkpoint : torch::autograd::Function<Checkpoint> {
  static variable_list forward(AutogradContext* ctx, c10::intrusive_ptr<Closure> closure, at::TensorList tensors) {
    variable_list all = tensors.vec();
    ctx->save_for_backward(all);
    variable_list results = closure->call(all);
    ctx->saved_data["closure"] = c10::IValue::make_capsule(std::move(closure));
    return results;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    auto holder = ctx->saved_data["closure"].toCapsule();
    auto* closure = static_cast<Closure*>(holder.get());
    variable_list all = ctx->get_saved_variables();
    // Inputs of the block are cut off from what made them; the tensors that the closure holds stay themselves.
    for (size_t i = 0; i < closure->inputs; ++i) {
      all[i] = all[i].detach().set_requires_grad(all[i].requires_grad());
    }
    at::AutoGradMode enable(true);
    variable_list outputs = closure->call(all);
    variable_list roots, seeds, wanted;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (gradients[i].defined() && outputs[i].requires_grad()) {
        roots.push_back(outputs[i]);
        seeds.push_back(gradients[i]);
      }
    }
    std::vector<size_t> places;
    for (size_t i = 0; i < all.size(); ++i) {
      if (all[i].requires_grad()) {
        places.push_back(i);
        wanted.push_back(all[i]);
      }
    }
    // One for the closure itself, which has none.
    variable_list results(1 + all.size());
    if (roots.empty() || wanted.empty()) return results;
    variable_list found = torch::autograd::grad(roots, wanted, seeds, std::nullopt, false, /*allow_unused=*/true);
    for (size_t i = 0; i < places.size(); ++i) results[1 + places[i]] = found[i];
    return results;
  }
};

}  // namespace

extern "C" int advdmd_checkpoint(
    void* state,
    Run run,
    Drop drop,
    at::Tensor* const* tensors,
    size_t count,
    size_t inputs,
    at::Tensor** out,
    size_t outputs,
    char* message,
    size_t capacity) {
  auto closure = c10::make_intrusive<Closure>(state, run, drop, inputs, outputs);
  try {
    variable_list all;
    for (size_t i = 0; i < count; ++i) all.push_back(*tensors[i]);
    variable_list results = Checkpoint::apply(std::move(closure), at::TensorList(all));
    for (size_t i = 0; i < outputs; ++i) out[i] = new at::Tensor(results[i]);
    return 0;
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), capacity - 1);
    message[capacity - 1] = 0;
    return 1;
  }
}
