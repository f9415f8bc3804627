/* Preloaded into a child process: makes chosen system calls fail on files below one folder.

   Python and SQLite are met alike, below everything that they buffer or retry. `refuse_arm` says which call (its name,
   or "any"), the count at which refusals start, how many there are (0: for good), the error number, and whether a
   refused write first writes half (and, with error 0, does only that: a short write without an error). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[PATH_MAX], wanted[16];
static long seen, first, times;
static int number, half;

void refuse_arm(const char *below, const char *call, long from, long count, int error, int partly) {
    snprintf(folder, sizeof folder, "%s", below);
    snprintf(wanted, sizeof wanted, "%s", call);
    seen = 0, first = from, times = count, number = error, half = partly;
}

void refuse_disarm(void) { folder[0] = 0; }
long refuse_seen(void) { return seen; }

static int chosen(const char *call, const char *path) {
    if (!folder[0] || strncmp(path, folder, strlen(folder)) || (strcmp(wanted, "any") && strcmp(wanted, call)))
        return 0;
    seen++;
    return first && seen >= first && (!times || seen < first + times);
}

static int chosen_fd(const char *call, int fd) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return chosen(call, path);
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define FAIL() return errno = number, -1

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (!chosen_fd("write", fd)) return real(fd, data, size);
    ssize_t done = half && size > 1 ? real(fd, data, size / 2) : 0;
    if (!number) return done ? done : real(fd, data, size);
    FAIL();
}

#define PWRITE(name)                                                                       \
    ssize_t name(int fd, const void *data, size_t size, off64_t at) {                      \
        REAL(name);                                                                        \
        if (!chosen_fd("write", fd)) return real(fd, data, size, at);                      \
        ssize_t done = half && size > 1 ? real(fd, data, size / 2, at) : 0;                \
        if (!number) return done ? done : real(fd, data, size, at);                        \
        FAIL();                                                                            \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t read(int fd, void *data, size_t size) {
    REAL(read);
    if (chosen_fd("read", fd)) FAIL();
    return real(fd, data, size);
}

#define PREAD(name)                                                                        \
    ssize_t name(int fd, void *data, size_t size, off64_t at) {                            \
        REAL(name);                                                                        \
        if (chosen_fd("read", fd)) FAIL();                                                 \
        return real(fd, data, size, at);                                                   \
    }
PREAD(pread)
PREAD(pread64)

/* A failed sync: the kernel drops the error with the pages, so the next sync of the same file says that all is well. */
int fsync(int fd) {
    REAL(fsync);
    if (chosen_fd("sync", fd)) FAIL();
    return real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    if (chosen_fd("sync", fd)) FAIL();
    return real(fd);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    if (chosen("rename", to)) FAIL();
    return real(from, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    if (chosen("create", path)) FAIL();
    return real(path, mode);
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    if (chosen_fd("truncate", fd)) FAIL();
    return real(fd, size);
}

#define OPEN(name)                                                                         \
    int name(const char *path, int flags, ...) {                                           \
        REAL(name);                                                                        \
        va_list more;                                                                      \
        va_start(more, flags);                                                             \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;                          \
        va_end(more);                                                                      \
        if (chosen(flags & O_CREAT ? "create" : "open", path)) FAIL();                     \
        return real(path, flags, mode);                                                    \
    }
OPEN(open)
OPEN(open64)
