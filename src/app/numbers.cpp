#include "numbers.h"

#include <charconv>

#include <fmt/format.h>

#include "espalier/core/text.h"

namespace espalier {
namespace {

template <class N>
CLI::Validator checked(const NumberRange& range) {
  const auto check = [range](std::string& text) -> std::string {
    N value{};
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    const bool read = error == std::errc{} && stop == end;
    // Written so that NaN fails.
    if (read && static_cast<double>(value) >= range.low &&
        static_cast<double>(value) <= range.high) {
      text = fmt::format("{}", value);
      return {};
    }
    return fmt::format("'{}' is not {} from {} to {}, for example {}",
                       one_line(std::string_view(text).substr(0, 60)), range.what, range.low,
                       range.high, range.example);
  };
  return CLI::Validator(check, "");
}

}  // namespace

CLI::Validator real_number(const NumberRange& range) { return checked<double>(range); }
CLI::Validator whole_number(const NumberRange& range) { return checked<std::int64_t>(range); }

}  // namespace espalier
