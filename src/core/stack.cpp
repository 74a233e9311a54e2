#include "espalier/core/stack.h"

#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

#include "espalier/core/standard_streams.h"

namespace espalier::stack {
namespace {

constexpr int kMostCalls = 100;
std::atomic<int> target{-1};
std::atomic<bool> answered{false};
pthread_t watched{};
std::atomic<bool> is_watching{false};

/// A signal that neither the C library nor MPI uses.
int signal_number() { return SIGRTMIN + 3; }

void on_signal(int) {
  const int error = errno;
  std::array<void*, kMostCalls> calls;
  const int count = ::backtrace(calls.data(), kMostCalls);
  ::backtrace_symbols_fd(calls.data(), count, target.load());
  answered = true;
  errno = error;
}

}  // namespace

void watch_this_thread() {
  // The first call loads a library, which a signal handler may not.
  void* call = nullptr;
  ::backtrace(&call, 1);
  watched = ::pthread_self();
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  ::sigemptyset(&action.sa_mask);
  is_watching = ::sigaction(signal_number(), &action, nullptr) == 0;
}

bool write(const std::string& path, const std::string& header, double wait_seconds) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0) return false;
  standard_streams::write_all(file, header + "\n");
  target = file;
  answered = false;
  if (is_watching && ::pthread_kill(watched, signal_number()) == 0) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(wait_seconds);
    while (!answered && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  if (!answered)
    standard_streams::write_all(file, "the thread does not answer: it is in the kernel\n");
  // The file stays open: a late answer must not go into another one that gets its number.
  return true;
}

}  // namespace espalier::stack
