#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>

#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "support/temporary_directory.h"

namespace espalier::test {

using Scratch = testing::TemporaryDirectory;

inline void put(const std::filesystem::path& path, std::string_view text) {
  std::ofstream stream(path, std::ios::binary);
  stream.write(text.data(), static_cast<std::streamsize>(text.size()));
  ASSERT_TRUE(stream.good()) << path;
}

/// Names of the entries of a directory, sorted, joined with blanks.
inline std::string listing(const std::filesystem::path& directory) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    names.insert(entry.path().filename().string());
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
  return text;
}

/// Runs `action`, which must throw espalier::Error with `code`; returns its message.
inline std::string error_of(ExitCode code, const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

/// Arms ESPALIER_FAULT for one scope.
class Fault {
 public:
  explicit Fault(const std::string& specification) {
    ::setenv("ESPALIER_FAULT", specification.c_str(), 1);
    fault::initialise(0, 1);
  }
  ~Fault() {
    ::unsetenv("ESPALIER_FAULT");
    fault::initialise(0, 1);
  }
  Fault(const Fault&) = delete;
  Fault& operator=(const Fault&) = delete;
};

}  // namespace espalier::test
