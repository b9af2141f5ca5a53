/* A plain TCP relay, without SSH: what any forwarder on this machine costs at least. A thread for each direction.

   relay HOST PORT TARGET_HOST TARGET_PORT */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define BUFFER (64 * 1024)

struct pair {
    int client, server;
    atomic_int directions;
};

static struct sockaddr_in own = {.sin_family = AF_INET}, target = {.sin_family = AF_INET};
static pthread_attr_t attributes;

static void pump(int from, int to)
{
    char data[BUFFER];
    ssize_t got, sent, done;

    while ((got = recv(from, data, sizeof data, 0)) > 0)
        for (done = 0; done < got; done += sent)
            if ((sent = send(to, data + done, got - done, MSG_NOSIGNAL)) < 0) {
                shutdown(from, SHUT_RD);
                return;
            }
    shutdown(to, SHUT_WR);
}

static void leave(struct pair *pair)
{
    if (atomic_fetch_sub(&pair->directions, 1) == 1) {
        close(pair->client);
        close(pair->server);
        free(pair);
    }
}

static void *downwards(void *argument)
{
    struct pair *pair = argument;

    pump(pair->server, pair->client);
    leave(pair);
    return NULL;
}

static void *serve(void *argument)
{
    struct pair *pair = argument;
    pthread_t thread;
    int on = 1;

    pair->server = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(pair->client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(pair->server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    pair->directions = 1;
    if (connect(pair->server, (struct sockaddr *)&target, sizeof target) == 0) {
        pair->directions = 2;
        if (pthread_create(&thread, &attributes, downwards, pair))
            exit(1);
        pump(pair->client, pair->server);
    }
    leave(pair);
    return NULL;
}

int main(int argc, char **argv)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1, fd;
    pthread_t thread;

    if (argc != 5 || !inet_pton(AF_INET, argv[1], &own.sin_addr) || !inet_pton(AF_INET, argv[3], &target.sin_addr))
        return 2;
    own.sin_port = htons(atoi(argv[2]));
    target.sin_port = htons(atoi(argv[4]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&own, sizeof own) || listen(listener, 1024)) {
        perror("relay");
        return 1;
    }
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 4 * BUFFER);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        struct pair *pair = calloc(1, sizeof *pair);
        pair->client = fd;
        if (pthread_create(&thread, &attributes, serve, pair))
            exit(1);
    }
    perror("relay");
    return 1;
}
