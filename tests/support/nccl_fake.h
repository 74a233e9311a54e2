#pragma once

#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "espalier/comm/nccl_calls.h"
#include "espalier/core/error.h"

namespace espalier::testing {

/// bfloat16 and back: the upper half of a float32, rounded to even.
inline float widened(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value = 0;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}
inline std::uint16_t narrowed(float value) {
  std::uint32_t wide = 0;
  std::memcpy(&wide, &value, sizeof(wide));
  return static_cast<std::uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
}

/// NCCL and CUDA for ranks without GPUs: device memory is host memory, and sums go through the
/// ranks' own Communicator. What the libraries do at their worst is set by members; what was asked
/// of them is counted.
class FakeNccl {
 public:
  explicit FakeNccl(Communicator& world) : world_(world) {}
  FakeNccl(const FakeNccl&) = delete;
  FakeNccl& operator=(const FakeNccl&) = delete;

  /// Looks for which what was begun is in progress.
  int looks = 0;
  /// Sums never come to their end unless they are aborted; nor does joining.
  bool sums_hang = false, joining_hangs = false, leaving_hangs = false;
  /// What is found once it has come to its end.
  nccl::Result joined = nccl::Result::success, found = nccl::Result::success;
  std::string wrong_device;
  std::string bus_id = "0000:01:00.0";

  struct Joined {
    int ranks = 0, rank = 0;
    nccl::UniqueId id{};
  };
  struct Split {
    int color = 0, key = 0;
    bool operator==(const Split&) const = default;
  };
  std::vector<int> devices;
  std::vector<Joined> joins;
  std::vector<Split> splits;
  std::vector<DType> sums;
  std::vector<nccl::Stream> streams;
  int ids = 0, events = 0, finalized = 0, destroyed = 0;
  std::atomic<int> aborted = 0;
  /// Uses of a communicator after its end.
  std::atomic<int> misused = 0;

  nccl::Calls calls() {
    nccl::Calls calls;
    calls.use_device = [this](int device) {
      devices.push_back(device);
      return wrong_device;
    };
    calls.get_bus_id = [this](int, std::string& id) {
      id = bus_id;
      return wrong_device;
    };
    add_events(calls);
    add_communicators(calls);
    calls.all_reduce = [this](void* data, std::size_t count, DType dtype, ReduceOp op,
                              nccl::Comm comm, nccl::Stream stream) {
      sums.push_back(dtype);
      streams.push_back(stream);
      Group& group = use(comm);
      if (!sums_hang) sum(*group.ranks, data, count, dtype, op);
      return begin(group);
    };
    calls.words = [](nccl::Comm, nccl::Result result) {
      return "in the library's own words, " + std::to_string(static_cast<int>(result));
    };
    return calls;
  }

 private:
  struct Group {
    Communicator* ranks = nullptr;
    std::unique_ptr<Communicator> own;
    int looks_left = 0;
    bool hangs = false;
    nccl::Result found = nccl::Result::success;
    std::atomic<bool> is_gone = false;
  };
  struct Event {
    int looks_left = 0;
    bool never = false;
  };

  void add_events(nccl::Calls& calls) {
    calls.create_event = [this](nccl::Event& event) {
      ++events;
      event = new Event;
      return std::string();
    };
    calls.record_event = [this](nccl::Event event, nccl::Stream) {
      *static_cast<Event*>(event) = {looks, sums_hang && !sums.empty()};
      return std::string();
    };
    calls.query_event = [this](nccl::Event event, bool& reached) {
      Event& asked = *static_cast<Event*>(event);
      reached = asked.never ? aborted > 0 : asked.looks_left-- <= 0;
      return std::string();
    };
    calls.destroy_event = [this](nccl::Event event) {
      --events;
      delete static_cast<Event*>(event);
    };
  }

  void add_communicators(nccl::Calls& calls) {
    calls.get_unique_id = [this](nccl::UniqueId& id) {
      ++ids;
      for (std::size_t i = 0; i < id.size(); ++i) id[i] = static_cast<char>(3 * i + 1);
      return nccl::Result::success;
    };
    calls.init_rank = [this](nccl::Comm& comm, int ranks, const nccl::UniqueId& id, int rank) {
      joins.push_back({ranks, rank, id});
      Group& group = new_group();
      group.ranks = &world_;
      group.hangs = joining_hangs;
      group.found = joined;
      comm = &group;
      return begin(group);
    };
    calls.split = [this](nccl::Comm parent, int color, int key, nccl::Comm& part) {
      splits.push_back({color, key});
      Group& group = new_group();
      group.own = use(parent).ranks->split(color, key);
      group.ranks = group.own.get();
      group.looks_left = looks;
      part = &group;
      return begin(use(parent));
    };
    calls.get_async_error = [this](nccl::Comm comm, nccl::Result& state) {
      state = look(use(comm));
      return nccl::Result::success;
    };
    calls.finalize = [this](nccl::Comm comm) {
      ++finalized;
      Group& group = use(comm);
      group.hangs = leaving_hangs;
      return begin(group);
    };
    calls.destroy = [this](nccl::Comm comm) {
      ++destroyed;
      use(comm).is_gone = true;
      return nccl::Result::success;
    };
    calls.abort = [this](nccl::Comm comm) {
      use(comm).is_gone = true;
      ++aborted;
      return nccl::Result::success;
    };
  }

  Group& new_group() { return *groups_.emplace_back(std::make_unique<Group>()); }

  Group& use(nccl::Comm comm) {
    Group& group = *static_cast<Group*>(comm);
    if (group.is_gone) ++misused;
    return group;
  }

  nccl::Result begin(Group& group) {
    group.looks_left = looks;
    return looks > 0 || group.hangs ? nccl::Result::in_progress : now(group);
  }
  nccl::Result look(Group& group) {
    if (group.hangs || group.looks_left-- > 0) return nccl::Result::in_progress;
    return now(group);
  }
  nccl::Result now(const Group& group) const {
    return group.found == nccl::Result::success ? found : group.found;
  }

  static void sum(Communicator& ranks, void* data, std::size_t count, DType dtype, ReduceOp op) {
    if (dtype != DType::bf16) return ranks.all_reduce({data, count, dtype}, op);
    auto* narrow = static_cast<std::uint16_t*>(data);
    std::vector<float> wide;
    for (std::size_t i = 0; i < count; ++i) wide.push_back(widened(narrow[i]));
    ranks.all_reduce({wide.data(), count, DType::f32}, op);
    for (std::size_t i = 0; i < count; ++i) narrow[i] = narrowed(wide[i]);
  }

  Communicator& world_;
  std::vector<std::unique_ptr<Group>> groups_;
};

}  // namespace espalier::testing
