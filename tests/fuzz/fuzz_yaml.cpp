// fuzz_yaml [SECONDS [SEED...]]: mutated configuration files and overrides. Allowed ends are
// success, after which the printed configuration must read back as itself, and espalier::Error with
// a code that a configuration can have.

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include <fmt/format.h>

#include "espalier/config/run_config.h"
#include "fuzz/memory_limit.h"
#include "fuzz/session.h"
#include "fuzz/text_mutator.h"

namespace espalier {
namespace {

std::vector<std::string> dictionary() {
  std::vector<std::string> words{"&a ",
                                 "*a",
                                 "!!str ",
                                 "!x ",
                                 "<<: ",
                                 "---\n",
                                 "...\n",
                                 "[",
                                 "]",
                                 "{",
                                 "}",
                                 ": ",
                                 "- ",
                                 "? ",
                                 "\n",
                                 "\n  ",
                                 "\t",
                                 "#",
                                 "\"",
                                 "'",
                                 "|\n",
                                 ">\n",
                                 "%YAML 1.2\n",
                                 "~",
                                 "null",
                                 "true",
                                 ".nan",
                                 ".inf",
                                 "-1",
                                 "0",
                                 "1e999",
                                 "9223372036854775808",
                                 "${",
                                 "$${",
                                 "${HOME}",
                                 "~/",
                                 "\xff",
                                 "\xc3\xa9",
                                 "\xef\xbb\xbf",
                                 "\xe2\x80\xa8",
                                 "[[[[[[[[",
                                 "{a: {a: {a: {a: "};
  for (const KeyInfo& key : config_keys()) {
    words.push_back(key.key.substr(key.key.rfind('.') + 1) + ": ");
    for (const std::string& value : key.values) words.push_back(value);
  }
  return words;
}

void write(const std::filesystem::path& file, const std::string& text) {
  std::ofstream(file, std::ios::binary | std::ios::trunc) << text;
}

class YamlFuzzer final : public fuzz::Fuzzer {
 public:
  explicit YamlFuzzer(std::uint64_t seed) : mutator_(seed, dictionary()) {}
  ~YamlFuzzer() override { std::filesystem::remove(file_); }

  std::string once(fuzz::Trial& trial) override {
    // One text in 16 is left whole: only its override is drawn.
    const bool whole = mutator_.below(16) == 0;
    const std::string& text = mutator_.below(2) == 0 ? reference_ : short_form_;
    text_ = whole ? text : mutator_.mutate(text);
    std::vector<std::string> overrides;
    if (mutator_.below(3) == 0) overrides.push_back(mutator_.mutate("prune.protect.layers.0=3"));
    trial.input(text_);
    std::string wrong = fuzz::outcome(trial, [&] { return check(overrides); },
                                      {ExitCode::config, ExitCode::missing_input});
    if (!wrong.empty() && !overrides.empty()) wrong += "\nwith the override " + overrides[0];
    return wrong;
  }

 private:
  /// Empty when all is well, else what is wrong.
  std::string check(const std::vector<std::string>& overrides) const {
    write(file_, text_);
    const std::string printed = to_yaml(read_run_config(file_, overrides, ConfigUse::print));
    write(file_, printed);
    const std::string again = to_yaml(read_run_config(file_, {}, ConfigUse::print));
    return again == printed ? ""
                            : "the printed configuration reads as another one:\n" + printed + again;
  }

  fuzz::TextMutator mutator_;
  std::filesystem::path file_ =
      std::filesystem::temp_directory_path() / fmt::format("fuzz_yaml_{}.yaml", ::getpid());
  std::string reference_ = reference_yaml();
  std::string short_form_ =
      "model: {path: m}\ncalibration: {domains: [{name: a, tokens: t.h5, weight: 2}]}\n"
      "prune: {target: 0.5, kinds: [mlp], protect: {layers: [1, 2]}}\nexport: [{format: exact, "
      "path: x}]\n";
  std::string text_;
};

}  // namespace
}  // namespace espalier

int main(int argc, char** argv) {
  espalier::fuzz::limit_memory(std::uint64_t{1} << 30);
  return espalier::fuzz::run(argc, argv, "fuzz_yaml", "yaml", [](std::uint64_t seed) {
    return std::make_unique<espalier::YamlFuzzer>(seed);
  });
}
