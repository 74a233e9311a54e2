#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "espalier/core/fault.h"
#include "unit/export/sample_checkpoint.h"

namespace espalier {
namespace {

using namespace testing;

struct Sample {
  Sample() : source(place.path() / "source", sample_config("qwen2", true), DType::bf16) {
    write_text(source.directory / "sub/notes.txt", "copied");
  }
  void write() const {
    ExportOptions options = options_for(place.path() / "out");
    options.replace = replace;
    options.max_shard_bytes = 2000;
    export_exact(source.open(), source.config, dense_widths(source.config),
                 uneven_widths(source.config), options);
  }
  bool is_there() const { return fs::exists(place.path() / "out"); }
  void expect_complete() const {
    expect_same_tensors(
        read_tensors(place.path() / "out"),
        expected_tensors(source.config, source.tensors, uneven_widths(source.config)));
    EXPECT_EQ(read_text(place.path() / "out/sub/notes.txt"), "copied");
    EXPECT_TRUE(fs::exists(place.path() / "out/provenance.json"));
  }

  /// An export before this one: what write() is to replace.
  void put_old() {
    fs::create_directory(place.path() / "out");
    write_text(place.path() / "out/old.txt", "of an older plan");
    replace = true;
  }
  bool is_old() const { return fs::exists(place.path() / "out/old.txt"); }

  TemporaryDirectory place;
  SampleCheckpoint source;
  bool replace = false;
};

/// Exports in a child process with the fault armed; returns its wait status.
int status_with_fault(const Sample& sample, const std::string& fault) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::setenv("ESPALIER_FAULT", fault.c_str(), 1);
    try {
      fault::initialise(0, 1);
      sample.write();
    } catch (const Error& error) {
      ::_exit(static_cast<int>(error.code()));
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

TEST(ExportFaults, KilledAnywhereThereIsEitherNothingOrEverything) {
  for (const char* step :
       {"open", "write", "flush", "close", "fsync", "fsync_dir", "pre_rename", "post_rename"})
    for (const int nth : {1, 2, 5}) {
      SCOPED_TRACE(fmt::format("{} {}", step, nth));
      const Sample sample;
      const int status =
          status_with_fault(sample, fmt::format("point=export.{};nth={};action=kill9", step, nth));
      const bool killed = WIFSIGNALED(status);
      EXPECT_TRUE(killed || nth > 1) << "the point is never passed";
      if (sample.is_there()) sample.expect_complete();
      const bool before_rename =
          std::string(step) != "post_rename" && std::string(step) != "fsync_dir";
      EXPECT_FALSE(killed && before_rename && sample.is_there());
      if (!sample.is_there()) sample.write();  // what a killed export left is not in the way
      sample.expect_complete();
    }
}

TEST(ExportFaults, KilledWhileItReplacesNothingIsHalfThere) {
  for (const char* step : {"write", "fsync_dir", "pre_rename", "post_rename", "unlink"})
    for (const int nth : {1, 2, 3}) {
      SCOPED_TRACE(fmt::format("{} {}", step, nth));
      Sample sample;
      sample.put_old();
      const int status =
          status_with_fault(sample, fmt::format("point=export.{};nth={};action=kill9", step, nth));
      EXPECT_TRUE(WIFSIGNALED(status) || nth > 2) << "the point is never passed";
      // Between the two renames there is no export; both are whole under other names.
      if (sample.is_there() && !sample.is_old()) sample.expect_complete();
      sample.write();
      EXPECT_FALSE(sample.is_old());
      sample.expect_complete();
    }
}

TEST(ExportFaults, AnErrorBeforeTheNewOneIsInPlaceKeepsTheOld) {
  for (const char* fault :
       {"point=export.write;action=errno:ENOSPC", "point=export.pre_rename;nth=1;action=errno:EIO",
        "point=export.pre_rename;nth=2;action=errno:EIO"}) {
    SCOPED_TRACE(fault);
    Sample sample;
    sample.put_old();
    const int status = status_with_fault(sample, fault);
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), static_cast<int>(ExitCode::write_failed));
    EXPECT_TRUE(sample.is_old());
    EXPECT_EQ(std::distance(fs::directory_iterator(sample.place.path()), {}), 2);
  }
}

TEST(ExportFaults, AFullDiskIsReportedAndNothingIsLeft) {
  for (const char* step : {"open", "write", "flush", "close", "fsync", "fsync_dir", "pre_rename"})
    for (const char* action : {"errno:ENOSPC", "errno:EDQUOT", "short-write"}) {
      if (std::string(action) == "short-write" && std::string(step) != "write") continue;
      SCOPED_TRACE(fmt::format("{} {}", step, action));
      const Sample sample;
      const int status =
          status_with_fault(sample, fmt::format("point=export.{};action={}", step, action));
      ASSERT_TRUE(WIFEXITED(status));
      EXPECT_EQ(WEXITSTATUS(status), static_cast<int>(ExitCode::write_failed));
      EXPECT_EQ(std::distance(fs::directory_iterator(sample.place.path()), {}), 1);
    }
}

TEST(ExportFaults, AnErrorWhileTidyingUpDoesNotHideTheFirstOne) {
  const Sample sample;
  const int status = status_with_fault(sample,
                                       "point=export.pre_rename;action=errno:ENOSPC|"
                                       "point=export.unlink;action=errno:EIO");
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), static_cast<int>(ExitCode::write_failed));
  EXPECT_FALSE(sample.is_there());
}

}  // namespace
}  // namespace espalier
