#include <fmt/format.h>
#include <gtest/gtest.h>

#include "espalier/store/files.h"
#include "unit/export/sample_checkpoint.h"

namespace espalier {
namespace {

using namespace testing;

TEST(ExportExact, KeepsTheBitsOfWhatIsKeptForEveryFamilyAndDtype) {
  int number = 0;
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"})
    for (const DType dtype : {DType::bf16, DType::f32, DType::f16})
      for (const bool tied : {false, true}) {
        SCOPED_TRACE(fmt::format("{} {} tied {}", family, safetensors_name(dtype), tied));
        const TemporaryDirectory place;
        const bool sharded = ++number % 2 == 0;
        const SampleCheckpoint source(place.path() / "source", sample_config(family, tied), dtype,
                                      sharded);
        Draw draw(static_cast<std::uint64_t>(number));
        for (const ModelWidths& kept :
             {uneven_widths(source.config), dense_widths(source.config),
              drawn_widths(draw, source.config, dense_widths(source.config))}) {
          const fs::path out = place.path() / "out";
          const ExportReport report = export_exact(
              source.open(), source.config, dense_widths(source.config), kept, options_for(out));
          expect_same_tensors(read_tensors(out),
                              expected_tensors(source.config, source.tensors, kept));
          EXPECT_EQ(report.tensors,
                    static_cast<std::int64_t>(tensor_catalog(source.config).size()));
          EXPECT_EQ(report.parameters.total, count_parameters(source.config, kept).total);
          const ModelConfig again = read_model_config(out);
          ASSERT_TRUE(again.exported.has_value());
          for (std::size_t i = 0; i < 4; ++i) {
            EXPECT_EQ((*again.exported)[i].groups, kept.layers[i].groups(source.config));
            EXPECT_EQ((*again.exported)[i].channels,
                      static_cast<std::int64_t>(kept.layers[i].channels.size()));
          }
          fs::remove_all(out);
        }
      }
}

TEST(ExportExact, PartsOfAnySizeMakeTheSameBytes) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("qwen2", false), DType::bf16,
                                true);
  const ModelWidths kept = uneven_widths(source.config);
  int calls_before = 0;
  for (const std::size_t part_bytes : {1, 50, 100, 1000, 1 << 20}) {
    SCOPED_TRACE(part_bytes);
    int calls = 0;
    ExportOptions options = options_for(place.path() / "out");
    options.part_bytes = part_bytes;
    options.between_tensors = [&] { ++calls; };
    export_exact(source.open(), source.config, dense_widths(source.config), kept, options);
    expect_same_tensors(read_tensors(options.out),
                        expected_tensors(source.config, source.tensors, kept));
    EXPECT_TRUE(calls_before == 0 || calls <= calls_before) << calls;
    calls_before = calls;
    fs::remove_all(options.out);
  }
}

TEST(ExportExact, ASourceThatEndsEarlyStopsItAndNothingIsLeft) {
  for (const int at_call : {1, 2, 20, 40}) {
    SCOPED_TRACE(at_call);
    const TemporaryDirectory place;
    const SampleCheckpoint source(place.path() / "source", sample_config("qwen2", false),
                                  DType::f32);
    int calls = 0;
    ExportOptions options = options_for(place.path() / "out");
    options.part_bytes = 64;
    options.between_tensors = [&] {
      if (++calls == at_call) fs::resize_file(source.directory / "model.safetensors", 4000);
    };
    const Error error = error_of([&] {
      export_exact(source.open(), source.config, dense_widths(source.config),
                   uneven_widths(source.config), options);
    });
    EXPECT_EQ(error.code(), ExitCode::bad_content);
    EXPECT_NE(std::string(error.what()).find("the file ended inside tensor"), std::string::npos)
        << error.what();
    EXPECT_EQ(std::distance(fs::directory_iterator(place.path()), {}), 1);
  }
}

