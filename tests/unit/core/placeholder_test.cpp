#include "espalier/core/placeholder.h"

#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/core/remedy.h"

namespace espalier {
namespace {

using Kind = Placeholder::Kind;

TEST(Placeholder, RecognisesWhatADownloadLeaves) {
  const auto kind = [](std::string_view text) {
    const auto found = find_placeholder(text, text.size());
    return found ? std::optional(found->kind) : std::nullopt;
  };
  EXPECT_EQ(kind(""), Kind::empty);
  EXPECT_EQ(kind("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"),
            Kind::pointer);
  for (const char* page :
       {"<!DOCTYPE html>", "<html>", "\n  <HTML lang='en'>", "<?xml version='1.0'?>",
        "\xEF\xBB\xBF<!doctype html>", "<Error><Code>AccessDenied</Code></Error>"})
    EXPECT_EQ(kind(page), Kind::page) << page;
  for (const char* other : {"{}", "[]", "version 1", "< 3", "<|im_start|>", "<", "Entry not found"})
    EXPECT_EQ(kind(other), std::nullopt) << other;
  // The length field of a safetensors file may look like letters.
  EXPECT_EQ(kind(std::string_view("<a\0\0\0\0\0\0{\"x\":", 13)), std::nullopt);
}

TEST(Placeholder, IsRefusedWithARemedy) {
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n";
  try {
    refuse_placeholder(pointer, 134, "shard");
    FAIL() << "a pointer was read";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_content);
    EXPECT_STREQ(
        error.what(),
        "shard: the file is a Git LFS pointer of 134 bytes, not the file it stands for. Run "
        "git lfs pull in its directory, or download the file with the hf command.");
  }
  EXPECT_NO_THROW(refuse_placeholder("{}", 2, "x.json"));
}

TEST(WithRemedy, FillsOnlyWhatIsEmpty) {
  try {
    with_remedy("Do this.", []() -> int {
      throw Error({{ExitCode::bad_content, "one", {}, {}, {}},
                   {ExitCode::missing_input, "two", {}, "Do that.", {}}});
    });
    FAIL() << "the error was lost";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "one. Do this.\ntwo. Do that.");
    EXPECT_EQ(error.code(), ExitCode::bad_content);
  }
  EXPECT_EQ(with_remedy("Do this.", [] { return 3; }), 3);
}

}  // namespace
}  // namespace espalier
