/* The client: one measurement of the server in peer.c, whatever lies between. Prints numbers; fails with a word.

   load first HOST PORT                        CLOCK_MONOTONIC at the first byte, tried until it comes
   load down HOST PORT STREAMS SKIP SECONDS    bytes and seconds after the SKIP, bytes in all
   load up HOST PORT SKIP SECONDS              the same, from the client to the server
   load ping HOST PORT COUNT SECONDS           microseconds of each exchange of one byte, at most COUNT in SECONDS */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MOST_STREAMS 64
#define FIRST_SECONDS 30

static struct sockaddr_in server = {.sin_family = AF_INET};

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "the connection ended");
    exit(1);
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static int connected(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&server, sizeof server) == 0)
        return fd;
    close(fd);
    return -1;
}

static int opened(const char *word)
{
    int fd = connected();

    if (fd < 0)
        fail("connect");
    if (send(fd, word, 1, MSG_NOSIGNAL) != 1)
        fail("send");
    return fd;
}

static int first(void)
{
    static const char request[8] = {0, 0, 0, 8, 4, 210, 22, 47}; /* PostgreSQL's SSLRequest */
    struct timespec pause = {0, 500 * 1000};
    double end = now() + FIRST_SECONDS;
    char answer;

    while (now() < end) {
        int fd = connected();
        if (fd >= 0 && send(fd, request, sizeof request, MSG_NOSIGNAL) == sizeof request &&
            recv(fd, &answer, 1, 0) == 1) {
            printf("%.6f\n", now());
            return 0;
        }
        close(fd);
        nanosleep(&pause, NULL);
    }
    errno = ETIMEDOUT;
    fail("first");
    return 1;
}

/* One step of all streams: how many bytes came. Streams that ended are taken out. */
static uint64_t received(struct pollfd *streams, int count)
{
    uint64_t total = 0;

    if (poll(streams, count, 10000) <= 0)
        fail("poll");
    for (int i = 0; i < count; i++) {
        if (!streams[i].revents)
            continue;
        ssize_t got = recv(streams[i].fd, NULL, 1 << 20, MSG_TRUNC | MSG_DONTWAIT); /* counted, not copied */
        if (got < 0 && errno != EAGAIN)
            fail("recv");
        if (got == 0)
            streams[i].fd = -1;
        if (got > 0)
            total += got;
    }
    return total;
}

static int down(int count, double skip, double seconds)
{
    struct pollfd streams[MOST_STREAMS];
    uint64_t skipped = 0, counted = 0, rest = 0, step;
    double begin, end;

    if (count > MOST_STREAMS)
        return 2;
    for (int i = 0; i < count; i++)
        streams[i] = (struct pollfd){opened("D"), POLLIN, 0};
    for (begin = now(); now() < begin + skip;)
        skipped += received(streams, count);
    for (begin = now(); (end = now()) < begin + seconds;)
        counted += received(streams, count);
    for (int i = 0; i < count; i++)
        if (send(streams[i].fd, "s", 1, MSG_NOSIGNAL) != 1)
            fail("a stream ended early");
    for (int open = count; open > 0;) {
        step = received(streams, count);
        rest += step;
        open = 0;
        for (int i = 0; i < count; i++)
            open += streams[i].fd >= 0;
    }
    printf("%llu %.6f %llu\n", (unsigned long long)counted, end - begin,
           (unsigned long long)(skipped + counted + rest));
    return 0;
}

static int up(double skip, double seconds)
{
    static char data[256 * 1024];
    int fd = opened("U");
    uint64_t skipped = 0, total = 0, answer = 0;
    double begin = now(), counted_from = begin, end;
    ssize_t sent;

    while (now() < begin + skip + seconds) {
        if ((sent = send(fd, data, sizeof data, MSG_NOSIGNAL)) < 0)
            fail("send");
        total += sent;
        if (now() < begin + skip) {
            skipped = total;
            counted_from = now();
        }
    }
    shutdown(fd, SHUT_WR);
    if (recv(fd, &answer, sizeof answer, MSG_WAITALL) != sizeof answer)
        fail("recv");
    end = now();
    if (answer != total) {
        fprintf(stderr, "%llu bytes were sent, %llu came\n", (unsigned long long)total, (unsigned long long)answer);
        return 1;
    }
    printf("%llu %.6f %llu\n", (unsigned long long)(total - skipped), end - counted_from, (unsigned long long)total);
    return 0;
}

static int ping(int count, double seconds)
{
    int fd = opened("E");
    double end = now() + seconds, begin;
    char byte = 'x';

    for (int i = 0; i < count && now() < end; i++) {
        begin = now();
        if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1 || recv(fd, &byte, 1, 0) != 1)
            fail("ping");
        printf("%.1f\n", (now() - begin) * 1e6);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 4 || !inet_pton(AF_INET, argv[2], &server.sin_addr))
        return 2;
    server.sin_port = htons(atoi(argv[3]));
    errno = 0;
    if (!strcmp(argv[1], "first"))
        return first();
    if (!strcmp(argv[1], "down") && argc == 7)
        return down(atoi(argv[4]), atof(argv[5]), atof(argv[6]));
    if (!strcmp(argv[1], "up") && argc == 6)
        return up(atof(argv[4]), atof(argv[5]));
    if (!strcmp(argv[1], "ping") && argc == 6)
        return ping(atoi(argv[4]), atof(argv[5]));
    return 2;
}
