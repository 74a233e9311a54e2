#include "espalier/core/json.h"

#include <unordered_set>
#include <vector>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/text.h"

namespace espalier {
namespace {

using Json = nlohmann::ordered_json;

/// Builds the value while refusing duplicate keys and depth, which the library's own parser
/// accepts.
class StrictHandler : public nlohmann::json_sax<Json> {
 public:
  StrictHandler(std::string origin, JsonLimits limits)
      : origin_(std::move(origin)), limits_(limits) {}

  Json take() { return std::move(root_); }

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override { return value(v); }
  bool number_unsigned(number_unsigned_t v) override { return value(v); }
  bool number_float(number_float_t v, const string_t&) override { return value(v); }
  bool string(string_t& v) override { return value(std::move(v)); }
  bool binary(binary_t&) override { return false; }

  bool start_object(std::size_t) override {
    open(Json::object());
    keys_.emplace_back();
    return true;
  }
  bool key(string_t& k) override {
    if (!keys_.back().insert(k).second)
      fail(fmt::format("duplicate key '{}'", line_text(std::string_view(k).substr(0, 80))));
    pending_key_ = std::move(k);
    return true;
  }
  bool end_object() override {
    keys_.pop_back();
    stack_.pop_back();
    return true;
  }
  bool start_array(std::size_t) override {
    open(Json::array());
    return true;
  }
  bool end_array() override {
    stack_.pop_back();
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    std::string words = e.what();
    if (const auto at = words.find("] "); at != std::string::npos) words = words.substr(at + 2);
    // The library quotes what it read last, which need not be text.
    std::string printable;
    for (const char c : words.substr(0, 200)) {
      const auto byte = static_cast<unsigned char>(c);
      printable += byte >= 0x20 && byte < 0x7f ? std::string(1, c) : fmt::format("\\x{:02x}", byte);
    }
    throw Error(ExitCode::bad_content, fmt::format("invalid JSON at byte {}", position), printable,
                {}, origin_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) {
    throw Error(ExitCode::bad_content, "invalid JSON: " + what, {}, {}, origin_);
  }
  Json* place(Json v) {
    if (stack_.empty()) {
      root_ = std::move(v);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(v));
      return &parent.back();
    }
    // Keys are known to be new: append without the ordered map's linear search.
    auto& object = parent.get_ref<Json::object_t&>();
    auto& entries = static_cast<std::vector<std::pair<const std::string, Json>>&>(object);
    entries.emplace_back(std::move(pending_key_), std::move(v));
    return &entries.back().second;
  }
  bool value(Json v) {
    place(std::move(v));
    return true;
  }
  void open(Json empty) {
    if (static_cast<int>(stack_.size()) >= limits_.depth)
      fail(fmt::format("nesting deeper than {}", limits_.depth));
    stack_.push_back(place(std::move(empty)));
  }

  std::string origin_;
  JsonLimits limits_;
  Json root_;
  std::vector<Json*> stack_;
  std::vector<std::unordered_set<std::string>> keys_;
  std::string pending_key_;
};

}  // namespace

nlohmann::ordered_json parse_json(std::string_view text, std::string_view origin,
                                  JsonLimits limits) {
  if (text.size() > limits.bytes)
    throw Error(ExitCode::bad_content,
                fmt::format("{} bytes of JSON, at most {} are read", text.size(), limits.bytes), {},
                {}, std::string(origin));
  // The library takes a zero byte for the end of the text.
  if (const auto zero = text.find('\0'); zero != std::string_view::npos)
    throw Error(ExitCode::bad_content, fmt::format("invalid JSON at byte {}: a zero byte", zero),
                {}, {}, std::string(origin));
  StrictHandler handler{std::string(origin), limits};
  Json::sax_parse(text.begin(), text.end(), &handler);
  return handler.take();
}

std::string json_text(const nlohmann::ordered_json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace espalier
