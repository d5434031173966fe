/*
 * aws-cni: the CNI executable of vpccni (CNI specification 1.1.0).
 *
 * The daemon does the work. This program turns environment and stdin into one request, sends it over the
 * daemon's Unix socket and prints the answer; the configuration goes there byte for byte as it came. It
 * answers only VERSION itself, refuses what cannot be a request, waits while the daemon restarts, and keeps
 * a DEL on disk when the daemon stays away. STATUS of a daemon that is away is good if it was ready in this
 * boot. One call is one short life: memory is never freed.
 *
 * Stdout carries a result or an error and nothing else. Exit status: 0 for success, 1 for an error.
 */
#include "plugin.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef CONNECT_MS /* a test build may bring all six */
/* How long the daemon may be away: longer than an update of its pod takes. A DEL has the spool instead. */
#define CONNECT_MS 30000
#define DEL_CONNECT_MS 2000
/* How long a call may take: the daemon lets an ADD wait 55 s for an address, and may restart meanwhile. */
#define ADD_ANSWER_MS 85000
#define DEL_ANSWER_MS 20000
#define ANSWER_MS 60000
/* A runtime asks STATUS each time that kubelet asks it whether the node's network is ready, and waits for it. */
#define STATUS_MS 800
#endif
#define TIMEOUT_MS_MAX 600000 /* runtimes give up long before ten minutes */
#define STDIN_MAX (1u << 20)  /* a configuration has some KiB */
#define IFNAME_MAX 15         /* IFNAMSIZ without its NUL */

/* CNI specification 1.1.0, "Error". */
enum { BAD_ENVIRONMENT = 4, IO_FAILURE = 5, UNDECODABLE = 6, BAD_CONFIG = 7, TRY_LATER = 11, DOWN = 50 };

static const struct {
    const char *name, *member;
} variables[] = {
    {"CNI_CONTAINERID", ",\"containerId\":"}, {"CNI_NETNS", ",\"netns\":"}, {"CNI_IFNAME", ",\"ifname\":"},
    {"CNI_ARGS", ",\"args\":"},               {"CNI_PATH", ",\"path\":"},
};
enum { ID = 1, NETNS = 2, IFNAME = 4, PATH = 16, VARIABLES = 5 }; /* bits in the order of `variables` */

static const struct {
    const char *name;
    unsigned needs;
    int64_t connect_ms, answer_ms;
} verbs[] = {
    {"ADD", ID | NETNS | IFNAME | PATH, CONNECT_MS, ADD_ANSWER_MS},
    {"DEL", ID | IFNAME | PATH, DEL_CONNECT_MS, DEL_ANSWER_MS},
    {"CHECK", ID | NETNS | IFNAME | PATH, CONNECT_MS, ANSWER_MS},
    {"GC", PATH, CONNECT_MS, ANSWER_MS},
    {"STATUS", 0, STATUS_MS, STATUS_MS},
    {"VERSION", 0, 0, 0},
};

static const char *command; /* CNI_COMMAND */
static unsigned needs;      /* what it needs of `variables` */
static struct text cni_version, socket_path, spool, boot_id_path, ready_path;
static int64_t connect_ms, answer_ms;
static struct text input, body, problem, message;
static struct answer answer;

static _Noreturn void fail(unsigned code, const char *text, const char *details)
{
    static struct text error;
    json_encode(&error, "{\"cniVersion\":", cni_version.at);
    text_format(&error, ",\"code\":%u", code);
    json_encode(&error, ",\"msg\":", text);
    json_encode(&error, ",\"details\":", details);
    text_format(&error, "}\n");
    write_all(STDOUT_FILENO, error.at, error.length, NEVER); /* if even this fails, the exit status tells */
    exit(1);
}

static const char *variable(const char *name)
{
    const char *value = getenv(name);
    return value != NULL ? value : "";
}

static bool is(const char *verb)
{
    return strcmp(command, verb) == 0;
}

