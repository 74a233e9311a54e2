#include "espalier/score/paused_pass.h"

#include <cmath>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/text.h"

namespace espalier {
namespace {

constexpr const char* kFormat = "espalier-sums";
constexpr std::int64_t kVersion = 3;
/// Without finished layers, as earlier programs read it.
constexpr std::int64_t kVersionOfSums = 2;

void write_rows(Hdf5Writer& file, const std::string& path,
                const std::vector<std::vector<double>>& rows) {
  std::vector<double> flat;
  for (const std::vector<double>& row : rows) flat.insert(flat.end(), row.begin(), row.end());
  const std::size_t units = rows.empty() ? 0 : rows.front().size();
  file.write(path, std::span<const double>(flat),
             {static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(units)});
}

[[noreturn]] void refuse(const std::string& where, std::string what) {
  throw Error(ExitCode::bad_content, std::move(what), "the file is not what a paused run writes",
              "Remove its directory in ckpt/: the iteration is then done from its beginning.",
              where);
}

/// Rows without units need no bytes of the file, so their number says nothing about its size.
std::vector<std::vector<double>> read_rows(const Hdf5Reader& file, const std::string& path,
                                           std::size_t domains) {
  const Array<double> flat = file.read_f64(path);
  if (flat.shape.size() != 2) refuse(path, counted(flat.shape.size(), "dimension"));
  if (static_cast<std::uint64_t>(flat.shape[0]) > domains)
    refuse(path, fmt::format("{} of sums of {}", counted(flat.shape[0], "row"),
                             counted(domains, "domain")));
  for (const double value : flat.values)
    if (!std::isfinite(value)) refuse(path, fmt::format("a sum is {}", value));
  std::vector<std::vector<double>> rows;
  for (std::int64_t row = 0; row < flat.shape[0]; ++row)
    rows.emplace_back(flat.values.begin() + row * flat.shape[1],
                      flat.values.begin() + (row + 1) * flat.shape[1]);
  return rows;
}

std::int64_t read_count(const Hdf5Reader& file, const std::string& name) {
  const std::int64_t value = file.attribute_i64("/", name);
  if (value < 0) refuse("/", fmt::format("{} is {}", name, value));
  return value;
}

void write_finished(Hdf5Writer& file, const FinishedLayers& finished) {
  file.attribute("/", "traversals", finished.traversals);
  file.attribute("/", "layers", finished.layers);
  write_rows(file, "/attention/alone", finished.alone_attention);
  write_rows(file, "/mlp/alone", finished.alone_mlp);
  write_rows(file, "/attention/reduced", finished.reduced_attention);
  write_rows(file, "/mlp/reduced", finished.reduced_mlp);
  std::vector<std::int64_t> skipped;
  for (std::size_t i = 0; i < finished.skipped.size(); ++i)
    for (const std::int64_t row : finished.skipped[i].rows)
      skipped.insert(skipped.end(), {static_cast<std::int64_t>(i),
                                     static_cast<std::int64_t>(finished.skipped[i].domain), row});
  file.write("/skipped", std::span<const std::int64_t>(skipped),
             {static_cast<std::int64_t>(skipped.size() / 3), 3});
}

std::vector<FinishedLayers::Skipped> read_skipped(const Hdf5Reader& file, std::size_t domains) {
  const Array<std::int64_t> flat = file.read_i64("/skipped");
  if (flat.shape.size() != 2 || flat.shape[1] != 3) refuse("/skipped", "not three numbers a row");
  std::vector<FinishedLayers::Skipped> skipped;
  for (std::size_t at = 0; at < flat.values.size(); at += 3) {
    const std::int64_t number = flat.values[at], domain = flat.values[at + 1];
    if (domain < 0 || static_cast<std::uint64_t>(domain) >= domains || flat.values[at + 2] < 0)
      refuse("/skipped", fmt::format("domain {}, row {}", domain, flat.values[at + 2]));
    if (number == std::ssize(skipped))
      skipped.push_back({static_cast<std::size_t>(domain), {}});
    else if (number + 1 != std::ssize(skipped))
      refuse("/skipped", fmt::format("micro-batch {} after {}", number, skipped.size()));
    skipped.back().rows.push_back(flat.values[at + 2]);
  }
  return skipped;
}

FinishedLayers read_finished(const Hdf5Reader& file, std::size_t domains) {
  FinishedLayers finished;
  finished.traversals = read_count(file, "traversals");
  finished.layers = read_count(file, "layers");
  finished.alone_attention = read_rows(file, "/attention/alone", domains);
  finished.alone_mlp = read_rows(file, "/mlp/alone", domains);
  finished.reduced_attention = read_rows(file, "/attention/reduced", domains);
  finished.reduced_mlp = read_rows(file, "/mlp/reduced", domains);
  if (finished.alone_attention.size() != finished.alone_mlp.size() ||
      finished.reduced_attention.size() != finished.reduced_mlp.size())
    refuse("/", "attention and MLP have different numbers of rows");
  finished.skipped = read_skipped(file, domains);
  return finished;
}

}  // namespace

std::string what_is_done(const PausedPass& pass) {
  if (!pass.finished) return counted(pass.micro_batches, "micro-batch", "micro-batches");
  const std::string layers = counted(pass.finished->layers, "layer");
  const std::int64_t whole = pass.finished->traversals;
  if (whole == 0) return layers;
  std::string text = counted(whole, "traversal");
  if (pass.finished->layers > 0) text += fmt::format(" and {} of the next", layers);
  return text;
}

std::vector<std::byte> sums_image(const PausedPass& pass) {
  Hdf5Writer file;
  write_rows(file, "/attention/sums", pass.attention);
  write_rows(file, "/mlp/sums", pass.mlp);
  file.attribute("/", "format", std::string(kFormat));
  file.attribute("/", "version", pass.finished ? kVersion : kVersionOfSums);
  file.attribute("/", "work", pass.work);
  file.attribute("/", "iteration", pass.iteration);
  file.attribute("/", "micro_batches", pass.micro_batches);
  file.attribute("/", "loss", pass.loss);
  file.attribute("/", "tokens", pass.tokens);
  file.attribute("/", "real_tokens", pass.real_tokens);
  if (pass.finished) write_finished(file, *pass.finished);
  return file.finish();
}

PausedPass read_sums(const Hdf5Reader& file) {
  const std::int64_t version = file.attribute_i64("/", "version");
  if (file.attribute_string("/", "format") != kFormat || version < 1 || version > kVersion)
    refuse("/", fmt::format("not {} version 1 to {}", kFormat, kVersion));
  PausedPass pass;
  pass.work = file.attribute_string("/", "work");
  pass.iteration = read_count(file, "iteration");
  if (pass.iteration == 0) refuse("/", "iteration is 0");
  pass.micro_batches = read_count(file, "micro_batches");
  pass.loss = file.attribute_f64s("/", "loss");
  for (const double loss : pass.loss)
    if (!std::isfinite(loss)) refuse("/", fmt::format("a loss is {}", loss));
  pass.attention = read_rows(file, "/attention/sums", pass.loss.size());
  pass.mlp = read_rows(file, "/mlp/sums", pass.loss.size());
  if (pass.attention.size() != pass.mlp.size())
    refuse("/", fmt::format("{} rows of attention sums and {} of MLP sums", pass.attention.size(),
                            pass.mlp.size()));
  pass.tokens = read_count(file, "tokens");
  // Version 1 had none; its sums are of other work than any pass of today.
  pass.real_tokens = version == 1 ? std::vector<double>(pass.loss.size())
                                  : file.attribute_f64s("/", "real_tokens");
  if (pass.real_tokens.size() != pass.loss.size())
    refuse("/", fmt::format("real_tokens of {} and losses of {}", pass.real_tokens.size(),
                            counted(pass.loss.size(), "domain")));
  for (const double tokens : pass.real_tokens)
    if (!std::isfinite(tokens) || tokens < 0) refuse("/", fmt::format("{} real tokens", tokens));
  if (version == kVersion) pass.finished = read_finished(file, pass.loss.size());
  return pass;
}

}  // namespace espalier
