/* A DEL kept on disk while the daemon is away. The daemon drains the directory before it accepts. */
#include "plugin.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Opens the directory and makes what is missing of its absolute path, each new entry durably. */
static int open_directory(const char *path)
{
    int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC, fd = open(path, flags);
    if (fd >= 0 || errno != ENOENT)
        return fd;
    fd = open("/", flags);
    while (fd >= 0 && *(path += strspn(path, "/")) != '\0') {
        char name[NAME_MAX + 1] = "";
        size_t length = strcspn(path, "/");
        int parent = fd;
        memcpy(name, path, length < NAME_MAX ? length : NAME_MAX); /* longer: ENAMETOOLONG came before */
        path += length;
        fd = openat(parent, name, flags);
        if (fd < 0 && errno == ENOENT && (mkdirat(parent, name, 0700) == 0 || errno == EEXIST) &&
            fsync(parent) == 0)
            fd = openat(parent, name, flags);
        int why = errno;
        close(parent);
        errno = why;
    }
    return fd;
}

bool spool_put(const char *spool, const char *boot_id_path, uint64_t asked_ns, const struct text *body,
               struct text *problem)
{
    static struct text boot, draft, name, entry;
    if (!boot_id(boot_id_path, &boot, problem))
        return false;
    json_encode(&entry, "{\"version\":1,\"bootId\":", boot.at);
    text_format(&entry, ",\"boottimeNs\":%" PRIu64 ",\"request\":%s}\n", asked_ns, body->at);
    text_format(&draft, ".tmp-%ld-%" PRIu64, (long)getpid(), asked_ns);
    text_format(&name, "%020" PRIu64 "-%ld.json", asked_ns, (long)getpid()); /* names sort by time */

    int directory = open_directory(spool);
    if (directory < 0)
        return blame(problem, "open the directory", strerror(errno));
    int fd = openat(directory, draft.at, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return blame(problem, "create an entry", strerror(errno));
    /* Whole and on disk before it gets its name, and the name on disk before anybody is told. */
    if (write_all(fd, entry.at, entry.length, NEVER) && fsync(fd) == 0 &&
        renameat(directory, draft.at, directory, name.at) == 0 && fsync(directory) == 0)
        return true;
    blame(problem, "write an entry", strerror(errno));
    unlinkat(directory, draft.at, 0); /* readers ignore drafts, so a failure here only leaves litter */
    return false;
}
