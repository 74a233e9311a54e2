#pragma once

#include <optional>
#include <string>

/// What the batch system says of the job that this process belongs to, by its environment.
namespace espalier::batch {

/// The job's number under Slurm or PBS; empty outside of one.
std::string job();
/// Seconds until Slurm ends the job (SLURM_JOB_END_TIME, seconds since 1970); nothing where it does
/// not say, or says that this is past.
std::optional<double> seconds_left();

}  // namespace espalier::batch