static void check_environment(void)
{
    static const char id_bytes[] = "_.-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    const char *id = variable("CNI_CONTAINERID"), *ifname = variable("CNI_IFNAME"), *before = " needs ";
    text_format(&message, "%s", command);
    for (size_t i = 0; i < VARIABLES; i++) {
        if ((needs >> i & 1) == 0 || *variable(variables[i].name) != '\0')
            continue;
        text_format(&message, "%s%s", before, variables[i].name);
        before = ", ";
    }
    if (*before == ',')
        fail(BAD_ENVIRONMENT, message.at, "the container runtime did not set it");
    if ((needs & ID) != 0 && (strchr("_.-", *id) != NULL || id[strspn(id, id_bytes)] != '\0'))
        fail(BAD_ENVIRONMENT, "CNI_CONTAINERID is a letter or digit, then these or '_', '.', '-'", id);
    bool dots = strcmp(ifname, ".") == 0 || strcmp(ifname, "..") == 0;
    if ((needs & IFNAME) != 0 &&
        (dots || strlen(ifname) > IFNAME_MAX || strpbrk(ifname, "/: \t\n\v\f\r") != NULL))
        fail(BAD_ENVIRONMENT, "CNI_IFNAME is no name that Linux allows for a network interface", ifname);
}

static _Noreturn void refuse_config(unsigned code, const char *why, const char *details)
{
    check_environment(); /* the runtime's mistakes come before those in its configuration */
    fail(code, why, details);
}

static void visit_member(const char *key, const char *value)
{
    static const struct {
        const char *key;
        struct text *string;
        int64_t *milliseconds;
    } members[] = {
        {"cniVersion", &cni_version, NULL},      {"socket", &socket_path, NULL},
        {"spool", &spool, NULL},                 {"bootIdPath", &boot_id_path, NULL},
        {"readyPath", &ready_path, NULL},        {"connectTimeoutMs", NULL, &connect_ms},
        {"answerTimeoutMs", NULL, &answer_ms},
    };
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        if (strcmp(members[i].key, key) != 0)
            continue;
        if (members[i].string != NULL) {
            if (!json_decode(value, members[i].string))
                refuse_config(UNDECODABLE, "in the network configuration this is a string without NUL", key);
            continue;
        }
        size_t digits = strspn(value, "0123456789");
        *members[i].milliseconds = strtoll(value, NULL, 10); /* INT64_MAX when out of range */
        if (digits == 0 || strchr(".eE", value[digits]) != NULL || *members[i].milliseconds > TIMEOUT_MS_MAX)
            refuse_config(BAD_CONFIG, "in the network configuration this is an integer up to 600000", key);
    }
}

/* Reads stdin into `input` and takes out of it what concerns this program. */
static void read_config(void)
{
    size_t stopped_at;
    ssize_t got;
    do
        got = text_read(&input, STDIN_FILENO, NEVER);
    while (got > 0 && input.length <= STDIN_MAX);
    if (got < 0)
        refuse_config(IO_FAILURE, "cannot read the network configuration from stdin", strerror(errno));
    if (got > 0)
        refuse_config(IO_FAILURE, "the network configuration on stdin is bigger than 1 MiB", "");
    if (input.length == 0 && is("VERSION"))
        return; /* it asks about nothing that stands in there */
    if (!json_object(input.at, input.length, visit_member, &stopped_at)) {
        text_format(&problem, "reading stopped at byte %zu", stopped_at);
        refuse_config(UNDECODABLE, "the network configuration on stdin is not one JSON object", problem.at);
    }
    bool names_marker = ready_path.at != NULL;
    if (*socket_path.at != '/' || *spool.at != '/' || *boot_id_path.at != '/' ||
        (names_marker && *ready_path.at != '/'))
        refuse_config(BAD_CONFIG, "socket, spool, bootIdPath and readyPath are absolute paths", "");
    if (!names_marker) { /* it lies beside the socket */
        text_add(&ready_path, socket_path.at, (size_t)(strrchr(socket_path.at, '/') - socket_path.at));
        text_format(&ready_path, "/ready");
    }
    if (socket_path.length >= sizeof((struct sockaddr_un *)NULL)->sun_path)
        refuse_config(BAD_CONFIG, "the path of a Unix socket has at most 107 bytes", socket_path.at);
}

