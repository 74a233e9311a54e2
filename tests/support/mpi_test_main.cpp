// The main of all tests that run on several ranks. Every rank runs every test; a failure is printed
// by the rank that saw it, at once; after each test the ranks agree on its verdict; all ranks end
// with the same code: 0 passed, 1 failed or nothing ran, 77 every test was skipped on every rank.
//
// In tests: EXPECT_* around collectives, ASSERT_* only before the first one. A rank that leaves a
// test early lets the others wait, which ends in the test's time limit.
#include "support/mpi_test_main.h"

#include <cstdio>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "espalier/core/error.h"

namespace espalier::testing {
namespace {

std::unique_ptr<CommRuntime> the_runtime;
std::unique_ptr<RankGroup> the_group;

/// One write per message, so that lines of different ranks do not mix.
void print(std::FILE* stream, const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stream);
  std::fflush(stream);
}

class RankListener final : public ::testing::EmptyTestEventListener {
 public:
  /// `verdicts` is a communicator of its own, so that the counters of world() belong to the tests.
  explicit RankListener(Communicator& verdicts) : verdicts_(verdicts) {}

  int exit_code(int result) {
    std::vector<std::int64_t> failed{result != 0 || failed_ > 0 ? 1 : 0};
    verdicts_.all_reduce_sum(std::span<std::int64_t>(failed));
    const int ran = passed_ + failed_ + skipped_;
    if (verdicts_.rank() == 0) print_summary(ran, failed[0] > 0);
    if (failed[0] > 0 || ran == 0) return 1;
    return skipped_ == ran ? 77 : 0;
  }

  void OnTestStart(const ::testing::TestInfo& test) override {
    if (verdicts_.rank() == 0) print(stdout, "[ RUN      ] " + name_of(test) + "\n");
  }

  // No collective here: it is called in the middle of a test, on one rank only.
  void OnTestPartResult(const ::testing::TestPartResult& part) override {
    if (part.passed()) return;
    if (part.skipped() && verdicts_.rank() != 0) return;
    std::ostringstream text;
    text << "[rank " << verdicts_.rank() << "] "
         << (part.file_name() != nullptr ? part.file_name() : "unknown file") << ":"
         << part.line_number() << ": " << (part.skipped() ? "Skipped" : "Failure") << "\n"
         << part.message() << "\n";
    print(part.skipped() ? stdout : stderr, text.str());
  }

  void OnTestEnd(const ::testing::TestInfo& test) override {
    const ::testing::TestResult& result = *test.result();
    std::vector<std::int64_t> votes{result.Failed() ? 1 : 0, result.Skipped() ? 1 : 0};
    verdicts_.all_reduce_sum(std::span<std::int64_t>(votes));
    const std::int64_t ranks = verdicts_.size();
    const bool uneven = votes[1] > 0 && votes[1] < ranks;
    std::string verdict;
    if (votes[0] > 0 || uneven) {
      ++failed_;
      verdict = "[  FAILED  ] " + name_of(test) + " on " + std::to_string(votes[0]) + " of " +
                std::to_string(ranks) + " ranks";
      if (uneven) verdict += ", skipped on " + std::to_string(votes[1]);
    } else if (votes[1] == ranks) {
      ++skipped_;
      verdict = "[  SKIPPED ] " + name_of(test);
    } else {
      ++passed_;
      verdict = "[       OK ] " + name_of(test);
    }
    verdict += " (" + std::to_string(result.elapsed_time()) + " ms)\n";
    if (verdicts_.rank() == 0) print(stdout, verdict);
  }

 private:
  static std::string name_of(const ::testing::TestInfo& test) {
    return std::string(test.test_suite_name()) + "." + test.name();
  }

  void print_summary(int ran, bool failed) const {
    std::ostringstream text;
    text << "[==========] " << ran << " tests on " << verdicts_.size() << " ranks: " << passed_
         << " passed, " << failed_ << " failed, " << skipped_ << " skipped\n";
    if (ran == 0) text << "[  FAILED  ] no test ran\n";
    if (failed && failed_ == 0) text << "[  FAILED  ] outside of the tests, see above\n";
    print(stdout, text.str());
  }

  Communicator& verdicts_;
  int passed_ = 0;
  int failed_ = 0;
  int skipped_ = 0;
};

int run_all() {
  const std::unique_ptr<Communicator> verdicts = world().split(0, world().rank());
  the_group = std::make_unique<RankGroup>(world().split(0, world().rank()));
  world().reset_counters();
  ::testing::TestEventListeners& listeners = ::testing::UnitTest::GetInstance()->listeners();
  delete listeners.Release(listeners.default_result_printer());
  RankListener listener(*verdicts);
  listeners.Append(&listener);
  const int result = RUN_ALL_TESTS();
  listeners.Release(&listener);
  the_group.reset();
  return listener.exit_code(result);
}

}  // namespace

Communicator& world() { return the_runtime->world(); }

RankGroup& world_group() { return *the_group; }

CommRuntime& runtime() { return *the_runtime; }

}  // namespace espalier::testing

/// Read by the address sanitizer, where there is one: MPI's plugins are unloaded with memory they
/// still hold, which nobody can tell from leaks of ours. The tests of one process do look for
/// leaks. Memory that cannot be had is an error to be caught, as it is without the sanitizer.
extern "C" const char* __asan_default_options() {
  return "detect_leaks=0:allocator_may_return_null=1";
}

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  try {
    espalier::testing::the_runtime = std::make_unique<espalier::CommRuntime>();
    const int code = espalier::testing::run_all();
    espalier::testing::the_runtime->finish();
    return code;
  } catch (const espalier::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    if (espalier::testing::the_runtime) espalier::testing::the_runtime->abort(1);
    return static_cast<int>(error.code());
  }
}
