#include "espalier/calib/rounds.h"

#include <algorithm>
#include <array>

#include "espalier/core/stop.h"

namespace espalier {

void agree_to_continue(Communicator& world, const std::string& phase,
                       std::vector<Problem>& problems, const RoundHooks& hooks) {
  if (hooks.poll) hooks.poll();
  std::array<std::int64_t, 2> flags{problems.empty() ? 0 : 1, stop::requests()};
  world.all_reduce({flags.data(), flags.size(), DType::i64}, ReduceOp::max);
  if (flags[0] != 0) {
    together(world, phase, [&] {
      if (!problems.empty()) throw Error(problems);
    });
  }
  if (flags[1] != 0) throw stop::Stopped(static_cast<int>(flags[1]));
}

void deal_rounds(const ProcessGrid& grid, const std::string& phase, std::int64_t count,
                 std::int64_t& done, const std::function<void(std::int64_t micro_batch)>& read,
                 const std::function<void()>& compute, const RoundHooks& hooks) {
  std::vector<Problem> problems;
  const auto collect = [&](const Error& error) {
    problems.insert(problems.end(), error.problems().begin(), error.problems().end());
  };
  for (; done < count; done = std::min(done + grid.data_size(), count)) {
    const std::int64_t mine = done + grid.data_index();
    const bool busy = mine < count && problems.empty();
    try {
      if (busy) read(mine);
    } catch (const Error& error) {
      collect(error);
    }
    agree_to_continue(grid.world(), phase, problems, hooks);
    if (hooks.progress) hooks.progress(done, count);
    if (!busy) continue;
    try {
      compute();
    } catch (const AgreedError& error) {
      collect(error);  // told to the other tensor groups in the next round
    } catch (const Error& error) {
      if (grid.tensor_size() > 1) throw;
      collect(error);
    }
  }
  agree_to_continue(grid.world(), phase, problems, hooks);
  if (hooks.progress) hooks.progress(count, count);
}

}  // namespace espalier
