/* Stands before the file-system calls of libc (LD_PRELOAD) and, from the n-th one under a folder on, lets the process
 * die or the disk be full. Only calls that change what lies on the disk count. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT = 0, DIE = 1, DIE_HALF = 2, FULL = 3, FULL_ONCE = 4 };

static char folder[PATH_MAX];
static size_t length;
static long wanted;
static int action, log_handle = -1, armed;
static atomic_long seen;

/* Watch what happens under `prefix`; at call number `at` (from 1) do `what`; write a line for each call to `log`. */
void interpose_arm(const char *prefix, long at, int what, int log) {
    strncpy(folder, prefix, sizeof folder - 1);
    length = strlen(folder);
    wanted = at; action = what; log_handle = log;
    atomic_store(&seen, 0);
    armed = 1;
}

void interpose_disarm(void) { armed = 0; }

static int under(const char *path) {
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int of_handle(int handle, char *path) {
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", handle);
    ssize_t size = readlink(name, path, PATH_MAX - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return under(path);
}

static int of_path(int at, const char *given, char *path) {
    if (given[0] == '/') snprintf(path, PATH_MAX, "%s", given);
    else {
        char base[PATH_MAX];
        if (at == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
        else { of_handle(at, base); }
        if (snprintf(path, PATH_MAX, "%s/%s", base, given) >= PATH_MAX) return 0;
    }
    return under(path);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* 0: go on; 1: do half of it, where that can be, then call `die`; 2: do half, then say that the disk is full; 3: full */
static int turn(const char *call, const char *path, int needs_space) {
    long n = atomic_fetch_add(&seen, 1) + 1;
    if (log_handle >= 0) {
        char line[PATH_MAX + 64];
        int size = snprintf(line, sizeof line, "%ld\t%s\t%s\n", n, call, path + (under(path) ? length : 0));
        syscall(SYS_write, log_handle, line, size);
    }
    if (action == DIE && n == wanted) die();
    if (action == DIE_HALF && n == wanted) return 1;
    if (needs_space && ((action == FULL && n >= wanted) || (action == FULL_ONCE && n == wanted)))
        return n == wanted ? 2 : 3;
    return 0;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define FULL_DISK do { errno = ENOSPC; return -1; } while (0)
#define PLAIN(call, watched, path, needs_space) do { if (armed && (watched)) { \
    int what_ = turn(call, path, needs_space); if (what_ == 1) die(); if (what_) FULL_DISK; } } while (0)

static const int CHANGES = O_CREAT | O_TRUNC;

#define OPEN(name) int name(const char *given, int flags, ...) { \
    REAL(name); char path[PATH_MAX]; va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
    PLAIN("open", (flags & CHANGES) && of_path(AT_FDCWD, given, path), path, 1); \
    return real(given, flags, mode); }
OPEN(open)
OPEN(open64)
#define OPENAT(name) int name(int at, const char *given, int flags, ...) { \
    REAL(name); char path[PATH_MAX]; va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
    PLAIN("open", (flags & CHANGES) && of_path(at, given, path), path, 1); \
    return real(at, given, flags, mode); }
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name) FILE *name(const char *given, const char *mode) { \
    REAL(name); char path[PATH_MAX]; \
    if (armed && strpbrk(mode, "wa") && of_path(AT_FDCWD, given, path)) { \
        int what = turn("fopen", path, 1); if (what == 1) die(); if (what) { errno = ENOSPC; return NULL; } } \
    return real(given, mode); }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int handle, const void *data, size_t size) {
    REAL(write); char path[PATH_MAX];
    if (armed && of_handle(handle, path)) {
        int what = turn("write", path, 1);
        if (what == 3 || (what == 2 && size < 2)) FULL_DISK;
        if (what) { ssize_t done = real(handle, data, size / 2); if (what == 1) die(); return done ? done : (errno = ENOSPC, -1); }
    }
    return real(handle, data, size);
}
ssize_t writev(int handle, const struct iovec *parts, int count) {
    REAL(writev); char path[PATH_MAX];
    if (armed && of_handle(handle, path)) {
        int what = turn("writev", path, 1);
        if (what) { ssize_t done = syscall(SYS_write, handle, parts[0].iov_base, parts[0].iov_len / 2); (void)done; if (what == 1) die(); FULL_DISK; }
    }
    return real(handle, parts, count);
}
#define PWRITE(name) ssize_t name(int handle, const void *data, size_t size, __off_t at) { \
    REAL(name); char path[PATH_MAX]; \
    if (armed && of_handle(handle, path)) { \
        int what = turn("pwrite", path, 1); \
        if (what == 3) FULL_DISK; \
        if (what) { real(handle, data, size / 2, at); if (what == 1) die(); FULL_DISK; } } \
    return real(handle, data, size, at); }
