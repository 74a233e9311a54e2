#include <algorithm>
#include <array>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>

#include <fmt/format.h>

#include "espalier/core/json.h"
#include "espalier/core/paths.h"
#include "espalier/core/text.h"
#include "espalier/core/version.h"
#include "espalier/store/files.h"
#include "export_parts.h"

namespace espalier::export_detail {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxCardBytes = std::size_t{4} << 20;

/// A key of a YAML front matter with its lines as they stand ("license: apache-2.0").
struct MetadataBlock {
  std::string key;
  std::string lines;
};

/// Top-level blocks of the front matter between the first two "---" lines; empty when there is
/// none.
std::vector<MetadataBlock> front_matter(const std::string& card) {
  std::istringstream in(card);
  std::string line;
  const auto next = [&] {
    if (!std::getline(in, line)) return false;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    return true;
  };
  std::vector<MetadataBlock> blocks;
  if (!next() || line != "---") return {};
  while (next()) {
    if (line == "---") return blocks;
    const std::size_t colon = line.find(':');
    const bool starts_key = colon != std::string::npos && !line.starts_with(' ') &&
                            !line.starts_with('-') && !line.starts_with('#');
    if (starts_key) blocks.push_back({line.substr(0, colon), {}});
    if (!blocks.empty()) blocks.back().lines += line + "\n";
  }
  return {};  // never closed: not a front matter
}

std::vector<MetadataBlock> source_metadata(const fs::path& source) {
  std::error_code failure;
  const fs::path file = source / kCardFile;
  if (!fs::is_regular_file(file, failure) || fs::file_size(file, failure) > kMaxCardBytes)
    return {};
  return front_matter(read_file(file, kMaxCardBytes));
}

const MetadataBlock* find_block(const std::vector<MetadataBlock>& blocks, std::string_view key) {
  const auto found = std::find_if(blocks.begin(), blocks.end(),
                                  [&](const MetadataBlock& block) { return block.key == key; });
  return found == blocks.end() ? nullptr : &*found;
}

/// "org/name": a hub id rather than a path.
bool is_hub_id(std::string_view text) {
  const std::size_t slash = text.find('/');
  return slash != std::string_view::npos && slash > 0 && slash + 1 < text.size() &&
         text.find('/', slash + 1) == std::string_view::npos && text.front() != '.' &&
         text.front() != '~';
}

/// "org/name" from a hub cache path (.../models--org--name/snapshots/<revision>), else the last
/// component.
std::string name_of_directory(const fs::path& source) {
  constexpr std::string_view kPrefix = "models--";
  const fs::path path = absolute_path(source);
  for (const fs::path& part : path) {
    const std::string name = part.string();
    if (!name.starts_with(kPrefix)) continue;
    const std::size_t end = name.find("--", kPrefix.size());
    const std::string owner = name.substr(kPrefix.size(), end - kPrefix.size());
    return end == std::string::npos ? owner : fmt::format("{}/{}", owner, name.substr(end + 2));
  }
  return path.filename().string();
}

std::string base_model_name(const fs::path& source, const ModelConfig& dense) {
  const auto root = parse_json(dense.source_text, kConfigFile);
  if (root.contains("_name_or_path") && root["_name_or_path"].is_string()) {
    auto name = root["_name_or_path"].get<std::string>();
    if (is_hub_id(name)) return name;
  }
  return name_of_directory(source);
}

bool has_license_file(const fs::path& source) {
  std::error_code failure;
  return fs::is_regular_file(source / "LICENSE", failure);
}

std::string metadata_text(const fs::path& source, const std::vector<MetadataBlock>& blocks,
                          const std::string& base_model) {
  std::string text = "---\n";
  const MetadataBlock* inherited = find_block(blocks, "base_model");
  // A pruned model pruned again still stems from the model that the first one stems from.
  const std::string own = fmt::format("base_model: {}\n", json_text(line_text(base_model)));
  text += base_model.empty() && inherited != nullptr ? inherited->lines : own;
  const MetadataBlock* license = find_block(blocks, "license");
  for (const char* key : {"license", "license_name", "license_link", "language"})
    if (const MetadataBlock* block = find_block(blocks, key)) text += block->lines;
  if (license == nullptr && has_license_file(source))
    text += "license: other\nlicense_link: LICENSE\n";
  return text +
         "library_name: transformers\npipeline_tag: text-generation\ntags:\n- espalier\n- "
         "pruned\n---\n";
}

std::string share(std::int64_t left, std::int64_t all) {
  const double percent = all > 0 ? 100.0 * static_cast<double>(left) / static_cast<double>(all) : 0;
  return fmt::format("{} of {} ({:.1f} %)", left, all, percent);
}

std::string facts_table(ExportFormat format, const ModelConfig& dense, const ModelWidths& kept,
                        const ModelCard& card, const ExportReport& report) {
  std::int64_t heads = 0, kv_heads = 0, channels = 0;
  for (const LayerWidths& layer : kept.layers) {
    heads += static_cast<std::int64_t>(layer.query_heads.size());
    kv_heads += static_cast<std::int64_t>(layer.kv_heads.size());
    channels += static_cast<std::int64_t>(layer.channels.size());
  }
  std::vector<std::pair<std::string, std::string>> rows{
      {"Form", format == ExportFormat::exact ? "exact" : "uniform"},
      {"Model type", report.model_type},
      {"Decoder parameters", share(report.parameters.decoder, report.dense_parameters.decoder)},
      {"All parameters", share(report.parameters.total, report.dense_parameters.total)},
      {"Query heads", share(heads, dense.layers * dense.heads)},
      {"KV heads", share(kv_heads, dense.layers * dense.kv_heads)},
      {"MLP channels", share(channels, dense.layers * dense.channels)}};
  rows.insert(rows.end(), card.facts.begin(), card.facts.end());
  std::string text = "| | |\n|---|---|\n";
  for (const auto& [name, value] : rows) text += fmt::format("| {} | {} |\n", name, value);
  return text;
}

std::string loading_text(ExportFormat format) {
  const bool exact = format == ExportFormat::exact;
  return fmt::format(
      "## Loading\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
      "model = AutoModelForCausalLM.from_pretrained(\"DIRECTORY\"{})\n"
      "tokenizer = AutoTokenizer.from_pretrained(\"DIRECTORY\")\n```\n\n{}\n\n",
      exact ? ", trust_remote_code=True" : "",
      exact ? "Layers differ in width, so the bundled `modeling_espalier.py` builds the model: it "
              "subclasses the stock classes, and every projection is a plain nn.Linear of the "
              "width that is left. Without `trust_remote_code` loading stops with a size mismatch."
            : "All layers have the same widths: no code is bundled or needed.");
}

/// "o_proj and down_proj": the modules that the weights are of, in the order of a layer.
std::string modules_text(const std::vector<std::string>& weights) {
  std::vector<std::string> modules;
  for (const char* module :
       {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
    if (std::ranges::any_of(weights, [&](const std::string& name) {
          return name.ends_with(fmt::format(".{}.weight", module));
        }))
      modules.emplace_back(module);
  std::string text;
  for (std::size_t i = 0; i < modules.size(); ++i)
    text += (i == 0 ? "" : i + 1 < modules.size() ? ", " : " and ") + modules[i];
  return text;
}

std::string layer_table(const ModelConfig& dense, const ModelWidths& kept) {
  std::string text =
      "## What is left of each layer\n\n"
      "Groups are the query heads that read each kept KV head.\n\n"
      "| layer | query heads | KV heads | groups | channels |\n|---|---|---|---|---|\n";
  for (std::size_t i = 0; i < kept.layers.size(); ++i) {
    const LayerWidths& layer = kept.layers[i];
    text +=
        fmt::format("| {} | {} of {} | {} of {} | {} | {} of {} |\n", i, layer.query_heads.size(),
                    dense.heads, layer.kv_heads.size(), dense.kv_heads,
                    list_text(layer.groups(dense)), layer.channels.size(), dense.channels);
  }
  return text;
}

}  // namespace

std::string model_card_text(ExportFormat format, const fs::path& source, const ModelConfig& dense,
                            const ModelWidths& kept, const ModelCard& card,
                            const ExportReport& report) {
  const std::vector<MetadataBlock> blocks = source_metadata(source);
  const bool inherits = dense.exported && find_block(blocks, "base_model") != nullptr;
  std::string base = card.base_model;
  if (base.empty() && !inherits) base = base_model_name(source, dense);
  std::string text = metadata_text(source, blocks, base);
  text +=
      fmt::format("\n# {}, pruned\n\n", line_text(base.empty() ? name_of_directory(source) : base));
  const bool refitted = !report.replaced.empty();
  text += fmt::format(
      "Attention heads and MLP channels were removed by espalier {}; {}{}. `{}` lists what was "
      "removed and in which order, `{}` how this was made.\n\n",
      version(),
      refitted ? fmt::format("{} of {} were then refitted by least squares (see below), and all "
                             "other weights that are left are those of its source",
                             counted(report.replaced.size(), "matrix", "matrices"),
                             modules_text(report.replaced))
               : "the weights that are left are those of its source, bit for bit",
      report.output_bias ? ", beside biases that stand for what was removed" : "", kPlanFile,
      kProvenanceFile);
  text += facts_table(format, dense, kept, card, report) + "\n";
  text += loading_text(format);
  if (!report.notes.empty()) {
    text += "## Notes\n\n";
    for (const std::string& note : report.notes) text += "- " + note + "\n";
    text += "\n";
  }
  text += layer_table(dense, kept);
  if (!card.text.empty()) text += "\n" + card.text + (card.text.ends_with('\n') ? "" : "\n");
  return text;
}

}  // namespace espalier::export_detail
