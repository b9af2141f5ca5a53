/* What lies behind the tunnel: a server that sends, swallows or echoes, as a connection's first byte says.

   0  PostgreSQL's SSLRequest, 8 bytes: answers N, as a server without TLS does, and waits for the next word
   D  sends bytes with no end, until the client sends another byte or ends its side
   U  swallows until the client ends its side, then answers how many bytes came (8 bytes, this machine's order)
   E  sends back what comes

   peer HOST PORT */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char zeros[256 * 1024];

static void send_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent <= 0)
            return;
        data += sent;
        size -= sent;
    }
}

static void serve_source(int fd)
{
    char word;

    /* 0: the client has ended its side; 1: it says stop; less: nothing has come yet */
    while (recv(fd, &word, 1, MSG_DONTWAIT) < 0)
        if (send(fd, zeros, sizeof zeros, MSG_NOSIGNAL) < 0)
            return;
}

static void serve_sink(int fd)
{
    uint64_t count = 0;
    ssize_t got;

    while ((got = recv(fd, NULL, 1 << 20, MSG_TRUNC)) > 0) /* counted without being copied */
        count += got;
    send_all(fd, (char *)&count, sizeof count);
}

static void serve_echo(int fd)
{
    char data[4096];
    ssize_t got;

    while ((got = recv(fd, data, sizeof data, 0)) > 0)
        send_all(fd, data, got);
}

static void *serve(void *argument)
{
    int fd = (int)(intptr_t)argument, on = 1;
    char word, rest[7];

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    while (recv(fd, &word, 1, 0) == 1) {
        if (word == 0 && recv(fd, rest, sizeof rest, MSG_WAITALL) == sizeof rest) {
            send_all(fd, "N", 1);
            continue;
        }
        if (word == 'D')
            serve_source(fd);
        else if (word == 'U')
            serve_sink(fd);
        else if (word == 'E')
            serve_echo(fd);
        break;
    }
    close(fd);
    return NULL;
}

int main(int argc, char **argv)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1, fd;
    struct sockaddr_in address = {.sin_family = AF_INET};
    pthread_attr_t attributes;
    pthread_t thread;

    if (argc != 3 || !inet_pton(AF_INET, argv[1], &address.sin_addr))
        return 2;
    address.sin_port = htons(atoi(argv[2]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) {
        perror("peer");
        return 1;
    }
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while ((fd = accept(listener, NULL, NULL)) >= 0)
        if (pthread_create(&thread, &attributes, serve, (void *)(intptr_t)fd))
            close(fd);
    perror("peer");
    return 1;
}
