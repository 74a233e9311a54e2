#include "espalier/store/files.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <map>

#include "espalier/core/hash.h"
#include "espalier/store/safetensors.h"
#include "scratch.h"

namespace espalier {
namespace {

using test::error_of;
using test::Fault;
using test::listing;
using test::put;
using test::Scratch;

/// Runs `action` in a child process; returns its exit status as waitpid gives it.
int in_child(const std::function<int()>& action) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(action());
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST(Files, WrittenIsRead) {
  const Scratch scratch;
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{1}, std::size_t{4096}, (std::size_t{1} << 20) + 3,
        (std::size_t{17} << 20) + 1, (std::size_t{145} << 20) + 1}) {
    std::string text(size, '\0');
    for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 7 + i / 251);
    const auto path = scratch / fmt::format("f{}", size);
    write_new_file(path, text, WriteScope::save);
    EXPECT_TRUE(read_file(path) == text) << size;
    EXPECT_EQ(sha256_of_file(path), sha256_hex(std::string_view(text)));
    copy_file_checked(path, scratch / fmt::format("c{}", size), WriteScope::export_model);
    EXPECT_TRUE(read_file(scratch / fmt::format("c{}", size)) == text) << size;
  }
}

TEST(Files, ReadsFilesWithoutASize) { EXPECT_FALSE(read_file("/proc/self/stat").empty()); }

TEST(Files, ReadNamesWhatIsWrong) {
  const Scratch scratch;
  const std::string gone =
      error_of(ExitCode::missing_input, [&] { read_file(scratch / "no\nfile"); });
  EXPECT_NE(gone.find("no\\x0afile"), std::string::npos) << gone;
  EXPECT_NE(gone.find("open: No such file"), std::string::npos) << gone;
  error_of(ExitCode::missing_input, [&] { read_file(scratch.path()); });
  ASSERT_EQ(::mkfifo((scratch / "pipe").c_str(), 0600), 0);
  error_of(ExitCode::missing_input, [&] { read_file(scratch / "pipe"); });  // and does not hang
  put(scratch / "big", "123456");
  EXPECT_EQ(read_file(scratch / "big", 6), "123456");
  error_of(ExitCode::bad_content, [&] { read_file(scratch / "big", 5); });
  put(scratch / "file", "");
  error_of(ExitCode::missing_input, [&] { read_file(scratch / "file" / "below"); });
}

TEST(Files, UnreadableIsPermission) {
  const Scratch scratch;
  put(scratch / "secret", "x");
  ASSERT_EQ(::chmod(scratch.path().c_str(), 0755), 0);
  ASSERT_EQ(::chmod((scratch / "secret").c_str(), 0), 0);
  const int status = in_child([&] {
    // The superuser may read everything: become somebody else.
    if (::geteuid() == 0 && ::setuid(65534) != 0) return 0;
    try {
      read_file(scratch / "secret");
    } catch (const Error& error) {
      return static_cast<int>(error.code());
    }
    return 1;
  });
  EXPECT_EQ(WEXITSTATUS(status), static_cast<int>(ExitCode::permission));
}

TEST(Files, NewFileNeverReplacesNorFollows) {
  const Scratch scratch;
  put(scratch / "old", "old");
  error_of(ExitCode::cannot_create,
           [&] { write_new_file(scratch / "old", "x", WriteScope::other); });
  EXPECT_EQ(read_file(scratch / "old"), "old");
  std::filesystem::create_symlink(scratch / "target", scratch / "link");
  error_of(ExitCode::cannot_create,
           [&] { write_new_file(scratch / "link", "x", WriteScope::other); });
  EXPECT_EQ(listing(scratch.path()), "link old");
  error_of(ExitCode::cannot_create,
           [&] { copy_file_checked(scratch / "old", scratch / "link", WriteScope::other); });
  // A link at the source is followed.
  std::filesystem::create_symlink(scratch / "old", scratch / "source");
  copy_file_checked(scratch / "source", scratch / "copy", WriteScope::other);
  EXPECT_TRUE(std::filesystem::is_regular_file(std::filesystem::symlink_status(scratch / "copy")));
  error_of(ExitCode::missing_input,
           [&] { write_new_file(scratch / "no" / "where", "x", WriteScope::other); });
}

TEST(Files, ReplaceLeavesOneFile) {
  const Scratch scratch;
  replace_file(scratch / "status", "one");
  replace_file(scratch / "status", "two", WriteScope::save);
  EXPECT_EQ(read_file(scratch / "status"), "two");
  EXPECT_EQ(listing(scratch.path()), "status");
}

