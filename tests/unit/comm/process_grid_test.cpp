#include "espalier/comm/process_grid.h"

#include <new>
#include <stdexcept>

#include <gtest/gtest.h>

#include "support/mpi_test_main.h"

namespace espalier {
namespace {

TEST(ProcessGrid, EveryDivisorGivesNeighboursOneTensorGroup) {
  Communicator& world = testing::world();
  for (int tensor = 1; tensor <= world.size(); ++tensor) {
    if (world.size() % tensor != 0) continue;
    const ProcessGrid grid(world, tensor);
    EXPECT_EQ(grid.tensor_size(), tensor);
    EXPECT_EQ(grid.data_size(), world.size() / tensor);
    EXPECT_EQ(grid.data_index() * tensor + grid.tensor_index(), world.rank());
    EXPECT_EQ(grid.is_root(), world.rank() == 0);
    const std::vector<std::int32_t> mine{world.rank()};
    const auto in_tensor = grid.tensor().control().gather(std::span<const std::int32_t>(mine));
    const auto in_data = grid.data().control().gather(std::span<const std::int32_t>(mine));
    for (int t = 0; t < tensor; ++t) {
      EXPECT_EQ(in_tensor.at(static_cast<std::size_t>(t)), grid.data_index() * tensor + t);
    }
    for (int d = 0; d < grid.data_size(); ++d) {
      EXPECT_EQ(in_data.at(static_cast<std::size_t>(d)), d * tensor + grid.tensor_index());
    }
  }
}

std::string refusal(int tensor) {
  try {
    const ProcessGrid grid(testing::world(), tensor);
  } catch (const AgreedError& error) {
    EXPECT_EQ(error.code(), ExitCode::unsuitable);
    return error.what();
  }
  return "accepted";
}

TEST(ProcessGrid, UnsuitableCountsNameThoseThatWork) {
  switch (testing::world().size()) {
    case 1:
      EXPECT_EQ(refusal(3),
                "parallel.tensor = 3 with 1 rank (ranks must be a multiple of tensor). "
                "Use --tensor 1, or start 3 ranks");
      break;
    case 4:
      EXPECT_EQ(refusal(3),
                "parallel.tensor = 3 with 4 ranks (ranks must be a multiple of tensor). "
                "Use --tensor 1, 2, 4, or start 3 or 6 ranks");
      break;
    default:
      EXPECT_NE(refusal(3), "accepted");
      break;
  }
  EXPECT_NE(refusal(0).find("at least 1 is needed"), std::string::npos);
  EXPECT_NE(refusal(-2).find("parallel.tensor = -2"), std::string::npos);
}

/// What `together` throws on this rank, "" when it throws nothing.
struct Outcome {
  ExitCode code = ExitCode::ok;
  std::string text;
};

Outcome outcome_of(const std::function<void()>& work) {
  try {
    together(testing::world(), "load", work);
  } catch (const AgreedError& error) {
    return {error.code(), error.what()};
  }
  return {};
}

void expect_equal_on_all_ranks(const std::string& text) {
  for (const std::string& other : testing::world().gather_text(text)) EXPECT_EQ(other, text);
}

TEST(Together, NothingHappensWhenAllIsWell) {
  int calls = 0;
  const Outcome outcome = outcome_of([&] { ++calls; });
  EXPECT_EQ(outcome.code, ExitCode::ok) << outcome.text;
  EXPECT_EQ(calls, 1);
}

TEST(Together, OneRanksErrorIsEverybodys) {
  Communicator& world = testing::world();
  const int thrower = world.size() - 1;
  const Outcome outcome = outcome_of([&] {
    if (world.rank() == thrower) {
      throw Error(ExitCode::bad_content, "NaN in layer 3", "weights must be finite",
                  "Check the file", "model.safetensors");
    }
  });
  EXPECT_EQ(outcome.code, ExitCode::bad_content);
  if (world.size() == 1) {
    EXPECT_EQ(outcome.text,
              "model.safetensors: NaN in layer 3 (weights must be finite). Check the file");
  } else {
    EXPECT_EQ(outcome.text, "rank " + std::to_string(thrower) +
                                ", phase load, model.safetensors: NaN in layer 3 "
                                "(weights must be finite). Check the file");
  }
  expect_equal_on_all_ranks(outcome.text);
}

TEST(Together, DifferentProblemsAreAllListedWithTheLowestCode) {
  Communicator& world = testing::world();
  if (world.size() == 1) GTEST_SKIP() << "needs several ranks";
  const Outcome outcome = outcome_of([&] {
    if (world.rank() == 0) throw Error(ExitCode::config, "bad key");
    if (world.rank() == 1) throw Error(ExitCode::missing_input, "no file \xff");
  });
  EXPECT_EQ(outcome.code, ExitCode::missing_input);
  EXPECT_EQ(outcome.text, "rank 0, phase load: bad key\nrank 1, phase load: no file \xff");
  expect_equal_on_all_ranks(outcome.text);
}

TEST(Together, OneProblemOfAllRanksIsSaidOnce) {
  const Outcome outcome = outcome_of([] { throw Error(ExitCode::config, "bad key"); });
  EXPECT_EQ(outcome.text, "bad key");
}

TEST(Together, ForeignExceptionsBecomeErrors) {
  const Outcome standard = outcome_of([] { throw std::runtime_error("odd"); });
  EXPECT_EQ(standard.code, ExitCode::internal);
  EXPECT_NE(standard.text.find("odd (unexpected)"), std::string::npos) << standard.text;
  const Outcome memory = outcome_of([] { throw std::bad_alloc(); });
  EXPECT_EQ(memory.code, ExitCode::unsuitable);
  EXPECT_NE(memory.text.find("memory ran out"), std::string::npos) << memory.text;
  EXPECT_EQ(outcome_of([] { throw 7; }).code, ExitCode::internal);
}

}  // namespace
}  // namespace espalier
