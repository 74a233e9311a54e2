#include "espalier/core/fault.h"

#include <cerrno>
#include <cstdlib>
#include <new>
#include <string>

#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/core/stop.h"

namespace espalier {
namespace {

class Fault : public ::testing::Test {
 protected:
  void arm(const char* text, int rank = 0) {
    ::setenv("ESPALIER_FAULT", text, 1);
    fault::initialise(rank, 2);
  }
  std::string refusal(const char* text) {
    try {
      arm(text);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::usage);
      EXPECT_FALSE(e.problems().front().remedy.empty()) << e.what();
      return e.what();
    }
    return std::string("accepted: ") + text;
  }
  void TearDown() override {
    ::unsetenv("ESPALIER_FAULT");
    fault::initialise(0, 1);
  }
};

TEST_F(Fault, NothingHappensUnarmed) {
  fault::initialise(0, 1);
  EXPECT_FALSE(fault::armed());
  EXPECT_EQ(fault::hit("save.write").effect, fault::Effect::none);
}

TEST_F(Fault, MatchesRankIterationAndCount) {
  arm("point=save.write;iter=3;nth=2;action=errno:ENOSPC");
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
  arm("point=forward.exit;action=nan|point=load.enter;action=throw");
  EXPECT_THROW(fault::hit("load.enter"), Error);
  EXPECT_EQ(fault::hit("forward.exit").effect, fault::Effect::nan);
}

TEST_F(Fault, AsksForAStopAsASignalDoes) {
  stop::install_handlers("");
  stop::reset();
  arm("point=reduce.exit;nth=2;action=sigusr1");
  fault::hit("reduce.exit");
  EXPECT_EQ(stop::requests(), 0);
  fault::hit("reduce.exit");
  EXPECT_EQ(stop::requests(), 1);
  stop::reset();
}

TEST_F(Fault, MemoryRunsOutAtAnyPoint) {
  for (const fault::Point& point : fault::points()) {
    arm(("point=" + point.name + ";action=alloc-fail").c_str());
    EXPECT_THROW(fault::hit(point.name), std::bad_alloc) << point.name;
  }
}

// Every point takes every action that does something there, and no other.
TEST_F(Fault, ActionsThatNothingHeedsAreRefused) {
  for (const fault::Point& point : fault::points()) {
    for (const auto& [action, offered] :
         {std::pair("nan", point.offers_nan), std::pair("errno:EIO", point.offers_errors),
          std::pair("short-write", point.offers_short_write)}) {
      const std::string text = "point=" + point.name + ";action=" + action;
      const std::string said = refusal(text.c_str());
      EXPECT_EQ(said.starts_with("accepted"), offered) << said;
      if (!offered) {
        EXPECT_NE(said.find(std::string(action) + " has no effect at " + point.name),
                  std::string::npos)
            << said;
      } else {
        EXPECT_NE(fault::hit(point.name).effect, fault::Effect::none) << text;
      }
    }
    const std::string elsewhere = refusal(("point=" + point.name + ";rank=1;action=throw").c_str());
    EXPECT_EQ(elsewhere.starts_with("accepted"), !point.root_only) << elsewhere;
  }
  EXPECT_NE(refusal("point=save.readback;action=nan").find("forward.exit"), std::string::npos);
}

TEST_F(Fault, NumbersThatHaveNoEffectAreRefused) {
  for (const char* text :
       {"point=load.enter;rank=2;action=throw", "point=load.enter;rank=-1;action=throw",
        "point=load.enter;rank=0x1;action=throw", "point=load.enter;rank=1.5;action=throw",
        "point=load.enter;iter=-1;action=throw", "point=load.enter;nth=0;action=throw",
        "point=load.enter;nth=;action=throw", "point=load.enter;p=0;action=throw",
        "point=load.enter;p=nan;action=throw", "point=load.enter;p=1.5;action=throw",
        "point=load.enter;seed=3;action=throw", "point=load.enter;action=slow:-5",
        "point=load.enter;action=slow:nan", "point=save.open;action=errno:EVIL", "point"})
    EXPECT_EQ(refusal(text).find("accepted"), std::string::npos) << text;
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
