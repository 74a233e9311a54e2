#include "espalier/comm/process_grid.h"

#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/text.h"

namespace espalier {
namespace {

std::vector<int> divisors(int number) {
  std::vector<int> result;
  for (int d = 1; d <= number; ++d) {
    if (number % d == 0) result.push_back(d);
  }
  return result;
}

void require_grid(int ranks, int tensor) {
  const std::string works = fmt::format("{}", fmt::join(divisors(ranks), ", "));
  if (tensor < 1) {
    throw Error(ExitCode::unsuitable, fmt::format("parallel.tensor = {}", tensor),
                "at least 1 is needed",
                fmt::format("With {} --tensor {} works", counted(ranks, "rank"), works));
  }
  if (ranks % tensor == 0) return;
  const int fewer = ranks / tensor * tensor;
  const std::string counts =
      fewer > 0 ? fmt::format("{} or {}", fewer, fewer + tensor) : fmt::format("{}", tensor);
  throw Error(ExitCode::unsuitable,
              fmt::format("parallel.tensor = {} with {}", tensor, counted(ranks, "rank")),
              "ranks must be a multiple of tensor",
              fmt::format("Use --tensor {}, or start {} ranks", works, counts));
}

}  // namespace

ProcessGrid::ProcessGrid(Communicator& world, int tensor) : world_(&world) {
  together(world, "layout", [&] { require_grid(world.size(), tensor); });
  tensor_ = std::make_unique<RankGroup>(world.split(world.rank() / tensor, world.rank()));
  data_ = std::make_unique<RankGroup>(world.split(world.rank() % tensor, world.rank()));
}

}  // namespace espalier
