#include "slice_reader.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <future>
#include <memory>
#include <vector>

#include <fmt/format.h>

#include "espalier/core/background.h"
#include "espalier/core/error.h"

namespace espalier {
namespace {

/// Bytes of a gap that may be read along with its neighbours: a call costs about as much.
constexpr std::int64_t kGap = std::int64_t{64} << 10;
constexpr auto kMostBytes = static_cast<std::int64_t>(posix::kBlock);
/// Threads that read a tensor of several blocks: what waits for a disk, or for pages of memory, is
/// no arithmetic, so it does not matter how many threads that has.
constexpr std::int64_t kReaders = 4;

/// Runs of one axis that one read covers, in bytes relative to the axis' begin.
struct Batch {
  std::vector<Range> runs;
  std::int64_t useful = 0;
  Range envelope() const { return {runs.front().begin, runs.back().end}; }
  std::int64_t waste() const { return envelope().size() - useful; }
};

/// Joins runs whose gaps are small while what is read in vain stays at most `waste_share` of what
/// is useful and the whole stays one block.
std::vector<Batch> join_runs(const IndexRuns& axis, std::int64_t unit_bytes, double waste_share) {
  std::vector<Batch> batches;
  for (const Range run : axis.runs()) {
    const Range bytes{run.begin * unit_bytes, run.end * unit_bytes};
    if (!batches.empty()) {
      Batch& last = batches.back();
      const std::int64_t gap = bytes.begin - last.envelope().end;
      const auto useful = static_cast<double>(last.useful + bytes.size());
      if (gap <= kGap && bytes.end - last.envelope().begin <= kMostBytes &&
          static_cast<double>(last.waste() + gap) <= waste_share * useful) {
        last.runs.push_back(bytes);
        last.useful += bytes.size();
        continue;
      }
    }
    batches.push_back({{bytes}, bytes.size()});
  }
  return batches;
}

/// One tensor of one open file, read piece by piece into consecutive bytes of `out`.
class SliceReader {
 public:
  SliceReader(const posix::Descriptor& file, const std::filesystem::path& path,
              const TensorInfo& info, const std::string& name, std::span<std::byte> out)
      : file_(file), path_(path), info_(info), name_(name), out_(out) {}

  /// Full-width rows are consecutive bytes.
  void read_rows(const IndexRuns& rows, std::int64_t row_bytes) {
    for (const Batch& batch : join_runs(rows, row_bytes, 0.25)) read_batch(0, batch);
  }

  /// Some columns of some rows. Rows are read together only when a row's columns span nearly all of
  /// it; across the gap that other ranks' columns leave nothing is read.
  void read_block(const IndexRuns& rows, const IndexRuns& columns, std::int64_t item,
                  std::int64_t row_bytes) {
    const std::vector<Batch> batches = join_runs(columns, item, 1.0);
    const std::int64_t span = batches.front().envelope().size();
    const bool nearly_whole = batches.size() == 1 && (row_bytes - span) * 4 <= span;
    const std::int64_t together =
        nearly_whole ? std::max<std::int64_t>(1, kMostBytes / row_bytes) : 1;
    for (const Range run : rows.runs()) {
      for (std::int64_t row = run.begin; row < run.end; row += together) {
        const std::int64_t count = std::min(together, run.end - row);
        if (count > 1)
          read_whole_rows(row, count, row_bytes, batches.front());
        else
          for (const Batch& batch : batches) read_batch(row * row_bytes, batch);
      }
    }
  }

 private:
  void read_batch(std::int64_t base, const Batch& batch) {
    const Range envelope = batch.envelope();
    if (batch.runs.size() == 1) {
      fetch(base + envelope.begin, take(envelope.size()));
      return;
    }
    fetch(base + envelope.begin, scratch(envelope.size()));
    compact(envelope.begin, batch, 0);
  }

  void read_whole_rows(std::int64_t row, std::int64_t count, std::int64_t row_bytes,
                       const Batch& batch) {
    const Range envelope = batch.envelope();
    fetch(row * row_bytes + envelope.begin, scratch((count - 1) * row_bytes + envelope.size()));
    for (std::int64_t i = 0; i < count; ++i) compact(envelope.begin, batch, i * row_bytes);
  }

