/* The application at a bridge's local end, and the plain server behind a relay of bytes.
 *
 * usage: application CONNECTION WORK [NUMBER]...
 *
 * With `unix:PATH` it connects, trying for CONNECT_SECONDS while nobody listens there, does one of
 * these, prints one line of JSON and ends. `seconds` are between the first and the last of it.
 *
 *   take N                   reads N bytes; `wait`: seconds from connecting to the first byte
 *   give N M                 writes N bytes in writes of M, then waits for one byte
 *   both N                   writes N bytes and reads N + 1 at the same time
 *   ping SIZE COUNT WARMUP   writes SIZE bytes and reads as many, COUNT times after WARMUP;
 *                            `median` and `p99`: microseconds
 *   idle, stall              nothing; it prints as soon as it has connected and ends with its stdin
 *
 * With `accept:FD`, a listening socket that it has inherited:
 *
 *   collect N STREAMS [eof]  takes STREAMS connections and reads until N bytes in all have come
 *                            and, with `eof`, all of them have ended; then it prints, and keeps
 *                            them open until its stdin ends
 *
 * With `listen:FD`, another such, it is a server for one connection after the other and prints
 * nothing:
 *
 *   pour N [M]               writes N bytes, in writes of M
 *   swallow N                reads; writes one byte for each N
 *   both N                   writes N bytes and reads N, then writes one more
 *   echo                     writes what it reads
 */
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 256 * 1024, CONNECT_SECONDS = 10, CONNECT_PAUSE_US = 500 };

static uint64_t numbers[3];
static uint8_t written[BLOCK], taken[BLOCK]; /* one of each: no more than two threads */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static bool write_all(int fd, const uint8_t *data, size_t size)
{
    while (size) {
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
        if (n < 0)
            return false;
        data += n;
        size -= n;
    }
    return true;
}

static bool give(int fd, uint64_t size, size_t message)
{
    for (; size > message; size -= message)
        if (!write_all(fd, written, message))
            return false;
    return write_all(fd, written, size);
}

static bool take(int fd, uint64_t size)
{
    while (size) {
        ssize_t n = recv(fd, taken, size < BLOCK ? size : BLOCK, 0);
        if (n <= 0)
            return false;
        size -= n;
    }
    return true;
}

static void *giver(void *fd)
{
    return give(*(int *) fd, numbers[0], BLOCK) ? fd : NULL;
}

/* Writes numbers[0] bytes, and reads `size` in the meantime. */
static bool give_and_take(int fd, uint64_t size)
{
    pthread_t thread;
    void *given;
    if (pthread_create(&thread, NULL, giver, &fd))
        errx(1, "no thread");
    bool done = take(fd, size);
    if (!done)
        shutdown(fd, SHUT_RDWR); /* the giver need not go on */
    pthread_join(thread, &given);
    return done && given;
}

static void must(bool done)
{
    if (!done)
        errx(1, "the connection has ended too early (%s)", strerror(errno));
}

static void wait_for_end_of_stdin(void)
{
    char byte;
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
}

/* ---- the application ---- */

static void do_take(int fd)
{
    double begun = now();
    must(recv(fd, taken, 1, 0) == 1);
    double first = now();
    must(take(fd, numbers[0] - 1));
    printf("{\"seconds\": %.9f, \"wait\": %.9f}\n", now() - first, first - begun);
}

static void do_give(int fd)
{
    double begun = now();
    must(give(fd, numbers[0], numbers[1]) && take(fd, 1));
    printf("{\"seconds\": %.9f}\n", now() - begun);
}

static void do_both(int fd)
{
    double begun = now();
    must(give_and_take(fd, numbers[0] + 1));
    printf("{\"seconds\": %.9f}\n", now() - begun);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;
    return (x > y) - (x < y);
}

static void do_ping(int fd)
{
    size_t size = numbers[0], count = numbers[1], warmup = numbers[2];
    double *times = calloc(count, sizeof *times), begun = 0;
    for (size_t i = 0; i < warmup + count; i++) {
        double sent = now();
        must(give(fd, size, BLOCK) && take(fd, size));
        if (i == warmup)
            begun = sent;
        if (i >= warmup)
            times[i - warmup] = (now() - sent) * 1e6;
    }
    double seconds = now() - begun;
    qsort(times, count, sizeof *times, compare);
    printf("{\"median\": %.3f, \"p99\": %.3f, \"seconds\": %.9f}\n", times[count / 2],
           times[count * 99 / 100], seconds);
}

static void do_nothing(int fd)
{
    (void) fd;
    printf("{}\n");
    wait_for_end_of_stdin();
}

