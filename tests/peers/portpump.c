/* Joins a virtio port of the guest with stdin and stdout, whether or not the host is there.
 *
 * usage: portpump PORT [SIZE]
 *
 * stdin goes to the port (a write waits for the host), what the port gives goes to stdout. It ends
 * when stdin has ended and SIZE bytes have come; without SIZE it runs until it is killed. On stderr
 * it says `connected` and `disconnected` as the host comes and goes.
 *
 * Reading a port whose host is away gives end of file at once, and poll gives POLLHUP at once; only
 * the edge of that is worth waiting for, so there is an edge-triggered epoll.
 */
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

static void write_all(int fd, const char *data, ssize_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, data, size);
        if (n < 0)
            err(1, "write");
        data += n;
        size -= n;
    }
}

static void *send_stdin(void *port)
{
    static char data[64 * 1024];
    ssize_t n;

    while ((n = read(0, data, sizeof data)) > 0)
        write_all(*(int *) port, data, n);
    if (n < 0)
        err(1, "read stdin");
    return NULL;
}

static void wait_for_host(int epoll)
{
    struct epoll_event event;
    do {
        if (epoll_wait(epoll, &event, 1, -1) < 0)
            err(1, "epoll_wait");
    } while (event.events & EPOLLHUP);
}

int main(int argc, char **argv)
{
    static char data[64 * 1024];
    int port = argc > 1 ? open(argv[1], O_RDWR) : -1;
    if (port < 0)
        err(1, "%s", argc > 1 ? argv[1] : "usage: portpump PORT [SIZE]");
    long long left = argc > 2 ? atoll(argv[2]) : -1;
    int epoll = epoll_create1(0);
    struct epoll_event edges = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, port, &edges) < 0)
        err(1, "epoll");

    pthread_t sender;
    if (pthread_create(&sender, NULL, send_stdin, &port))
        errx(1, "no thread");
    for (bool connected = false; left; ) {
        if (!connected) {
            wait_for_host(epoll);
            fprintf(stderr, "connected\n");
            connected = true;
        }
        ssize_t n = read(port, data, sizeof data);
        if (n < 0)
            err(1, "read %s", argv[1]);
        if (n == 0) {
            fprintf(stderr, "disconnected\n");
            connected = false;
        }
        write_all(1, data, n);
        if (left > 0)
            left -= n < left ? n : left;
    }
    pthread_join(sender, NULL);
    return 0;
}
