// Sums over NCCL on GPUs: those through host memory are their oracle. Ranks that outnumber the
// GPUs share them, over sockets of this host, which is slow and proves as much. Without a GPU:
// that the libraries are there, and say in one message that no GPU is.

#include <cstdlib>
#include <functional>
#include <string>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "espalier/comm/nccl_reducer.h"
#include "support/mpi_test_main.h"

namespace espalier {
namespace {

bool has_gpu() { return at::globalContext().hasCUDA(); }

int device_of_rank() { return testing::runtime().node_rank() % static_cast<int>(at::getNumGPUs()); }

/// NCCL refuses two ranks on one GPU of one host, so each rank becomes a host of its own. It reads
/// the environment at its first call.
void let_ranks_share_gpus() {
  if (testing::runtime().node_size() <= static_cast<int>(at::getNumGPUs())) return;
  const std::string host = "rank" + std::to_string(testing::world().rank());
  for (const auto& [name, value] :
       {std::pair("NCCL_HOSTID", host.c_str()), std::pair("NCCL_SOCKET_IFNAME", "lo"),
        std::pair("NCCL_IB_DISABLE", "1"), std::pair("NCCL_MNNVL_ENABLE", "0"),
        std::pair("NCCL_NVLS_ENABLE", "0"), std::pair("NCCL_MAX_CTAS", "2"),
        std::pair("NCCL_ALGO", "Ring"), std::pair("NCCL_PROTO", "Simple")})
    ::setenv(name, value, 0);
}

ExitCode code_of(const std::function<void()>& work, const std::string& part_of_text) {
  try {
    work();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(part_of_text), std::string::npos) << error.what();
    return error.code();
  }
  return ExitCode::ok;
}

class Nccl : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU is visible to this process";
    if (testing::world().size() == 1) GTEST_SKIP() << "one rank sums with nobody";
    let_ranks_share_gpus();
  }
};

/// Other values on every rank.
at::Tensor values_on_gpu(std::int64_t count, at::ScalarType type) {
  const at::Tensor host =
      at::sin((at::arange(count, at::kDouble) + 1) * (1.7 + testing::world().rank())) * 3;
  return host.to(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device_of_rank())), type);
}

DType dtype_of(at::ScalarType type) {
  return type == at::kDouble ? DType::f64 : type == at::kFloat ? DType::f32 : DType::bf16;
}

/// On LibTorch's stream, which is CUDA's default one.
void reduce_on_gpu(at::Tensor& values, TensorReducer& reducer, ReduceOp op) {
  reducer.all_reduce({values.data_ptr(), static_cast<std::size_t>(values.numel()),
                      dtype_of(values.scalar_type()), Memory::device, nullptr},
                     op);
}

/// The same through host memory, in float64.
at::Tensor reduced_over_mpi(const at::Tensor& values, ReduceOp op) {
  at::Tensor host = values.to(at::kCPU, at::kDouble);
  testing::world_group().reducer().all_reduce(
      {host.data_ptr(), static_cast<std::size_t>(host.numel()), DType::f64}, op);
  return host;
}

void expect_as_over_mpi(const RankGroup& group, at::ScalarType type, ReduceOp op) {
  for (const std::int64_t count : {1, 33, 1000003}) {
    SCOPED_TRACE(std::string(c10::toString(type)) + " x " + std::to_string(count));
    const at::Tensor mine = values_on_gpu(count, type);
    at::Tensor over_nccl = mine.clone();
    reduce_on_gpu(over_nccl, group.reducer(), op);
    group.reducer().check();
    const at::Tensor over_mpi = reduced_over_mpi(mine, op);
    const double largest = over_mpi.abs().max().item<double>();
    // In another order and, of bfloat16, rounded after every term.
    const double epsilon = type == at::kDouble ? 0x1p-52 : type == at::kFloat ? 0x1p-23 : 0x1p-7;
    const double tolerance = op == ReduceOp::max ? 0 : 2 * group.size() * epsilon * largest;
    EXPECT_LE((over_nccl.to(at::kCPU, at::kDouble) - over_mpi).abs().max().item<double>(),
              tolerance);
    if (op == ReduceOp::sum) EXPECT_FALSE(over_nccl.equal(mine)) << "nothing was reduced";
  }
}

