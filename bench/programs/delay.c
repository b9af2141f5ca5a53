/* A link between two network namespaces on which each packet takes its time: in order, none lost, at any rate.

   Two TUN interfaces, so that TCP runs through it end to end and measures the round trip. Packets pass as the kernel
   has them before it cuts them (TSO), else copying them would be what limits. Runs in the one namespace.

   delay OTHER_NAMESPACE INTERFACE SECONDS_ONE_WAY        the interface has the same name in both */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define MOST_PACKETS 16384
#define LARGEST_PACKET (65536 + 16) /* with the header that says how the kernel may cut it */

struct packet {
    double due;
    ssize_t size;
    char *data;
};

/* What is on its way to one side, the oldest first. */
struct queue {
    struct packet packets[MOST_PACKETS];
    unsigned begin, end;
};

static struct queue queues[2];
static double delay;

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static int interface(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);

    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) || ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)) {
        perror("/dev/net/tun");
        exit(1);
    }
    return fd;
}

static int is_full(const struct queue *queue)
{
    return queue->end - queue->begin == MOST_PACKETS;
}

static void take(struct queue *queue, int fd)
{
    static char data[LARGEST_PACKET];
    ssize_t size;

    while (!is_full(queue) && (size = read(fd, data, sizeof data)) > 0) {
        struct packet *packet = &queue->packets[queue->end++ % MOST_PACKETS];
        *packet = (struct packet){now() + delay, size, malloc(size)};
        memcpy(packet->data, data, size);
    }
}

/* Passes on what is due; returns when the next one is, or 0 where none waits. */
static double give(struct queue *queue, int fd)
{
    while (queue->begin != queue->end) {
        struct packet *packet = &queue->packets[queue->begin % MOST_PACKETS];
        if (packet->due > now())
            return packet->due;
        if (write(fd, packet->data, packet->size) < 0 && errno != EIO && errno != EINVAL) {
            perror("write");
            exit(1);
        }
        free(packet->data);
        queue->begin++;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct pollfd sides[2];
    int namespace;

    if (argc != 4)
        return 2;
    delay = atof(argv[3]);
    sides[0] = (struct pollfd){interface(argv[2]), POLLIN, 0};
    namespace = open(argv[1], O_RDONLY);
    if (namespace < 0 || setns(namespace, CLONE_NEWNET)) {
        perror(argv[1]);
        return 1;
    }
    sides[1] = (struct pollfd){interface(argv[2]), POLLIN, 0};
    for (;;) {
        double next = 0, due;
        for (int i = 0; i < 2; i++) {
            take(&queues[i], sides[i].fd);
            due = give(&queues[i], sides[!i].fd);
            if (due && (!next || due < next))
                next = due;
            sides[i].events = is_full(&queues[i]) ? 0 : POLLIN;
        }
        double wait = next ? next - now() : 1;
        struct timespec time = {(time_t)wait, (long)((wait - (time_t)wait) * 1e9)};
        if (wait > 0)
            ppoll(sides, 2, &time, NULL);
    }
}
