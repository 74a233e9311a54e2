#include "espalier/core/standard_streams.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <string>
#include <thread>

namespace espalier {
namespace {

TEST(StandardStreams, NoFileGetsTheNumberOfAClosedOne) {
  const auto child = [] {
    for (const int descriptor : {0, 1, 2}) ::close(descriptor);
    standard_streams::prepare();
    const int opened = ::open("/dev/null", O_RDONLY);
    const bool told = standard_streams::write_all(1, "x") == EBADF &&
                      standard_streams::write_all(2, "x") == EBADF;
    char byte = 0;
    std::_Exit(opened > 2 && told && ::read(0, &byte, 1) < 0 ? 0 : 1);
  };
  EXPECT_EXIT(child(), ::testing::ExitedWithCode(0), "");
}

TEST(StandardStreams, APipeWithoutAReaderIsAnErrorNotASignal) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  standard_streams::prepare();
  ::close(ends[0]);
  EXPECT_EQ(standard_streams::write_all(ends[1], "text"), EPIPE);
  ::close(ends[1]);
}

TEST(StandardStreams, AllIsWrittenToAPipeThatDoesNotBlock) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe2(ends.data(), O_NONBLOCK), 0);
  const std::string text(300'000, 'x');  // more than a pipe holds
  std::string got;
  std::thread reader([&] {
    std::string part(4096, '\0');
    while (got.size() < text.size()) {
      const ssize_t n = ::read(ends[0], part.data(), part.size());
      if (n > 0) got.append(part.data(), static_cast<std::size_t>(n));
    }
  });
  EXPECT_EQ(standard_streams::write_all(ends[1], text), 0);
  reader.join();
  EXPECT_EQ(got, text);
  for (const int end : ends) ::close(end);
}

TEST(StandardStreams, AFullDeviceIsTold) {
  const int full = ::open("/dev/full", O_WRONLY);
  ASSERT_GE(full, 0);
  EXPECT_EQ(standard_streams::write_all(full, "x"), ENOSPC);
  ::close(full);
}

}  // namespace
}  // namespace espalier
