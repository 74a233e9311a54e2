#include "espalier/eval/answers.h"

#include <algorithm>

namespace espalier {
namespace {

constexpr std::string_view kMark = "#### ";
constexpr std::string_view kInvalid = "[invalid]";

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_number(char c) { return is_digit(c) || c == '.' || c == ','; }
bool is_price(char c) { return is_number(c) || c == '$'; }

/// Bytes at `begin` that are all of one class.
template <class Is>
std::size_t run_of(std::string_view text, std::size_t begin, const Is& is) {
  std::size_t end = begin;
  while (end < text.size() && is(text[end])) ++end;
  return end - begin;
}

/// Bytes of the match of the flexible expression that begins here; 0 = none does.
std::size_t flexible_match(std::string_view text, std::size_t begin) {
  const std::size_t sign = text[begin] == '-' ? 1 : 0;
  const std::size_t price = run_of(text, begin + sign, is_price);
  if (price >= 2) return sign + price;
  // One byte: only a digit is a match.
  return price == 1 && is_digit(text[begin + sign]) ? sign + 1 : 0;
}

}  // namespace

std::string cut_at_stop(std::string_view text, const std::vector<std::string>& stop) {
  for (const std::string& end : stop) text = text.substr(0, text.find(end));
  return std::string(text);
}

std::string strict_answer(std::string_view text) {
  for (std::size_t at = text.find(kMark); at != std::string_view::npos;
       at = text.find(kMark, at + 1)) {
    const std::size_t begin = at + kMark.size();
    const std::size_t sign = begin < text.size() && text[begin] == '-' ? 1 : 0;
    const std::size_t number = run_of(text, begin + sign, is_number);
    if (number > 0) return std::string(text.substr(begin, sign + number));
  }
  return std::string(kInvalid);
}

std::string flexible_answer(std::string_view text) {
  std::string_view last = kInvalid;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = flexible_match(text, at);
    if (length > 0) last = text.substr(at, length);
    at += std::max<std::size_t>(length, 1);
  }
  return std::string(last);
}

std::string comparable_answer(std::string_view answer) {
  std::string text(answer);
  std::erase_if(text, [](char c) { return c == ',' || c == '$'; });
  if (const std::size_t mark = text.rfind(kMark); mark != std::string::npos)
    text.erase(0, mark + kMark.size());
  const std::size_t line = text.ends_with('\n') ? 1 : 0;
  if (text.size() > line && text[text.size() - line - 1] == '.')
    text.erase(text.size() - line - 1, 1);
  std::transform(text.begin(), text.end(), text.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  return text;
}

}  // namespace espalier