TEST(ExportExact, WritesTheFilesOfTheContract) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("qwen2", true), DType::bf16);
  ExportOptions options = options_for(place.path() / "deep" / "er" / "out/");
  const std::string plan = "an HDF5 image";
  for (const char c : plan) options.plan_image.push_back(static_cast<std::byte>(c));
  const ExportReport report =
      export_exact(source.open(), source.config, dense_widths(source.config),
                   uneven_widths(source.config), options);
  const fs::path out = place.path() / "deep/er/out";
  EXPECT_EQ(report.directory, out);
  EXPECT_EQ(files_below(out), (std::vector<std::string>{
                                  "README.md", "config.json", "espalier_plan.h5",
                                  "model.safetensors", "modeling_espalier.py", "provenance.json"}));
  EXPECT_EQ(read_text(out / "espalier_plan.h5"), plan);
  EXPECT_EQ(read_text(out / "modeling_espalier.py"), read_text(ESPALIER_MODELING_FILE));
  EXPECT_EQ(files_below(place.path() / "deep").size(), 6U) << "something temporary is left";
  const nlohmann::ordered_json provenance = read_json(out / "provenance.json");
  EXPECT_EQ(provenance["command"], "test");
  EXPECT_EQ(provenance["files"].size(), 5U);
  for (const auto& [name, hash] : provenance["files"].items())
    EXPECT_EQ(hash, sha256_of_file(out / name)) << name;
}

TEST(ExportExact, ShardsAtTheGivenSizeWithAnIndex) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("qwen3", false), DType::f32);
  const ModelWidths kept = uneven_widths(source.config);
  ExportOptions options = options_for(place.path() / "out");
  options.max_shard_bytes = 1000;  // the embeddings have 816 bytes, the widest linear map 576
  const ExportReport report =
      export_exact(source.open(), source.config, dense_widths(source.config), kept, options);
  expect_same_tensors(read_tensors(options.out),
                      expected_tensors(source.config, source.tensors, kept));
  const nlohmann::ordered_json index = read_json(options.out / "model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], report.weight_bytes);
  EXPECT_EQ(static_cast<std::int64_t>(index["weight_map"].size()), report.tensors);
  std::map<std::string, std::uint64_t> bytes;
  for (const auto& [name, file] : index["weight_map"].items())
    bytes[file] += expected_tensors(source.config, source.tensors, kept)[name].bytes.size();
  ASSERT_GT(bytes.size(), 3U);
  std::size_t number = 0;
  for (const auto& [file, size] : bytes) {
    EXPECT_EQ(file, fmt::format("model-{:05}-of-{:05}.safetensors", ++number, bytes.size()));
    EXPECT_LE(size, options.max_shard_bytes);
    EXPECT_TRUE(report.sha256.contains(file));
  }
}

TEST(ExportExact, ATensorLargerThanAShardGetsAFileOfItsOwn) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("llama", true), DType::bf16);
  ExportOptions options = options_for(place.path() / "out");
  options.max_shard_bytes = 1;
  const ModelWidths kept = uneven_widths(source.config);
  export_exact(source.open(), source.config, dense_widths(source.config), kept, options);
  expect_same_tensors(read_tensors(options.out),
                      expected_tensors(source.config, source.tensors, kept));
}

