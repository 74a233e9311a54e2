#include "espalier/score/paused_pass.h"

#include <cmath>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/text.h"

namespace espalier {
namespace {

constexpr const char* kFormat = "espalier-sums";
constexpr std::int64_t kVersion = 2;

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

}  // namespace

std::vector<std::byte> sums_image(const PausedPass& pass) {
  Hdf5Writer file;
  write_rows(file, "/attention/sums", pass.attention);
  write_rows(file, "/mlp/sums", pass.mlp);
  file.attribute("/", "format", std::string(kFormat));
  file.attribute("/", "version", kVersion);
  file.attribute("/", "work", pass.work);
  file.attribute("/", "iteration", pass.iteration);
  file.attribute("/", "micro_batches", pass.micro_batches);
  file.attribute("/", "loss", pass.loss);
  file.attribute("/", "tokens", pass.tokens);
  file.attribute("/", "real_tokens", pass.real_tokens);
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
  return pass;
}

}  // namespace espalier
