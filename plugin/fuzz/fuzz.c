/*
 * The CNI executable, whole, as a function of bytes: its environment, stdin, the daemon's answers and the files of
 * the spool come out of the fuzzer's input, and so does what fails. No call of the kernel is made, and the clock
 * moves only when somebody waits, so a run takes microseconds and the same input gives the same run.
 *
 * With libFuzzer (clang -fsanitize=fuzzer) this is a fuzzer. With -DREPLAY it runs each file that it is given once
 * and prints, as a line of JSON, what came out, for somebody with another JSON parser to judge.
 *
 * An input is fields that end with a byte 0x1e: options; CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME,
 * CNI_ARGS, CNI_PATH (unset when the field is "\x1f"); stdin; the boot id; then the daemon's answers, one for each
 * connection, the last one for all further ones. Option bytes are digits, in the order of the enum below.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "../json.c" /* before `close` becomes something else: it is a parameter there */

struct text;
static void *fuzz_realloc(struct text *owner, void *at, size_t room);
static _Noreturn void fuzz_exit(int status);
static char *fuzz_getenv(const char *name);
static ssize_t fuzz_read(int fd, void *to, size_t room);
static ssize_t fuzz_write(int fd, const void *from, size_t count);
static int fuzz_open(const char *path, int flags);
static int fuzz_openat(int directory, const char *path, int flags, ...);
static int fuzz_mkdirat(int directory, const char *path, mode_t mode);
static int fuzz_renameat(int from_directory, const char *from, int to_directory, const char *to);
static int fuzz_unlinkat(int directory, const char *path, int flags);
static int fuzz_fsync(int fd);
static int fuzz_close(int fd);
static int fuzz_socket(int domain, int type, int protocol);
static int fuzz_connect(int fd, const struct sockaddr *address, socklen_t length);
static int fuzz_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
static int fuzz_nanosleep(const struct timespec *wanted, struct timespec *left);
static int fuzz_clock_gettime(clockid_t clock, struct timespec *now);

#define realloc(at, room) fuzz_realloc(t, at, room) /* its one caller has the owner in `t` */
#define exit fuzz_exit
#define _exit fuzz_exit
#define getenv fuzz_getenv
#define read fuzz_read
#define write fuzz_write
#define open fuzz_open
#define openat fuzz_openat
#define mkdirat fuzz_mkdirat
#define renameat fuzz_renameat
#define unlinkat fuzz_unlinkat
#define fsync fuzz_fsync
#define close fuzz_close
#define socket fuzz_socket
#define connect fuzz_connect
#define poll fuzz_poll
#define nanosleep fuzz_nanosleep
#define clock_gettime fuzz_clock_gettime
#define main plugin_main
#include "../text.c"
#include "../boot.c"
#include "../exchange.c"
#include "../spool.c"
#include "../main.c"
#undef main
#undef realloc
#undef exit
#undef getenv

enum option {
    PIECE,         /* reads give its square of bytes, writes take fifty times as many; 0: all */
    REFUSED,       /* so many connects fail; 9: all */
    SPOOL_FAILS,   /* which call about the spool fails */
    STDOUT_FAILS,  /* any */
    SEND_FAILS,    /* 1: the daemon has hung up; more: it does not read */
    HANGS,         /* every third read of an answer: 1 EINTR, 2 ECONNRESET, more EAGAIN; 9: stdin cannot be read */
    PAD_STDIN,     /* any: far too many spaces follow */
    PAD_ANSWER,    /* the same */
    SPOOL_MISSING, /* any: the directory has to be made */
    MARKER,        /* that the daemon was ready: see the enum below */
    OPTIONS
};
enum marker { ABSENT, RIGHT, WITHOUT_NEWLINE, HALF, OF_ANOTHER_BOOT, WITH_MORE, EMPTY, TWICE, UNREADABLE, A_PIPE };
enum { SOCKET_FD = 100, DIRECTORY_FD, DRAFT_FD, BOOT_ID_FD, MARKER_FD, FIELDS = 9, ANSWERS_MAX = 8, OWNERS_MAX = 64 };
#define START_NS INT64_C(1000000000)
#define PADDING (5u << 20) /* more than any limit of the executable */