static void do_collect(int listener, bool to_eof)
{
    struct epoll_event events[64], readable = {.events = EPOLLIN, .data.fd = listener};
    int epoll = epoll_create1(0);
    uint64_t received = 0, connections = 0, ended = 0;
    double begun = 0;

    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &readable);
    while (received < numbers[0] || connections < numbers[1] || (to_eof && ended < connections)) {
        int count = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                if ((readable.data.fd = accept(listener, NULL, NULL)) < 0)
                    err(1, "accept");
                if (!connections++)
                    begun = now();
                epoll_ctl(epoll, EPOLL_CTL_ADD, readable.data.fd, &readable);
                continue;
            }
            ssize_t n = recv(fd, taken, BLOCK, MSG_DONTWAIT);
            if (n > 0) {
                received += n;
            } else if (n == 0 || errno != EAGAIN) {
                ended++;
                close(fd);
            }
        }
    }
    printf("{\"seconds\": %.9f, \"connections\": %llu}\n", now() - begun,
           (unsigned long long) connections);
    wait_for_end_of_stdin();
}

/* ---- the server: a client that goes away early is none of its business ---- */

static void serve_pour(int fd)
{
    if (give(fd, numbers[0], numbers[1] ? numbers[1] : BLOCK))
        take(fd, UINT64_MAX); /* until the client goes, lest the connection be reset */
}

static void serve_swallow(int fd)
{
    while (take(fd, numbers[0]) && write_all(fd, written, 1))
        ;
}

static void serve_both(int fd)
{
    if (give_and_take(fd, numbers[0]) && write_all(fd, written, 1))
        take(fd, UINT64_MAX);
}

static void serve_echo(int fd)
{
    ssize_t n;
    while ((n = recv(fd, taken, BLOCK, 0)) > 0 && write_all(fd, taken, n))
        ;
}

/* ---- connections ---- */

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    double deadline = now() + CONNECT_SECONDS;

    if (strlen(path) >= sizeof address.sun_path)
        errx(2, "the path is too long: %s", path);
    strcpy(address.sun_path, path);
    while (connect(fd, (struct sockaddr *) &address, sizeof address) < 0) {
        if ((errno != ENOENT && errno != ECONNREFUSED) || now() > deadline)
            err(1, "connect to %s", path);
        usleep(CONNECT_PAUSE_US);
    }
    return fd;
}

static void serve(int listener, void (*work)(int))
{
    for (;;) {
        int fd = accept(listener, NULL, NULL), on = 1;
        if (fd < 0)
            err(1, "accept");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* not for Unix sockets */
        work(fd);
        close(fd);
    }
}

typedef void work(int fd);

static const struct {
    const char *name;
    work *client, *server;
    int least, most; /* how many numbers it needs */
} works[] = {
    {"take", do_take, NULL, 1, 1},       {"give", do_give, NULL, 2, 2},
    {"both", do_both, serve_both, 1, 1}, {"ping", do_ping, NULL, 3, 3},
    {"idle", do_nothing, NULL, 0, 0},    {"stall", do_nothing, NULL, 0, 0},
    {"pour", NULL, serve_pour, 1, 2},    {"swallow", NULL, serve_swallow, 1, 1},
    {"echo", NULL, serve_echo, 0, 0},
};

static void begin(const char *connection, const char *name, int count)
{
    bool serves = !strncmp(connection, "listen:", 7);
    if (!serves && strncmp(connection, "unix:", 5))
        errx(2, "%s is no connection", connection);
    for (size_t i = 0; i < sizeof works / sizeof *works; i++) {
        work *chosen = serves ? works[i].server : works[i].client;
        if (!chosen || strcmp(works[i].name, name))
            continue;
        if (count < works[i].least || count > works[i].most)
            break;
        if (serves)
            serve(atoi(connection + 7), chosen);
        chosen(connect_to(connection + 5));
        return;
    }
    errx(2, "there is no work %s with %d numbers for %s", name, count, connection);
}

int main(int argc, char **argv)
{
    if (argc < 3)
        errx(2, "usage: application CONNECTION WORK [NUMBER]...");
    bool to_eof = !strcmp(argv[argc - 1], "eof");
    int count = argc - 3 - to_eof;
    if (count > 3)
        errx(2, "too many numbers");
    for (int i = 0; i < count; i++)
        numbers[i] = strtoull(argv[3 + i], NULL, 10);
    srandom(1);
    for (size_t i = 0; i < BLOCK; i++)
        written[i] = random();

    if (!strncmp(argv[1], "accept:", 7) && !strcmp(argv[2], "collect") && count == 2) {
        struct rlimit files;
        getrlimit(RLIMIT_NOFILE, &files);
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
        do_collect(atoi(argv[1] + 7), to_eof);
    } else {
        begin(argv[1], argv[2], count);
    }
    return 0;
}
