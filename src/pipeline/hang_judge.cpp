#include "espalier/pipeline/hang_judge.h"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "espalier/core/json.h"
#include "espalier/core/text.h"

namespace espalier {
namespace {

constexpr double kFloor = 60;
constexpr double kFirstTime = 300;
constexpr double kTimesSlowest = 5;

const char* word_of(pulse::Waiting waiting) {
  switch (waiting) {
    case pulse::Waiting::ranks:
      return "ranks";
    case pulse::Waiting::reader:
      return "reader";
    case pulse::Waiting::nothing:
      break;
  }
  return "nothing";
}

pulse::Waiting waiting_of(const std::string& word) {
  for (const pulse::Waiting waiting : {pulse::Waiting::ranks, pulse::Waiting::reader})
    if (word == word_of(waiting)) return waiting;
  return pulse::Waiting::nothing;
}

}  // namespace

std::string heartbeat_text(const Heartbeat& h) {
  return json_text(nlohmann::ordered_json{{"host", utf8_text(h.host)},
                                          {"pid", h.pid},
                                          {"phase", h.phase},
                                          {"signs", h.signs},
                                          {"beats", h.beats},
                                          {"waits_for", word_of(h.waiting)},
                                          {"deadline_seconds", h.deadline_seconds},
                                          {"hangs", h.hangs}});
}

std::optional<Heartbeat> heartbeat_from(std::string_view text) {
  const nlohmann::json line =
      nlohmann::json::parse(text.substr(0, text.find('\n')), nullptr, false);
  if (!line.is_object()) return std::nullopt;
  try {
    return Heartbeat{line.at("host"),
                     line.at("pid"),
                     line.at("phase"),
                     line.at("signs"),
                     line.at("beats"),
                     waiting_of(line.at("waits_for")),
                     line.at("deadline_seconds"),
                     line.at("hangs")};
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

double step_deadline(const pulse::Reading& reading, std::optional<double> fixed) {
  if (fixed) return *fixed;
  return std::max(reading.seen_before ? kFloor : kFirstTime,
                  kTimesSlowest * reading.slowest_seconds);
}

void HangJudge::see(int rank, std::optional<Heartbeat> heartbeat, double seconds) {
  Rank& seen = ranks_.at(static_cast<std::size_t>(rank));
  const bool writes = heartbeat && (!seen.last || heartbeat->signs != seen.last->signs);
  const bool works = heartbeat && (!seen.last || heartbeat->beats != seen.last->beats ||
                                   heartbeat->phase != seen.last->phase ||
                                   // Whoever reads the output is not the program's to blame.
                                   (heartbeat->waiting == pulse::Waiting::reader && writes));
  seen.silent = writes ? 0 : seen.silent + seconds;
  seen.idle = works ? 0 : seen.idle + seconds;
  if (heartbeat) seen.last = std::move(heartbeat);
}

void HangJudge::look_away(int self) {
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank)
    if (static_cast<int>(rank) != self) ranks_[rank] = {};
}

bool HangJudge::hangs(int self) const {
  const auto deadline = [&](const Rank& rank) {
    return rank.last ? rank.last->deadline_seconds : at(self).last->deadline_seconds;
  };
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
    const double share = static_cast<int>(rank) == self ? 1.0 : 0.75;
    if (ranks_[rank].idle < share * deadline(ranks_[rank])) return false;
  }
  return true;
}

HangJudge::Verdict HangJudge::verdict(double silent_seconds) const {
  Verdict verdict;
  const auto blame = [&](Verdict::Cause cause, auto&& is_guilty) {
    if (!verdict.ranks.empty()) return;
    verdict.cause = cause;
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank)
      if (is_guilty(ranks_[rank])) verdict.ranks.push_back(static_cast<int>(rank));
  };
  blame(Verdict::Cause::silent, [&](const Rank& r) { return r.silent >= silent_seconds; });
  blame(Verdict::Cause::works,
        [](const Rank& r) { return r.last && r.last->waiting != pulse::Waiting::ranks; });
  blame(Verdict::Cause::all_wait, [](const Rank&) { return true; });
  return verdict;
}

}  // namespace espalier
