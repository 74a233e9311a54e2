#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "espalier/comm/communicator.h"
#include "espalier/core/error.h"

/// How ranks fail, and stop, together. A rank that alone throws between two collectives leaves its
/// peers waiting for ever, so work that may fail alone is run by one of the functions below: what
/// went wrong is kept as a value until the next collective, in which all ranks learn of it.
namespace espalier {

/// An Error that every rank of a group throws at the same place: only the functions of this header
/// make one. Any other exception of a run with several ranks is a lone one: its peers may wait in a
/// collective, so the process must end the whole job.
class AgreedError : public Error {
  explicit AgreedError(std::vector<Problem> problems) : Error(std::move(problems)) {}
  friend void agree(Communicator& comm, const std::string& phase, const Problems& mine);
};

/// If any rank has a problem, every rank throws the same AgreedError: all ranks' distinct problems,
/// each with the ranks that have it in `where`, and the lowest code. Collective over `comm`.
void agree(Communicator& comm, const std::string& phase, const Problems& mine);

/// Runs rank-local work, then agrees on what it threw. Collective over `comm`.
void together(Communicator& comm, const std::string& phase,
              const std::function<void()>& local_work);

/// What a long phase tells the outside between its steps.
struct RoundHooks {
  /// Called on every rank before the ranks agree: looks for a STOP file, a time limit; calls
  /// stop::request().
  std::function<void()> poll;
  /// Called on every rank after the ranks agreed.
  std::function<void(std::int64_t done, std::int64_t total)> progress;
  /// Called on every rank where the next poll will be about so many seconds away.
  std::function<void(double seconds)> foresee = {};
  /// False: a request to stop is left to a later agreement.
  bool heeds_stop = true;
};

/// As agree(), and agrees on requests to stop as well, if hooks.heeds_stop: everybody throws
/// stop::Stopped. One
/// all-reduce of two numbers when all is well. Collective.
void agree_to_continue(Communicator& world, const std::string& phase, const Problems& mine,
                       const RoundHooks& hooks);

/// Calls work(0) ... work(count - 1), with the agreement of agree_to_continue before each and after
/// the last: what a rank's step throws is everybody's before the next step begins. `count` is the
/// same on every rank. Collective over `world`.
void take_steps(Communicator& world, const std::string& phase, std::int64_t count,
                const std::function<void(std::int64_t step)>& work, const RoundHooks& hooks);

}  // namespace espalier
