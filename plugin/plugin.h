/* What the files of the CNI executable share. main.c tells what the program does as a whole. */
#ifndef VPCCNI_PLUGIN_H
#define VPCCNI_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define NEVER INT64_MAX /* a deadline that does not come */

/* text.c. A growable byte string, empty when zeroed. After the first addition at[length] is a NUL that does
 * not count. Running out of memory ends the program with CNI code 11, so that no caller has to check. */
struct text {
    char *at;
    size_t length, room;
};

void text_add(struct text *t, const void *bytes, size_t count);
void text_format(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
ssize_t text_read(struct text *t, int fd, int64_t deadline); /* adds what one read() gives */
bool write_all(int fd, const char *bytes, size_t count, int64_t deadline); /* or false, with errno */
bool blame(struct text *problem, const char *what, const char *why);       /* replaces it; returns false */
int64_t now_ms(void); /* CLOCK_MONOTONIC, as all deadlines are */

/* json.c. `json_object` tells whether `json`, with a NUL at `length`, is one object in UTF-8 (RFC 8259) and
 * at most 128 deep. It shows each member of the top level to `visit`, also of a document that breaks off later;
 * a value is a pointer into the document. `visit` and `stopped_at` may be NULL. */
typedef void json_visit(const char *key, const char *value);
bool json_object(const char *json, size_t length, json_visit *visit, size_t *stopped_at);
bool json_decode(const char *value, struct text *out); /* false: no string, or a NUL in it */
void json_encode(struct text *t, const char *before, const char *string); /* non-UTF-8 bytes: \ufffd */

/* exchange.c. POSTs `body` to /v1/cni until one whole answer came: a JSON object with any status, or an empty
 * 200 where no result is due. After a lost connection it sends the request again: CNI verbs are idempotent.
 * False when the daemon was away for `connect_ms` or `answer_ms` are over; `problem` is what came last. */
struct answer {
    struct text raw;  /* head and body as they came */
    const char *body; /* in `raw`, with a NUL at its end */
    size_t length;    /* of the body */
    unsigned status;  /* HTTP status */
};

bool daemon_ask(const char *socket_path, const struct text *body, bool wants_result, int64_t connect_ms,
                int64_t answer_ms, struct answer *answer, struct text *problem);

/* boot.c. `boot_id` adds the id of this boot, which is never empty, to `id`. `was_ready` tells whether the marker
 * `ready_path`, which the daemon writes when it can serve ADDs and takes away when it knows that it cannot,
 * names this boot. False: it cannot be told, `problem` says why. Both take a tenth of a second at most. */
bool boot_id(const char *boot_id_path, struct text *id, struct text *problem);
bool was_ready(const char *ready_path, const char *boot_id_path, struct text *problem);

/* spool.c. Stores `body` durably in the directory `spool`, made (0700, parents too) if it is missing.
 * `asked_ns` is the CLOCK_BOOTTIME at which the runtime asked. False: nothing may be promised, `problem` says
 * why. A process that is killed in here leaves at most a `.tmp-*`, never a part of a `*.json`. */
bool spool_put(const char *spool, const char *boot_id_path, uint64_t asked_ns, const struct text *body,
               struct text *problem);

#endif
