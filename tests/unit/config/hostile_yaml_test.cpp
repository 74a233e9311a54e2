#include <algorithm>
#include <ctime>
#include <functional>

#include <fmt/format.h>

#include "config_fixture.h"

namespace espalier {
namespace {

/// Texts that a YAML library may choke on. Each must be refused, in words, in a few times the
/// processor time of a harmless file of the most values that are read.
class HostileYaml : public ConfigTest {
 protected:
  std::string refused(const std::string& text, double most = 10) {
    const double limit = most * harmless();
    std::ofstream(file(), std::ios::binary) << text;
    std::string message;
    const auto read = [&] { message = refusal(); };
    double elapsed = seconds_of(read);
    // A moment in which the machine was elsewhere is none of the text's.
    for (int again = 0; again < 2 && elapsed >= limit; ++again)
      elapsed = std::min(elapsed, seconds_of(read));
    EXPECT_LT(elapsed, limit);
    return message.substr(0, message.find('\n'));
  }

 private:
  std::string refusal() {
    try {
      read_run_config(file(), {}, ConfigUse::run);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::config);
      return without_directory(e.what());
    }
    ADD_FAILURE() << "it was accepted";
    return "";
  }

  static double seconds_of(const std::function<void()>& work) {
    const std::clock_t start = std::clock();
    work();
    return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  }

  /// Measured beside each text, so that a slow machine slows both.
  double harmless() {
    std::string text = "a: [";
    for (int i = 0; i < 9000; ++i) text += "1,";
    std::ofstream(file(), std::ios::binary) << text + "]";
    return seconds_of([&] { EXPECT_THROW(read_run_config(file(), {}, ConfigUse::run), Error); });
  }
};

TEST_F(HostileYaml, AliasBomb) {
  std::string text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 10; ++i) {
    text += fmt::format("a{0}: &a{0} [", i);
    for (int j = 0; j < 9; ++j) text += fmt::format("{}*a{}", j == 0 ? "" : ", ", i - 1);
    text += "]\n";
  }
  EXPECT_EQ(refused(text),
            "config.yaml:1:5: an anchor (anchors and aliases are not read). Write the value out.");
}

TEST_F(HostileYaml, Cycle) {
  EXPECT_EQ(refused("a: &a [*a]\n"),
            "config.yaml:1:4: an anchor (anchors and aliases are not read). Write the value out.");
  EXPECT_EQ(refused("a: &a {b: *a}\n").substr(0, 26), "config.yaml:1:4: an anchor");
  EXPECT_EQ(refused("a: &a\n").substr(0, 26), "config.yaml:1:4: an anchor");
}

TEST_F(HostileYaml, Depth) {
  const std::string sixteen = "nesting deeper than 16 (no key lies that deep)";
  EXPECT_EQ(refused("a: " + std::string(20, '[') + std::string(20, ']')),
            "config.yaml:1:19: " + sixteen);
  EXPECT_NE(refused("a: " + std::string(100000, '[')).find(sixteen), std::string::npos);
  EXPECT_NE(refused("a: " + std::string(100000, '{')).find(sixteen), std::string::npos);
  std::string block;
  for (int i = 0; i < 400; ++i) block += std::string(static_cast<std::size_t>(i), ' ') + "a:\n";
  EXPECT_EQ(refused(block), "config.yaml:17:17: nesting deeper than 16 (no key lies that deep)");
  std::string dashes;
  for (int i = 0; i < 20000; ++i) dashes += "- ";
  EXPECT_EQ(refused(dashes), "config.yaml:1:33: nesting deeper than 16 (no key lies that deep)");
}

TEST_F(HostileYaml, Width) {
  std::string text = "a: [";
  for (int i = 0; i < 100000; ++i) text += "1,";
  EXPECT_NE(
      refused(text + "]").find("more than 10000 values (far more than a configuration holds)"),
      std::string::npos);
  std::string keys;
  for (int i = 0; i < 50000; ++i) keys += fmt::format("k{}: 1\n", i);
  EXPECT_NE(refused(keys).find("more than 10000 values"), std::string::npos);
}

