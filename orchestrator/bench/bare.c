/*
 * bare - the loops of bare.py, in C
 *
 * bare put|take PLACE PROCESSES MESSAGES SIZE IS_SPLIT
 *
 * Processes are forked and wait at a pipe whose end is the start. Prints nanoseconds, messages,
 * lost races and CPU microseconds of all processes. A take reads the directory as it goes, and
 * with IS_SPLIT leaves the names with another remainder to the others.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PATH_SIZE = 4096 };

struct report {
    long long ended_ns;
    long handled, lost;
};

static const char *place;
static long processes, messages, size, is_split;
static char *body;

static void check(int is_good, const char *what)
{
    if (!is_good) {
        perror(what);
        exit(1);
    }
}

static long long now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static long share_of(long all, long index)
{
    return all / processes + (index < all % processes);
}

/* A directory below the place, made when missing; with is_own a process's own. */
static void directory(char *path, const char *name, long index, int is_own)
{
    if (is_own)
        snprintf(path, PATH_SIZE / 2, "%s/%s.%ld", place, name, index);
    else
        snprintf(path, PATH_SIZE / 2, "%s/%s", place, name);
    check(mkdir(path, 0700) == 0 || errno == EEXIST, path);
}

static long put(long index, const char *tmp, const char *incoming)
{
    char from[PATH_SIZE], to[PATH_SIZE];
    long count = share_of(messages, index);

    for (long number = 0; number < count; number++) {
        snprintf(from, sizeof from, "%s/bench.%ld.%08ld", tmp, index, number);
        snprintf(to, sizeof to, "%s/bench.%ld.%08ld", incoming, index, number);
        int fd = open(from, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        check(fd >= 0, from);
        check(write(fd, body, size) == size, "write");
        close(fd);
        check(rename(from, to) == 0, to);
    }
    return count;
}

static long take(long index, const char *incoming, const char *pending, long *lost)
{
    char from[PATH_SIZE], to[PATH_SIZE];
    long handled = 0;
    DIR *directory = opendir(incoming);
    struct dirent *entry;

    check(directory != NULL, incoming);
    while ((entry = readdir(directory))) {
        if (entry->d_name[0] == '.' || (is_split && atol(strrchr(entry->d_name, '.') + 1) % processes != index))
            continue;
        snprintf(from, sizeof from, "%s/%s", incoming, entry->d_name);
        snprintf(to, sizeof to, "%s/%s", pending, entry->d_name);
        if (rename(from, to) < 0) {
            check(errno == ENOENT, from);
            ++*lost;
            continue;
        }
        int fd = open(to, O_RDONLY | O_CLOEXEC);
        check(fd >= 0, to);
        check(read(fd, body, size + 1) == size, "read");
        close(fd);
        check(unlink(to) == 0, to);
        handled++;
    }
    closedir(directory);
    return handled;
}

int main(int count, char **words)
{
    int gate[2], ready[2], finished[2];
    struct report report;
    struct rusage usage;
    long handled = 0, lost = 0;
    long long started_ns, ended_ns = 0;
    char byte;

    if (count != 7)
        return 2;
    int is_put = strcmp(words[1], "put") == 0;
    place = words[2];
    processes = atol(words[3]);
    messages = atol(words[4]);
    size = atol(words[5]);
    is_split = atol(words[6]);
    body = calloc(1, size + 1);
    check(body && !pipe(gate) && !pipe(ready) && !pipe(finished), "cannot begin");
    for (long index = 0; index < processes; index++) {
        pid_t pid = fork();
        check(pid >= 0, "fork");
        if (pid == 0) {
            char tmp[PATH_SIZE / 2], incoming[PATH_SIZE / 2], pending[PATH_SIZE / 2];
            close(gate[1]);
            directory(tmp, "tmp", index, is_split);
            directory(incoming, "incoming", index, 0);
            directory(pending, "pending", index, is_split);
            report.lost = 0;
            check(write(ready[1], "r", 1) == 1, "ready");
            check(read(gate[0], &byte, 1) == 0, "gate");
            report.handled = is_put ? put(index, tmp, incoming) : take(index, incoming, pending, &report.lost);
            report.ended_ns = now_ns();
            check(write(finished[1], &report, sizeof report) == sizeof report, "report");
            return 0;
        }
    }
    close(ready[1]);
    close(finished[1]);
    for (long index = 0; index < processes; index++)
        check(read(ready[0], &byte, 1) == 1, "a process ended too early");
    started_ns = now_ns();
    close(gate[1]);
    for (long index = 0; index < processes; index++) {
        check(read(finished[0], &report, sizeof report) == sizeof report, "a process ended too early");
        handled += report.handled;
        lost += report.lost;
        if (report.ended_ns > ended_ns)
            ended_ns = report.ended_ns;
    }
    while (wait(NULL) > 0)
        ;
    getrusage(RUSAGE_CHILDREN, &usage);
    printf("%lld %ld %ld %lld\n", ended_ns - started_ns, handled, lost,
           (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000LL + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    return 0;
}
