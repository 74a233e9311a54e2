// fuzz_yaml SECONDS SEED: mutated configuration files and overrides. Allowed ends are success,
// after which the printed configuration must read back as itself, and espalier::Error with a code
// that a configuration can have. Anything else, or more than two seconds for one text, fails and
// leaves the text.

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iostream>

#include <fmt/format.h>

#include "espalier/config/run_config.h"
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

/// Empty when all is well, else what is wrong.
std::string check(const std::filesystem::path& file, const std::string& text,
                  const std::vector<std::string>& overrides) {
  write(file, text);
  try {
    const std::string printed = to_yaml(read_run_config(file, overrides, ConfigUse::print));
    write(file, printed);
    const std::string again = to_yaml(read_run_config(file, {}, ConfigUse::print));
    return again == printed ? ""
                            : "the printed configuration reads as another one:\n" + printed + again;
  } catch (const Error& e) {
    const bool allowed = e.code() == ExitCode::config || e.code() == ExitCode::missing_input;
    return allowed ? "" : fmt::format("exit code {}: {}", static_cast<int>(e.code()), e.what());
  } catch (const std::exception& e) {
    return fmt::format("an exception of another type: {}", e.what());
  }
}

int run(double seconds, std::uint64_t seed) {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / fmt::format("fuzz_yaml_{}.yaml", ::getpid());
  const std::string reference = reference_yaml();
  const std::string short_form =
      "model: {path: m}\ncalibration: {domains: [{name: a, tokens: t.h5, weight: 2}]}\n"
      "prune: {target: 0.5, kinds: [mlp], protect: {layers: [1, 2]}}\nexport: [{format: exact, "
      "path: x}]\n";
  fuzz::TextMutator mutator(seed, dictionary());
  const fuzz::Deadline end(seconds);
  std::size_t runs = 0;
  for (; !end.passed(); ++runs) {
    std::string text = mutator.mutate(runs % 2 == 0 ? reference : short_form);
    std::vector<std::string> overrides;
    if (runs % 3 == 0) overrides.push_back(mutator.mutate("prune.protect.layers.0=3"));
    const fuzz::Deadline one(2.0);
    std::string wrong = check(file, text, overrides);
    if (wrong.empty() && one.passed()) wrong = "more than two seconds";
    if (wrong.empty()) continue;
    write("fuzz_yaml_failure.yaml", text);
    std::cerr << fmt::format(
        "fuzz_yaml: seed {} run {}: {}\nthe text is in fuzz_yaml_failure.yaml; override: {}\n",
        seed, runs, wrong, overrides.empty() ? "none" : overrides[0]);
    return 1;
  }
  std::filesystem::remove(file);
  std::cout << fmt::format("fuzz_yaml: {} texts in {} s, seed {}: nothing found\n", runs, seconds,
                           seed);
  return runs > 0 ? 0 : 1;
}

}  // namespace
}  // namespace espalier

int main(int argc, char** argv) {
  return espalier::run(espalier::fuzz::seconds_to_run(argc, argv),
                       espalier::fuzz::seed_of(argc, argv));
}
