// What the watchdog ends besides the process: a sum over NCCL whose peer does not come, over a
// table of calls that needs no GPU. How it judges is in hang_judge_test.cpp, how whole runs end in
// tests/faults/test_fault_07_hang.py.
#include "espalier/pipeline/watchdog.h"

#include <unistd.h>

#include <cstdio>

#include <gtest/gtest.h>

#include "espalier/comm/nccl_reducer.h"
#include "espalier/core/pulse.h"
#include "support/nccl_fake.h"
#include "support/temporary_directory.h"

namespace espalier {
namespace {

constexpr double kHangTimeout = 0.3;

/// In a process of its own, since that is what ends. `ends_with` is the last work.
void hang_in_a_sum(const std::filesystem::path& directory,
                   const std::function<void(TensorReducer&, const testing::FakeNccl&)>& ends_with) {
  pulse::enter("calibrate");
  Watchdog::prepare(directory);
  Watchdog watchdog(
      0, 1, {kHangTimeout, [](const Error& error) { std::fprintf(stderr, "%s\n", error.what()); }});
  const std::unique_ptr<Communicator> control = make_self_communicator();
  testing::FakeNccl fake(*control);
  fake.sums_hang = true;
  const std::unique_ptr<TensorReducer> reducer = nccl::make_reducer(
      nccl::join(fake.calls(), *control, {0, 0}, 2, {}, 0), *control, nccl::Wire::activations);
  const Watchdog::LastWork last_work(&watchdog, [&] { ends_with(*reducer, fake); });
  watchdog.watch(directory);
  float value = 1;
  reducer->all_reduce({&value, 1, DType::f32, Memory::device, nullptr}, ReduceOp::sum);
  try {
    reducer->check();
  } catch (const Error& error) {
    watchdog.give_way();
    std::fprintf(stderr, "the main thread went on: %s\n", error.what());
  }
  ::_exit(1);
}

TEST(Watchdog, EndsASumThatHangsOnceAndTheProcessWith76) {
  const testing::TemporaryDirectory directory;
  EXPECT_EXIT(hang_in_a_sum(directory.path(),
                            [](TensorReducer& reducer, const testing::FakeNccl& fake) {
                              reducer.abort(ExitCode::peer_lost);
                              // The main thread, whose wait is over, must not get on.
                              ::usleep(200000);
                              std::fprintf(stderr, "aborted %d, misused %d\n", fake.aborted.load(),
                                           fake.misused.load());
                            }),
              ::testing::ExitedWithCode(76),
              "the run hangs in phase 'calibrate'.*aborted 1, misused 0\n$");
}

TEST(Watchdog, LastWorkThatHangsKeepsNobody) {
  const testing::TemporaryDirectory directory;
  EXPECT_EXIT(hang_in_a_sum(directory.path(),
                            [](TensorReducer&, const testing::FakeNccl&) {
                              std::fprintf(stderr, "the last work hangs\n");
                              for (;;) ::pause();
                            }),
              ::testing::ExitedWithCode(76),
              "the run hangs in phase 'calibrate'.*the last work hangs\n$");
}

TEST(Watchdog, LastWorkOfNobodyIsNothing) {
  const Watchdog::LastWork work(nullptr, [] { FAIL(); });
  const Watchdog watchdog(0, 1, {});
  watchdog.give_way();  // returns where nothing ends
}

}  // namespace
}  // namespace espalier