TEST(ExportExact, CopiesEveryFileOfTheSourceButWeightsAndConfig) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("llama", false), DType::f32,
                                true);
  const std::vector<std::string> copied{
      "LICENSE",    "chat/template.jinja", "generation_config.json",
      "merges.txt", "tokenizer.json",      "tokenizer.model"};
  const std::vector<std::string> left{"README.md",
                                      "consolidated.00.pth",
                                      "pytorch_model-00001-of-00002.bin",
                                      "pytorch_model.bin.index.json",
                                      "model.gguf",
                                      "tf_model.h5",
                                      "Weights.PT",
                                      "original/params.json",
                                      "onnx/model.txt",
                                      "openvino/openvino_model.xml",
                                      "model.safetensors.index.fp16.json",
                                      "model.safetensors.incomplete",
                                      ".gitattributes",
                                      ".env",
                                      ".git/HEAD",
                                      ".cache/x",
                                      "runs/a/status.json",
                                      "runs/a/log.txt",
                                      "other/config.json",
                                      "other/tokenizer.json",
                                      "espalier_plan.h5",
                                      "provenance.json",
                                      "modeling_espalier.py"};
  for (const std::string& name : copied) write_text(source.directory / name, "text of " + name);
  for (const std::string& name : left) write_text(source.directory / name, "stale " + name);
  write_text(place.path() / "blob", "behind a link");
  fs::create_symlink(place.path() / "blob", source.directory / "special_tokens_map.json");
  fs::create_directory_symlink(place.path(), source.directory / "loop");
  const fs::path out = source.directory / "exported";  // inside the source on purpose
  export_exact(source.open(), source.config, dense_widths(source.config),
               uneven_widths(source.config), options_for(out));
  for (const std::string& name : copied) EXPECT_EQ(read_text(out / name), "text of " + name);
  EXPECT_EQ(read_text(out / "special_tokens_map.json"), "behind a link");
  EXPECT_FALSE(fs::is_symlink(out / "special_tokens_map.json"));
  std::vector<std::string> expected{"README.md",         "config.json",
                                    "model.safetensors", "modeling_espalier.py",
                                    "provenance.json",   "special_tokens_map.json"};
  expected.insert(expected.end(), copied.begin(), copied.end());
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(files_below(out), expected);
  for (const char* name : {"README.md", "provenance.json", "modeling_espalier.py"})
    EXPECT_EQ(read_text(out / name).find("stale"), std::string::npos) << name;
}

std::string joined(const std::vector<std::string>& notes) {
  std::string text;
  for (const std::string& note : notes) text += note + "\n";
  return text;
}

TEST(ExportExact, FilesThatMakeALoaderBehaveDifferentlyAreLeftOutWithANote) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("llama", false), DType::f32);
  const std::vector<std::string> left{"adapter_config.json",
                                      "quantize_config.json",
                                      "quant_config.json",
                                      "hf_quant_config.json",
                                      "modules.json",
                                      "sentence_bert_config.json",
                                      "config_sentence_transformers.json",
                                      "params.json",
                                      "modeling_own.py",
                                      "configuration_own.py"};
  for (const std::string& name : left) write_text(source.directory / name, "{}");
  const ExportReport report =
      export_exact(source.open(), source.config, dense_widths(source.config),
                   uneven_widths(source.config), options_for(place.path() / "out"));
  for (const std::string& name : left) {
    EXPECT_FALSE(fs::exists(report.directory / name)) << name;
    EXPECT_NE(joined(report.notes).find(name + " is left out: "), std::string::npos) << name;
    EXPECT_NE(read_text(report.directory / "README.md").find(name), std::string::npos) << name;
  }
}

TEST(ExportExact, CodeOfTheTokenizerIsCopied) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("llama", false), DType::f32);
  write_text(source.directory / "tokenizer_config.json",
             R"({"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", null]}})");
  write_text(source.directory / "tokenization_own.py", "from .configuration_own import size");
  write_text(source.directory / "configuration_own.py", "size = 3");
  export_exact(source.open(), source.config, dense_widths(source.config),
               uneven_widths(source.config), options_for(place.path() / "out"));
  for (const char* name : {"tokenization_own.py", "configuration_own.py"})
    EXPECT_TRUE(fs::exists(place.path() / "out" / name)) << name;
}

TEST(ExportExact, WhatADownloadLeftIsNotCopied) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("llama", false), DType::f32);
  write_text(source.directory / "tokenizer.json",
             "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9085657\n");
  write_text(source.directory / "tokenizer_config.json", "<!DOCTYPE html><html></html>");
  write_text(source.directory / "chat_template.jinja", "<s>{{ messages }}");
  write_text(source.directory / "added_tokens.json", "");
  const ExportReport report =
      export_exact(source.open(), source.config, dense_widths(source.config),
                   uneven_widths(source.config), options_for(place.path() / "out"));
  EXPECT_FALSE(fs::exists(report.directory / "tokenizer.json"));
  EXPECT_FALSE(fs::exists(report.directory / "tokenizer_config.json"));
  EXPECT_TRUE(fs::exists(report.directory / "chat_template.jinja"));
  EXPECT_TRUE(fs::exists(report.directory / "added_tokens.json"));
  const std::string notes = joined(report.notes);
  EXPECT_NE(notes.find("tokenizer.json is left out: the file is a Git LFS pointer"),
            std::string::npos)
      << notes;
  EXPECT_NE(notes.find("git lfs pull"), std::string::npos) << notes;
}

