#include "espalier/core/fault.h"

#include <cerrno>
#include <cstdlib>

#include <gtest/gtest.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

class Fault : public ::testing::Test {
 protected:
  void arm(const char* text, int rank = 0) {
    ::setenv("ESPALIER_FAULT", text, 1);
    fault::initialise(rank);
  }
  void TearDown() override {
    ::unsetenv("ESPALIER_FAULT");
    fault::initialise(0);
  }
};

TEST_F(Fault, NothingHappensUnarmed) {
  fault::initialise(0);
  EXPECT_FALSE(fault::armed());
  EXPECT_EQ(fault::hit("save.write").effect, fault::Effect::none);
}

TEST_F(Fault, MatchesRankIterationAndCount) {
  arm("point=save.write;rank=1;iter=3;nth=2;action=errno:ENOSPC", 1);
  EXPECT_TRUE(fault::armed());
  EXPECT_EQ(fault::hit("save.write").effect, fault::Effect::none);  // iteration 0
  fault::set_iteration(3);
  EXPECT_EQ(fault::hit("save.write").effect, fault::Effect::none);  // first hit
  EXPECT_EQ(fault::hit("save.fsync").effect, fault::Effect::none);  // another point
  const fault::Outcome outcome = fault::hit("save.write");
  EXPECT_EQ(outcome.effect, fault::Effect::io_error);
  EXPECT_EQ(outcome.error_number, ENOSPC);
  EXPECT_EQ(fault::hit("save.write").effect, fault::Effect::none);  // only the second
}

TEST_F(Fault, OtherRanksAreLeftAlone) {
  arm("point=load.enter;rank=1;action=throw", 0);
  EXPECT_NO_THROW(fault::hit("load.enter"));
}

TEST_F(Fault, ThrowNamesThePoint) {
  arm("point=save.open;action=nan|point=load.enter;action=throw");
  EXPECT_THROW(fault::hit("load.enter"), Error);
  EXPECT_EQ(fault::hit("save.open").effect, fault::Effect::nan);
}

TEST_F(Fault, UnknownPointNamesTheNearest) {
  try {
    arm("point=save.fsinc;action=kill9");
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::usage);
    EXPECT_NE(std::string(e.what()).find("'save.fsync'"), std::string::npos) << e.what();
  }
  EXPECT_THROW(arm("point=save.fsync;action=explode"), Error);
  EXPECT_THROW(arm("point=save.fsync"), Error);
}

}  // namespace
}  // namespace espalier
