#include "espalier/pipeline/failure.h"

#include <new>
#include <stdexcept>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace espalier {
namespace {

TEST(AsError, SaysThatMemoryRanOutWhoeverNoticed) {
  try {
    at::empty({std::int64_t{1} << 52});
    ADD_FAILURE() << "a machine with 16 PiB";
  } catch (const std::exception& exception) {
    const Error error = as_error(exception, "rank 3");
    EXPECT_EQ(error.code(), ExitCode::unsuitable) << error.what();
    EXPECT_EQ(error.problems().front().where, "rank 3");
    EXPECT_NE(error.problems().front().why.find("18014398509481984"), std::string::npos)
        << error.problems().front().why;
  }
  EXPECT_EQ(as_error(std::bad_alloc(), "").code(), ExitCode::unsuitable);
  EXPECT_EQ(as_error(Error(ExitCode::config, "x"), "").code(), ExitCode::config);
  EXPECT_EQ(as_error(std::runtime_error("x"), "").code(), ExitCode::internal);
}

}  // namespace
}  // namespace espalier
