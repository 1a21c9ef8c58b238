/* Stands between a program and the C library, and watches or breaks what the program does to files below one folder.
 *
 * Loaded with LD_PRELOAD. FAULTS_CONTROL names a file of `struct control`, mapped by all processes and by the test,
 * which arms it while they run. Each operation below `root` (open, read, write, truncate, rename, unlink, mkdir, rmdir,
 * fsync) gets a number; the one armed is refused with `error`, or kills its process. With `trace` set, each change that
 * succeeded is appended to FAULTS_TRACE, with the bytes that were written.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct control {
    volatile int64_t counter;  /* operations so far */
    volatile int64_t armed;    /* number of the operation to break; -1 for none */
    volatile int64_t error;    /* errno to give; 0 kills instead */
    volatile int64_t lasting;  /* operations after the armed one that fail too (a disk stays full for a while) */
    volatile int64_t fired;    /* operations that were broken */
    volatile int64_t kind;     /* what the first broken one was: one of the letters below */
    volatile int64_t trace;
    char root[1024];
};

static struct control *control;
static int trace_file = -1;

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("FAULTS_CONTROL");
    if (!path) return;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED) return;
    if (getenv("FAULTS_TRACE")) trace_file = open(getenv("FAULTS_TRACE"), O_WRONLY | O_APPEND | O_CLOEXEC);
    control = mapped;
}

static int below_root(const char *path) {
    size_t length = strlen(control->root);
    return length && !strncmp(path, control->root, length) && (path[length] == '/' || !path[length]);
}

/* Absolute path of `name` seen from `folder`, without following the last link; 0 unless it is below the root. */
static int resolve(int folder, const char *name, char out[PATH_MAX]) {
    char base[PATH_MAX] = "";
    if (!control || !name) return 0;
    if (name[0] != '/') {
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t length = readlink(link, base, sizeof base - 1);
            if (length < 0) return 0;
            base[length] = 0;
        }
        strncat(base, "/", sizeof base - strlen(base) - 1);
    }
    snprintf(out, PATH_MAX, "%s%s", base, name);
    return below_root(out);
}

static int resolve_fd(int fd, char out[PATH_MAX]) {
    char link[64];
    if (!control || fd < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, out, PATH_MAX - 1);
    if (length < 0) return 0;
    out[length] = 0;
    return below_root(out) && !strstr(out, " (deleted)");
}

/* Counts an operation; nonzero, with errno set, where it is to fail. */
static int refused(char kind) {
    int64_t number = __sync_fetch_and_add(&control->counter, 1);
    int64_t armed = control->armed;
    if (armed < 0 || number < armed || number > armed + control->lasting) return 0;
    if (__sync_fetch_and_add(&control->fired, 1) == 0) control->kind = kind;
    if (!control->error) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = (int)control->error;
    return 1;
}

static ino_t inode(int fd) {
    struct stat found;
    return fstat(fd, &found) ? 0 : found.st_ino;
}

/* One record: kind, inode, offset, three lengths, then path, second path and data. */
static void trace(char kind, ino_t number, int64_t offset, const char *path, const char *other, const void *data,
                  int64_t length) {
    REAL(write);
    if (trace_file < 0 || !control->trace) return;
    int saved = errno;
    int64_t head[6] = {kind, (int64_t)number, offset, path ? (int64_t)strlen(path) : 0,
                       other ? (int64_t)strlen(other) : 0, length};
    size_t total = sizeof head + head[3] + head[4] + (size_t)(data ? length : 0);
    char *record = malloc(total), *end = record;
    memcpy(end, head, sizeof head), end += sizeof head;
    if (path) memcpy(end, path, head[3]), end += head[3];
    if (other) memcpy(end, other, head[4]), end += head[4];
    if (data) memcpy(end, data, length);
    flock(trace_file, LOCK_EX);
    real(trace_file, record, total);
    flock(trace_file, LOCK_UN);
    free(record);
    errno = saved;
}

static int opened(int folder, const char *name, int flags, mode_t mode,
                  int (*really)(int, const char *, int, mode_t)) {
    char path[PATH_MAX];
    if ((flags & O_TMPFILE) == O_TMPFILE || !resolve(folder, name, path)) return really(folder, name, flags, mode);
    if (refused('o')) return -1;
    struct stat before;
    int existed = !stat(path, &before);
    int fd = really(folder, name, flags, mode);
    if (fd >= 0 && !existed) trace('c', inode(fd), 0, path, NULL, NULL, 0);
    if (fd >= 0 && existed && (flags & O_TRUNC)) trace('t', inode(fd), 0, path, NULL, NULL, 0);
    return fd;
}

static int really_openat(int folder, const char *name, int flags, mode_t mode) {
    REAL(openat);
    return real(folder, name, flags, mode);
}

#define MODE(flags, last) mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list list; va_start(list, last); mode = va_arg(list, mode_t); va_end(list); }