TEST(Files, RenameAndRemove) {
  const Scratch scratch;
  std::filesystem::create_directories(scratch / "a" / "b");
  put(scratch / "a" / "b" / "f", "x");
  put(scratch / "keep", "x");
  std::filesystem::create_directory_symlink(scratch.path(), scratch / "a" / "up");
  rename_path(scratch / "a", scratch / "z", WriteScope::save);
  EXPECT_EQ(listing(scratch.path()), "keep z");
  remove_tree(scratch / "z", WriteScope::save);  // removes the link, not what it points to
  EXPECT_EQ(listing(scratch.path()), "keep");
  remove_tree(scratch / "z", WriteScope::save);  // gone is fine
  const std::string message = error_of(ExitCode::missing_input, [&] {
    rename_path(scratch / "gone", scratch / "other", WriteScope::save);
  });
  EXPECT_NE(message.find("gone"), std::string::npos) << message;
  std::filesystem::create_directories(scratch / "d1");
  std::filesystem::create_directories(scratch / "d2" / "full");
  error_of(ExitCode::cannot_create,
           [&] { rename_path(scratch / "d1", scratch / "d2", WriteScope::save); });
}

TEST(Files, FreeSpace) {
  const Scratch scratch;
  require_free_space(scratch.path(), 1);
  const std::string message = error_of(
      ExitCode::write_failed, [&] { require_free_space(scratch.path(), std::uint64_t{1} << 62); });
  EXPECT_NE(message.find("4611686018427387904 bytes are needed"), std::string::npos) << message;
  EXPECT_NE(message.find("bytes are free"), std::string::npos) << message;
  error_of(ExitCode::missing_input, [&] { require_free_space(scratch / "none", 1); });
}

struct FaultCase {
  const char* step;
  const char* action;
  ExitCode code;
};

const FaultCase kFileFaults[] = {
    {"open", "errno:EACCES", ExitCode::permission},
    {"open", "errno:ENOSPC", ExitCode::write_failed},
    {"write", "errno:ENOSPC", ExitCode::write_failed},
    {"write", "errno:EDQUOT", ExitCode::write_failed},
    {"write", "short-write", ExitCode::write_failed},
    {"flush", "errno:EIO", ExitCode::write_failed},
    {"fsync", "errno:EIO", ExitCode::write_failed},
    {"close", "errno:EDQUOT", ExitCode::write_failed},
    {"write", "throw", ExitCode::internal},
    {"close", "throw", ExitCode::internal},
};

TEST(Files, EveryStepThatFailsLeavesNothing) {
  for (const char* scope : {"save", "export"}) {
    for (const FaultCase& c : kFileFaults) {
      const Scratch scratch;
      const std::string point = fmt::format("{}.{}", scope, c.step);
      const Fault fault(fmt::format("point={};action={}", point, c.action));
      const WriteScope where =
          std::string(scope) == "save" ? WriteScope::save : WriteScope::export_model;
      const std::string text(3 << 20, 'x');
      error_of(c.code, [&] { write_new_file(scratch / "f", text, where); });
      EXPECT_EQ(listing(scratch.path()), "") << point;
      error_of(c.code, [&] { write_new_file(scratch / "f", "small", where); });
      EXPECT_EQ(listing(scratch.path()), "") << point;
      // Scope `other` has no points.
      write_new_file(scratch / "f", text, WriteScope::other);
      EXPECT_EQ(listing(scratch.path()), "f");
    }
  }
}

TEST(Files, ReplaceKeepsTheOldFileWhenAStepFails) {
  const Scratch scratch;
  replace_file(scratch / "f", "old", WriteScope::save);
  for (const char* step : {"open", "write", "flush", "fsync", "readback", "close", "pre_rename"}) {
    const Fault fault(fmt::format("point=save.{};action=errno:ENOSPC", step));
    const std::string message = error_of(
        ExitCode::write_failed, [&] { replace_file(scratch / "f", "new", WriteScope::save); });
    EXPECT_NE(message.find("bytes are free"), std::string::npos) << message;
    EXPECT_EQ(read_file(scratch / "f"), "old") << step;
    EXPECT_EQ(listing(scratch.path()), "f") << step;
  }
  for (const char* step : {"post_rename", "fsync_dir"}) {
    const Fault fault(fmt::format("point=save.{};action=errno:EIO", step));
    error_of(ExitCode::write_failed, [&] { replace_file(scratch / "f", step, WriteScope::save); });
    EXPECT_EQ(read_file(scratch / "f"), step);  // published, yet the caller learns of the error
  }
}

TEST(Files, DirectoryFaults) {
  const Scratch scratch;
  std::filesystem::create_directory(scratch / "d");
  put(scratch / "d" / "f", "x");
  {
    const Fault fault("point=save.pre_rename;action=errno:EIO");
    error_of(ExitCode::write_failed,
             [&] { rename_path(scratch / "d", scratch / "e", WriteScope::save); });
    EXPECT_EQ(listing(scratch.path()), "d");
  }
  {
    const Fault fault("point=save.unlink;nth=2;action=errno:EROFS");
    error_of(ExitCode::permission, [&] { remove_tree(scratch / "d", WriteScope::save); });
    EXPECT_EQ(listing(scratch.path()), "d");
    EXPECT_EQ(listing(scratch / "d"), "");  // the first unlink was done
  }
  const Fault fault("point=export.fsync_dir;action=errno:EIO");
  error_of(ExitCode::write_failed,
           [&] { fsync_directory(scratch.path(), WriteScope::export_model); });
  fsync_directory(scratch.path(), WriteScope::save);
}

