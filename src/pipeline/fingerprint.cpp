#include "espalier/pipeline/fingerprint.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/core/json.h"
#include "espalier/core/text.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::int64_t kBlockBytes = std::int64_t{64} << 20;
constexpr std::size_t kDigits = 64;  // of a SHA-256

/// One block of one file, to be hashed by one rank.
struct Block {
  const std::string* name;
  fs::path file;
  std::int64_t begin = 0;
  std::int64_t bytes = 0;
};

std::vector<Block> blocks_of(const Inputs& inputs, const std::vector<std::string>& names) {
  std::vector<Block> blocks;
  for (const std::string& name : names) {
    const Fingerprint& print = inputs.at(name);
    for (std::int64_t at = 0; at < print.bytes; at += kBlockBytes)
      blocks.push_back({&name, print.path, at, std::min(kBlockBytes, print.bytes - at)});
  }
  return blocks;
}

std::string first_word(const std::string& name) { return name.substr(0, name.find('/')); }

bool is_evaluation(const std::string& name) { return first_word(name) == "evaluation"; }

/// Names whose content has to be read before they can be compared.
std::vector<std::string> names_to_hash(const Inputs& now, const Inputs& before,
                                       Thoroughness thoroughness) {
  std::vector<std::string> names;
  for (const auto& [name, print] : now) {
    const auto earlier = before.find(name);
    const bool decides = earlier != before.end() && !earlier->second.content_sha256.empty() &&
                         compare(earlier->second, print) == Likeness::undecided;
    if (thoroughness == Thoroughness::content || decides) names.push_back(name);
  }
  return names;
}

std::string time_text(std::int64_t nanoseconds) {
  return fmt::format("@{}.{:09}", nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000);
}

/// What of two fingerprints differs, in words.
std::string difference(const Fingerprint& before, const Fingerprint& now) {
  if (before.bytes != now.bytes)
    return fmt::format("it had {} bytes and has {}", before.bytes, now.bytes);
  if (before.head_sha256 != now.head_sha256)
    return fmt::format("the SHA-256 of its first MiB was {} and is {}", before.head_sha256,
                       now.head_sha256);
  if (before.modified_ns != now.modified_ns && !now.knows_content())
    return fmt::format("it was changed at {} and later at {}, and its content was never hashed",
                       time_text(before.modified_ns), time_text(now.modified_ns));
  return fmt::format("its content's hash was {} and is {}", before.content_sha256,
                     now.content_sha256);
}

Problem changed_input(const std::string& name, const Fingerprint& before, const Fingerprint& now,
                      Likeness likeness) {
  const std::string moved =
      before.path == now.path ? "" : fmt::format("; the run began with {}", before.path);
  if (likeness == Likeness::undecided)
    return {ExitCode::bad_content,
            fmt::format("{} may be another file than the run began with", name),
            difference(before, now) + moved,
            fmt::format("If it is the same file, give it its time back: touch -d '{}' FILE.",
                        time_text(before.modified_ns)),
            now.path};
  const bool is_model = first_word(name) == "model";
  return {ExitCode::bad_content, fmt::format("{} is another file than the run began with", name),
          difference(before, now) + moved,
          is_model ? "Restore the file, or start a new run: the plan of this run belongs to the "
                     "weights it began with."
                   : "Restore the file, start a new run, or accept other calibration data with "
                     "--allow-change calibration.domains.",
          now.path};
}

/// Counts per way of comparing, in words.
std::string how_text(std::int64_t by_content, std::int64_t by_facts) {
  const auto part = [](std::int64_t count, const char* way) {
    return fmt::format("{} {} {}", count, count == 1 ? "file" : "files", way);
  };
  std::string text = by_content > 0 ? part(by_content, "by content") : "";
  if (by_facts > 0)
    text += (text.empty() ? "" : ", ") + part(by_facts, "by size, time and first MiB");
  return text;
}

}  // namespace

Fingerprint quick_fingerprint(const fs::path& file) {
  Fingerprint print;
  print.path = file.string();
  print.head_sha256 = sha256_of_block(file, 0, Fingerprint::kHeadBytes);
  struct stat facts {};
  if (::stat(file.c_str(), &facts) != 0)
    throw Error(code_of_errno(errno), "the file is gone", std::strerror(errno),
                "Do not change inputs while they are used.", file.string());
  print.bytes = facts.st_size;
  print.modified_ns =
      static_cast<std::int64_t>(facts.st_mtim.tv_sec) * 1'000'000'000 + facts.st_mtim.tv_nsec;
  return print;
}