int open(const char *name, int flags, ...) { MODE(flags, flags) return opened(AT_FDCWD, name, flags, mode, really_openat); }
int open64(const char *name, int flags, ...) { MODE(flags, flags) return opened(AT_FDCWD, name, flags, mode, really_openat); }
int openat(int folder, const char *name, int flags, ...) { MODE(flags, flags) return opened(folder, name, flags, mode, really_openat); }
int openat64(int folder, const char *name, int flags, ...) { MODE(flags, flags) return opened(folder, name, flags, mode, really_openat); }

ssize_t write(int fd, const void *data, size_t length) {
    REAL(write);
    char path[PATH_MAX];
    if (!resolve_fd(fd, path)) return real(fd, data, length);
    if (refused('w')) return -1;
    off_t position = lseek(fd, 0, SEEK_CUR);
    ssize_t written = real(fd, data, length);
    if (written > 0) trace('w', inode(fd), position, path, NULL, data, written);
    return written;
}

static ssize_t pwritten(int fd, const void *data, size_t length, off_t position) {
    REAL(pwrite64);
    char path[PATH_MAX];
    if (!resolve_fd(fd, path)) return real(fd, data, length, position);
    if (refused('w')) return -1;
    ssize_t written = real(fd, data, length, position);
    if (written > 0) trace('w', inode(fd), position, path, NULL, data, written);
    return written;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t position) { return pwritten(fd, data, length, position); }
ssize_t pwrite64(int fd, const void *data, size_t length, off_t position) { return pwritten(fd, data, length, position); }

ssize_t read(int fd, void *data, size_t length) {
    REAL(read);
    char path[PATH_MAX];
    return resolve_fd(fd, path) && refused('i') ? -1 : real(fd, data, length);
}

ssize_t pread(int fd, void *data, size_t length, off_t position) {
    REAL(pread);
    char path[PATH_MAX];
    return resolve_fd(fd, path) && refused('i') ? -1 : real(fd, data, length, position);
}

ssize_t pread64(int fd, void *data, size_t length, off_t position) {
    REAL(pread64);
    char path[PATH_MAX];
    return resolve_fd(fd, path) && refused('i') ? -1 : real(fd, data, length, position);
}

ssize_t preadv(int fd, const struct iovec *parts, int count, off_t position) {
    REAL(preadv);
    char path[PATH_MAX];
    return resolve_fd(fd, path) && refused('i') ? -1 : real(fd, parts, count, position);
}

ssize_t preadv64(int fd, const struct iovec *parts, int count, off_t position) {
    REAL(preadv64);
    char path[PATH_MAX];
    return resolve_fd(fd, path) && refused('i') ? -1 : real(fd, parts, count, position);
}

static int truncated(int fd, off_t length) {
    REAL(ftruncate64);
    char path[PATH_MAX];
    if (!resolve_fd(fd, path)) return real(fd, length);
    if (refused('t')) return -1;
    int result = real(fd, length);
    if (!result) trace('t', inode(fd), length, path, NULL, NULL, 0);
    return result;
}

int ftruncate(int fd, off_t length) { return truncated(fd, length); }
int ftruncate64(int fd, off_t length) { return truncated(fd, length); }

int fsync(int fd) {
    REAL(fsync);
    char path[PATH_MAX];
    if (!resolve_fd(fd, path)) return real(fd);
    if (refused('s')) return -1;
    int result = real(fd);
    if (!result) trace('s', inode(fd), 0, path, NULL, NULL, 0);
    return result;
}

int fdatasync(int fd) {
    REAL(fdatasync);
    char path[PATH_MAX];
    if (!resolve_fd(fd, path)) return real(fd);
    if (refused('s')) return -1;
    int result = real(fd);
    if (!result) trace('s', inode(fd), 0, path, NULL, NULL, 0);
    return result;
}

int rename(const char *from, const char *to) {
    REAL(rename);
    char path[PATH_MAX], other[PATH_MAX];
    if (!resolve(AT_FDCWD, from, path) || !resolve(AT_FDCWD, to, other)) return real(from, to);
    if (refused('r')) return -1;
    int result = real(from, to);
    if (!result) trace('r', 0, 0, path, other, NULL, 0);
    return result;
}

static int unlinked(int folder, const char *name, int flags) {
    REAL(unlinkat);
    char path[PATH_MAX];
    if (!resolve(folder, name, path)) return real(folder, name, flags);
    if (refused('u')) return -1;
    int result = real(folder, name, flags);
    if (!result) trace('u', 0, 0, path, NULL, NULL, 0);
    return result;
}

int unlink(const char *name) { return unlinked(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinked(AT_FDCWD, name, AT_REMOVEDIR); }
int unlinkat(int folder, const char *name, int flags) { return unlinked(folder, name, flags); }

int mkdir(const char *name, mode_t mode) {
    REAL(mkdir);
    char path[PATH_MAX];
    if (!resolve(AT_FDCWD, name, path)) return real(name, mode);
    if (refused('m')) return -1;
    int result = real(name, mode);
    struct stat made;
    if (!result) trace('m', stat(path, &made) ? 0 : made.st_ino, 0, path, NULL, NULL, 0);
    return result;
}
