#include "fuzz/session.h"

#include <fcntl.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <vector>

#include <fmt/format.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace espalier::fuzz {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr int kSecondsOfOneInput = 10;
#else
constexpr int kSecondsOfOneInput = 3;
#endif

/// What the handlers of a dying process need, without any allocation.
struct Dying {
  std::string path;
  const char* bytes = nullptr;
  std::size_t size = 0;
};
Dying& dying() {
  static Dying instance;
  return instance;
}

void say(std::string_view text) {
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

/// Async-signal-safe.
void save_input() {
  const Dying& d = dying();
  if (d.bytes == nullptr) return;
  const int file = ::open(d.path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) return;
  for (std::size_t done = 0; done < d.size;) {
    const ssize_t written = ::write(file, d.bytes + done, d.size - done);
    if (written <= 0) break;
    done += static_cast<std::size_t>(written);
  }
  ::close(file);
  say("the input is saved as ");
  say(d.path);
  say("\n");
}

void on_death(int number) {
  say(number == SIGPROF ? "one input takes too long\n" : "the program dies of an input\n");
  save_input();
  std::signal(number, SIG_DFL);
  ::raise(number);
}

void install_handlers() {
  for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGPROF})
    std::signal(number, on_death);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_set_death_callback(save_input);
#endif
}

/// Processor time, so that a busy machine is no hang.
void limit_processor_time(int seconds) {
  itimerval limit{};
  limit.it_value.tv_sec = seconds;
  ::setitimer(ITIMER_PROF, &limit, nullptr);
}

std::uint64_t date() {
  const std::time_t now = std::time(nullptr);
  std::tm day{};
  ::gmtime_r(&now, &day);
  return static_cast<std::uint64_t>((day.tm_year + 1900) * 10000 + (day.tm_mon + 1) * 100 +
                                    day.tm_mday);
}

double seconds_to_run(int argc, char** argv) {
  const char* environment = std::getenv("ESPALIER_FUZZ_SECONDS");
  if (environment != nullptr) return std::atof(environment);
  return argc > 1 ? std::atof(argv[1]) : 5.0;
}

std::vector<std::uint64_t> seeds_to_run(int argc, char** argv) {
  std::vector<std::uint64_t> seeds;
  for (int i = 2; i < argc; ++i) seeds.push_back(std::strtoull(argv[i], nullptr, 10));
  if (!seeds.empty()) return seeds;
  if (const char* environment = std::getenv("ESPALIER_FUZZ_SEED"))
    return {std::strtoull(environment, nullptr, 10)};
  return {1, 2, 3, date()};
}

/// A message is written to a terminal, to log files and into JSON.
bool is_printable(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte == 0x7f || (byte < 0x20 && byte != '\n')) return false;
    const std::size_t length = byte < 0x80   ? 1
                               : byte < 0xc2 ? 0
                               : byte < 0xe0 ? 2
                               : byte < 0xf0 ? 3
                               : byte < 0xf5 ? 4
                                             : 0;
    if (length == 0 || i + length > text.size()) return false;
    for (std::size_t k = 1; k < length; ++k)
      if ((static_cast<unsigned char>(text[i + k]) & 0xc0U) != 0x80U) return false;
    i += length;
  }
  return true;
}

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text)
    result += c >= 0x20 && c < 0x7f ? std::string(1, c)
                                    : fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return result;
}

/// Processor time, so that a busy machine tries as much.
double seconds_used() {
  timespec used{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
}

struct Series {
  std::uint64_t inputs = 0;
  std::string wrong;
};

Series try_for(double seconds, Fuzzer& fuzzer, Trial& trial) {
  const double end = seconds_used() + seconds;
  Series series;
  do {
    limit_processor_time(kSecondsOfOneInput);
    try {
      series.wrong = fuzzer.once(trial);
    } catch (const std::exception& e) {
      series.wrong = fmt::format("an exception where none is expected: {}", e.what());
    }
    ++series.inputs;
  } while (series.wrong.empty() && seconds_used() < end);
  limit_processor_time(0);
  return series;
}

}  // namespace

void Trial::input(std::string_view bytes) {
  dying().bytes = bytes.data();
  dying().size = bytes.size();
  limit_processor_time(kSecondsOfOneInput);
}

std::string outcome(Trial& trial, const std::function<std::string()>& reading,
                    std::initializer_list<ExitCode> allowed) {
  try {
    std::string wrong = reading();
    trial.accepted();
    return wrong;
  } catch (const Error& e) {
    trial.refused();
    if (!is_printable(e.what()))
      return fmt::format("a message that cannot be printed: {}", escaped(e.what()));
    return std::find(allowed.begin(), allowed.end(), e.code()) != allowed.end()
               ? ""
               : fmt::format("exit code {}: {}", static_cast<int>(e.code()), e.what());
  } catch (const std::exception& e) {
    return fmt::format("an exception of another type: {}", e.what());
  }
}

int run(int argc, char** argv, const std::string& name, const std::string& extension,
        const MakeFuzzer& make) {
  const std::filesystem::path failures = ESPALIER_FUZZ_FAILURES;
  std::filesystem::create_directories(failures);
  install_handlers();
  const std::vector<std::uint64_t> seeds = seeds_to_run(argc, argv);
  const double seconds = seconds_to_run(argc, argv) / static_cast<double>(seeds.size());
  for (const std::uint64_t seed : seeds) {
    std::cout << fmt::format("{}: seed {} (repeat it with: {} 60 {})", name, seed, argv[0], seed)
              << std::endl;
    dying().path = failures / fmt::format("{}-{}.{}", name, seed, extension);
    Trial trial;
    const std::unique_ptr<Fuzzer> fuzzer = make(seed);
    const Series series = try_for(seconds, *fuzzer, trial);
    if (!series.wrong.empty()) {
      std::cerr << fmt::format("{}: seed {}, input {}: {}\n", name, seed, series.inputs,
                               series.wrong);
      save_input();
      return 1;
    }
    dying().bytes = nullptr;
    std::cout << fmt::format("{}: {} inputs, {} readings accepted, {} refused: nothing found", name,
                             series.inputs, trial.times_accepted(), trial.times_refused())
              << std::endl;
    if (trial.times_accepted() == 0 || trial.times_refused() == 0) {
      std::cerr << name << ": a series must hold both good and bad inputs\n";
      return 1;
    }
  }
  return 0;
}

}  // namespace espalier::fuzz
