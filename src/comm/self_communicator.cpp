#include <memory>

#include "buffer_rules.h"
#include "espalier/comm/communicator.h"

namespace espalier {
namespace {

/// One rank: every collective is the identity, and nothing is counted because nothing is sent.
class SelfCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string name() const override { return "self"; }

  void all_reduce(HostBuffer buffer, ReduceOp) override {
    require_address(buffer, "all_reduce");
    require_reducible(buffer);
  }

  void broadcast(HostBuffer buffer, int root) override {
    require_address(buffer, "broadcast");
    require_root(root, 1);
  }

  std::vector<std::byte> all_gather(std::span<const std::byte> contribution) override {
    return {contribution.begin(), contribution.end()};
  }

  void barrier() override {}

  std::unique_ptr<Communicator> split(int color, int) override {
    return color < 0 ? nullptr : make_self_communicator();
  }
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() {
  return std::make_unique<SelfCommunicator>();
}

}  // namespace espalier
