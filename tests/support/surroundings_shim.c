/* Preloaded by tests/e2e/test_surroundings.py: makes calls fail as some file systems and hosts make them.
 *   SHIM_LOCKS=N   locks of open file descriptions and flock fail with errno N
 *   SHIM_HOST=S    gethostname gives S
 *   SHIM_ROOT=DIR  calls on files below DIR: with SHIM_INTERRUPT every second one is interrupted (EINTR) and reads and
 *                  writes are short, with SHIM_FSYNC=N fsync and with SHIM_READ=N reads fail with errno N
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static char ours[4096];

static int number_of(const char* name) {
  const char* text = getenv(name);
  return text == NULL ? 0 : atoi(text);
}

static int below_root(const char* path) {
  const char* root = getenv("SHIM_ROOT");
  return root != NULL && strncmp(path, root, strlen(root)) == 0;
}

static int is_ours(int fd) { return fd >= 0 && fd < (int)sizeof ours && ours[fd]; }

static int interrupted(int concerned) {
  static __thread unsigned calls;
  if (!concerned || getenv("SHIM_INTERRUPT") == NULL || ++calls % 2 == 0) return 0;
  errno = EINTR;
  return 1;
}

static size_t shortened(int fd, size_t count) {
  return is_ours(fd) && getenv("SHIM_INTERRUPT") != NULL && count > 7 ? count - count / 3 : count;
}

static int opened(int fd, const char* path) {
  if (fd >= 0 && fd < (int)sizeof ours) ours[fd] = (char)below_root(path);
  return fd;
}

int open(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = flags & O_CREAT ? va_arg(list, mode_t) : 0;
  va_end(list);
  if (interrupted(below_root(path))) return -1;
  return opened(REAL(open)(path, flags, mode), path);
}

int open64(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = flags & O_CREAT ? va_arg(list, mode_t) : 0;
  va_end(list);
  if (interrupted(below_root(path))) return -1;
  return opened(REAL(open64)(path, flags, mode), path);
}

static int fails_to_read(int fd) {
  if (!is_ours(fd) || number_of("SHIM_READ") == 0) return 0;
  errno = number_of("SHIM_READ");
  return 1;
}

ssize_t pread(int fd, void* to, size_t count, off_t at) {
  if (interrupted(is_ours(fd)) || fails_to_read(fd)) return -1;
  return REAL(pread)(fd, to, shortened(fd, count), at);
}

ssize_t pread64(int fd, void* to, size_t count, off64_t at) {
  if (interrupted(is_ours(fd)) || fails_to_read(fd)) return -1;
  return REAL(pread64)(fd, to, shortened(fd, count), at);
}

ssize_t write(int fd, const void* from, size_t count) {
  if (interrupted(is_ours(fd))) return -1;
  return REAL(write)(fd, from, shortened(fd, count));
}

int fsync(int fd) {
  if (interrupted(is_ours(fd))) return -1;
  if (is_ours(fd) && number_of("SHIM_FSYNC") != 0) {
    errno = number_of("SHIM_FSYNC");
    return -1;
  }
  return REAL(fsync)(fd);
}

static int fails_to_lock(int command) {
  if (command != F_OFD_SETLK && command != F_OFD_SETLKW && command != F_OFD_GETLK) return 0;
  if (number_of("SHIM_LOCKS") == 0) return 0;
  errno = number_of("SHIM_LOCKS");
  return 1;
}

int fcntl(int fd, int command, ...) {
  va_list list;
  va_start(list, command);
  void* argument = va_arg(list, void*);
  va_end(list);
  if (fails_to_lock(command)) return -1;
  return REAL(fcntl)(fd, command, argument);
}

int fcntl64(int fd, int command, ...) {
  va_list list;
  va_start(list, command);
  void* argument = va_arg(list, void*);
  va_end(list);
  if (fails_to_lock(command)) return -1;
  return REAL(fcntl64)(fd, command, argument);
}

int flock(int fd, int operation) {
  if (number_of("SHIM_LOCKS") != 0) {
    errno = number_of("SHIM_LOCKS");
    return -1;
  }
  return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, operation);
}

int gethostname(char* name, size_t size) {
  const char* host = getenv("SHIM_HOST");
  if (host == NULL) return ((int (*)(char*, size_t))dlsym(RTLD_NEXT, "gethostname"))(name, size);
  strncpy(name, host, size);
  return 0;
}
