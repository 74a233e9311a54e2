#include "espalier/comm/nccl_reducer.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "buffer_rules.h"
#include "espalier/core/error.h"
#include "espalier/core/host.h"
#include "espalier/core/pulse.h"
#include "espalier/core/text.h"

namespace espalier::nccl {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr std::chrono::microseconds kShortestPause{10};
constexpr std::chrono::microseconds kLongestPause{1000};
/// Of those that leave all is done: who does not come is not waited for as in the middle of work.
constexpr double kLeavingSeconds = 30;
constexpr const char* kPhase = "connect the GPUs";
constexpr const char* kStartAgain =
    "Start it again with the same command: the last commit of a run stands.";

enum class Stage { connecting, working };

Error failure(const char* call, const std::string& words, ExitCode code) {
  if (code == ExitCode::unsuitable)
    return Error(code, fmt::format("NCCL cannot connect the ranks: {} failed", call), words,
                 "NCCL_DEBUG=WARN in the environment says more; execution.collectives: mpi works "
                 "without NCCL.");
  return Error(code, fmt::format("{} failed", call), words,
               code == ExitCode::peer_lost ? kStartAgain : "");
}

ExitCode code_of(Result result, Stage stage) {
  if (result == Result::remote_error) return ExitCode::peer_lost;
  return stage == Stage::connecting ? ExitCode::unsuitable : ExitCode::internal;
}

void require_cuda(const std::string& wrong) {
  if (!wrong.empty()) throw Error(ExitCode::internal, "a call of CUDA failed", wrong);
}

/// Of one wait: pauses that grow, until it is over.
class Patience {
 public:
  Patience(double seconds, Communicator& control) : seconds_(seconds), control_(control) {}

  void pause(const char* awaited) {
    if (seconds_ > 0 && Seconds(Clock::now() - begin_).count() > seconds_)
      throw Error(ExitCode::peer_lost,
                  fmt::format("{} did not come to its end in {:.6g} s", awaited, seconds_),
                  "another rank is gone, stopped, or at something else", kStartAgain);
    // A peer may be inside MPI, for something that this process still holds.
    control_.progress();
    std::this_thread::sleep_for(pause_);
    pause_ = std::min(2 * pause_, kLongestPause);
  }

 private:
  double seconds_;
  Communicator& control_;
  Clock::time_point begin_ = Clock::now();
  std::chrono::microseconds pause_ = kShortestPause;
};

/// Adds the time of its scope to `sum`.
class Spent {
 public:
  explicit Spent(double& sum) : sum_(sum) {}
  ~Spent() { sum_ += Seconds(Clock::now() - begin_).count(); }
  Spent(const Spent&) = delete;
  Spent& operator=(const Spent&) = delete;

 private:
  double& sum_;
  Clock::time_point begin_ = Clock::now();
};

}  // namespace

