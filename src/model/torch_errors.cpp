#include "espalier/model/torch_errors.h"

#include <optional>
#include <string>

#include <c10/util/Exception.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

std::optional<Problem> translated(const std::exception& exception) {
  const auto* error = dynamic_cast<const c10::Error*>(&exception);
  // The CPU allocator throws its own class or a plain runtime error, depending on who asks.
  const std::string said = error != nullptr ? error->what_without_backtrace() : exception.what();
  const bool memory = dynamic_cast<const c10::OutOfMemoryError*>(&exception) != nullptr ||
                      said.find("DefaultCPUAllocator: ") != std::string::npos;
  if (memory) return memory_ran_out(said.substr(0, said.find('\n')));
  if (error == nullptr) return std::nullopt;
  return Problem{ExitCode::internal,
                 said,
                 "LibTorch refused an operation",
                 "Please report this with the command.",
                 {}};
}

}  // namespace

void register_torch_errors() { register_translator(translated); }

}  // namespace espalier
