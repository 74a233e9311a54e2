#include "espalier/model/boundaries.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "espalier/store/files.h"
#include "support/temporary_directory.h"

namespace espalier {
namespace {

class BoundariesTest : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Boundaries> made() const {
    return in_files() ? boundaries_in_files(directory_.path(), at::kCPU)
                      : boundaries_in_memory(at::kCPU);
  }
  static bool in_files() { return std::string_view(GetParam()) == "files"; }
  testing::TemporaryDirectory directory_;
};

at::Tensor values(std::int64_t rows, std::int64_t seed, at::ScalarType type) {
  return at::arange(rows * 12, at::kDouble)
      .mul(0.25)
      .add(static_cast<double>(seed))
      .to(type)
      .view({rows, 3, 4});
}

TEST_P(BoundariesTest, GiveBackWhatWasPut) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    const std::unique_ptr<Boundaries> kept = made();
    for (std::int64_t place = 0; place < 3; ++place)
      for (std::int64_t k = 0; k < 4; ++k)
        kept->put(place, static_cast<std::size_t>(k), values(k + 1, 10 * place + k, type));
    kept->put(1, 2, values(3, 77, type));  // in place of what was there
    for (std::int64_t place = 0; place < 3; ++place)
      for (std::int64_t k = 3; k >= 0; --k) {
        kept->will_get(place, static_cast<std::size_t>(k));
        const std::int64_t seed = place == 1 && k == 2 ? 77 : 10 * place + k;
        EXPECT_TRUE(
            at::equal(kept->get(place, static_cast<std::size_t>(k)), values(k + 1, seed, type)));
      }
    const std::int64_t one =
        (1 + 2 + 3 + 4) * 12 * static_cast<std::int64_t>(at::elementSize(type));
    EXPECT_EQ(kept->most_bytes(), 3 * one);
    kept->drop(0);
    kept->drop(1, 0);
    kept->put(3, 0, values(1, 5, type));
    EXPECT_EQ(kept->most_bytes(), 3 * one) << "what was dropped still counts";
    EXPECT_TRUE(at::equal(kept->get(2, 3), values(4, 23, type)));
  }
  EXPECT_TRUE(list_directory(directory_.path()).empty());
}

INSTANTIATE_TEST_SUITE_P(Both, BoundariesTest, ::testing::Values("memory", "files"),
                         [](const auto& where) { return std::string(where.param); });

}  // namespace
}  // namespace espalier