// The time of a text that is just small enough is the library's, and linear.
TEST_F(HostileYaml, Size) {
  EXPECT_EQ(refused("a: " + std::string(100'000'000, 'x')),
            "'config.yaml' has 100000003 bytes (at most 1048576 are read)");
  EXPECT_NE(refused("a: " + std::string(1'000'000, 'x'), 60).find("unknown key 'a'"),
            std::string::npos);
  EXPECT_NE(refused(std::string(1'000'000, 'x') + ": 1", 60).find("invalid YAML"),
            std::string::npos);
}

TEST_F(HostileYaml, DuplicateKeys) {
  EXPECT_EQ(refused("prune:\n  target: 0.1\n  target: 0.9\n"),
            "config.yaml:3:3: duplicate key 'target'. Keep one of them.");
  EXPECT_EQ(refused("{a: 1, \"a\": 2}"), "config.yaml:1:8: duplicate key 'a'. Keep one of them.");
}

TEST_F(HostileYaml, Tags) {
  EXPECT_EQ(refused("a: !!python/object:os.system x\n"),
            "config.yaml:1:4: the tag 'tag:yaml.org,2002:python/object:os.system' (tags are not "
            "read). Remove it.");
  EXPECT_EQ(refused("a: !foo [1]\n"),
            "config.yaml:1:4: the tag '!foo' (tags are not read). Remove it.");
}

TEST_F(HostileYaml, Documents) {
  EXPECT_EQ(refused("a: 1\n---\nb: 1\n"),
            "config.yaml:2:1: a second document (one file holds one configuration). Remove what "
            "follows '---'.");
}

TEST_F(HostileYaml, Encoding) {
  EXPECT_EQ(refused("a: 1\nb: \xff\n"),
            "config.yaml:2:4: byte 0xff is not valid UTF-8. Save the file as UTF-8.");
  EXPECT_EQ(refused("a: \xc0\xaf\n").substr(0, 33),
            "config.yaml:1:4: byte 0xc0 is not");  // overlong
  EXPECT_EQ(refused("a: \xed\xa0\x80\n").substr(0, 33),
            "config.yaml:1:4: byte 0xed is not");  // surrogate
  EXPECT_EQ(refused("a: \xf4\x90\x80\x80\n").substr(0, 33), "config.yaml:1:4: byte 0xf4 is not");
  EXPECT_EQ(refused("a: \xe2\x82").substr(0, 33),
            "config.yaml:1:4: byte 0xe2 is not");  // cut short
  EXPECT_EQ(refused(std::string("\xff\xfe"
                                "a\0",
                                4))
                .substr(0, 33),
            "config.yaml:1:1: byte 0xff is not");
  EXPECT_EQ(refused(std::string("a: \0b", 5)),
            "config.yaml:1:4: control character 0x00. Remove it.");
  EXPECT_EQ(refused("a: \x1b[2J"), "config.yaml:1:4: control character 0x1b. Remove it.");
}

TEST_F(HostileYaml, Keys) {
  EXPECT_EQ(refused("? [a]\n: b\n"),
            "config.yaml:1:3: a key that is not a name. Write `name: value`.");
  EXPECT_EQ(refused("~: b\n"), "config.yaml:1:1: a key that is not a name. Write `name: value`.");
}

TEST_F(HostileYaml, Syntax) {
  EXPECT_EQ(refused("a: [1\nb: 2"),
            "config.yaml:2:2: invalid YAML: end of sequence flow not found");
  EXPECT_NE(refused("a: \"1").find("invalid YAML"), std::string::npos);
  EXPECT_NE(refused("\ta: 1").find("config.yaml:1:"), std::string::npos);
  EXPECT_NE(refused("a: b: c").find("invalid YAML"), std::string::npos);
}

}  // namespace
}  // namespace espalier
