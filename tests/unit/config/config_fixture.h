#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "espalier/config/run_config.h"

namespace espalier {

/// A directory with a model directory and token files by name; a test writes its config.yaml there.
class ConfigTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::path(::testing::TempDir()) /
                 ("espalier_config_" + std::to_string(::getpid()));
    std::filesystem::create_directories(directory_ / "models" / "m");
    ::setenv("ESPALIER_TEST_DIR", directory_.c_str(), 1);
    for (const char* name : {"web.h5", "math.h5", "wiki.h5"})
      std::ofstream(directory_ / name) << "x";
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::filesystem::path file() const { return directory_ / "config.yaml"; }

  RunConfig read(const std::string& text, const std::vector<std::string>& overrides = {},
                 ConfigUse use = ConfigUse::run) {
    std::ofstream(file(), std::ios::binary) << text;
    return read_run_config(file(), overrides, use);
  }

  /// Every message, with the directory cut out; "(accepted)" when nothing is wrong.
  std::string messages(const std::string& text, const std::vector<std::string>& overrides = {},
                       ConfigUse use = ConfigUse::run, ExitCode* code = nullptr) {
    try {
      read(text, overrides, use);
    } catch (const Error& e) {
      if (code != nullptr) *code = e.code();
      return without_directory(e.what());
    }
    return "(accepted)";
  }

  std::string without_directory(std::string text) const {
    const std::string prefix = directory_.string() + "/";
    for (std::size_t at = text.find(prefix); at != std::string::npos; at = text.find(prefix))
      text.erase(at, prefix.size());
    return text;
  }

  /// The smallest file that `run` accepts.
  static std::string minimal() {
    return "model: {path: models/m}\n"
           "calibration: {domains: [{name: web, tokens: web.h5}]}\n"
           "prune: {target: 0.5}\n";
  }

  std::filesystem::path directory_;
};

}  // namespace espalier
