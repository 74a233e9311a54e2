#include "espalier/pipeline/run_report.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "espalier/pipeline/monitor.h"

namespace espalier {
namespace {

nlohmann::ordered_json row_of_a_large_run() {
  return nlohmann::ordered_json::parse(R"({"iteration": 99, "sparsity_structures": 0.4955,
    "sparsity_parameters": 0.49, "sparsity_total_parameters": 0.4777, "heads_kept": 2560,
    "channels_kept": 1769472, "loss": {"web": 2.34567, "mathematics": 12.34567, "code": 1.0},
    "perplexity": {}, "seconds_iteration": 119.9, "seconds": {"calibrate": 100.0}, "tokens": 9999999,
    "peak_bytes": 137438953472})");
}

TEST(TableRow, FitsUnderItsHeader) {
  nlohmann::ordered_json row = row_of_a_large_run();
  const std::string header = table_header();
  const std::string text = table_row(row, 112, 0, 13 * 120.0);
  EXPECT_LE(header.size(), 100U);
  EXPECT_LE(text.size(), 100U) << text;
  EXPECT_EQ(text.find('\n'), std::string::npos);
  EXPECT_NE(text.find("12.35 mathe"), std::string::npos) << text;
  for (const char* column : {"iter", "structs", "decoder", "all", "loss", "heads", "time", "eta"}) {
    const std::size_t end = header.find(column) + std::string(column).size();
    EXPECT_TRUE(end <= text.size() && text[end - 1] != ' ' &&
                (end == text.size() || text[end] == ' '))
        << column << "\n"
        << header << "\n"
        << text;
  }
  row["perplexity"] = {{"web", 10.5}, {"code", 3.25}};
  EXPECT_NE(table_row(row, 112, 0, 1).find("\n        perplexity  web 10.500  code 3.250"),
            std::string::npos);
}

TEST(TableRow, OfTheModelAsItCame) {
  const auto row = nlohmann::ordered_json::parse(R"({"iteration": 3, "sparsity_structures": 0.0,
    "sparsity_parameters": 0.0, "sparsity_total_parameters": 0.0, "heads_kept": 64,
    "channels_kept": 2304, "loss": {}, "perplexity": {"a": 2.0}})");
  const std::string text = table_row(row, 13, 3, std::nullopt);
  EXPECT_NE(text.find("   0/10    0.0%"), std::string::npos) << text;
}

TEST(ProgressLine, HasABarWhereTheEndIsKnown) {
  EXPECT_EQ(progress_line("load", 0, 4, "parts", 0, 80),
            "load [                              ] 0/4 parts, 0/s");
  EXPECT_EQ(progress_line("load", 1, 4, "parts", 2, 80),
            "load [=======                       ] 1/4 parts, 0.5/s, eta 6.0 s");
  EXPECT_EQ(progress_line("load", 4, 4, "parts", 8, 80),
            "load [==============================] 4/4 parts, 0.5/s, eta 0.0 s");
  EXPECT_EQ(progress_line("export", 7, 0, "parts", 2, 80), "export 7 parts, 3.5/s");
  EXPECT_EQ(progress_line("load", 9, 4, "parts", 8, 20).size(), 20U);
}

}  // namespace
}  // namespace espalier
