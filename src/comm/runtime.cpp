#include "espalier/comm/runtime.h"

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/pulse.h"
#include "mpi_communicator.h"

namespace espalier {
namespace {

std::optional<int> environment_number(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return std::nullopt;
  int value = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, value);
  if (error != std::errc{} || stop != end) return std::nullopt;
  return value;
}

struct Launcher {
  const char* variable = nullptr;  // the one that gave the number of ranks
  int ranks = 1;
};

/// How many ranks the launcher says it started. mpirun's own word comes first: under Slurm it
/// starts its daemons in a job step whose number of tasks is that of the nodes.
Launcher launcher_size() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
    if (const auto ranks = environment_number(name)) return {name, *ranks};
  }
  return {};
}

bool launched() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return environment_number("SLURM_STEP_NUM_TASKS").value_or(1) > 1;
}

void initialise_mpi() {
  int provided = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_SERIALIZED) {
    throw Error(ExitCode::unsuitable, fmt::format("MPI offers thread level {} only", provided),
                fmt::format("{} (MPI_THREAD_SERIALIZED) is needed", MPI_THREAD_SERIALIZED),
                "Use an MPI that was built with thread support");
  }
}

void check_launcher(int mpi_size) {
  const Launcher launcher = launcher_size();
  if (launcher.ranks <= 1 || mpi_size > 1) return;
  throw Error(ExitCode::unsuitable, "started by a launcher that this MPI does not understand",
              fmt::format("{} says {} ranks, MPI says 1", launcher.variable, launcher.ranks),
              fmt::format("Start it with the mpirun of this MPI ({}), or under Slurm with "
                          "srun --mpi=pmix",
                          CommRuntime::library_version()));
}

}  // namespace

struct CommRuntime::State {
  std::unique_ptr<Communicator> world;
  int node_rank = 0;
  int node_size = 1;
  bool with_mpi = false;
  bool owns_mpi = false;  // we initialised it, so we finalise it

  void find_node() {
    MPI_Comm node = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node),
              "MPI_Comm_split_type");
    check_mpi(MPI_Comm_rank(node, &node_rank), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(node, &node_size), "MPI_Comm_size");
    check_mpi(MPI_Comm_free(&node), "MPI_Comm_free");
  }

  void open_world() {
    check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN),
              "MPI_Comm_set_errhandler");
    MPI_Comm copy = MPI_COMM_NULL;
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &copy), "MPI_Comm_dup");
    world = adopt_mpi_communicator(copy);
  }

  void finalise() {
    if (!owns_mpi) return;
    owns_mpi = false;
    MPI_Finalize();
  }
};

CommRuntime::CommRuntime() : state_(std::make_unique<State>()) {
  int initialised = 0;
  MPI_Initialized(&initialised);
  state_->with_mpi = initialised != 0 || launched();
  if (!state_->with_mpi) {
    state_->world = make_self_communicator();
    return;
  }
  if (initialised == 0) {
    initialise_mpi();
    state_->owns_mpi = true;
  }
  int size = 1;
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size), "MPI_Comm_size");
  try {
    check_launcher(size);
  } catch (...) {
    state_->finalise();
    throw;
  }
  state_->open_world();
  state_->find_node();
}

CommRuntime::~CommRuntime() {
  // A rank that alone unwinds an exception would wait in MPI_Finalize for ever: the launcher ends
  // the job when it exits without.
  if (std::uncaught_exceptions() > 0) return;
  state_->finalise();
}

Communicator& CommRuntime::world() { return *state_->world; }

int CommRuntime::node_rank() const { return state_->node_rank; }

int CommRuntime::node_size() const { return state_->node_size; }

void CommRuntime::finish() {
  const pulse::Wait wait(pulse::Waiting::ranks);
  if (state_->owns_mpi) check_mpi(MPI_Barrier(MPI_COMM_WORLD), "MPI_Barrier");
  state_->finalise();
}

void CommRuntime::abort(int code) {
  std::fflush(nullptr);
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (state_->with_mpi && finalized == 0) MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

std::string CommRuntime::library_version() {
  std::string text(MPI_MAX_LIBRARY_VERSION_STRING, '\0');
  int length = 0;
  if (MPI_Get_library_version(text.data(), &length) != MPI_SUCCESS) length = 0;
  text.resize(static_cast<std::size_t>(length));
  while (!text.empty() && (text.back() == '\0' || text.back() == '\n')) text.pop_back();
#ifdef OMPI_MAJOR_VERSION
  return fmt::format("{}; compiled with Open MPI {}.{}.{}", text, OMPI_MAJOR_VERSION,
                     OMPI_MINOR_VERSION, OMPI_RELEASE_VERSION);
#else
  return fmt::format("{}; compiled with headers of MPI {}.{}", text, MPI_VERSION, MPI_SUBVERSION);
#endif
}

}  // namespace espalier