TEST(ExportExact, ManyForeignTensorsMakeOneNote) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("llama", false), DType::f32);
  StoredTensors with_tower = source.tensors;
  for (int i = 0; i < 9; ++i)
    with_tower[fmt::format("vision.{}", i)] = drawn_tensor("v", {2}, DType::f32);
  fs::remove(source.directory / "model.safetensors");
  write_tensors(source.directory, with_tower);
  const ExportReport report =
      export_exact(source.open(), source.config, dense_widths(source.config),
                   uneven_widths(source.config), options_for(place.path() / "out"));
  ASSERT_EQ(report.notes.size(), 1U);
  EXPECT_NE(report.notes[0].find("9 tensors are left out"), std::string::npos) << report.notes[0];
  EXPECT_NE(report.notes[0].find("vision.0, vision.1, vision.2, and 6 more"), std::string::npos);
}

TEST(ExportExact, ATiedModelsHeadIsLeftOutWithANote) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("qwen2", true), DType::bf16);
  StoredTensors with_head = source.tensors;
  with_head["lm_head.weight"] = drawn_tensor("lm_head.weight", {17, 12}, DType::bf16);
  with_head["model.rotary_emb.inv_freq"] = drawn_tensor("inv_freq", {2}, DType::f32);
  fs::remove(source.directory / "model.safetensors");
  write_tensors(source.directory, with_head);
  const ModelWidths kept = uneven_widths(source.config);
  const ExportReport report =
      export_exact(source.open(), source.config, dense_widths(source.config), kept,
                   options_for(place.path() / "out"));
  expect_same_tensors(read_tensors(report.directory),
                      expected_tensors(source.config, source.tensors, kept));
  ASSERT_EQ(report.notes.size(), 2U);
  EXPECT_NE(report.notes[0].find("lm_head.weight is left out: the embeddings are tied"),
            std::string::npos);
  EXPECT_NE(report.notes[1].find("model.rotary_emb.inv_freq"), std::string::npos);
}

TEST(ExportExact, AnExportOfAnExportIsTheExportOfTheWhole) {
  for (const char* family : {"llama", "qwen2"}) {
    const TemporaryDirectory place;
    const SampleCheckpoint source(place.path() / "source", sample_config(family, true), DType::f16);
    const ModelConfig& dense = source.config;
    const ModelWidths first = widths_from(dense, {{0, 1, 2, 4}, {0, 3}, {1, 2, 3, 5}, {4, 5}},
                                          {{0, 1, 2, 3, 9}, {1, 2, 4, 5, 6, 7}, {3, 4}, {0, 8}});
    const ModelWidths second =
        widths_from(dense, {{1, 4}, {}, {1, 2, 5}, {5}}, {{0, 9}, {4, 7}, {}, {0, 8}});
    export_exact(source.open(), dense, dense_widths(dense), first, options_for(place.path() / "a"));
    const ModelConfig of_first = read_model_config(place.path() / "a");
    export_exact(CheckpointReader::open(place.path() / "a"), of_first, first, second,
                 options_for(place.path() / "ab"));
    export_exact(source.open(), dense, dense_widths(dense), second,
                 options_for(place.path() / "b"));
    expect_same_tensors(read_tensors(place.path() / "ab"),
                        expected_tensors(dense, source.tensors, second));
    EXPECT_EQ(read_text(place.path() / "ab/config.json"),
              read_text(place.path() / "b/config.json"));
    EXPECT_EQ(sha256_of_file(place.path() / "ab/model.safetensors"),
              sha256_of_file(place.path() / "b/model.safetensors"));
  }
}

