#include "output.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "espalier/core/error.h"
#include "espalier/core/standard_streams.h"

namespace espalier::output {
namespace {

std::string& kept() {
  static std::string text;
  return text;
}

}  // namespace

void put(std::string_view text) { kept() += text; }

bool flush() {
  const std::string text = std::exchange(kept(), {});
  const int failure = standard_streams::write_all(STDOUT_FILENO, text);
  if (failure == 0) return true;
  if (failure == EPIPE) return false;
  if (failure == EBADF)
    throw Error(ExitCode::write_failed, "standard output is closed",
                "the answer of this command goes there",
                "Leave it open, or send it to a file: espalier ... > FILE.", "standard output");
  throw Error(ExitCode::write_failed, "cannot write to standard output", std::strerror(failure),
              failure == ENOSPC || failure == EDQUOT || failure == EFBIG
                  ? "Free space or quota, or send it elsewhere."
                  : "Send it to another file or terminal.",
              "standard output");
}

}  // namespace espalier::output