  /// Room for what is read with its gaps; what it held before is lost.
  std::span<std::byte> scratch(std::int64_t bytes) {
    const auto size = static_cast<std::size_t>(bytes);
    if (size > scratch_bytes_) {
      scratch_ = std::make_unique_for_overwrite<std::byte[]>(size);
      scratch_bytes_ = size;
    }
    return {scratch_.get(), size};
  }

  void compact(std::int64_t origin, const Batch& batch, std::int64_t shift) {
    for (const Range run : batch.runs)
      std::memcpy(take(run.size()).data(), scratch_.get() + (run.begin - origin + shift),
                  static_cast<std::size_t>(run.size()));
  }

  /// The next bytes of `out`.
  std::span<std::byte> take(std::int64_t bytes) {
    const auto piece = out_.subspan(used_).first(static_cast<std::size_t>(bytes));
    used_ += piece.size();
    return piece;
  }

  void fetch(std::int64_t begin, std::span<std::byte> to) const {
    const std::uint64_t offset = info_.begin + static_cast<std::uint64_t>(begin);
    const std::size_t got = posix::read_at(file_, path_, offset, to);
    if (got == to.size()) return;
    throw Error(ExitCode::bad_content,
                fmt::format("the file ended inside tensor {}", posix::shown(name_)),
                fmt::format("{} of {} bytes at byte {}", got, to.size(), offset),
                "It was changed while it was in use; do not write to a checkpoint that is read.",
                path_.string());
  }

  const posix::Descriptor& file_;
  const std::filesystem::path& path_;
  const TensorInfo& info_;
  const std::string& name_;
  std::span<std::byte> out_;
  std::size_t used_ = 0;
  std::unique_ptr<std::byte[]> scratch_;
  std::size_t scratch_bytes_ = 0;
};

}  // namespace

void read_slice(const posix::Descriptor& file, const std::filesystem::path& path,
                const TensorInfo& info, const std::string& name, const IndexRuns& rows,
                const IndexRuns& columns, std::span<std::byte> out) {
  const std::int64_t height = info.shape.empty() ? 1 : info.shape.front();
  std::int64_t width = 1;
  for (std::size_t i = 1; i < info.shape.size(); ++i) width *= info.shape[i];
  const auto item = static_cast<std::int64_t>(size_of(info.dtype));
  ESPALIER_CHECK(rows.envelope().end <= height && columns.envelope().end <= width,
                 fmt::format("slice up to row {} and column {} of {} [{}, {}]", rows.envelope().end,
                             columns.envelope().end, posix::shown(name), height, width));
  const std::int64_t bytes = rows.size() * columns.size() * item;
  ESPALIER_CHECK(
      static_cast<std::uint64_t>(bytes) == out.size(),
      fmt::format("{} bytes for a slice of {} bytes of {}", out.size(), bytes, posix::shown(name)));
  if (bytes == 0) return;
  const std::int64_t row_bytes = columns.size() * item;
  const std::int64_t parts = std::min(rows.size(), (bytes + kMostBytes - 1) / kMostBytes);
  const auto read_part = [&](std::int64_t part) {
    const Range places = even_cut(rows.size(), static_cast<int>(parts), static_cast<int>(part));
    SliceReader reader(file, path, info, name,
                       out.subspan(static_cast<std::size_t>(places.begin * row_bytes),
                                   static_cast<std::size_t>(places.size() * row_bytes)));
    if (columns.is_all(width))
      reader.read_rows(rows.part(places), width * item);
    else
      reader.read_block(rows.part(places), columns, item, width * item);
  };
  std::atomic<std::int64_t> next{0};
  const auto read_parts = [&] {
    for (std::int64_t part = next++; part < parts; part = next++) read_part(part);
  };
  std::vector<std::future<void>> others;
  for (std::int64_t i = 1; i < std::min(parts, kReaders); ++i)
    others.push_back(in_background(read_parts));
  read_parts();
  for (std::future<void>& other : others) other.get();
}

}  // namespace espalier
