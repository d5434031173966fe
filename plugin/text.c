/* Growable byte strings, bounded reading and whole writing. */
#include "plugin.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define READ_SIZE 16384u /* a configuration or a result is smaller than this, so one read has it */

static void text_reserve(struct text *t, size_t more)
{
    static const char no_memory[] = "{\"cniVersion\":\"1.1.0\",\"code\":11,\"msg\":\"aws-cni: out of memory; "
                                    "free memory on this node\",\"details\":\"\"}\n";
    if (more < t->room - t->length) /* less than, so that the NUL fits too */
        return;
    size_t room = 2 * (t->room + more) + 1; /* some MiB at most: stdin, environment and answer are bounded */
    char *at = realloc(t->at, room);
    if (at == NULL) {
        write_all(STDOUT_FILENO, no_memory, sizeof no_memory - 1, NEVER);
        _exit(1);
    }
    t->at = at;
    t->room = room;
}

void text_add(struct text *t, const void *bytes, size_t count)
{
    text_reserve(t, count);
    memcpy(t->at + t->length, bytes, count);
    t->length += count;
    t->at[t->length] = '\0';
}

void text_format(struct text *t, const char *format, ...)
{
    va_list values, again;
    va_start(values, format);
    va_copy(again, values);
    int length = vsnprintf(NULL, 0, format, values); /* not negative: no wide characters here */
    text_reserve(t, (size_t)length);
    t->length += (size_t)vsnprintf(t->at + t->length, (size_t)length + 1, format, again);
    va_end(again);
    va_end(values);
}

bool blame(struct text *problem, const char *what, const char *why)
{
    problem->length = 0;
    text_format(problem, "%s: %s", what, why);
    return false;
}

int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* After a failed read or write: true if it is worth another try now, false with errno if not. */
static bool wait_ready(int fd, short events, int64_t deadline)
{
    int64_t left = deadline == NEVER ? -1 : deadline - now_ms();
    if (errno == EAGAIN && deadline != NEVER && left <= 0)
        errno = ETIMEDOUT;
    if (errno == EAGAIN) /* what poll finds, its own time-out included, shows in the next try */
        return poll(&(struct pollfd){.fd = fd, .events = events}, 1, (int)left) >= 0 || errno == EINTR;
    return errno == EINTR;
}

ssize_t text_read(struct text *t, int fd, int64_t deadline)
{
    ssize_t got;
    text_reserve(t, READ_SIZE);
    do
        got = read(fd, t->at + t->length, READ_SIZE);
    while (got < 0 && wait_ready(fd, POLLIN, deadline));
    t->length += got > 0 ? (size_t)got : 0;
    t->at[t->length] = '\0';
    return got;
}

bool write_all(int fd, const char *bytes, size_t count, int64_t deadline)
{
    while (count > 0) {
        ssize_t put = write(fd, bytes, count);
        if (put < 0 && !wait_ready(fd, POLLOUT, deadline))
            return false;
        bytes += put > 0 ? put : 0;
        count -= put > 0 ? (size_t)put : 0;
    }
    return true;
}
