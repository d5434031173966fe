/* LD_PRELOAD: every change to the files of one directory, in the order in which it was made, goes into a trace.
 *
 * VPCCNI_RECORD_DIR is the directory (absolute, no links in it), VPCCNI_RECORD the trace, outside of it. A record
 * is a head, the path (two paths, the second from `data` on, for a rename) and the data:
 *
 *     W  data was written at an offset      S  the file, or the directory, was synced
 *     T  the file was cut to a length       R  renamed         U  unlinked
 *
 * The call and its record are one step: no other recorded call comes between. sendfile(2) is refused, so that
 * Python copies with write(2). A mapped file (SQLite's -shm) is not recorded; it does not outlive a power loss.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

struct head {
	uint8_t op;
	uint8_t unused[3];
	uint32_t path_bytes;
	uint64_t offset;
	uint64_t data_bytes;
};

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static int trace = -1;

#define NEXT(name) \
	static __typeof__(&name) next; \
	if (!next) \
		next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int is_ours(const char *path)
{
	const char *directory = getenv("VPCCNI_RECORD_DIR");
	size_t length = directory ? strlen(directory) : 0;
	return length && !strncmp(path, directory, length) && (path[length] == '/' || !path[length]);
}

static int path_of(int fd, char path[PATH_MAX])
{
	char link[64];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, PATH_MAX - 1);
	if (length <= 0)
		return 0;
	path[length] = 0;
	return is_ours(path);
}

static void append(uint8_t op, const char *path, uint64_t offset, const void *data, size_t length)
{
	struct head head = {.op = op, .path_bytes = strlen(path), .offset = offset, .data_bytes = length};
	struct iovec parts[] = {{&head, sizeof head}, {(void *)path, head.path_bytes}, {(void *)data, length}};
	if (trace < 0)
		trace = open(getenv("VPCCNI_RECORD"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (writev(trace, parts, 3) != (ssize_t)(sizeof head + head.path_bytes + length))
		abort(); /* half a trace proves nothing */
}

static ssize_t recorded_write(int fd, ssize_t done, const void *data, off64_t at)
{
	char path[PATH_MAX];
	int error = errno;
	if (done > 0 && path_of(fd, path))
		append('W', path, at, data, done);
	errno = error;
	return done;
}

ssize_t write(int fd, const void *data, size_t length)
{
	NEXT(write);
	pthread_mutex_lock(&turn);
	ssize_t done = next(fd, data, length);
	/* Behind what was written, also when the file was opened with O_APPEND. */
	done = recorded_write(fd, done, data, lseek64(fd, 0, SEEK_CUR) - done);
	pthread_mutex_unlock(&turn);
	return done;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at)
{
	NEXT(pwrite64);
	pthread_mutex_lock(&turn);
	ssize_t done = recorded_write(fd, next(fd, data, length, at), data, at);
	pthread_mutex_unlock(&turn);
	return done;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at)
{
	return pwrite64(fd, data, length, at);
}

#define RECORD_FD(name, op, offset) \
	NEXT(name); \
	pthread_mutex_lock(&turn); \
	char path[PATH_MAX]; \
	int ours = path_of(fd, path); \
	int result = next(fd CALLED_WITH); \
	int error = errno; \
	if (result == 0 && ours) \
		append(op, path, offset, "", 0); \
	pthread_mutex_unlock(&turn); \
	errno = error; \
	return result

#define CALLED_WITH
int fsync(int fd)
{
	RECORD_FD(fsync, 'S', 0);
}

int fdatasync(int fd)
{
	RECORD_FD(fdatasync, 'S', 0);
}
#undef CALLED_WITH

#define CALLED_WITH , length
int ftruncate64(int fd, off64_t length)
{
	RECORD_FD(ftruncate64, 'T', length);
}

int ftruncate(int fd, off_t length)
{
	RECORD_FD(ftruncate, 'T', length);
}
#undef CALLED_WITH

int rename(const char *from, const char *to)
{
	NEXT(rename);
	pthread_mutex_lock(&turn);
	int result = next(from, to), error = errno;
	if (result == 0 && is_ours(to))
		append('R', from, 0, to, strlen(to));
	pthread_mutex_unlock(&turn);
	errno = error;
	return result;
}

int unlink(const char *path)
{
	NEXT(unlink);
	pthread_mutex_lock(&turn);
	int result = next(path), error = errno;
	if (result == 0 && is_ours(path))
		append('U', path, 0, "", 0);
	pthread_mutex_unlock(&turn);
	errno = error;
	return result;
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t count)
{
	(void)out, (void)in, (void)offset, (void)count;
	errno = EINVAL;
	return -1;
}

ssize_t sendfile(int out, int in, off_t *offset, size_t count)
{
	return sendfile64(out, in, (off64_t *)offset, count);
}
