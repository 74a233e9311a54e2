#pragma once

#include <string>
#include <string_view>
#include <vector>

/// How lm-evaluation-harness 0.4.13 scores its task gsm8k, on bytes: what its regular expressions
/// find is ASCII, and whatever stands between is passed over. One pass over the text, no recursion:
/// generated text is as hostile as it likes. Pure.
namespace espalier {

/// The text before the first of the stop strings: cut by each in turn, as the harness does.
std::string cut_at_stop(std::string_view text, const std::vector<std::string>& stop);

/// Filter strict-match: what the first match of `#### (\-?[0-9\.\,]+)` has in parentheses;
/// "[invalid]" without one.
std::string strict_answer(std::string_view text);
/// Filter flexible-extract: the last match of `(-?[$0-9.,]{2,})|(-?[0-9]+)`; "[invalid]" without
/// one.
std::string flexible_answer(std::string_view text);

/// What is left of a prediction or a reference to compare: without commas, dollar signs, everything
/// up to the last "#### ", and a full stop at the end (or before a line feed at the end); in lower
/// case.
std::string comparable_answer(std::string_view answer);

}  // namespace espalier
