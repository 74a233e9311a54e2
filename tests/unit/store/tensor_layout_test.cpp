#include "espalier/store/tensor_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>

#include "scratch.h"

namespace espalier {
namespace {

using test::error_of;

struct EvenCase {
  std::int64_t n;
  int count;
  std::vector<Range> parts;
};

TEST(EvenCut, Table) {
  const EvenCase cases[] = {
      {8, 1, {{0, 8}}},
      {8, 2, {{0, 4}, {4, 8}}},
      {7, 2, {{0, 4}, {4, 7}}},
      {11, 4, {{0, 3}, {3, 6}, {6, 9}, {9, 11}}},
      {5, 4, {{0, 2}, {2, 3}, {3, 4}, {4, 5}}},
      {2, 4, {{0, 1}, {1, 2}, {2, 2}, {2, 2}}},
      {0, 3, {{0, 0}, {0, 0}, {0, 0}}},
      {4, 4, {{0, 1}, {1, 2}, {2, 3}, {3, 4}}},
      {std::int64_t{1} << 40,
       2,
       {{0, std::int64_t{1} << 39}, {std::int64_t{1} << 39, std::int64_t{1} << 40}}},
  };
  for (const EvenCase& c : cases)
    for (int i = 0; i < c.count; ++i)
      EXPECT_EQ(even_cut(c.n, c.count, i), c.parts[static_cast<std::size_t>(i)])
          << c.n << " items, part " << i << " of " << c.count;
}

TEST(EvenCut, RefusesPartsThatDoNotExist) {
  error_of(ExitCode::internal, [] { even_cut(4, 2, 2); });
  error_of(ExitCode::internal, [] { even_cut(4, 2, -1); });
  error_of(ExitCode::internal, [] { even_cut(4, 0, 0); });
  error_of(ExitCode::internal, [] { even_cut(-1, 2, 0); });
}

struct BalancedCase {
  std::vector<std::int64_t> weights;
  int count;
  std::vector<Range> parts;
};

TEST(BalancedCut, Table) {
  const BalancedCase cases[] = {
      {{1, 1, 1, 1}, 2, {{0, 2}, {2, 4}}},
      {{1, 1, 1}, 2, {{0, 2}, {2, 3}}},
      {{4, 1, 1}, 2, {{0, 1}, {1, 3}}},
      {{1, 1, 4}, 2, {{0, 2}, {2, 3}}},
      {{2, 3, 4, 1}, 3, {{0, 2}, {2, 4}, {4, 4}}},
      {{5}, 3, {{0, 1}, {1, 1}, {1, 1}}},
      {{}, 2, {{0, 0}, {0, 0}}},
      {{0, 0, 3}, 2, {{0, 3}, {3, 3}}},
      {{7, 0, 0}, 1, {{0, 3}}},
  };
  for (const BalancedCase& c : cases)
    EXPECT_EQ(balanced_cut(c.weights, c.count), c.parts) << ::testing::PrintToString(c.weights);
}

/// All cuts of n items into `count` contiguous parts, as lists of ends.
void each_cut(std::int64_t n, int count, std::vector<std::int64_t>& ends,
              const std::function<void(const std::vector<std::int64_t>&)>& visit) {
  const std::int64_t begin = ends.empty() ? 0 : ends.back();
  const bool last = static_cast<int>(ends.size()) == count - 1;
  for (std::int64_t end = last ? n : begin; end <= n; ++end) {
    ends.push_back(end);
    if (last)
      visit(ends);
    else
      each_cut(n, count, ends, visit);
    ends.pop_back();
  }
}

TEST(BalancedCut, AgainstAllCuts) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    const auto n = static_cast<std::int64_t>(random() % 8);
    const int count = 1 + static_cast<int>(random() % 4);
    std::vector<std::int64_t> weights(static_cast<std::size_t>(n));
    for (std::int64_t& weight : weights) weight = static_cast<std::int64_t>(random() % 6);
    std::int64_t lightest = -1;
    std::vector<std::int64_t> best;
    std::vector<std::int64_t> ends;
    each_cut(n, count, ends, [&](const std::vector<std::int64_t>& cut) {
      std::int64_t heaviest = 0;
      std::int64_t begin = 0;
      for (const std::int64_t end : cut) {
        heaviest = std::max(heaviest, std::accumulate(weights.begin() + begin,
                                                      weights.begin() + end, std::int64_t{0}));
        begin = end;
      }
      // The earliest items first: the greatest list of ends in dictionary order.
      if (lightest < 0 || heaviest < lightest || (heaviest == lightest && cut > best)) {
        lightest = heaviest;
        best = cut;
      }
    });
    std::vector<std::int64_t> found;
    std::int64_t begin = 0;
    for (const Range part : balanced_cut(weights, count)) {
      EXPECT_EQ(part.begin, begin);
      begin = part.end;
      found.push_back(part.end);
    }
    EXPECT_EQ(found, best) << ::testing::PrintToString(weights) << " into " << count;
  }
}

