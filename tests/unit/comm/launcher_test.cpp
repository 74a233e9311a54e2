// What a process believes about its launcher. One MPI initialisation per process: the order
// matters.
#include <cstdlib>

#include <gtest/gtest.h>

#include "espalier/comm/runtime.h"
#include "espalier/core/error.h"

namespace espalier {
namespace {

void forget_launchers() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK",
                           "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"}) {
    ::unsetenv(name);
  }
}

TEST(Launcher, AloneNeedsNoMpi) {
  forget_launchers();
  // Set inside salloc too, where a program may well be started alone.
  ::setenv("SLURM_NTASKS", "4", 1);
  CommRuntime runtime;
  EXPECT_EQ(runtime.world().name(), "self");
  EXPECT_EQ(runtime.world().size(), 1);
  EXPECT_EQ(runtime.node_rank(), 0);
  EXPECT_EQ(runtime.node_size(), 1);
  runtime.finish();
}

TEST(Launcher, VersionNamesLibraryAndHeaders) {
  EXPECT_NE(CommRuntime::library_version().find("compiled with"), std::string::npos);
}

TEST(Launcher, SeveralRanksThatMpiDoesNotSeeAreRefused) {
  forget_launchers();
  ::setenv("SLURM_STEP_NUM_TASKS", "2", 1);
  try {
    CommRuntime runtime;
    FAIL() << "world of " << runtime.world().size();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::unsuitable);
    const std::string text = error.what();
    EXPECT_NE(text.find("started by a launcher that this MPI does not understand"),
              std::string::npos)
        << text;
    EXPECT_NE(text.find("SLURM_STEP_NUM_TASKS says 2 ranks, MPI says 1"), std::string::npos)
        << text;
  }
}

}  // namespace
}  // namespace espalier