class Connection {
 public:
  Connection(const Calls& calls, Communicator& control, const Options& options, int ranks)
      : calls_(calls), control_(control), options_(options), ranks_(ranks) {}
  Connection(std::shared_ptr<Connection> parent, int ranks)
      : calls_(parent->calls_),
        control_(parent->control_),
        options_(parent->options_),
        ranks_(ranks),
        parent_(std::move(parent)) {}
  ~Connection() {
    if (!left_in_order()) abort();
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  const Calls& calls() const { return calls_; }
  int ranks() const { return ranks_; }
  Patience patience() const { return {options_.deadline_seconds, control_}; }

  void join(const UniqueId& id, int rank) {
    const Result result = use([&](Comm&) { return calls_.init_rank(comm_, ranks_, id, rank); });
    settle("ncclCommInitRankConfig", result, Stage::connecting);
    joined_ = true;
  }

  void split_from_parent(int color, int key) {
    const Result result =
        parent_->use([&](Comm& comm) { return calls_.split(comm, color, key, comm_); });
    parent_->settle("ncclCommSplit", result, Stage::connecting);
    settle("ncclCommSplit", state(), Stage::connecting);
    joined_ = true;
  }

  /// The sum is on the stream when this returns.
  void all_reduce(const TensorBuffer& buffer, ReduceOp op) {
    const Result result = use([&](Comm& comm) {
      return calls_.all_reduce(buffer.data, buffer.count, buffer.dtype, op, comm, buffer.stream);
    });
    settle("ncclAllReduce", result, Stage::working);
  }

  /// Throws what the library has found wrong by now.
  void require_working() {
    const Result now = state();
    if (now != Result::in_progress) require("a sum over NCCL", now, Stage::working);
  }

  /// From any thread.
  void abort() noexcept {
    {
      const std::lock_guard lock(mutex_);
      if (!ended_ && comm_ != nullptr) calls_.abort(comm_);
      ended_ = true;
    }
    // Who has lost a part has lost the whole.
    if (parent_) parent_->abort();
  }

 private:
  template <class Call>
  Result use(const Call& call) {
    const std::lock_guard lock(mutex_);
    if (ended_) throw Error(ExitCode::internal, "a communicator of NCCL is used after its end");
    return call(comm_);
  }

  Result state() {
    Result found = Result::success;
    const Result asked = use([&](Comm& comm) { return calls_.get_async_error(comm, found); });
    return asked == Result::success ? found : asked;
  }

  /// Waits until `call`, which returned `now`, has come to its end.
  void settle(const char* call, Result now, Stage stage) {
    if (now == Result::in_progress) {
      const pulse::Wait wait(pulse::Waiting::ranks);
      Patience patience = this->patience();
      for (; now == Result::in_progress; now = state()) patience.pause(call);
    }
    require(call, now, stage);
  }

  void require(const char* call, Result result, Stage stage) {
    if (result == Result::success) return;
    std::string words;
    use([&](Comm& comm) {
      words = calls_.words(comm, result);
      return result;
    });
    throw failure(call, words, code_of(result, stage));
  }

  bool left_in_order() noexcept {
    if (!joined_ || std::uncaught_exceptions() > 0) return false;
    try {
      leave();
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }

  void leave() {
    if (options_.deadline_seconds == 0 || options_.deadline_seconds > kLeavingSeconds)
      options_.deadline_seconds = kLeavingSeconds;
    settle("ncclCommFinalize", use([&](Comm& comm) { return calls_.finalize(comm); }),
           Stage::working);
    use([&](Comm& comm) {
      ended_ = true;
      return calls_.destroy(comm);
    });
  }

  const Calls calls_;
  Communicator& control_;
  Options options_;
  int ranks_;
  std::shared_ptr<Connection> parent_;
  std::mutex mutex_;
  Comm comm_ = nullptr;
  bool joined_ = false;
  bool ended_ = false;
};

std::shared_ptr<Connection> join(const Calls& calls, Communicator& control, const Options& options,
                                 int ranks, const UniqueId& id, int rank) {
  auto connection = std::make_shared<Connection>(calls, control, options, ranks);
  connection->join(id, rank);
  return connection;
}

std::shared_ptr<Connection> split(const std::shared_ptr<Connection>& parent, int color, int key,
                                  int ranks) {
  auto part = std::make_shared<Connection>(parent, ranks);
  part->split_from_parent(color, key);
  return part;
}

namespace {

class Reducer final : public TensorReducer {
 public:
  Reducer(std::shared_ptr<Connection> connection, Communicator& control, Wire wire)
      : connection_(std::move(connection)), host_(make_host_reducer(control)), wire_(wire) {}
  ~Reducer() override {
    for (const Flight& flight : flights_) idle_.push_back(flight);
    for (const Flight& flight : idle_)
      for (const Event event : {flight.ready, flight.done})
        if (event != nullptr) connection_->calls().destroy_event(event);
  }

  int size() const override { return connection_->ranks(); }
  bool takes(DType dtype, Memory memory) const override {
    if (memory == Memory::host) return host_->takes(dtype, memory);
    return is_reducible(dtype) || (dtype == DType::bf16 && wire_ == Wire::activations);
  }

 private:
  /// A sum on its way: where its stream is before it, which is this rank's work, and behind it,
  /// for which the others must come too.
  struct Flight {
    Event ready = nullptr;
    Event done = nullptr;
  };

  void reduce(const TensorBuffer& buffer, ReduceOp op) override {
    if (buffer.memory == Memory::host) return host_->all_reduce(buffer, op);
    ended_by_failure([&] {
      const Spent spent(counters_.seconds);
      forget_what_is_done();
      flights_.push_back(new_flight());
      record(flights_.back().ready, buffer.stream);
      connection_->all_reduce(buffer, op);
      record(flights_.back().done, buffer.stream);
    });
    ++counters_.collectives;
    counters_.bytes += buffer.count * size_of(buffer.dtype);
  }

  void check_library() override {
    ended_by_failure([&] {
      for (; !flights_.empty(); retire_first()) await(flights_.front());
      connection_->require_working();
    });
  }

  void abort_library() noexcept override { connection_->abort(); }

  /// What fails here is of no more use. Where another thread ended it, that is the reason.
  template <class Work>
  void ended_by_failure(const Work& work) {
    try {
      work();
    } catch (const Error& error) {
      require_not_aborted();
      abort(error.code());
      throw;
    }
  }

  /// The steps of a rank that runs ahead of its GPU are those of the GPU.
  void await(const Flight& flight) {
    await(flight.ready, "the work before a sum over NCCL");
    pulse::beat();
    const pulse::Wait wait(pulse::Waiting::ranks);
    const Spent spent(counters_.seconds);
    await(flight.done, "a sum over NCCL");
  }

  void await(Event event, const char* awaited) {
    for (Patience patience = connection_->patience(); !is_reached(event); patience.pause(awaited))
      connection_->require_working();
  }

  bool is_reached(Event event) const {
    bool reached = false;
    require_cuda(connection_->calls().query_event(event, reached));
    return reached;
  }

  void record(Event& event, Stream stream) const {
    if (event == nullptr) require_cuda(connection_->calls().create_event(event));
    require_cuda(connection_->calls().record_event(event, stream));
  }

  Flight new_flight() {
    if (idle_.empty()) return {};
    const Flight flight = idle_.back();
    idle_.pop_back();
    return flight;
  }

  void retire_first() {
    idle_.push_back(flights_.front());
    flights_.pop_front();
  }

  void forget_what_is_done() {
    while (!flights_.empty() && is_reached(flights_.front().done)) retire_first();
  }

  std::shared_ptr<Connection> connection_;
  std::unique_ptr<TensorReducer> host_;
  Wire wire_;
  std::deque<Flight> flights_;  // in the order of the stream
  std::vector<Flight> idle_;    // events to be used again
};

/// The host as NCCL tells hosts apart.
std::string place_of(const std::string& bus_id) {
  const char* named = std::getenv("NCCL_HOSTID");
  return fmt::format("{} of {}", bus_id, one_line(named != nullptr ? named : host_name()));
}

}  // namespace

std::unique_ptr<TensorReducer> make_reducer(std::shared_ptr<Connection> connection,
                                            Communicator& control, Wire wire) {
  return std::make_unique<Reducer>(std::move(connection), control, wire);
}

std::string obstacle(const Calls* calls, Communicator& world, std::optional<int> device) {
  if (calls == nullptr) return "this build has no NCCL";
  std::string mine, place;
  if (!device) {
    mine = "it computes on the CPU";
  } else {
    std::string bus_id;
    mine = calls->get_bus_id(*device, bus_id);
    place = place_of(bus_id);
  }
  const std::vector<std::string> obstacles = world.gather_text(mine);
  const std::vector<std::string> places = world.gather_text(place);
  for (std::size_t rank = 0; rank < obstacles.size(); ++rank)
    if (!obstacles[rank].empty()) return fmt::format("rank {}: {}", rank, obstacles[rank]);
  for (std::size_t rank = 0; rank < places.size(); ++rank)
    for (std::size_t other = 0; other < rank; ++other)
      if (places[other] == places[rank])
        return fmt::format("ranks {} and {} share GPU {}", other, rank, places[rank]);
  return {};
}

void connect(const Calls& calls, const ProcessGrid& grid, const Options& options) {
  Communicator& world = grid.world();
  if (world.size() == 1) return;
  UniqueId id{};
  together(world, kPhase, [&] {
    if (const std::string wrong = calls.use_device(options.device); !wrong.empty())
      throw failure("cudaSetDevice", wrong, ExitCode::unsuitable);
    if (world.rank() != 0) return;
    const Result result = calls.get_unique_id(id);
    if (result != Result::success)
      throw failure("ncclGetUniqueId", calls.words(nullptr, result), ExitCode::unsuitable);
  });
  world.broadcast({id.data(), id.size(), DType::u8}, 0);
  std::shared_ptr<Connection> all;
  together(world, kPhase,
           [&] { all = join(calls, world, options, world.size(), id, world.rank()); });
  const auto part = [&](RankGroup& group, int color, Wire wire) {
    if (group.size() == 1) return;
    std::unique_ptr<TensorReducer> reducer;
    together(world, kPhase, [&] {
      reducer = make_reducer(split(all, color, world.rank(), group.size()), group.control(), wire);
    });
    group.set_reducer(std::move(reducer));
  };
  part(grid.tensor(), grid.data_index(), Wire::activations);
  part(grid.data(), grid.tensor_index(), Wire::statistics);
}

}  // namespace espalier::nccl
