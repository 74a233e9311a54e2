#include "espalier/core/fault.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <optional>
#include <set>
#include <thread>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/hash.h"

namespace espalier::fault {
namespace {

struct Action {
  enum class Kind { kill9, stop, ask, raise, slow, nan, short_write, io_error, alloc_fail } kind;
  int argument = 0;  // milliseconds, or errno
};

struct Spec {
  std::string point;
  std::optional<int> rank;
  std::optional<int> iteration;
  std::int64_t nth = 0;  // 0 = every hit
  std::optional<std::int64_t> seed;
  double probability = 1.0;
  Action action{};
  std::int64_t hits = 0;
};

struct State {
  bool initialised = false;
  int rank = 0;
  int iteration = 0;
  std::string text;
  std::vector<Spec> specs;
  std::string trace_file;
  std::set<std::string, std::less<>> traced;
};
State& state() {
  static State instance;
  return instance;
}

constexpr int kMost = std::numeric_limits<int>::max();

const std::vector<std::pair<std::string, int>> kErrnos{
    {"ENOSPC", ENOSPC}, {"EIO", EIO},     {"EDQUOT", EDQUOT}, {"EFBIG", EFBIG},
    {"EACCES", EACCES}, {"EROFS", EROFS}, {"EEXIST", EEXIST}, {"ENOENT", ENOENT},
};

[[noreturn]] void usage(const std::string& what, const std::string& remedy) {
  throw Error(ExitCode::usage, "ESPALIER_FAULT: " + what, {}, remedy);
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const std::size_t end = std::min(text.find(separator, begin), text.size());
    parts.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

template <class T>
T number(const std::string& key, const std::string& text, T least, T most) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || stop != end || !(value >= least && value <= most))
    usage(fmt::format("{}={} has no effect", key, text),
          most == std::numeric_limits<T>::max()
              ? fmt::format("Give a number of at least {}.", least)
              : fmt::format("Give a number from {} to {}.", least, most));
  return value;
}

Action parse_action(const std::string& text) {
  using Kind = Action::Kind;
  static const std::vector<std::pair<std::string, Kind>> plain{
      {"kill9", Kind::kill9},          {"stop", Kind::stop}, {"sigusr1", Kind::ask},
      {"throw", Kind::raise},          {"nan", Kind::nan},   {"short-write", Kind::short_write},
      {"alloc-fail", Kind::alloc_fail}};
  for (const auto& [name, kind] : plain)
    if (text == name) return {kind, 0};
  if (text.starts_with("slow:")) return {Kind::slow, number<int>("slow", text.substr(5), 1, kMost)};
  if (text.starts_with("errno:"))
    for (const auto& [name, value] : kErrnos)
      if (text.substr(6) == name) return {Kind::io_error, value};
  usage(fmt::format("unknown action '{}'", text),
        "Actions: kill9, stop, sigusr1, throw, alloc-fail, slow:MS, nan, short-write, errno:NAME "
        "(ENOSPC, EIO, EDQUOT, EFBIG, EACCES, EROFS, EEXIST, ENOENT).");
}

const Point& known_point(const std::string& name) {
  std::vector<std::string> names;
  for (const Point& point : points()) {
    if (point.name == name) return point;
    names.push_back(point.name);
  }
  const std::string near = nearest_name(name, names);
  usage(fmt::format("unknown point '{}'", name),
        near.empty() ? "espalier doctor --list-faults prints all points."
                     : fmt::format("Did you mean '{}'?", near));
}

/// An action that nothing at the point would heed, or on a rank that never comes there, would be a
/// rehearsal of nothing.
void require_effect(const Spec& spec, const std::string& action, int ranks) {
  using Kind = Action::Kind;
  const Point& point = known_point(spec.point);
  const Kind kind = spec.action.kind;
  const bool offered = (kind != Kind::nan || point.offers_nan) &&
                       (kind != Kind::io_error || point.offers_errors) &&
                       (kind != Kind::short_write || point.offers_short_write);
  if (!offered) {
    std::string others;
    for (const Point& other : points())
      if ((kind == Kind::nan && other.offers_nan) ||
          (kind == Kind::io_error && other.offers_errors) ||
          (kind == Kind::short_write && other.offers_short_write))
        others += (others.empty() ? "" : ", ") + other.name;
    usage(fmt::format("{} has no effect at {}", action, spec.point),
          fmt::format("Points that offer it: {}.", others));
  }
  if (!spec.rank) return;
  if (*spec.rank >= ranks)
    usage(fmt::format("rank={} has no effect", *spec.rank),
          fmt::format("There are {} ranks, numbered from 0.", ranks));
  if (point.root_only && *spec.rank != 0)
    usage(fmt::format("rank={} has no effect at {}", *spec.rank, spec.point),
          "Only rank 0 comes there.");
}

Spec parse_spec(const std::string& text, int ranks) {
  Spec spec;
  std::string action;
  for (const std::string& field : split(text, ';')) {
    const std::size_t equals = field.find('=');
    if (equals == std::string::npos)
      usage(fmt::format("'{}' is not key=value", field), "Write point=NAME;action=NAME.");
    const std::string key = field.substr(0, equals);
    const std::string value = field.substr(equals + 1);
    if (key == "point")
      spec.point = value;
    else if (key == "rank")
      spec.rank = number<int>(key, value, 0, kMost);
    else if (key == "iter")
      spec.iteration = number<int>(key, value, 0, kMost);
    else if (key == "nth")
      spec.nth = number<std::int64_t>(key, value, 1, kMost);
    else if (key == "seed")
      spec.seed = number<std::int64_t>(key, value, 0, kMost);
    else if (key == "p")
      spec.probability = number<double>(key, value, std::numeric_limits<double>::min(), 1.0);
    else if (key == "action") {
      spec.action = parse_action(value);
      action = value;
    } else
      usage(fmt::format("unknown key '{}'", key), "Keys: point, rank, iter, nth, seed, p, action.");
  }
  if (action.empty())
    usage(
        fmt::format("'{}' has no action", text),
        "Actions: kill9, stop, sigusr1, throw, alloc-fail, slow:MS, and where a point offers them "
        "nan, short-write, errno:NAME.");
  if (spec.seed && spec.probability == 1.0)
    usage("seed= has no effect without p=", "Give p=, the chance of each hit.");
  require_effect(spec, action, ranks);
  return spec;
}

bool fires(Spec& spec, const State& s) {
  if (spec.rank && *spec.rank != s.rank) return false;
  if (spec.iteration && *spec.iteration != s.iteration) return false;
  ++spec.hits;
  if (spec.nth != 0 && spec.hits != spec.nth) return false;
  if (spec.probability >= 1.0) return true;
  const std::uint64_t words[] = {static_cast<std::uint64_t>(spec.seed.value_or(0)),
                                 static_cast<std::uint64_t>(s.rank),
                                 static_cast<std::uint64_t>(spec.hits)};
  return counter_uniform(words) < spec.probability;
}

Outcome perform(const Spec& spec, const State& s) {
  using Kind = Action::Kind;
  switch (spec.action.kind) {
    case Kind::kill9:
      ::raise(SIGKILL);
      break;
    case Kind::stop:
      ::raise(SIGSTOP);
      break;
    case Kind::ask:
      ::raise(SIGUSR1);
      break;
    case Kind::raise:
      throw Error(ExitCode::internal, fmt::format("fault injected at {}", spec.point), {}, {},
                  fmt::format("rank {}", s.rank));
    case Kind::slow:
      std::this_thread::sleep_for(std::chrono::milliseconds(spec.action.argument));
      break;
    case Kind::nan:
      return {Effect::nan, 0};
    case Kind::short_write:
      return {Effect::short_write, ENOSPC};
    case Kind::io_error:
      return {Effect::io_error, spec.action.argument};
    case Kind::alloc_fail:
      throw std::bad_alloc();
  }
  return {};
}

void trace(State& s, std::string_view name) {
  if (s.traced.contains(name)) return;
  s.traced.emplace(name);
  const int fd = ::open(s.trace_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return;
  const std::string line = std::string(name) + "\n";
  [[maybe_unused]] const ssize_t written = ::write(fd, line.data(), line.size());
  ::close(fd);
}

}  // namespace

void initialise(int rank, int ranks) {
  State& s = state();
  s = State{};
  s.initialised = true;
  s.rank = rank;
  if (const char* file = std::getenv("ESPALIER_FAULT_TRACE")) s.trace_file = file;
  const char* text = std::getenv("ESPALIER_FAULT");
  if (text == nullptr || *text == '\0') return;
  s.text = text;
  for (const std::string& part : split(s.text, '|')) s.specs.push_back(parse_spec(part, ranks));
}

bool armed() { return !state().specs.empty(); }
std::string specification() { return state().text; }
void set_iteration(int iteration) { state().iteration = iteration; }

Outcome hit(std::string_view name) {
  State& s = state();
  if (!s.trace_file.empty()) [[unlikely]]
    trace(s, name);
  if (s.specs.empty()) [[likely]]
    return {};
  Outcome outcome;
  for (Spec& spec : s.specs) {
    if (spec.point != name || !fires(spec, s)) continue;
    const Outcome now = perform(spec, s);
    if (now.effect != Effect::none) outcome = now;
  }
  return outcome;
}

std::string Point::special_actions() const {
  std::string text = offers_nan ? "nan" : "";
  if (offers_errors) text += std::string(text.empty() ? "" : ", ") + "errno:NAME";
  if (offers_short_write) text += std::string(text.empty() ? "" : ", ") + "short-write";
  return text;
}

const std::vector<Point>& points() {
  static const std::vector<Point> all = [] {
    std::vector<Point> list;
    for (const char* phase : {"load", "calibrate", "forward", "backward", "reduce", "rank", "slice",
                              "refit", "evaluate", "save", "export", "resume"}) {
      list.push_back(
          {fmt::format("{}.enter", phase), fmt::format("at the start of phase {}", phase)});
      list.push_back({fmt::format("{}.exit", phase), fmt::format("at the end of phase {}", phase)});
    }
    const std::vector<std::pair<const char*, const char*>> steps{
        {"open", "before a file is created"},
        {"write", "before bytes are written"},
        {"flush", "before a file's last bytes are handed over"},
        {"close", "before a file is closed"},
        {"fsync", "before fsync of a file"},
        {"pre_rename", "before the rename that publishes"},
        {"post_rename", "after the rename that publishes"},
        {"fsync_dir", "before fsync of a directory"},
        {"unlink", "before a file or directory is removed"}};
    for (const char* scope : {"save", "refit", "export"}) {
      // Refitted layers are written by the ranks that solved them.
      const bool root_only = std::string_view(scope) != "refit";
      for (const auto& [step, meaning] : steps)
        list.push_back({fmt::format("{}.{}", scope, step), fmt::format("{} ({})", meaning, scope),
                        false, true, std::string_view(step) == "write", root_only});
      if (std::string_view(scope) != "export")
        list.push_back({fmt::format("{}.readback", scope),
                        "before a written file is read back and compared", false, true, false,
                        root_only});
    }
    // Every rank writes its own files for a paused pass; their directory is part of a save.
    constexpr std::size_t kStepsOfFile = 5;
    for (std::size_t i = 0; i < kStepsOfFile; ++i)
      list.push_back({fmt::format("pause.{}", steps[i].first),
                      fmt::format("{} (pause)", steps[i].second), false, true,
                      std::string_view(steps[i].first) == "write"});
    list.push_back(
        {"pause.readback", "before a written file is read back and compared", false, true});
    list.push_back({"pause.recall", "before what a paused pass left of a micro-batch is read"});
    list.push_back(
        {"save.manifest", "before the manifest of a commit is written", false, false, false, true});
    list.push_back({"refit.solve", "before a matrix is solved from its sums"});
    list.push_back({"refit.kept", "after a refitted layer is kept"});
    list.push_back({"evaluate.rows", "before the rows of a micro-batch of an evaluation"});
    list.push_back({"evaluate.kept", "after an evaluation, or what a stop left of it, is kept"});
    list.push_back({"layer.forward", "after a half layer, before its output is added", true});
    list.push_back(
        {"scratch.write", "before hidden states are written to a scratch file", false, true});
    list.push_back({"layer.backward", "after the gradient of a half layer's input", true});
    list.push_back({"weight.gradient", "after the gradient of a weight", true});
    list.push_back({"score.value", "before scores are looked at", true});
    for (Point& point : list)
      point.offers_nan |= point.name == "forward.exit" || point.name == "backward.enter";
    std::sort(list.begin(), list.end(),
              [](const Point& a, const Point& b) { return a.name < b.name; });
    return list;
  }();
  return all;
}

}  // namespace espalier::fault
