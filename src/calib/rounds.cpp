#include "espalier/calib/rounds.h"

#include <algorithm>

namespace espalier {
namespace {

/// Without peers in the tensor group no collective is cut short, and an exception can wait for the
/// next agreement like any other problem.
Problems computed(const ProcessGrid& grid, const std::function<Problems()>& compute) {
  Problems found;
  if (grid.tensor_size() > 1) {
    found = compute();
    grid.tensor().reducer().check();
  } else {
    found.add(problems_of([&] { found.add(compute()); }));
  }
  return found;
}

}  // namespace

void deal_rounds(const ProcessGrid& grid, const std::string& phase, std::int64_t count,
                 std::int64_t& done, const std::function<void(std::int64_t micro_batch)>& read,
                 const std::function<Problems()>& compute, const RoundHooks& hooks) {
  Problems problems;
  for (; done < count; done = std::min(done + grid.data_size(), count)) {
    const std::int64_t mine = done + grid.data_index();
    const bool busy = mine < count && problems.empty();
    if (busy) problems = problems_of([&] { read(mine); });
    agree_to_continue(grid.world(), phase, problems, hooks);
    if (hooks.progress) hooks.progress(done, count);
    if (busy) problems = computed(grid, compute);
  }
  agree_to_continue(grid.world(), phase, problems, hooks);
  if (hooks.progress) hooks.progress(count, count);
}

}  // namespace espalier
