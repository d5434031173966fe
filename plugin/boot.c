/* This boot: its id, and whether the daemon was ready in it. */
#include "plugin.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define FILE_MAX 4096u /* both files have 37 bytes */
#define FILE_MS 100    /* they lie in memory; a pipe in their place must not hold a STATUS */

/* Adds a whole small file to `t`; false with errno if that cannot be. */
static bool read_file(struct text *t, const char *path)
{
    int64_t deadline = now_ms() + FILE_MS;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t got = fd < 0 ? -1 : 1;
    while (got > 0 && t->length <= FILE_MAX)
        got = text_read(t, fd, deadline);
    int why = got > 0 ? EFBIG : errno;
    if (fd >= 0)
        close(fd);
    errno = why;
    return got == 0;
}

bool boot_id(const char *boot_id_path, struct text *id, struct text *problem)
{
    if (!read_file(id, boot_id_path))
        return blame(problem, "read the boot id", strerror(errno));
    id->length = strcspn(id->at, "\n");
    id->at[id->length] = '\0';
    return id->length > 0 || blame(problem, "read the boot id", "the file is empty");
}

bool was_ready(const char *ready_path, const char *boot_id_path, struct text *problem)
{
    static struct text expected, found;
    if (!boot_id(boot_id_path, &expected, problem))
        return false;
    if (!read_file(&found, ready_path))
        return blame(problem, ready_path, strerror(errno));
    text_format(&expected, "\n");
    /* Every byte counts: a marker that is cut off, has more in it or is another boot's says nothing. */
    return (found.length == expected.length && memcmp(found.at, expected.at, found.length) == 0) ||
           blame(problem, ready_path, "it does not hold the id of this boot");
}
