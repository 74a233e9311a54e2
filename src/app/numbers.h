#pragma once

#include <cstdint>
#include <string>

#include <CLI/CLI.hpp>

namespace espalier {

/// What a numeric option takes. The check refuses everything else, also nan, inf and numbers beyond
/// the type, with a sentence that says what would do.
struct NumberRange {
  double low;
  double high;
  /// "a number of hours".
  const char* what;
  /// "1.5".
  const char* example;
};
CLI::Validator real_number(const NumberRange& range);
/// The same for whole numbers, read as decimal also behind a leading 0.
CLI::Validator whole_number(const NumberRange& range);

}  // namespace espalier
