#pragma once

#include <string>
#include <utility>
#include <vector>

#include "espalier/core/error.h"

namespace espalier {

/// Runs `work`; a problem that it throws without a remedy gets this one.
template <class Work>
auto with_remedy(const std::string& remedy, Work&& work) -> decltype(work()) {
  try {
    return work();
  } catch (const Error& error) {
    std::vector<Problem> problems = error.problems();
    for (Problem& problem : problems)
      if (problem.remedy.empty()) problem.remedy = remedy;
    throw Error(std::move(problems));
  }
}

}  // namespace espalier
