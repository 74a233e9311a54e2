#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "espalier/calib/token_file.h"
#include "espalier/config/run_config.h"
#include "espalier/model/blockwise.h"

namespace espalier {

/// One domain as drawn for one iteration.
struct DomainDraw {
  std::string name;
  double weight = 1.0;
  Objective objective = Objective::causal_lm;
  /// Rows of the file, ascending.
  std::vector<std::int64_t> rows;
  /// Tokens of each that are no padding, as the file says unchecked; empty where it has no lengths.
  std::vector<std::int32_t> lengths;
  /// Of each row, the coefficient of its mean loss in the domain's loss: 1 / rows; under `margin` 1
  /// / right rows for a right one, -1 / wrong rows for a wrong one.
  std::vector<double> shares;
  /// Under `margin`, whether each row is a right option.
  std::vector<std::uint8_t> right;
  /// Places in `rows` where what is drawn as a whole begins: an item under `margin`, else a row.
  std::vector<std::size_t> begins;
};

/// Rows of one domain that go through the model at once.
struct MicroBatch {
  std::size_t domain = 0;
  /// Places in DomainDraw::rows, ascending; of an item all or none.
  std::vector<std::size_t> places;
};

/// A micro-batch on the device, with what is needed to account for it.
struct CalibrationBatch {
  TokenBatch batch;
  std::size_t domain = 0;
  /// Counted predictions of each sequence, in order.
  std::vector<std::int64_t> predictions;
  /// Coefficient of each sequence's mean loss in its domain's loss.
  std::vector<double> shares;
  /// Tokens that are no padding.
  std::int64_t real_tokens = 0;
};

/// Whose coefficients a micro-batch carries: of the pooled loss over all domains, or of its own
/// domain's.
enum class Differentiated { pooled_loss, domain_loss };
/// Whether a prompt is computed for each option of its item, or once for all of them.
enum class Prompts { repeated, shared };

/// The calibration data of one iteration: which rows, in which order. The same value on every rank;
/// each data rank then reads only its own micro-batches.
///
/// Rows are drawn without replacement by (seed, domain name) with a counter-based hash, and kept in
/// file order. With resample each iteration takes the next ones of the file's shuffled order, so
/// that no row comes again before all others were drawn; then the file is shuffled anew.
/// Micro-batches hold max(1, micro_batch_tokens / S) whole sequences of one domain, the longest
/// ones first, so that little padding is computed: a batch is as wide as its longest row. One of a
/// domain may hold fewer; it is put where the tokens computed are fewest, and last where that does
/// not matter, so that they are never more than in the order of the file. Those of all domains are
/// interleaved evenly into one global order, wider ones first: batches of one round are about as
/// wide, and the first needs most memory. Equal lengths keep the order of the file. Round j deals
/// data rank d of D the (jD + d)-th, so that what is done is always a prefix; the order does not
/// depend on ranks.
///
/// The objective that is differentiated over all micro-batches is the pooled loss sum_d w_d L_d /
/// sum_d w_d, L_d the mean over the domain's sequences of the sequence's mean loss over counted
/// tokens (arXiv 2601.02674); over those of one domain it is L_d alone. Under `margin` L_d is the
/// mean over the rows of right options minus the mean over those of wrong ones (arXiv 2510.18030);
/// items are drawn, and go through the model, whole.
class Calibration {
 public:
  /// Opens the token files for what their objectives count and draws. Throws every problem of
  /// theirs; Error(config) when a domain asks for more sequences than its file has.
  static Calibration draw(const CalibrationConfig& config, std::int64_t iteration,
                          std::int64_t vocabulary);

  /// Rows of token files, by path.
  using RowsOfFiles = std::map<std::filesystem::path, std::set<std::int64_t>>;
  /// The same, once, for work that looks at other data than the scores did: of every file the rows
  /// that are not in `taken` come first, in the shuffled order of (seed, domain name).
  static Calibration draw_apart(const CalibrationConfig& config, const RowsOfFiles& taken,
                                std::int64_t vocabulary);
  /// The rows that were drawn.
  RowsOfFiles rows_of_files() const;
  /// All rows of a file that is open already, as the one domain `name` with objective causal_lm.
  static Calibration whole(TokenFile file, const std::string& name,
                           std::int64_t micro_batch_tokens);

  const std::vector<DomainDraw>& domains() const { return domains_; }
  /// Those of all domains in the global order, or of one domain in its own.
  std::vector<MicroBatch> micro_batches() const;
  std::vector<MicroBatch> micro_batches_of(std::size_t domain) const;
  /// Reads one micro-batch and moves it to `device`, with the coefficients of the objective that is
  /// differentiated. With Prompts::shared the options of an item become one packed row where that
  /// makes fewer tokens (calib/shared_prompts.h).
  CalibrationBatch read(const MicroBatch& micro_batch, Differentiated objective, at::Device device,
                        Prompts prompts = Prompts::repeated) const;
  /// Takes the rows of these micro-batches out, as if they had not been drawn: all others are cut
  /// and weighted anew. A domain may be left without rows.
  void exclude(const std::vector<MicroBatch>& micro_batches);
  /// The rows of a micro-batch, as numbers of the domain's file.
  std::vector<std::int64_t> rows_of(const MicroBatch& micro_batch) const;
  std::int64_t sequences() const;
  /// Tokens of a domain's rows that are no padding. Reads the file's lengths.
  std::int64_t real_tokens(std::size_t domain) const;
  const std::vector<TokenFile>& files() const { return files_; }
  /// Reads the share's part of every row that this or another iteration may read, for what read()
  /// would throw; every file's first problem at once.
  void check(Share share) const;

 private:
  /// What one draw takes: rows or items, ascending, of so many.
  using Take = std::function<std::vector<std::int64_t>(
      const DomainConfig& domain, const TokenFile& file, std::int64_t all, std::int64_t wanted)>;
  static Calibration draw_with(const CalibrationConfig& config, std::int64_t vocabulary,
                               const Take& take);
  /// The rows of a domain that one draw takes, with what is known of them.
  static DomainDraw drawn(const DomainConfig& domain, const TokenFile& file, const Take& take,
                          const std::string& key);
  /// A micro-batch with its place in (0, 1) among those of its domain, and the tokens that so many
  /// rows of its width are when it is full.
  struct Placed {
    double place = 0;
    std::int64_t tokens = 0;
    MicroBatch batch;
  };
  /// Those of a domain, in its own order.
  std::vector<Placed> placed(std::size_t domain) const;

  std::vector<TokenFile> files_;
  std::vector<DomainDraw> domains_;
  std::int64_t micro_batch_tokens_ = 0;
  bool resample_ = false;
};

/// What an objective counts.
Counting counting_of(Objective objective);

/// Turns rows into a batch: trims padding that no row needs, collects counted predictions with the
/// weight of their row (row_weights[row] / counted tokens of the row). `predictions` receives their
/// count per row.
TokenBatch make_batch(const TokenRows& rows, std::span<const double> row_weights, at::Device device,
                      std::vector<std::int64_t>& predictions);

/// Sequences per micro-batch: max(1, micro_batch_tokens / sequence_tokens).
std::int64_t sequences_per_micro_batch(std::int64_t micro_batch_tokens,
                                       std::int64_t sequence_tokens);

}  // namespace espalier
