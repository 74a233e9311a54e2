#pragma once

/// Requests to stop, as signals set them. Handlers only count; action is taken between micro-batches
/// after the ranks agreed. Signals closer than two seconds count once, since some launchers deliver
/// one request twice.
namespace espalier::stop {

/// Installs the SIGUSR1 handler (and ignores SIGXFSZ, so that a file-size limit is an error code).
void install_handlers();
/// 0 = go on; 1 = commit and stop; 2 = drop the micro-batch, commit what there is; 3 = abort.
int requests();
/// Counts one request from inside the process (STOP file, time limit).
void request();
/// Forgets all requests (tests).
void reset();

}  // namespace espalier::stop
