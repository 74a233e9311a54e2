#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "espalier/store/hdf5_file.h"

namespace espalier {

/// What each row of a file of options is: one option of one item, the rows of an item behind one
/// another in the order of their options (docs/file-formats.md).
struct OptionRows {
  /// [N], the item's number in the file; any number, each in one run of rows.
  std::vector<std::int32_t> item;
  /// [N], 0 to n - 1 within an item of n options.
  std::vector<std::int32_t> option;
  /// [N], 1 = a right option.
  std::vector<std::uint8_t> correct;
  /// [N], characters of the option's text; empty when the file has none.
  std::vector<std::int32_t> normalizer;
  /// [items + 1]: the rows of the i-th item are first[i] to first[i + 1] - 1.
  std::vector<std::int64_t> first;

  std::int64_t items() const { return static_cast<std::int64_t>(first.size()) - 1; }
};

/// Reads and checks /item, /option, /correct and, if it is there, /normalizer of a token file of
/// `rows` rows. Throws bad_content, one problem for each rule that is broken, at its first place:
/// an object is missing or has another shape; an item's rows do not lie behind one another; its
/// options are not 0, 1, ...; it has less than two of them, none that is right or none that is
/// wrong; a normaliser below 1. Not collective.
OptionRows read_option_rows(const Hdf5Reader& file, const std::filesystem::path& path,
                            std::int64_t rows);

}  // namespace espalier
