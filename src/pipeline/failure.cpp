#include "espalier/pipeline/failure.h"

#include <new>

#include <c10/util/Exception.h>

namespace espalier {

Error as_error(const std::exception& exception, const std::string& where) {
  if (const auto* error = dynamic_cast<const Error*>(&exception)) return *error;
  std::string said = exception.what();
  if (const auto* error = dynamic_cast<const c10::Error*>(&exception))
    said = error->what_without_backtrace();
  // On the host LibTorch has no type of its own for it.
  const bool memory = dynamic_cast<const std::bad_alloc*>(&exception) != nullptr ||
                      dynamic_cast<const c10::OutOfMemoryError*>(&exception) != nullptr ||
                      said.find("DefaultCPUAllocator: ") != std::string::npos;
  if (memory)
    return Error(ExitCode::unsuitable, "memory ran out", said.substr(0, said.find('\n')),
                 "Lower calibration.micro_batch_tokens, set execution.recompute: all, or use more "
                 "tensor ranks.",
                 where);
  return Error(ExitCode::internal, said, "unexpected", "Please report this with the command.",
               where);
}

}  // namespace espalier