/* The daemon gave no whole answer. Returns if this is a DEL and in the spool, or a STATUS and the daemon was ready
 * in this boot; otherwise it is an error. */
static void give_up(uint64_t asked_ns)
{
    static struct text spool_problem, marker_problem;
    message.length = 0;
    text_format(&message, "%s: no answer from the daemon on %s (%s", command, socket_path.at, problem.at);
    if (is("DEL")) {
        if (spool_put(spool.at, boot_id_path.at, asked_ns, &body, &spool_problem))
            return;
        text_format(&message, ") and cannot be kept in %s (%s", spool.at, spool_problem.at);
    }
    if (is("STATUS")) {
        if (was_ready(ready_path.at, boot_id_path.at, &marker_problem))
            return;
        text_format(&message, ") and no sign that it was ready in this boot (%s", marker_problem.at);
    }
    text_format(&message, "); is the aws-node pod of this node running?");
    fail(is("STATUS") ? DOWN : TRY_LATER, message.at, "the same call can be made again");
}

int main(void)
{
    static const char about[] = "aws-cni: the CNI plugin of vpccni, called by a container runtime.\n"
                                "CNI versions: 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n";
    static const char versions[] = "\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"";
    struct timespec asked; /* a DEL speaks of what there was now, not of what comes while it waits */
    clock_gettime(CLOCK_BOOTTIME, &asked);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes is an error of the spool, not the end */
    text_format(&cni_version, "1.1.0");
    text_format(&socket_path, "/var/run/aws-node/vpccni.sock");
    text_format(&spool, "/var/run/aws-node/spool");
    text_format(&boot_id_path, "/proc/sys/kernel/random/boot_id");
    command = getenv("CNI_COMMAND");
    if (command == NULL)
        return write_all(STDERR_FILENO, about, sizeof about - 1, NEVER) ? 0 : 1;
    size_t verb = 0;
    while (verb < sizeof verbs / sizeof *verbs && !is(verbs[verb].name))
        verb++;
    if (verb == sizeof verbs / sizeof *verbs)
        fail(BAD_ENVIRONMENT, "CNI_COMMAND is none of ADD, DEL, CHECK, GC, STATUS and VERSION", command);
    needs = verbs[verb].needs;
    connect_ms = verbs[verb].connect_ms;
    answer_ms = verbs[verb].answer_ms;
    read_config();
    check_environment();
    if (is("STATUS") && answer_ms > STATUS_MS)
        answer_ms = STATUS_MS; /* the configuration may shorten it; what is longer is meant for the other verbs */

    if (is("VERSION")) {
        json_encode(&body, "{\"cniVersion\":", cni_version.at);
        text_format(&body, ",\"supportedVersions\":[%s]}\n", versions);
        return write_all(STDOUT_FILENO, body.at, body.length, NEVER) ? 0 : 1;
    }
    json_encode(&body, "{\"command\":", command);
    for (size_t i = 0; i < VARIABLES; i++)
        json_encode(&body, variables[i].member, variable(variables[i].name));
    text_format(&body, ",\"config\":%s}", input.at);

    if (!daemon_ask(socket_path.at, &body, is("ADD"), connect_ms, answer_ms, &answer, &problem)) {
        give_up((uint64_t)asked.tv_sec * 1000000000u + (uint64_t)asked.tv_nsec);
        return 0;
    }
    /* A good STATUS may tell what troubles some pods. That is for a person who asks: runtimes do not read it, and
     * the node is fit for pods whether it can be written or not. */
    if (answer.status == 200 && is("STATUS") && strstr(answer.body, "\"warnings\":") != NULL)
        write_all(STDOUT_FILENO, answer.body, answer.length, NEVER);
    bool good = answer.status == 200, silent = good && !is("ADD");
    return (silent || write_all(STDOUT_FILENO, answer.body, answer.length, NEVER)) && good ? 0 : 1;
}
