/* LD_PRELOAD: fsync(2) and fdatasync(2) of an event log's files fail, or take their time, while somebody says so.
 *
 * VPCCNI_FAULTS names a directory. While a file there exists:
 *
 *     eio        each sync of the log's files fails with EIO
 *     eio-once   the next one does; the file is removed by it
 *     slow       each takes as many milliseconds longer as the file says
 *
 * After an EIO the kernel takes the lost pages for clean: the next sync of the same file succeeds and promises
 * nothing. Each sync of the log adds a line to the file `syncs`: the inode, and what came of it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char log_name[] = "events.sqlite";

static int is_log(int fd)
{
	char link[64], path[PATH_MAX];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, sizeof path - 1);
	if (length <= 0)
		return 0;
	path[length] = 0;
	const char *name = strrchr(path, '/');
	return name && !strncmp(name + 1, log_name, sizeof log_name - 1);
}

static const char *switch_path(char path[PATH_MAX], const char *name)
{
	snprintf(path, PATH_MAX, "%s/%s", getenv("VPCCNI_FAULTS"), name);
	return path;
}

static void note(int fd, const char *outcome)
{
	char path[PATH_MAX], line[64];
	struct stat file;
	int out = open(switch_path(path, "syncs"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (out < 0 || fstat(fd, &file) != 0)
		abort(); /* the test would believe that nothing was synced */
	int length = snprintf(line, sizeof line, "%lu %s\n", (unsigned long)file.st_ino, outcome);
	if (write(out, line, length) != length)
		abort();
	close(out);
}

static int synced(int fd, int (*next)(int))
{
	char path[PATH_MAX], text[16] = "";
	if (!getenv("VPCCNI_FAULTS") || !is_log(fd))
		return next(fd);
	int slow = open(switch_path(path, "slow"), O_RDONLY | O_CLOEXEC);
	if (slow >= 0) {
		ssize_t length = read(slow, text, sizeof text - 1);
		long ms = length > 0 ? strtol(text, NULL, 10) : 0;
		close(slow);
		nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
	}
	if (unlink(switch_path(path, "eio-once")) == 0 || access(switch_path(path, "eio"), F_OK) == 0) {
		note(fd, "EIO");
		errno = EIO;
		return -1;
	}
	int result = next(fd), error = errno;
	note(fd, result == 0 ? "ok" : "failed");
	errno = error;
	return result;
}

int fsync(int fd)
{
	return synced(fd, (int (*)(int))dlsym(RTLD_NEXT, "fsync"));
}

int fdatasync(int fd)
{
	return synced(fd, (int (*)(int))dlsym(RTLD_NEXT, "fdatasync"));
}