TEST(Files, KilledBeforeTheRenameLeavesTheOldFile) {
  const Scratch scratch;
  replace_file(scratch / "f", "old", WriteScope::save);
  const int status = in_child([&] {
    ::setenv("ESPALIER_FAULT", "point=save.pre_rename;action=kill9", 1);
    fault::initialise(0, 1);
    replace_file(scratch / "f", "new", WriteScope::save);
    return 0;
  });
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  EXPECT_EQ(read_file(scratch / "f"), "old");
}

/// A file-size limit is a full disk that needs no mount.
TEST(Files, PastTheFileSizeLimit) {
  const Scratch scratch;
  put(scratch / "kept", "old");
  const auto limited = [&](const std::function<void()>& action) {
    return in_child([&] {
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit limit{1 << 20, 1 << 20};
      if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 100;
      try {
        action();
      } catch (const Error& error) {
        return static_cast<int>(error.code());
      }
      return 0;
    });
  };
  const std::string text(3 << 20, 'x');
  const int failed = static_cast<int>(ExitCode::write_failed);
  int status = limited([&] { write_new_file(scratch / "f", text, WriteScope::save); });
  EXPECT_TRUE(WIFEXITED(status)) << status;
  EXPECT_EQ(WEXITSTATUS(status), failed);
  status = limited([&] { replace_file(scratch / "kept", text); });
  EXPECT_EQ(WEXITSTATUS(status), failed);
  status = limited([&] {
    SafetensorsWriter writer(scratch / "w.safetensors", {{"a", DType::u8, {3 << 20}}}, {});
    writer.write("a", std::as_bytes(std::span(text)));
    writer.finish();
  });
  EXPECT_EQ(WEXITSTATUS(status), failed);
  EXPECT_EQ(listing(scratch.path()), "kept");
  EXPECT_EQ(read_file(scratch / "kept"), "old");
  status = limited([&] { write_new_file(scratch / "f", "small", WriteScope::save); });
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

/// Every point of the scopes that this module owns is passed by its code.
TEST(Files, NoPointIsDead) {
  const Scratch scratch;
  const auto trace = scratch / "trace";
  ::setenv("ESPALIER_FAULT_TRACE", trace.c_str(), 1);
  fault::initialise(0, 1);
  for (const WriteScope scope : {WriteScope::save, WriteScope::export_model}) {
    replace_file(scratch / "f", "text", scope);
    rename_path(scratch / "f", scratch / "g", scope);
    remove_tree(scratch / "g", scope);
  }
  ::unsetenv("ESPALIER_FAULT_TRACE");
  fault::initialise(0, 1);
  const std::string passed = fmt::format("\n{}", read_file(trace));
  for (const fault::Point& point : fault::points()) {
    const bool ours = point.name.starts_with("save.") || point.name.starts_with("export.");
    const bool pipeline = point.name.ends_with(".enter") || point.name.ends_with(".exit") ||
                          point.name == "save.manifest";
    if (!ours || pipeline) continue;
    EXPECT_NE(passed.find(fmt::format("\n{}\n", point.name)), std::string::npos) << point.name;
  }
}

TEST(FileLock, BetweenProcesses) {
  const Scratch scratch;
  const auto path = scratch / ".lock";
  EXPECT_FALSE(FileLock::is_held(path));  // no file yet
  auto lock = FileLock::acquire(path, 0);
  ASSERT_NE(lock, nullptr);
  EXPECT_TRUE(FileLock::is_held(path));
  EXPECT_EQ(FileLock::acquire(path, 0.12), nullptr);  // also inside one process
  const auto child_gets = [&] { return FileLock::acquire(path, 0) != nullptr ? 1 : 0; };
  EXPECT_EQ(WEXITSTATUS(in_child(child_gets)), 0);
  // Opening and closing the file elsewhere must not drop the lock, as it would with POSIX locks.
  read_file(path);
  EXPECT_EQ(WEXITSTATUS(in_child(child_gets)), 0);
  lock.reset();
  EXPECT_FALSE(FileLock::is_held(path));
  EXPECT_EQ(WEXITSTATUS(in_child(child_gets)), 1);
  EXPECT_NE(FileLock::acquire(path, 0), nullptr);
}

TEST(FileLock, EndsWithTheProcessAndIsWaitedFor) {
  const Scratch scratch;
  const auto path = scratch / ".lock";
  int ready[2], leave[2];
  ASSERT_EQ(::pipe(ready), 0);
  ASSERT_EQ(::pipe(leave), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto lock = FileLock::acquire(path, 0);
    char byte = lock != nullptr ? 'y' : 'n';
    if (::write(ready[1], &byte, 1) != 1 || ::read(leave[0], &byte, 1) != 1) ::_exit(1);
    ::usleep(100000);  // the parent waits for the lock by now, or soon
    ::kill(::getpid(), SIGKILL);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  EXPECT_TRUE(FileLock::is_held(path));
  EXPECT_EQ(FileLock::acquire(path, 0), nullptr);
  ASSERT_EQ(::write(leave[1], &byte, 1), 1);
  EXPECT_NE(FileLock::acquire(path, 60), nullptr);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  for (const int end : {ready[0], ready[1], leave[0], leave[1]}) ::close(end);
}

TEST(Files, UmaskDecides) {
  const Scratch scratch;
  for (const mode_t umask : {0002, 0027, 0077}) {
    const mode_t before = ::umask(umask);
    const auto place = scratch / fmt::format("{:o}", umask);
    make_directories(place / "below");
    write_new_file(place / "new", "x", WriteScope::save);
    put(place / "old", "x");
    ::chmod((place / "old").c_str(), 0600);
    replace_file(place / "old", "y");
    const auto lock = FileLock::acquire(place / ".lock", 0);
    ::umask(before);
    for (const auto& [name, mode] : std::map<std::string, mode_t>{
             {"", 0777}, {"below", 0777}, {"new", 0666}, {"old", 0666}, {".lock", 0666}}) {
      struct stat info {};
      ASSERT_EQ(::stat((place / name).c_str(), &info), 0);
      EXPECT_EQ(info.st_mode & 0777, mode & ~umask) << name;
    }
  }
}

TEST(Files, LooksSayWhatIsWrong) {
  const Scratch scratch;
  put(scratch / "file", "x");
  std::filesystem::create_symlink("loop", scratch / "loop");
  std::filesystem::create_symlink("nowhere", scratch / "dangling");
  EXPECT_TRUE(path_exists(scratch / "file"));
  EXPECT_FALSE(path_exists(scratch / "none"));
  EXPECT_FALSE(path_exists(scratch / "file" / "x"));
  EXPECT_FALSE(path_exists(scratch / "dangling"));
  EXPECT_TRUE(name_exists(scratch / "dangling"));
  EXPECT_TRUE(name_exists(scratch / "loop"));
  EXPECT_TRUE(directory_exists(scratch.path()) && !directory_exists(scratch / "file"));
  EXPECT_TRUE(file_exists(scratch / "file") && !file_exists(scratch.path()));
  const auto is_66 = [](const std::function<void()>& action, const char* why) {
    const std::string message = error_of(ExitCode::missing_input, action);
    EXPECT_NE(message.find(why), std::string::npos) << message;
  };
  is_66([&] { path_exists(scratch / "loop"); }, "symbolic links");
  is_66([&] { path_exists(scratch / std::string(300, 'n')); }, "Choose a shorter path.");
  is_66([&] { make_directories(scratch / std::string(300, 'n')); }, "too long");
  is_66([&] { list_directory(scratch / "none"); }, "readdir");
  is_66([&] { real_path(scratch / "dangling"); }, "dangling");
  is_66([&] { require_writable(scratch / "none"); }, "none");
  error_of(ExitCode::cannot_create, [&] { make_directories(scratch / "file"); });
  error_of(ExitCode::cannot_create, [&] { make_directories(scratch / "file" / "x"); });
  error_of(ExitCode::cannot_create, [&] { make_directory(scratch / "file"); });
  remove_file(scratch / "none");
  remove_file(scratch / "dangling");
  EXPECT_EQ(listing(scratch.path()), "file loop");
}

/// Signals that come while calls are under way.
TEST(Files, InterruptedLocksAndWrites) {
  const Scratch scratch;
  struct sigaction action {};
  action.sa_handler = [](int) {};
  struct sigaction before {};
  ::sigaction(SIGALRM, &action, &before);
  const itimerval often{{0, 200}, {0, 200}};
  ::setitimer(ITIMER_REAL, &often, nullptr);
  for (int i = 0; i < 20; ++i) {
    replace_file(scratch / "f", std::string(1 << 20, 'x'), WriteScope::save);
    EXPECT_EQ(read_file(scratch / "f").size(), std::size_t{1} << 20);
    EXPECT_NE(FileLock::acquire(scratch / ".lock", 0), nullptr);
  }
  const itimerval never{};
  ::setitimer(ITIMER_REAL, &never, nullptr);
  ::sigaction(SIGALRM, &before, nullptr);
}

}  // namespace
}  // namespace espalier
