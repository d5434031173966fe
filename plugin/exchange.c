/* One request to the daemon over its Unix socket, sent again until a whole answer came. */
#include "plugin.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define ANSWER_MAX (4u << 20) /* results take a few KiB; a body that is bigger is not our daemon's */
#define HEAD_MAX 16384u       /* status line and headers; aiohttp sends some 200 bytes */
#define PAUSE_MIN_MS 2        /* short, for a daemon that is just about to listen */
#define PAUSE_MAX_MS 50       /* so that a hundred waiting pods cost no CPU worth speaking of */

/* Reads status and Content-Length (left alone if absent) from a whole head; false if it is none. */
static bool parse_head(const char *head, const char *end, unsigned *status, size_t *length)
{
    static const char header[] = "content-length:";
    const char *line = strstr(head, "\r\n");
    if (strncmp(head, "HTTP/1.", 7) != 0 || line - head < 12 || head[8] != ' ')
        return false;
    *status = (unsigned)strtoul(head + 9, NULL, 10);
    for (; line < end; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, header, sizeof header - 1) != 0)
            continue;
        const char *digits = line + 2 + sizeof header - 1;
        digits += strspn(digits, " \t");
        size_t count = strspn(digits, "0123456789");
        *length = strtoul(digits, NULL, 10);
        if (count == 0 || strchr(" \t\r", digits[count]) == NULL || *length > ANSWER_MAX)
            return false;
    }
    return *status >= 200 && *status <= 599;
}

/* Reads until the body is whole; false with `problem` if it does not come or is not HTTP. */
static bool read_answer(int fd, int64_t deadline, struct answer *answer, struct text *problem)
{
    struct text *raw = &answer->raw;
    size_t head = 0, length = SIZE_MAX; /* without Content-Length the body lasts until the end */
    raw->length = 0;
    for (;;) {
        ssize_t got = text_read(raw, fd, deadline);
        if (got < 0)
            return blame(problem, "read", strerror(errno));
        const char *end = head == 0 ? strstr(raw->at, "\r\n\r\n") : NULL;
        if (end != NULL) {
            head = (size_t)(end - raw->at) + 4;
            if (!parse_head(raw->at, end, &answer->status, &length))
                return blame(problem, "read", "the answer is not HTTP");
        }
        if (raw->length > (head == 0 ? HEAD_MAX : HEAD_MAX + ANSWER_MAX))
            return blame(problem, "read", "the answer is too big");
        if (head != 0 && (length == SIZE_MAX ? got == 0 : raw->length - head >= length)) {
            answer->body = raw->at + head;
            answer->length = length == SIZE_MAX ? raw->length - head : length;
            raw->at[head + answer->length] = '\0';
            return true;
        }
        if (got == 0)
            return blame(problem, "read", "the connection ended before a whole answer came");
    }
}

static bool try_once(const char *socket_path, const struct text *message, bool wants_result, int64_t deadline,
                     struct answer *answer, struct text *problem, bool *connected)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, socket_path, sizeof address.sun_path - 1); /* main has checked the length */
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    *connected = fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof address) == 0;
    /* A daemon that refuses early has answered and closed: then the write fails, and the answer is there. */
    bool answered = !*connected ? blame(problem, "connect", strerror(errno))
                    : !write_all(fd, message->at, message->length, deadline) && errno == ETIMEDOUT
                        ? blame(problem, "write", strerror(errno))
                        : read_answer(fd, deadline, answer, problem);
    if (fd >= 0)
        close(fd);
    bool may_be_empty = answered && answer->status == 200 && !wants_result;
    if (!answered || (may_be_empty && answer->length == 0))
        return answered;
    return json_object(answer->body, answer->length, NULL, NULL) ||
           blame(problem, "read", "the answer is not a JSON object");
}

bool daemon_ask(const char *socket_path, const struct text *body, bool wants_result, int64_t connect_ms,
                int64_t answer_ms, struct answer *answer, struct text *problem)
{
    static struct text message;
    text_format(&message,
                "POST /v1/cni HTTP/1.1\r\nHost: vpccni\r\nConnection: close\r\n"
                "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                body->length, body->at);

    int64_t away_since = now_ms(), deadline = away_since + answer_ms, pause = PAUSE_MIN_MS;
    bool connected;
    while (!try_once(socket_path, &message, wants_result, deadline, answer, problem, &connected)) {
        int64_t now = now_ms();
        if (connected)
            away_since = now;
        int64_t end = away_since + connect_ms, left = (end < deadline ? end : deadline) - now;
        if (left <= 0)
            return false;
        nanosleep(&(struct timespec){.tv_nsec = (long)(pause < left ? pause : left) * 1000000}, NULL);
        pause = 2 * pause < PAUSE_MAX_MS ? 2 * pause : PAUSE_MAX_MS;
    }
    return true;
}
