// fuzz_config_json [SECONDS [SEED...]]: mutated config.json texts. Allowed ends are success, after
// which the sizes must keep their rules, and espalier::Error(bad_content).

#include "espalier/config/model_config.h"
#include "espalier/core/error.h"
#include "fuzz/memory_limit.h"
#include "fuzz/session.h"
#include "fuzz/text_mutator.h"

namespace espalier {
namespace {

constexpr const char* kTexts[] = {
    R"({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
 "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 128, "rope_theta": 10000.0,
 "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
 "original_max_position_embeddings": 64}, "torch_dtype": "bfloat16", "tie_word_embeddings": true,
 "espalier": {"layers": [{"groups": [4, 1], "channels": 3}, {"groups": [], "channels": 0}]}})",
    R"({"model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "head_dim": 16,
 "num_key_value_heads": 4, "intermediate_size": 96, "vocab_size": 128, "use_sliding_window": true,
 "sliding_window": 16, "max_window_layers": 1, "layer_types": ["full_attention", "sliding_attention"],
 "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "dtype": "float32"})"};

std::vector<std::string> dictionary() {
  return {"null",
          "true",
          "false",
          "-1",
          "0",
          "1",
          "1e400",
          "18446744073709551616",
          "9223372036854775807",
          "0.5",
          "[]",
          "{}",
          "\"\"",
          "\"yarn\"",
          "\"mistral\"",
          "\"qwen2\"",
          "\"full_attention\"",
          "[[[[[[[[[[",
          ",",
          "\"a\": 1,",
          "\\u0000",
          "\xff",
          "\"type\": \"linear\",",
          "\"mlp_bias\": true,"};
}

bool keeps_rules(const ModelConfig& c) {
  bool good =
      c.hidden > 0 && c.layers > 0 && c.heads > 0 && c.kv_heads > 0 && c.heads % c.kv_heads == 0 &&
      c.head_dim > 0 && c.head_dim % 2 == 0 && c.channels > 0 && c.vocabulary > 0 &&
      c.sliding_window.size() == static_cast<std::size_t>(c.layers) && c.sha256.size() == 64;
  if (!c.exported) return good;
  good = good && c.exported->size() == static_cast<std::size_t>(c.layers);
  for (const ExportedLayer& layer : *c.exported) {
    good = good && layer.groups.size() <= static_cast<std::size_t>(c.kv_heads) &&
           layer.channels >= 0 && layer.channels <= c.channels;
    for (const std::int64_t group : layer.groups)
      good = good && group >= 1 && group <= c.group_size();
  }
  return good;
}

class ConfigJsonFuzzer final : public fuzz::Fuzzer {
 public:
  explicit ConfigJsonFuzzer(std::uint64_t seed) : mutator_(seed, dictionary()) {}

  std::string once(fuzz::Trial& trial) override {
    text_ = mutator_.mutate(kTexts[mutator_.below(std::size(kTexts))]);
    trial.input(text_);
    return fuzz::outcome(trial,
                         [&]() -> std::string {
                           return keeps_rules(parse_model_config(text_, "config.json"))
                                      ? ""
                                      : "accepted against the rules";
                         },
                         {ExitCode::bad_content});
  }

 private:
  fuzz::TextMutator mutator_;
  std::string text_;
};

}  // namespace
}  // namespace espalier

int main(int argc, char** argv) {
  espalier::fuzz::limit_memory(std::uint64_t{1} << 30);
  return espalier::fuzz::run(argc, argv, "fuzz_config_json", "json", [](std::uint64_t seed) {
    return std::make_unique<espalier::ConfigJsonFuzzer>(seed);
  });
}
