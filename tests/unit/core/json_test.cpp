#include "espalier/core/json.h"

#include <gtest/gtest.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

std::string refusal(std::string_view text, JsonLimits limits = {}) {
  try {
    parse_json(text, "x.json", limits);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::bad_content);
    return e.what();
  }
  return "accepted";
}

TEST(Json, KeepsOrderAndValues) {
  const auto value =
      parse_json(R"({"b": [1, -2, 2.5, "é", null, true], "a": {"c": {}}})", "x.json");
  EXPECT_EQ(value.dump(), R"({"b":[1,-2,2.5,"é",null,true],"a":{"c":{}}})");
}

TEST(Json, RefusesWhatACarelessParserAccepts) {
  EXPECT_NE(refusal(R"({"a":1,"a":2})").find("duplicate key 'a'"), std::string::npos);
  EXPECT_NE(refusal(R"({"x":{"a":1,"a":2}})").find("duplicate key"), std::string::npos);
  EXPECT_NE(refusal(std::string(40, '[') + std::string(40, ']')).find("deeper than 32"),
            std::string::npos);
  EXPECT_NE(refusal("{} x").find("invalid JSON"), std::string::npos);
  EXPECT_NE(refusal("{\"a\": \"\xff\"}").find("invalid JSON"), std::string::npos);
  EXPECT_NE(refusal("[1e999]").find("invalid JSON"), std::string::npos);
  EXPECT_NE(refusal(std::string_view("{}\0x", 4)).find("zero byte"), std::string::npos);
  EXPECT_NE(refusal("").find("invalid JSON"), std::string::npos);
  EXPECT_NE(refusal("[1,2,3]", {.depth = 4, .bytes = 3}).find("at most 3"), std::string::npos);
  EXPECT_EQ(refusal(R"({"a":{"a":1},"b":{"a":1}})"), "accepted");
}

}  // namespace
}  // namespace espalier
