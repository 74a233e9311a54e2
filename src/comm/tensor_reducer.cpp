#include "espalier/comm/tensor_reducer.h"

#include <fmt/format.h>

#include "buffer_rules.h"
#include "espalier/core/error.h"

namespace espalier {
namespace {

class HostReducer final : public TensorReducer {
 public:
  explicit HostReducer(Communicator& control) : control_(control) {}

  int size() const override { return control_.size(); }
  bool takes(DType dtype, Memory memory) const override {
    return memory == Memory::host && is_reducible(dtype);
  }

 private:
  void reduce(const TensorBuffer& buffer, ReduceOp op) override {
    control_.all_reduce({buffer.data, buffer.count, buffer.dtype}, op);
  }

  Communicator& control_;
};

}  // namespace

void TensorReducer::all_reduce(const TensorBuffer& buffer, ReduceOp op) {
  require_not_aborted();
  if (!takes(buffer.dtype, buffer.memory))
    throw Error(ExitCode::internal,
                fmt::format("the reducer of tensors was given {} in {} memory",
                            safetensors_name(buffer.dtype),
                            buffer.memory == Memory::host ? "host" : "device"),
                "it says that it does not take them", "Ask takes() first, and convert or copy");
  reduce(buffer, op);
}

void TensorReducer::check() {
  require_not_aborted();
  check_library();
}

void TensorReducer::abort(ExitCode because) noexcept {
  ExitCode none = ExitCode::ok;
  if (aborted_.compare_exchange_strong(none, because)) abort_library();
}

void TensorReducer::require_not_aborted() const {
  const ExitCode because = aborted_;
  if (because == ExitCode::ok) return;
  throw Error(
      because, "the reduction of tensors was ended",
      because == ExitCode::peer_lost ? "another rank is lost or hangs" : "this rank has failed");
}

std::unique_ptr<TensorReducer> make_host_reducer(Communicator& control) {
  return std::make_unique<HostReducer>(control);
}

}  // namespace espalier