void hash_contents(Inputs& inputs, const std::vector<std::string>& names, Communicator& world,
                   const RoundHooks& hooks) {
  const std::vector<Block> blocks = blocks_of(inputs, names);
  const auto ranks = static_cast<std::size_t>(world.size());
  const auto rounds = static_cast<std::int64_t>((blocks.size() + ranks - 1) / ranks);
  std::string mine;  // digits of this rank's blocks, one after the other
  take_steps(
      world, "hash inputs", rounds,
      [&](std::int64_t round) {
        const std::size_t place =
            static_cast<std::size_t>(round) * ranks + static_cast<std::size_t>(world.rank());
        if (place >= blocks.size()) return;
        const Block& block = blocks[place];
        mine += sha256_of_block(block.file, block.begin, block.bytes);
      },
      hooks);
  const std::vector<std::string> digits = world.gather_text(mine);
  std::map<std::string, std::string> joined;
  for (const std::string& name : names) joined[name];
  for (std::size_t i = 0; i < blocks.size(); ++i)
    joined[*blocks[i].name] += digits[i % ranks].substr(i / ranks * kDigits, kDigits);
  for (const auto& [name, text] : joined)
    inputs.at(name).content_sha256 = sha256_hex(std::string_view(text));
}

Likeness compare(const Fingerprint& before, const Fingerprint& now) {
  if (before.bytes != now.bytes || before.head_sha256 != now.head_sha256) return Likeness::changed;
  if (before.bytes <= Fingerprint::kHeadBytes) return Likeness::same_content;
  if (!before.content_sha256.empty() && !now.content_sha256.empty())
    return before.content_sha256 == now.content_sha256 ? Likeness::same_content : Likeness::changed;
  return before.modified_ns == now.modified_ns ? Likeness::same_facts : Likeness::undecided;
}

InputCheck check_inputs(const InputFiles& files, const Inputs& before, Thoroughness thoroughness,
                        const std::vector<std::string>& may_differ, Communicator& world,
                        const RoundHooks& hooks) {
  InputCheck check;
  // Times may be seen differently by clients of one network file system: rank 0's view counts.
  std::string facts;
  together(world, "hash inputs", [&] {
    if (world.rank() != 0) return;
    Inputs quick;
    for (const auto& [name, file] : files) quick[name] = quick_fingerprint(file);
    facts = json_text(to_json(quick));
  });
  facts = world.broadcast_text(facts, 0);
  check.record = inputs_from_json(Json::parse(facts), "inputs");
  for (auto& [name, print] : check.record) print.path = files.at(name).string();
  hash_contents(check.record, names_to_hash(check.record, before, thoroughness), world, hooks);

  std::int64_t by_content = 0, by_facts = 0;
  for (auto& [name, now] : check.record) {
    const auto earlier = before.find(name);
    if (earlier == before.end()) {
      if (!before.empty() && first_word(name) == "model")
        check.problems.add(ExitCode::bad_content, fmt::format("{} is new", name),
                           "the model that the run began with had no such file",
                           "Restore the model directory, or start a new run.", now.path);
      continue;
    }
    const Likeness likeness = compare(earlier->second, now);
    if (likeness == Likeness::same_content || likeness == Likeness::same_facts) {
      ++(likeness == Likeness::same_content ? by_content : by_facts);
      if (now.content_sha256.empty()) now.content_sha256 = earlier->second.content_sha256;
    } else if (is_evaluation(name)) {
      check.notes.push_back(fmt::format(
          "{} is another file than before ({}): perplexities before and after do not compare", name,
          difference(earlier->second, now)));
    } else if (std::find(may_differ.begin(), may_differ.end(), first_word(name)) ==
               may_differ.end()) {
      check.problems.add(changed_input(name, earlier->second, now, likeness));
    }
  }
  for (const auto& [name, earlier] : before)
    if (first_word(name) == "model" && !check.record.contains(name))
      check.problems.add(ExitCode::bad_content, fmt::format("{} is missing", name),
                         "the model that the run began with had it",
                         "Restore the model directory, or start a new run.", earlier.path);
  check.how = how_text(by_content, by_facts);
  return check;
}

Json to_json(const Inputs& inputs) {
  Json all = Json::object();
  for (const auto& [name, print] : inputs) {
    Json& entry = all[name];
    entry = {{"path", utf8_text(print.path)},
             {"bytes", print.bytes},
             {"modified_ns", print.modified_ns},
             {"head_sha256", print.head_sha256}};
    if (!print.content_sha256.empty()) entry["content_sha256"] = print.content_sha256;
  }
  return all;
}

Inputs inputs_from_json(const Json& json, const std::string& origin) {
  const auto refuse = [&](const std::string& what) {
    throw Error(ExitCode::bad_content, "the record of inputs " + what,
                "this program writes path, bytes, modified_ns and head_sha256 of every file",
                "Continue the run with the version that began it; its provenance.json names it.",
                origin);
  };
  Inputs inputs;
  if (!json.is_object()) refuse("is no map");
  for (const auto& [name, entry] : json.items()) {
    if (!entry.is_object()) refuse("is of another version: " + name);
    Fingerprint& print = inputs[name];
    try {
      print.path = bytes_of_text(entry.at("path").get<std::string>());
      print.bytes = entry.at("bytes").get<std::int64_t>();
      print.modified_ns = entry.at("modified_ns").get<std::int64_t>();
      print.head_sha256 = entry.at("head_sha256").get<std::string>();
      print.content_sha256 = entry.value("content_sha256", "");
    } catch (const nlohmann::json::exception& error) {
      refuse(fmt::format("is incomplete: {} ({})", name, error.what()));
    }
  }
  return inputs;
}

}  // namespace espalier
