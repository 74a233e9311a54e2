#include "yaml_reader.h"

#include <optional>
#include <sstream>
#include <unordered_set>

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include "espalier/core/error.h"
#include "text_file.h"

namespace espalier::config_detail {
namespace {

/// Names places in messages: by position in a file, or by the option a value was given with.
class Places {
 public:
  Places(std::string name, bool is_file) : name_(std::move(name)), is_file_(is_file) {}

  std::string where(int line, int column) const {
    return is_file_ ? fmt::format("{}:{}:{}", name_, line + 1, column + 1) : name_;
  }
  std::string where(const YAML::Mark& mark) const {
    return mark.is_null() ? name_ : where(mark.line, mark.column);
  }
  std::string origin(const YAML::Mark& mark) const {
    return is_file_ ? fmt::format("{}:{}", name_, mark.line + 1) : "--set";
  }
  const std::string& name() const { return name_; }

 private:
  std::string name_;
  bool is_file_;
};

[[noreturn]] void refuse(std::string what, std::string why, std::string remedy, std::string where) {
  throw Error(ExitCode::config, std::move(what), std::move(why), std::move(remedy),
              std::move(where));
}

/// Builds the tree from the parser's events and stops at the first thing that a configuration has
/// no business holding. yaml-cpp itself would accept all of it, and explode when it is walked.
class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const Places& places) : places_(places) {}

  /// The tree. Throws the problem that was put off, if there is one.
  YamlNode take() {
    if (key_problem_) throw Error({*key_problem_});
    return std::move(root_);
  }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0)
      refuse("a second document", "one file holds one configuration", "Remove what follows '---'.",
             places_.where(mark));
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    // The mark of an empty value is that of whatever comes next: the key says better where it is
    // missing.
    const bool keyed = !open_.empty() && open_.back().has_key;
    YamlNode node = start(mark, "?", anchor);
    if (skips_after_bad_key(mark)) return;
    if (keyed) node.where = open_.back().key_where, node.origin = open_.back().key_origin;
    attach(std::move(node));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    refuse("an alias", "anchors and aliases are not read", "Write the value out.",
           places_.where(mark));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode node = start(mark, tag, anchor);
    if (key_problem_) return;
    if (expects_key()) return set_key(mark, value);
    node.kind = YamlNode::Kind::scalar;
    node.text = value;
    node.quoted = tag == "!";
    attach(std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::list);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::map);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Open {
    YamlNode node;
    bool has_key = false;
    std::string key, key_where, key_origin;
    std::unordered_set<std::string> keys;
  };

  bool expects_key() const {
    return !open_.empty() && open_.back().node.kind == YamlNode::Kind::map && !open_.back().has_key;
  }

  YamlNode start(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    const std::string where = places_.where(mark);
    if (anchor != YAML::NullAnchor)
      refuse("an anchor", "anchors and aliases are not read", "Write the value out.", where);
    if (!tag.empty() && tag != "?" && tag != "!")
      refuse(fmt::format("the tag '{}'", printable(tag)), "tags are not read", "Remove it.", where);
    if (++nodes_ > kYamlNodes)
      refuse(fmt::format("more than {} values", kYamlNodes), "far more than a configuration holds",
             {}, where);
    YamlNode node;
    node.where = where;
    node.origin = places_.origin(mark);
    return node;
  }

  void set_key(const YAML::Mark& mark, const std::string& key) {
    Open& map = open_.back();
    if (!map.keys.insert(key).second)
      refuse(fmt::format("duplicate key '{}'", printable(key)), {}, "Keep one of them.",
             places_.where(mark));
    map.has_key = true;
    map.key = key;
    map.key_where = places_.where(mark);
    map.key_origin = places_.origin(mark);
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            YamlNode::Kind kind) {
    YamlNode node = start(mark, tag, anchor);
    if (++depth_ > kYamlDepth)
      refuse(fmt::format("nesting deeper than {}", kYamlDepth), "no key lies that deep", {},
             node.where);
    if (skips_after_bad_key(mark)) return;
    node.kind = kind;
    open_.emplace_back().node = std::move(node);
  }

  /// A list or nothing where a key belongs. An unclosed bracket looks like that too until the
  /// parser comes to the end, and its own words are then better: the problem waits, and nothing
  /// more is built.
  bool skips_after_bad_key(const YAML::Mark& mark) {
    if (!key_problem_ && expects_key())
      key_problem_ = {ExitCode::config,
                      "a key that is not a name",
                      {},
                      "Write `name: value`.",
                      places_.where(mark)};
    return key_problem_.has_value();
  }

  void close() {
    --depth_;
    if (key_problem_) return;
    YamlNode node = std::move(open_.back().node);
    open_.pop_back();
    attach(std::move(node));
  }

  void attach(YamlNode node) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Open& parent = open_.back();
    if (parent.node.kind == YamlNode::Kind::list) {
      parent.node.items.push_back(std::move(node));
      return;
    }
    parent.node.entries.push_back(
        {std::move(parent.key), std::move(parent.key_where), std::move(node)});
    parent.has_key = false;
  }

  const Places& places_;
  YamlNode root_;
  std::vector<Open> open_;
  std::optional<Problem> key_problem_;
  std::size_t nodes_ = 0;
  std::size_t depth_ = 0;
  int documents_ = 0;
};

/// Line and column of a byte, counted as the parser counts them for plain text.
std::string where_of_byte(std::string_view text, std::size_t at, const Places& places) {
  int line = 0;
  std::size_t start = 0;
  for (std::size_t i = 0; i < at; ++i)
    if (text[i] == '\n') {
      ++line;
      start = i + 1;
    }
  return places.where(line, static_cast<int>(at - start));
}

void refuse_bad_bytes(std::string_view text, const Places& places) {
  if (text.size() > kYamlBytes)
    refuse(fmt::format("{} bytes of YAML", text.size()),
           fmt::format("at most {} are read", kYamlBytes), {}, places.name());
  const std::size_t invalid = first_invalid_utf8(text);
  if (invalid != std::string_view::npos)
    refuse(
        fmt::format("byte 0x{:02x} is not valid UTF-8", static_cast<unsigned char>(text[invalid])),
        {}, "Save the file as UTF-8.", where_of_byte(text, invalid, places));
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if ((byte < 0x20 && byte != '\n' && byte != '\r' && byte != '\t') || byte == 0x7F)
      refuse(fmt::format("control character 0x{:02x}", byte), {}, "Remove it.",
             where_of_byte(text, i, places));
  }
}

YamlNode parse(std::string_view text, const Places& places) {
  refuse_bad_bytes(text, places);
  TreeBuilder builder(places);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& e) {
    refuse(fmt::format("invalid YAML: {}", printable(e.msg, 200)), {}, {}, places.where(e.mark));
  }
  return builder.take();
}

}  // namespace

YamlNode* YamlNode::find(std::string_view key) {
  for (Entry& entry : entries)
    if (entry.key == key) return &entry.value;
  return nullptr;
}

std::string YamlNode::shown() const {
  switch (kind) {
    case Kind::null:
      return "(nothing)";
    case Kind::list:
      return fmt::format("a list of {}", items.size());
    case Kind::map:
      return "a map";
    case Kind::scalar:
      break;
  }
  return quoted ? fmt::format("\"{}\"", printable(text)) : printable(text);
}

YamlNode parse_yaml(std::string_view text, const std::string& file) {
  return parse(text, Places(file, true));
}

YamlNode parse_yaml_value(std::string_view text, const std::string& label) {
  return parse(text, Places(label, false));
}

}  // namespace espalier::config_detail