TEST(BalancedCut, RefusesNonsense) {
  const std::vector<std::int64_t> weights{1, -1};
  error_of(ExitCode::internal, [&] { balanced_cut(weights, 2); });
  error_of(ExitCode::internal, [] { balanced_cut({}, 0); });
}

TEST(IndexRuns, UnitsBecomeRuns) {
  const std::vector<std::int32_t> units{0, 1, 3, 6, 7, 8};
  const IndexRuns runs = IndexRuns::of_units(units, 4);
  EXPECT_EQ(runs.runs(), (std::vector<Range>{{0, 8}, {12, 16}, {24, 36}}));
  EXPECT_EQ(runs.size(), 24);
  EXPECT_EQ(runs.envelope(), (Range{0, 36}));
  EXPECT_FALSE(runs.is_all(36));
  EXPECT_FALSE(runs.is_all(24));
}

TEST(IndexRuns, Corners) {
  EXPECT_TRUE(IndexRuns::all(5).is_all(5));
  EXPECT_FALSE(IndexRuns::all(5).is_all(6));
  EXPECT_TRUE(IndexRuns::all(0).is_all(0));
  EXPECT_TRUE(IndexRuns().empty());
  EXPECT_EQ(IndexRuns().envelope(), (Range{0, 0}));
  EXPECT_TRUE(IndexRuns::of({3, 3}).empty());
  EXPECT_EQ(IndexRuns::of_units({}, 4), IndexRuns());
  EXPECT_EQ(IndexRuns::of({2, 5}).indices(), (std::vector<std::int64_t>{2, 3, 4}));
  // Unit numbers times width leave 32 bits.
  const std::vector<std::int32_t> far{2000000000};
  EXPECT_EQ(IndexRuns::of_units(far, 128).envelope(), (Range{256000000000, 256000000128}));
  const std::vector<std::int32_t> falling{3, 2};
  const std::vector<std::int32_t> twice{3, 3};
  error_of(ExitCode::internal, [&] { IndexRuns::of_units(falling, 1); });
  error_of(ExitCode::internal, [&] { IndexRuns::of_units(twice, 1); });
  error_of(ExitCode::internal, [] { IndexRuns::of({4, 3}); });
}

TEST(IndexRuns, IndicesAgainstTheNaiveList) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::int32_t> units;
    for (std::int32_t unit = 0; unit < 20; ++unit)
      if (random() % 3 != 0) units.push_back(unit);
    const auto width = static_cast<std::int64_t>(1 + random() % 5);
    std::vector<std::int64_t> naive;
    for (const std::int32_t unit : units)
      for (std::int64_t i = 0; i < width; ++i) naive.push_back(unit * width + i);
    const IndexRuns runs = IndexRuns::of_units(units, width);
    EXPECT_EQ(runs.indices(), naive);
    EXPECT_EQ(runs.size(), static_cast<std::int64_t>(naive.size()));
    for (std::size_t i = 1; i < runs.runs().size(); ++i)
      EXPECT_GT(runs.runs()[i].begin, runs.runs()[i - 1].end) << "adjacent runs must be one";
  }
}

TEST(Positions, Table) {
  const std::vector<std::int32_t> have{2, 3, 5, 9};
  EXPECT_EQ(positions(std::vector<std::int32_t>{2, 9}, have), (std::vector<std::int32_t>{0, 3}));
  EXPECT_EQ(positions(have, have), (std::vector<std::int32_t>{0, 1, 2, 3}));
  EXPECT_TRUE(positions({}, have).empty());
  EXPECT_TRUE(positions({}, {}).empty());
  const std::vector<std::int32_t> missing{2, 4};
  const std::string message = error_of(ExitCode::internal, [&] { positions(missing, have); });
  EXPECT_NE(message.find("unit 4"), std::string::npos) << message;
}

TEST(IndexRuns, PartsAreTheIndicesAtTheirPlaces) {
  const std::vector<std::int32_t> units{0, 1, 4, 5, 6, 9};
  const IndexRuns all = IndexRuns::of_units(units, 3);
  const std::vector<std::int64_t> indices = all.indices();
  for (std::int64_t begin = 0; begin <= all.size(); ++begin)
    for (std::int64_t end = begin; end <= all.size(); ++end) {
      const IndexRuns part = all.part({begin, end});
      EXPECT_EQ(part.size(), end - begin);
      EXPECT_EQ(part.indices(),
                std::vector<std::int64_t>(indices.begin() + begin, indices.begin() + end));
    }
  EXPECT_EQ(all.part({0, all.size()}), all);
}

}  // namespace
}  // namespace espalier
