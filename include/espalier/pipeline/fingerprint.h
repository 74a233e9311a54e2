#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/comm/agreement.h"

namespace espalier {

/// What is known about the content of one input file. The quick facts are always there; the hash of
/// the whole content where it was computed.
struct Fingerprint {
  /// Where the file was; says nothing about its content.
  std::string path;
  /// Size.
  std::int64_t bytes = 0;
  /// Time of the last change, nanoseconds since 1970.
  std::int64_t modified_ns = 0;
  /// Of the first MiB: all of a small file, the header of a large one.
  std::string head_sha256;
  /// SHA-256 over the SHA-256 digits of the file's blocks of 64 MiB, so that ranks can share one
  /// file; empty = not computed.
  std::string content_sha256;

  /// A file of at most 1 MiB is known whole by its head.
  bool knows_content() const { return !content_sha256.empty() || bytes <= kHeadBytes; }
  static constexpr std::int64_t kHeadBytes = std::int64_t{1} << 20;
};

/// Files by the part they play: "model/config.json", "model/<shard>", "calibration/<domain>",
/// "evaluation/<name>". A file that moved keeps its part.
using Inputs = std::map<std::string, Fingerprint>;
using InputFiles = std::map<std::string, std::filesystem::path>;

/// Size, time and head of one file. Throws Error as read_file does.
Fingerprint quick_fingerprint(const std::filesystem::path& file);

/// Fills content_sha256 of the named inputs. The blocks of all files are dealt to the ranks in
/// turn, so every rank reads its share of the bytes only. Collective over `world`; the same result
/// on every rank.
void hash_contents(Inputs& inputs, const std::vector<std::string>& names, Communicator& world,
                   const RoundHooks& hooks);

/// How two fingerprints of one input compare.
enum class Likeness {
  /// The whole contents agree.
  same_content,
  /// Size, time and head agree; a content is not known on both sides.
  same_facts,
  /// Size and head agree, the time does not, and a content is not known on both sides.
  undecided,
  changed
};
Likeness compare(const Fingerprint& before, const Fingerprint& now);

/// What a comparison of inputs with an earlier record came to.
struct InputCheck {
  /// Of now; a content that the earlier record knew is kept where facts agree.
  Inputs record;
  /// A weight or a calibration file that is another one (bad_content).
  Problems problems;
  /// Evaluation data that is another one; what could not be compared.
  std::vector<std::string> notes;
  /// "12 files by content", "11 files by size, time and head, 1 by content"; empty = no record.
  std::string how;
};

/// How much is read: `content` hashes every file; `facts` only those whose time differs from the
/// record's although size and head agree.
enum class Thoroughness { facts, content };

/// Fingerprints `files` and compares them with `before` (empty = nothing to compare with). A model
/// file must be the same whatever path it has now; a calibration file too, unless `may_differ`
/// holds its part's first word; evaluation files may differ, with a note. Collective over `world`,
/// which every rank calls with the same arguments; the same result on every rank.
InputCheck check_inputs(const InputFiles& files, const Inputs& before, Thoroughness thoroughness,
                        const std::vector<std::string>& may_differ, Communicator& world,
                        const RoundHooks& hooks);

nlohmann::ordered_json to_json(const Inputs& inputs);
/// Throws Error(bad_content) naming what is missing; `origin` names the file.
Inputs inputs_from_json(const nlohmann::ordered_json& json, const std::string& origin);

}  // namespace espalier
