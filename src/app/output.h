#pragma once

#include <string_view>
#include <utility>

#include <fmt/format.h>

/// What a command was asked for, on standard output.
namespace espalier::output {

/// Keeps text until flush().
void put(std::string_view text);
template <class... A>
void print(fmt::format_string<A...> format, A&&... a) {
  put(fmt::format(format, std::forward<A>(a)...));
}

/// Writes what was kept. Returns false when the reader of a pipe went away, which is its right.
/// Throws Error(write_failed) when standard output is full, closed or fails otherwise: a command
/// whose answer is lost has not done its work.
bool flush();

}  // namespace espalier::output