PWRITE(pwrite)
PWRITE(pwrite64)
ssize_t sendfile(int to, int from, __off_t *at, size_t size) {
    static ssize_t (*real)(int, int, __off_t *, size_t); if (!real) real = dlsym(RTLD_NEXT, "sendfile");
    char path[PATH_MAX]; PLAIN("sendfile", of_handle(to, path), path, 1);
    return real(to, from, at, size);
}
ssize_t sendfile64(int to, int from, __off64_t *at, size_t size) {
    static ssize_t (*real)(int, int, __off64_t *, size_t); if (!real) real = dlsym(RTLD_NEXT, "sendfile64");
    char path[PATH_MAX]; PLAIN("sendfile", of_handle(to, path), path, 1);
    return real(to, from, at, size);
}
ssize_t copy_file_range(int from, __off64_t *a, int to, __off64_t *b, size_t size, unsigned flags) {
    REAL(copy_file_range); char path[PATH_MAX];
    PLAIN("copy_file_range", of_handle(to, path), path, 1);
    return real(from, a, to, b, size, flags);
}
int fsync(int handle) {
    REAL(fsync); char path[PATH_MAX]; PLAIN("fsync", of_handle(handle, path), path, 1);
    return real(handle);
}
int ftruncate(int handle, __off_t size) {
    REAL(ftruncate); char path[PATH_MAX]; PLAIN("ftruncate", of_handle(handle, path), path, 1);
    return real(handle, size);
}
int ftruncate64(int handle, __off64_t size) {
    REAL(ftruncate64); char path[PATH_MAX]; PLAIN("ftruncate", of_handle(handle, path), path, 1);
    return real(handle, size);
}
int mkdir(const char *given, mode_t mode) {
    REAL(mkdir); char path[PATH_MAX]; PLAIN("mkdir", of_path(AT_FDCWD, given, path), path, 1);
    return real(given, mode);
}
int mkdirat(int at, const char *given, mode_t mode) {
    REAL(mkdirat); char path[PATH_MAX]; PLAIN("mkdir", of_path(at, given, path), path, 1);
    return real(at, given, mode);
}
int rename(const char *from, const char *to) {
    REAL(rename); char path[PATH_MAX]; PLAIN("rename", of_path(AT_FDCWD, to, path), path, 1);
    return real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat); char path[PATH_MAX]; PLAIN("rename", of_path(b, to, path), path, 1);
    return real(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    REAL(renameat2); char path[PATH_MAX]; PLAIN("rename", of_path(b, to, path), path, 1);
    return real(a, from, b, to, flags);
}
int link(const char *from, const char *to) {
    REAL(link); char path[PATH_MAX]; PLAIN("link", of_path(AT_FDCWD, to, path), path, 1);
    return real(from, to);
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    REAL(linkat); char path[PATH_MAX]; PLAIN("link", of_path(b, to, path), path, 1);
    return real(a, from, b, to, flags);
}
int unlink(const char *given) {
    REAL(unlink); char path[PATH_MAX]; PLAIN("unlink", of_path(AT_FDCWD, given, path), path, 0);
    return real(given);
}
int unlinkat(int at, const char *given, int flags) {
    REAL(unlinkat); char path[PATH_MAX]; PLAIN("unlink", of_path(at, given, path), path, 0);
    return real(at, given, flags);
}
int rmdir(const char *given) {
    REAL(rmdir); char path[PATH_MAX]; PLAIN("rmdir", of_path(AT_FDCWD, given, path), path, 0);
    return real(given);
}