TEST(ExportExact, NeverWritesIntoAnythingThatExists) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("llama", true), DType::f32);
  fs::create_directory(place.path() / "empty");
  write_text(place.path() / "file", "kept");
  fs::create_symlink(place.path() / "nowhere", place.path() / "dangling");
  for (const char* name : {"empty", "file", "dangling", "empty/"}) {
    const Error error = error_of([&] {
      export_exact(source.open(), source.config, dense_widths(source.config),
                   uneven_widths(source.config), options_for(place.path() / name));
    });
    EXPECT_EQ(error.code(), ExitCode::cannot_create) << name;
    EXPECT_NE(std::string(error.what()).find("exists"), std::string::npos) << error.what();
  }
  EXPECT_TRUE(fs::is_empty(place.path() / "empty"));
  EXPECT_EQ(read_text(place.path() / "file"), "kept");
  EXPECT_EQ(std::distance(fs::directory_iterator(place.path()), {}), 4);
}

TEST(ExportExact, TheCallerCanStopItAtAnyTensorAndNothingIsLeft) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("llama", true), DType::f32);
  write_text(source.directory / "tokenizer.json", "{}");
  const auto export_until = [&](int stop_at) {
    int calls = 0;
    ExportOptions options = options_for(place.path() / "out");
    options.between_tensors = [&] {
      if (++calls == stop_at) throw Error(ExitCode::stopped, "stop");
    };
    export_exact(source.open(), source.config, dense_widths(source.config),
                 uneven_widths(source.config), options);
    return calls;
  };
  const int calls = export_until(-1);
  // Tensors without elements are not polled for: 3 of the empty MLP, 4 of the empty attention.
  EXPECT_EQ(calls, static_cast<int>(tensor_catalog(source.config).size()) - 7 + 1);
  fs::remove_all(place.path() / "out");
  for (const int stop_at : {1, 2, calls / 2, calls}) {
    EXPECT_EQ(error_of([&] { export_until(stop_at); }).code(), ExitCode::stopped);
    EXPECT_EQ(std::distance(fs::directory_iterator(place.path()), {}), 1) << stop_at;
  }
  EXPECT_EQ(export_until(-1), calls);
}

TEST(ExportExact, EverythingWrongWithTheSourceIsListedBeforeAnythingIsWritten) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("qwen2", false), DType::f32);
  StoredTensors wrong = source.tensors;
  wrong.erase("model.layers.2.self_attn.k_proj.bias");
  wrong["model.layers.1.mlp.down_proj.weight"] = drawn_tensor("x", {12, 9}, DType::f32);
  wrong["model.norm.weight"] = drawn_tensor("x", {12, 1}, DType::f32);
  fs::remove(source.directory / "model.safetensors");
  write_tensors(source.directory, wrong);
  const Error error = error_of([&] {
    export_exact(source.open(), source.config, dense_widths(source.config),
                 uneven_widths(source.config), options_for(place.path() / "a" / "out"));
  });
  EXPECT_EQ(error.code(), ExitCode::bad_content);
  ASSERT_EQ(error.problems().size(), 3U);
  EXPECT_EQ(error.problems()[0].what, "model.layers.1.mlp.down_proj.weight has the shape [12, 9]");
  EXPECT_EQ(error.problems()[0].why, "config.json asks for [12, 10]");
  EXPECT_EQ(error.problems()[1].what, "model.layers.2.self_attn.k_proj.bias is missing");
  EXPECT_EQ(error.problems()[2].what, "model.norm.weight has the shape [12, 1]");
  EXPECT_FALSE(fs::exists(place.path() / "a"));
}

TEST(ExportExact, AskingForUnitsThatTheSourceHasLostIsABug) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("llama", true), DType::f32);
  const ModelConfig& dense = source.config;
  const ModelWidths first = uneven_widths(dense);
  export_exact(source.open(), dense, dense_widths(dense), first, options_for(place.path() / "a"));
  const Error error = error_of([&] {
    export_exact(CheckpointReader::open(place.path() / "a"), dense, first, dense_widths(dense),
                 options_for(place.path() / "b"));
  });
  EXPECT_EQ(error.code(), ExitCode::internal);
  EXPECT_FALSE(fs::exists(place.path() / "b"));
}

}  // namespace
}  // namespace espalier
