#include "espalier/score/boundary_files.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "support/temporary_directory.h"

namespace espalier {
namespace {

/// Micro-batches of several lengths, as `type`.
at::Tensor values_of(std::int64_t number, at::ScalarType type) {
  return at::arange(2 * (3 + number % 2) * 5, at::TensorOptions(at::kDouble))
      .add(static_cast<double>(100 * number))
      .to(type)
      .view({2, 3 + number % 2, 5});
}

StandingBatch batch(std::int64_t number, at::ScalarType type) {
  return {number, {2, 3 + number % 2, 5}, [=] {
            return AtBoundary{values_of(number, type), number == 4 ? 256.0 : 1.0};
          }};
}

TEST(BoundaryFiles, GiveBackWhatSeveralRanksWrote) {
  for (const auto& [type, dtype] : {std::pair(at::kDouble, DType::f64),
                                    {at::kFloat, DType::f32},
                                    {at::kBFloat16, DType::bf16},
                                    {at::kHalf, DType::f16}}) {
    testing::TemporaryDirectory folder;
    const BoundaryFile a = write_boundaries(
        folder / boundary_file_name(0), {batch(0, type), batch(2, type), batch(4, type)}, dtype);
    const BoundaryFile b =
        write_boundaries(folder / boundary_file_name(12), {batch(1, type), batch(3, type)}, dtype);
    EXPECT_EQ(a.sha256, sha256_of_file(folder / boundary_file_name(0)));
    const BoundaryFiles files(folder.path(), 5);
    EXPECT_EQ(files.bytes(), a.bytes + b.bytes);
    for (std::int64_t number = 0; number < 5; ++number) {
      const AtBoundary there = files.read(number);
      EXPECT_TRUE(at::equal(there.x_BTD, values_of(number, type))) << number;
      EXPECT_EQ(there.x_BTD.scalar_type(), type);
      EXPECT_EQ(there.loss_scale, number == 4 ? 256.0 : 1.0);
    }
  }
}

TEST(BoundaryFiles, AreAllOfThePassAndNoOthers) {
  testing::TemporaryDirectory folder;
  write_boundaries(folder / boundary_file_name(0), {batch(0, at::kFloat), batch(1, at::kFloat)},
                   DType::f32);
  EXPECT_NO_THROW(BoundaryFiles(folder.path(), 2));
  for (const std::int64_t count : {std::int64_t{1}, std::int64_t{3}, std::int64_t{1} << 62})
    EXPECT_THROW(BoundaryFiles(folder.path(), count), Error) << count;
  write_boundaries(folder / boundary_file_name(1), {batch(1, at::kFloat)}, DType::f32);
  EXPECT_THROW(BoundaryFiles(folder.path(), 2), Error);
}

TEST(BoundaryFiles, RefuseOtherTensors) {
  const std::vector<std::vector<SafetensorsWriter::Entry>> files{
      {{"0", DType::f32, {1, 1, 1}}},
      {{"0", DType::f32, {1, 1, 1}}, {"0.loss_scale", DType::f32, {1}}},
      {{"00", DType::f32, {1, 1, 1}}, {"00.loss_scale", DType::f64, {1}}},
      {{"x", DType::f32, {1, 1, 1}}, {"x.loss_scale", DType::f64, {1}}},
  };
  for (const auto& entries : files) {
    testing::TemporaryDirectory folder;
    SafetensorsWriter writer(folder / boundary_file_name(0), entries, {}, WriteScope::other);
    const std::vector<std::byte> zeros(8);
    for (const SafetensorsWriter::Entry& entry : entries)
      writer.write(entry.name, std::span(zeros).first(size_of(entry.dtype)));
    writer.finish();
    EXPECT_THROW(BoundaryFiles(folder.path(), 1), Error) << entries[0].name;
  }
}

}  // namespace
}  // namespace espalier
