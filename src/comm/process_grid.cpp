#include "espalier/comm/process_grid.h"

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace espalier {
namespace {

std::vector<int> divisors(int number) {
  std::vector<int> result;
  for (int d = 1; d <= number; ++d) {
    if (number % d == 0) result.push_back(d);
  }
  return result;
}

/// Every rank sees the same numbers, so all throw together.
void require_grid(int ranks, int tensor) {
  const std::string works = fmt::format("{}", fmt::join(divisors(ranks), ", "));
  if (tensor < 1) {
    throw AgreedError(ExitCode::unsuitable, fmt::format("parallel.tensor = {}", tensor),
                      "at least 1 is needed",
                      fmt::format("With {} ranks --tensor {} works", ranks, works));
  }
  if (ranks % tensor == 0) return;
  const int fewer = ranks / tensor * tensor;
  const std::string counts =
      fewer > 0 ? fmt::format("{} or {}", fewer, fewer + tensor) : fmt::format("{}", tensor);
  throw AgreedError(ExitCode::unsuitable,
                    fmt::format("parallel.tensor = {} with {} ranks", tensor, ranks),
                    "ranks must be a multiple of tensor",
                    fmt::format("Use --tensor {}, or start {} ranks", works, counts));
}

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

/// Runs the work and returns what went wrong, in whatever form it was thrown.
std::vector<Problem> problems_of(const std::string& phase, const std::function<void()>& work) {
  try {
    work();
    return {};
  } catch (const Error& error) {
    return error.problems();
  } catch (const std::bad_alloc&) {
    return {{ExitCode::unsuitable, "memory ran out", fmt::format("in phase {}", phase),
             "Lower calibration.micro_batch_tokens or use more ranks", ""}};
  } catch (const std::exception& error) {
    return {
        {ExitCode::internal, error.what(), fmt::format("unexpected in phase {}", phase), "", ""}};
  } catch (...) {
    return {{ExitCode::internal, "an exception of an unknown type",
             fmt::format("in phase {}", phase), "", ""}};
  }
}

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
  text += ", phase " + phase;
  if (!reported.problem.where.empty()) text += ", " + reported.problem.where;
  return text;
}

}  // namespace

ProcessGrid::ProcessGrid(Communicator& world, int tensor) : world_(&world) {
  require_grid(world.size(), tensor);
  tensor_ = world.split(world.rank() / tensor, world.rank());
  data_ = world.split(world.rank() % tensor, world.rank());
}

void together(Communicator& comm, const std::string& phase,
              const std::function<void()>& local_work) {
  std::vector<Problem> mine = problems_of(phase, local_work);
  if (comm.size() == 1) {
    if (!mine.empty()) throw AgreedError(std::move(mine));
    return;
  }
  Encoder encoder;
  for (const Problem& problem : mine) encoder.add(problem);
  std::vector<Problem> all;
  for (Reported& reported : distinct(comm.gather_text(encoder.take()))) {
    reported.problem.where = place(reported, comm.size(), phase);
    all.push_back(std::move(reported.problem));
  }
  if (!all.empty()) throw AgreedError(std::move(all));
}

}  // namespace espalier