TEST_F(Nccl, SumsAreThoseThroughHostMemory) {
  const ProcessGrid grid(testing::world(), testing::world().size());
  nccl::connect(*nccl::library(), grid, {device_of_rank(), 60});
  EXPECT_TRUE(grid.tensor().reducer().takes(DType::bf16, Memory::device));
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16})
    expect_as_over_mpi(grid.tensor(), type, ReduceOp::sum);
  expect_as_over_mpi(grid.tensor(), at::kFloat, ReduceOp::max);
}

TEST_F(Nccl, ManySumsInARowKeepTheirOrder) {
  const ProcessGrid grid(testing::world(), testing::world().size());
  nccl::connect(*nccl::library(), grid, {device_of_rank(), 60});
  at::Tensor value = at::ones({1025}, values_on_gpu(1, at::kFloat).options());
  double expected = 1;
  for (int i = 0; i < 20; ++i) {
    reduce_on_gpu(value, grid.tensor().reducer(), ReduceOp::sum);
    value = value / 2 + 1;
    expected = expected * testing::world().size() / 2 + 1;
  }
  grid.tensor().reducer().check();
  EXPECT_EQ(value.min().item<double>(), expected);
  EXPECT_EQ(value.max().item<double>(), expected);
}

TEST_F(Nccl, ASumWhosePeerDoesNotComeIsAborted) {
  Communicator& world = testing::world();
  const ProcessGrid grid(world, world.size());
  nccl::connect(*nccl::library(), grid, {device_of_rank(), 3});
  if (world.rank() == 0) {
    at::Tensor value = values_on_gpu(1000, at::kFloat);
    reduce_on_gpu(value, grid.tensor().reducer(), ReduceOp::sum);
    EXPECT_EQ(code_of([&] { grid.tensor().reducer().check(); }, "did not come to its end in 3 s"),
              ExitCode::peer_lost);
    EXPECT_EQ(code_of([&] { grid.tensor().reducer().check(); }, "was ended"), ExitCode::peer_lost);
  }
  world.barrier();
  grid.tensor().reducer().abort(ExitCode::peer_lost);
}

TEST(NcclWithoutAGpu, ConnectingIsRefusedOnEveryRankAlike) {
  if (has_gpu()) GTEST_SKIP() << "there is a GPU";
  Communicator& world = testing::world();
  EXPECT_NE(nccl::library_version().find("compiled with 2."), std::string::npos);
  const std::string why = nccl::obstacle(nccl::library(), world, 0);
  EXPECT_EQ(why.substr(0, 31), "rank 0: cudaDeviceGetPCIBusId: ") << why;
  const ProcessGrid grid(world, 1);
  const ExitCode code =
      code_of([&] { nccl::connect(*nccl::library(), grid, {}); }, "cudaSetDevice failed");
  EXPECT_EQ(code, world.size() > 1 ? ExitCode::unsuitable : ExitCode::ok);
}

TEST(NcclWithoutAGpu, TheLibrarysOwnRefusalIsTold) {
  if (has_gpu()) GTEST_SKIP() << "there is a GPU";
  const nccl::Calls& calls = *nccl::library();
  nccl::UniqueId id{};
  EXPECT_EQ(calls.get_unique_id(id), nccl::Result::success);
  const std::unique_ptr<Communicator> control = make_self_communicator();
  EXPECT_EQ(code_of(
                [&] {
                  nccl::join(calls, *control, {0, 60}, 1, id, 0);
                },
                "NCCL cannot connect the ranks: ncclCommInitRankConfig failed"),
            ExitCode::unsuitable);
}

}  // namespace
}  // namespace espalier