struct field {
    const char *at;
    size_t length, taken;
};

static struct field fields[FIELDS], answers[ANSWERS_MAX], marker;
static size_t answer_count, refusals, connections, padding_left;
static unsigned options[OPTIONS];
static char *variables_at[6];
static char *boot_field; /* fields[8] with a NUL at its end */
static struct text *owners[OWNERS_MAX];
static size_t owner_count;
static int64_t clock_ns;
static struct text printed, sent, draft, marker_text;
static bool kept; /* an entry of the spool has its name */
static unsigned spool_calls, turns;
static int status;
static jmp_buf end;

static void must(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "%s\nstatus %d, stdout: %s\nsent: %s\n", what, status, printed.length ? printed.at : "",
            sent.length ? sent.at : "");
    abort();
}

static void *fuzz_realloc(struct text *owner, void *at, size_t room)
{
    if (at == NULL) {
        must(owner_count < OWNERS_MAX, "more texts than the harness has room for");
        owners[owner_count++] = owner;
    }
    return realloc(at, room);
}

static void fuzz_exit(int with)
{
    status = with;
    longjmp(end, 1);
}

static char *fuzz_getenv(const char *name)
{
    static const char *const names[] = {"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS",
                                        "CNI_IFNAME",  "CNI_ARGS",        "CNI_PATH"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return variables_at[i];
    must(false, "an unknown variable is read");
    return NULL;
}

static int refuse(int why)
{
    errno = why;
    return -1;
}

/* One call in so many of those on the spool fails, as the options say. */
static bool spool_fails(void)
{
    return options[SPOOL_FAILS] != 0 && ++spool_calls == options[SPOOL_FAILS];
}

static ssize_t take_piece(struct field *from, void *to, size_t room)
{
    size_t piece = options[PIECE] == 0 ? room : options[PIECE] * options[PIECE];
    size_t count = from->length - from->taken;
    count = count < piece ? count : piece;
    count = count < room ? count : room;
    if (count > 0)
        memcpy(to, from->at + from->taken, count);
    from->taken += count;
    if (count == 0 && padding_left > 0 && from != &fields[8] && from != &marker) {
        count = padding_left < room ? padding_left : room;
        memset(to, ' ', count);
        padding_left -= count;
    }
    return (ssize_t)count;
}

static ssize_t fuzz_read(int fd, void *to, size_t room)
{
    if (fd == STDIN_FILENO)
        return options[HANGS] == 9 ? refuse(EIO) : take_piece(&fields[7], to, room);
    if (fd == BOOT_ID_FD)
        return take_piece(&fields[8], to, room);
    if (fd == MARKER_FD && options[MARKER] == UNREADABLE)
        return refuse(EIO);
    if (fd == MARKER_FD && options[MARKER] == A_PIPE)
        return refuse(EAGAIN);
    if (fd == MARKER_FD)
        return take_piece(&marker, to, room);
    must(fd == SOCKET_FD, "something else is read");
    if (options[HANGS] != 0 && ++turns % 3 == 0)
        return refuse(options[HANGS] == 1 ? EINTR : options[HANGS] == 2 ? ECONNRESET : EAGAIN);
    if (answer_count == 0)
        return 0;
    return take_piece(&answers[connections <= answer_count ? connections - 1 : answer_count - 1], to, room);
}

static ssize_t fuzz_write(int fd, const void *from, size_t count)
{
    if (fd == STDOUT_FILENO && options[STDOUT_FAILS] != 0)
        return refuse(ENOSPC);
    if (fd == DRAFT_FD && spool_fails())
        return refuse(ENOSPC);
    if (fd == SOCKET_FD && options[SEND_FAILS] != 0)
        return refuse(options[SEND_FAILS] == 1 ? EPIPE : EAGAIN);
    if (fd != SOCKET_FD && fd != STDOUT_FILENO && fd != DRAFT_FD) {
        must(fd == STDERR_FILENO && variables_at[0] == NULL, "something else is written");
        return (ssize_t)count;
    }
    size_t piece = options[PIECE] == 0 || count < options[PIECE] * 50 ? count : options[PIECE] * 50;
    text_add(fd == SOCKET_FD ? &sent : fd == STDOUT_FILENO ? &printed : &draft, from, piece);
    return (ssize_t)piece;
}

static int fuzz_open(const char *path, int flags)
{
    must(*path == '/', "a path is relative");
    if ((flags & O_DIRECTORY) == 0) {
        must((flags & O_NONBLOCK) != 0, "a pipe can hold it");
        if (is("STATUS") && strcmp(path, boot_id_path.at) != 0) {
            must(strcmp(path, ready_path.at) == 0, "another file is read");
            return options[MARKER] == ABSENT ? refuse(ENOENT) : MARKER_FD;
        }
        fields[8].taken = 0;
        return spool_fails() ? refuse(ENOENT) : BOOT_ID_FD;
    }
    return options[SPOOL_MISSING] != 0 && strcmp(path, "/") != 0 ? refuse(ENOENT) : DIRECTORY_FD;
}

static int fuzz_openat(int directory, const char *path, int flags, ...)
{
    must(directory == DIRECTORY_FD && strchr(path, '/') == NULL && *path != '\0', "a name is a path");
    if (spool_fails())
        return refuse((flags & O_CREAT) != 0 ? EDQUOT : ENOENT);
    draft.length = (flags & O_CREAT) != 0 ? 0 : draft.length;
    return (flags & O_CREAT) != 0 ? DRAFT_FD : DIRECTORY_FD;
}

static int fuzz_mkdirat(int directory, const char *path, mode_t mode)
{
    must(directory == DIRECTORY_FD && strchr(path, '/') == NULL && mode == 0700, "a directory is made open");
    return spool_fails() ? refuse(EROFS) : 0;
}

static int fuzz_renameat(int from_directory, const char *from, int to_directory, const char *to)
{
    must(from_directory == to_directory && strncmp(from, ".tmp-", 5) == 0, "no draft is renamed");
    must(strlen(to) > 5 && strcmp(to + strlen(to) - 5, ".json") == 0, "an entry is named otherwise");
    if (spool_fails())
        return refuse(EIO);
    kept = true;
    return 0;
}

static int fuzz_unlinkat(int directory, const char *path, int flags)
{
    must(directory == DIRECTORY_FD && strncmp(path, ".tmp-", 5) == 0 && flags == 0, "no draft is removed");
    return 0;
}

static int fuzz_fsync(int fd)
{
    must(fd == DIRECTORY_FD || fd == DRAFT_FD, "something else is synced");
    return spool_fails() ? refuse(EIO) : 0;
}

static int fuzz_close(int fd)
{
    must(fd >= SOCKET_FD && fd <= MARKER_FD, "something else is closed");
    return 0;
}

static int fuzz_socket(int domain, int type, int protocol)
{
    must(domain == AF_UNIX && (type & SOCK_CLOEXEC) != 0 && protocol == 0, "another socket is made");
    return SOCKET_FD;
}

static int fuzz_connect(int fd, const struct sockaddr *address, socklen_t length)
{
    must(fd == SOCKET_FD && address->sa_family == AF_UNIX && length == sizeof(struct sockaddr_un), "it dials");
    if (options[REFUSED] == 9 || refusals < options[REFUSED]) {
        refusals++;
        return refuse(ECONNREFUSED);
    }
    connections++;
    sent.length = 0;
    for (size_t i = 0; i < answer_count; i++)
        answers[i].taken = 0;
    padding_left = options[PAD_ANSWER] != 0 ? PADDING : 0;
    return 0;
}

static int fuzz_poll(struct pollfd *fds, nfds_t count, int timeout_ms)
{
    must(count == 1 && fds->fd >= 0, "it polls something else");
    must(timeout_ms >= 0, "it waits for ever");
    bool whole = options[HANGS] > 4 || options[SEND_FAILS] > 1 || fds->fd == MARKER_FD;
    clock_ns += ((int64_t)(whole ? timeout_ms : 1) + 1) * 1000000;
    return 0;
}

static int fuzz_nanosleep(const struct timespec *wanted, struct timespec *left)
{
    (void)left;
    must(wanted->tv_sec == 0 && wanted->tv_nsec > 0 && wanted->tv_nsec < 1000000000, "a pause is no pause");
    clock_ns += wanted->tv_nsec * (is("STATUS") ? 1 : 50); /* so that half a minute of tries is a dozen */
    return 0;
}

static int fuzz_clock_gettime(clockid_t clock, struct timespec *now)
{
    (void)clock;
    *now = (struct timespec){.tv_sec = clock_ns / 1000000000, .tv_nsec = clock_ns % 1000000000};
    return 0;
}

static void reset(void)
{
    for (size_t i = 0; i < owner_count; i++) {
        free(owners[i]->at);
        *owners[i] = (struct text){0};
    }
    owner_count = 0;
    for (size_t i = 0; i < sizeof variables_at / sizeof *variables_at; i++)
        free(variables_at[i]);
    memset(variables_at, 0, sizeof variables_at);
    free(boot_field);
    boot_field = NULL;
    memset(fields, 0, sizeof fields);
    memset(answers, 0, sizeof answers);
    memset(options, 0, sizeof options);
    memset(&answer, 0, sizeof answer);
    memset(&marker, 0, sizeof marker);
    answer_count = refusals = connections = padding_left = 0;
    kept = false;
    spool_calls = turns = needs = 0;
    command = NULL;
    connect_ms = answer_ms = 0;
    clock_ns = START_NS;
    status = -1;
}

static struct field next_field(const char **at, const char *stop)
{
    const char *end_of = memchr(*at, 0x1e, (size_t)(stop - *at));
    struct field found = {.at = *at, .length = (size_t)((end_of != NULL ? end_of : stop) - *at)};
    *at = end_of != NULL ? end_of + 1 : stop;
    return found;
}

/* What the daemon left beside its socket, made of the boot id as the options say. */
static void write_marker(void)
{
    size_t id;
    boot_field = calloc(1, fields[8].length + 1);
    memcpy(boot_field, fields[8].at, fields[8].length);
    id = strcspn(boot_field, "\n");
    marker_text.length = 0;
    text_add(&marker_text, boot_field, options[MARKER] == HALF ? id / 2 : id);
    if (options[MARKER] == OF_ANOTHER_BOOT)
        marker_text.at[0] ^= 1;
    if (options[MARKER] == TWICE)
        text_format(&marker_text, "\n%.*s", (int)id, boot_field);
    if (options[MARKER] != WITHOUT_NEWLINE && options[MARKER] != HALF)
        text_format(&marker_text, "\n");
    if (options[MARKER] == WITH_MORE)
        text_format(&marker_text, " ");
    if (options[MARKER] == EMPTY)
        marker_text.length = 0;
    marker = (struct field){.at = marker_text.at, .length = marker_text.length};
}

static void take_apart(const char *at, const char *stop)
{
    for (size_t i = 0; i < FIELDS; i++)
        fields[i] = next_field(&at, stop);
    while (at < stop && answer_count < ANSWERS_MAX)
        answers[answer_count++] = next_field(&at, stop);
    for (size_t i = 0; i < OPTIONS && i < fields[0].length; i++)
        options[i] = (unsigned char)fields[0].at[i] % 16 < 10 ? (unsigned char)fields[0].at[i] % 16 : 0;
    for (size_t i = 0; i < sizeof variables_at / sizeof *variables_at; i++) {
        const struct field *from = &fields[i + 1];
        if (from->length == 1 && *from->at == 0x1f)
            continue;
        variables_at[i] = calloc(1, from->length + 1);
        memcpy(variables_at[i], from->at, strnlen(from->at, from->length));
    }
    padding_left = options[PAD_STDIN] != 0 ? PADDING : 0;
    write_marker();
}

/* Whether a STATUS that nobody answers has to be a success. */
static bool marker_is_good(void)
{
    bool same_file = ready_path.at != NULL && strcmp(ready_path.at, boot_id_path.at) == 0;
    size_t id = strcspn(boot_field, "\n");
    bool id_line_alone = id > 0 && fields[8].length == id + 1 && strlen(boot_field) == fields[8].length;
    if (options[SPOOL_FAILS] == 1 || (same_file && options[SPOOL_FAILS] == 2) || fields[8].length > FILE_MAX)
        return false; /* the boot id cannot be read */
    return same_file ? id_line_alone : id > 0 && options[MARKER] == RIGHT;
}

static void judge_status(void)
{
    bool answered = answer.body != NULL && answer.status == 200;
    bool is_away = printed.length > 0 && answer.body == NULL && strstr(printed.at, "no answer from") != NULL;
    must(status != 0 || answered || marker_is_good(), "a daemon that was not ready is a success");
    must(!is_away || !marker_is_good(), "a daemon that was ready is an error");
    must(clock_ns - START_NS <= 1000000000, "a STATUS takes longer than a second");
}

static void judge(void)
{
    static const char head[] = "POST /v1/cni HTTP/1.1\r\n";
    bool asks = variables_at[0] != NULL;
    must(status == 0 || status == 1, "the exit status is neither 0 nor 1");
    must(printed.length == 0 || json_object(printed.at, printed.length, NULL, NULL), "it prints no JSON object");
    must(status == 0 || printed.length > 0 || options[STDOUT_FAILS] != 0 || !asks, "an error is not told");
    bool wants_result = asks && (is("ADD") || is("VERSION"));
    bool may_warn = asks && is("STATUS");
    must(status != 0 || !asks || may_warn || (printed.length > 0) == wants_result,
         "a success prints what it should not");
    must(status != 0 || !wants_result || options[STDOUT_FAILS] == 0, "a result that went nowhere is a success");
    if (sent.length > 0 && options[SEND_FAILS] == 0) {
        const char *payload = strstr(sent.at, "\r\n\r\n");
        must(strncmp(sent.at, head, sizeof head - 1) == 0 && payload != NULL, "the request is no HTTP");
        const char *length = strstr(sent.at, "Content-Length: ");
        size_t rest = sent.length - (size_t)(payload + 4 - sent.at);
        must(length != NULL && strtoul(length + 16, NULL, 10) == rest, "the length of the request is wrong");
        must(json_object(payload + 4, rest, NULL, NULL), "the request is no JSON object");
    }
    bool answered = answer.status == 200 && answer.body != NULL;
    if (asks && is("STATUS"))
        judge_status();
    if (asks && is("DEL") && status == 0)
        must(kept || answered, "a DEL that nobody took is a success");
    if (kept) {
        must(asks && is("DEL"), "something else than a DEL is kept");
        must(draft.at[draft.length - 1] == '\n' && json_object(draft.at, draft.length, NULL, NULL),
             "an entry of the spool is no JSON object");
    }
    must(clock_ns < (int64_t)3 * TIMEOUT_MS_MAX * 1000000, "it takes longer than any deadline");
}

static void run(const uint8_t *data, size_t size)
{
    reset();
    take_apart((const char *)data, (const char *)data + size);
    if (setjmp(end) == 0)
        status = plugin_main();
    judge();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    run(data, size);
    return 0;
}

#ifdef REPLAY
static void print_hex(const char *name, const struct text *t)
{
    printf(",\"%s\":\"", name);
    for (size_t i = 0; i < t->length; i++)
        printf("%02x", (unsigned char)t->at[i]);
    printf("\"");
}

int main(int count, char **paths)
{
    static uint8_t data[1 << 20];
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(paths[i], "rb");
        if (file == NULL)
            return 2;
        size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        uint8_t *exact = malloc(size + !size); /* so that a sanitizer sees its end */
        memcpy(exact, data, size);
        run(exact, size);
        printf("{\"input\":%d,\"status\":%d,\"kept\":%s,\"answered\":%s", i, status, kept ? "true" : "false",
               answer.body != NULL ? "true" : "false");
        print_hex("printed", &printed);
        print_hex("sent", &sent);
        print_hex("entry", &draft);
        printf("}\n");
        free(exact);
    }
    reset();
    return 0;
}
#endif
