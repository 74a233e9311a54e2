#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>

#include "espalier/core/error.h"

namespace espalier::fuzz {

/// One series of inputs while it is tried.
class Trial {
 public:
  /// Names the bytes that are read next and starts their clock. When the program dies of them or
  /// needs more than the processor time of one input, they are saved all the same. They must stay
  /// where they are until the next call.
  void input(std::string_view bytes);
  /// Counts readings: a series of which none succeeded, or none was refused, tests nothing.
  void accepted() { ++accepted_; }
  void refused() { ++refused_; }
  std::uint64_t times_accepted() const { return accepted_; }
  std::uint64_t times_refused() const { return refused_; }

 private:
  std::uint64_t accepted_ = 0;
  std::uint64_t refused_ = 0;
};

/// Makes inputs from a seed, the same ones for the same seed.
class Fuzzer {
 public:
  virtual ~Fuzzer() = default;
  /// Makes and tries one input. Returns what is wrong, nothing when all is well.
  virtual std::string once(Trial& trial) = 0;
};
using MakeFuzzer = std::function<std::unique_ptr<Fuzzer>(std::uint64_t seed)>;

/// The main program "NAME [SECONDS [SEED...]]". Seconds are of processor time and come from
/// ESPALIER_FUZZ_SECONDS if it is set. Without seeds on the command line those of
/// ESPALIER_FUZZ_SEED are taken, else three fixed ones and the day's date; they share the seconds,
/// and each is printed before it begins. Inputs that fail are saved in the build directory's
/// fuzz-failures/. Returns 0 when nothing was found and the series did test something.
int run(int argc, char** argv, const std::string& name, const std::string& extension,
        const MakeFuzzer& make);

/// Counts how `reading` ends and returns what is wrong with it: what it returns itself, an error of
/// another code, one whose message is no printable UTF-8, or another exception.
std::string outcome(Trial& trial, const std::function<std::string()>& reading,
                    std::initializer_list<ExitCode> allowed = {ExitCode::bad_content,
                                                               ExitCode::missing_input});

}  // namespace espalier::fuzz
