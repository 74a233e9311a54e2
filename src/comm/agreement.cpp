#include "espalier/comm/agreement.h"

#include <array>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/pulse.h"
#include "espalier/core/stop.h"

namespace espalier {
namespace {

/// Problems as bytes. Not JSON: a message may quote bytes of a file that are no UTF-8.
class Encoder {
 public:
  void add(const Problem& problem) {
    add_number(static_cast<std::uint64_t>(problem.code));
    for (const std::string* text : {&problem.what, &problem.why, &problem.remedy, &problem.where}) {
      add_number(text->size());
      bytes_ += *text;
    }
  }
  std::string take() { return std::move(bytes_); }

 private:
  void add_number(std::uint64_t number) {
    bytes_.append(reinterpret_cast<const char*>(&number), sizeof(number));
  }

  std::string bytes_;
};

class Decoder {
 public:
  explicit Decoder(std::string_view bytes) : bytes_(bytes) {}
  bool at_end() const { return bytes_.empty(); }

  Problem next() {
    Problem problem;
    problem.code = static_cast<ExitCode>(number());
    for (std::string* text : {&problem.what, &problem.why, &problem.remedy, &problem.where}) {
      const std::uint64_t length = number();
      *text = bytes_.substr(0, length);
      bytes_.remove_prefix(length);
    }
    return problem;
  }

 private:
  std::uint64_t number() {
    std::uint64_t value = 0;
    std::memcpy(&value, bytes_.data(), sizeof(value));
    bytes_.remove_prefix(sizeof(value));
    return value;
  }

  std::string_view bytes_;
};

struct Reported {
  Problem problem;
  std::vector<int> ranks;
};

bool same(const Problem& a, const Problem& b) {
  return a.code == b.code && a.what == b.what && a.why == b.why && a.remedy == b.remedy &&
         a.where == b.where;
}

std::vector<Reported> distinct(const std::vector<std::string>& encoded) {
  std::vector<Reported> all;
  for (std::size_t rank = 0; rank < encoded.size(); ++rank) {
    for (Decoder decoder(encoded[rank]); !decoder.at_end();) {
      const Problem problem = decoder.next();
      Reported* known = nullptr;
      for (Reported& other : all) {
        if (same(other.problem, problem)) known = &other;
      }
      if (known == nullptr) known = &all.emplace_back(Reported{problem, {}});
      known->ranks.push_back(static_cast<int>(rank));
    }
  }
  return all;
}

/// What every rank meets alike (a typo in the configuration) reads as if one process had met it.
std::string place(const Reported& reported, int size, const std::string& phase) {
  const std::vector<int>& ranks = reported.ranks;
  if (static_cast<int>(ranks.size()) == size) return reported.problem.where;
  std::string text = ranks.size() == 1 ? fmt::format("rank {}", ranks[0])
                                       : fmt::format("ranks {}", fmt::join(ranks, ", "));
  const std::string in = "phase " + phase;
  text += ", " + in;
  if (!reported.problem.where.empty() && reported.problem.where != in)
    text += ", " + reported.problem.where;
  return text;
}

}  // namespace

void agree(Communicator& comm, const std::string& phase, const Problems& mine) {
  if (comm.size() == 1) {
    if (!mine.empty()) throw AgreedError(mine.list());
    return;
  }
  Encoder encoder;
  for (const Problem& problem : mine.list()) encoder.add(problem);
  std::vector<Problem> all;
  for (Reported& reported : distinct(comm.gather_text(encoder.take()))) {
    reported.problem.where = place(reported, comm.size(), phase);
    all.push_back(std::move(reported.problem));
  }
  if (!all.empty()) throw AgreedError(std::move(all));
}

void together(Communicator& comm, const std::string& phase,
              const std::function<void()>& local_work) {
  agree(comm, phase, problems_of(local_work));
}

void agree_to_continue(Communicator& world, const std::string& phase, const Problems& mine,
                       const RoundHooks& hooks) {
  if (hooks.poll) hooks.poll();
  std::array<std::int64_t, 2> flags{mine.empty() ? 0 : 1, hooks.heeds_stop ? stop::requests() : 0};
  world.all_reduce({flags.data(), flags.size(), DType::i64}, ReduceOp::max);
  if (flags[0] != 0) agree(world, phase, mine);
  if (flags[1] != 0) throw stop::Stopped(static_cast<int>(flags[1]));
}

void take_steps(Communicator& world, const std::string& phase, std::int64_t count,
                const std::function<void(std::int64_t step)>& work, const RoundHooks& hooks) {
  Problems problems;
  for (std::int64_t step = 0; step < count; ++step) {
    agree_to_continue(world, phase, problems, hooks);
    if (hooks.progress) hooks.progress(step, count);
    problems = problems_of([&] { work(step); });
    pulse::beat();
  }
  agree_to_continue(world, phase, problems, hooks);
  if (hooks.progress) hooks.progress(count, count);
}

}  // namespace espalier
