/*
 * A one-way load generator on two DPDK ports, virtio-user front-ends or one of those and a network device: what testpmd,
 * which sends from all its ports, cannot be.
 *
 * Port 0 sends to port 1, or each to the other, as fast as the back-end takes the frames, on one core. Prints
 * "measuring" when the window begins, and one JSON object at its end. Arguments after EAL's "--":
 *
 *   size=64        bytes of a frame, without FCS
 *   both=0         1: both ports send
 *   warmup=0.7     seconds of traffic before the window
 *   duration=2     seconds of the window
 *   backoff-us=2   pause of a sender that found its ring full; 0: none
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_ether.h>
#include <rte_mbuf.h>

enum { PORTS = 2, BURST = 64, RING = 1024, BUFFERS = 4096, RECEIVE_ROOM = 2048 };

struct port {
    struct rte_mempool *pool;
    uint64_t not_before;
    /* Since the last reset. */
    uint64_t sent, received, tries, full_tries;
};

static struct settings {
    unsigned size;
    bool both;
    double warmup, duration, backoff_us;
} settings = {.size = 64, .warmup = 0.7, .duration = 2, .backoff_us = 2};

static struct port ports[PORTS];

static void die(const char *what) {
    fprintf(stderr, "generator: %s: %s\n", what, rte_strerror(rte_errno));
    exit(1);
}

static struct rte_ether_addr address_of(unsigned port) {
    struct rte_ether_addr address;
    if (rte_eth_macaddr_get(port, &address) != 0)
        die("no MAC address");
    return address;
}

/* Every buffer of a sender's pool holds its frame from the start: sending stamps a number and nothing else. */
static void fill(struct rte_mempool *pool, void *argument, void *object, unsigned index) {
    (void)pool, (void)index;
    unsigned port = *(unsigned *)argument;
    struct rte_mbuf *mbuf = object;
    struct rte_ether_hdr *header = rte_pktmbuf_mtod(mbuf, struct rte_ether_hdr *);
    memset(header, 0, settings.size);
    header->dst_addr = address_of(1 - port);
    header->src_addr = address_of(port);
    header->ether_type = rte_cpu_to_be_16(0x88b5); /* IEEE 802, local experiments */
}

static void open_port(unsigned port) {
    char name[32];
    snprintf(name, sizeof name, "receive%u", port);
    struct rte_mempool *receive =
        rte_pktmbuf_pool_create(name, BUFFERS, 256, 0, RTE_PKTMBUF_HEADROOM + RECEIVE_ROOM, SOCKET_ID_ANY);
    snprintf(name, sizeof name, "send%u", port);
    unsigned room = RTE_PKTMBUF_HEADROOM + (settings.size > RECEIVE_ROOM ? 9216 : RECEIVE_ROOM);
    ports[port].pool = rte_pktmbuf_pool_create(name, BUFFERS, 256, 0, room, SOCKET_ID_ANY);
    if (receive == NULL || ports[port].pool == NULL)
        die("no memory for buffers");

    struct rte_eth_dev_info info;
    if ((rte_errno = -rte_eth_dev_info_get(port, &info)) != 0)
        die("a port does not say what it can do");
    struct rte_eth_conf conf = {.rxmode = {.offloads = RTE_ETH_RX_OFFLOAD_SCATTER & info.rx_offload_capa}};
    /* net_af_packet takes no MTU, and receives what a frame of its ring holds of a longer one: it is counted all the same. */
    if (settings.size > RTE_ETHER_MAX_LEN && info.max_rx_pktlen > 9000)
        conf.rxmode.mtu = 9000;
    rte_errno = -rte_eth_dev_configure(port, 1, 1, &conf);
    if (rte_errno != 0)
        die("cannot configure a port");
    if ((rte_errno = -rte_eth_rx_queue_setup(port, 0, RING, SOCKET_ID_ANY, NULL, receive)) != 0)
        die("cannot set up a receiveq");
    if ((rte_errno = -rte_eth_tx_queue_setup(port, 0, RING, SOCKET_ID_ANY, NULL)) != 0)
        die("cannot set up a transmitq");
    if ((rte_errno = -rte_eth_dev_start(port)) != 0)
        die("cannot start a port");
    rte_mempool_obj_iter(ports[port].pool, fill, &port);
}

static unsigned receive(unsigned port) {
    struct rte_mbuf *burst[BURST];
    unsigned count = rte_eth_rx_burst(port, 0, burst, BURST);
    rte_pktmbuf_free_bulk(burst, count);
    ports[port].received += count;
    return count;
}

static void send_burst(unsigned port, uint64_t now) {
    struct port *self = &ports[port];
    if (now < self->not_before)
        return;
    struct rte_mbuf *burst[BURST];
    if (rte_pktmbuf_alloc_bulk(self->pool, burst, BURST) != 0)
        return;
    for (unsigned i = 0; i < BURST; i++) {
        burst[i]->data_len = burst[i]->pkt_len = settings.size;
        *rte_pktmbuf_mtod_offset(burst[i], uint64_t *, 16) = self->sent + i;
    }
    unsigned count = rte_eth_tx_burst(port, 0, burst, BURST);
    if (count < BURST)
        rte_pktmbuf_free_bulk(burst + count, BURST - count);
    self->sent += count;
    self->tries++;
    if (count < BURST) {
        self->full_tries++;
        self->not_before = now + (uint64_t)(settings.backoff_us * rte_get_tsc_hz() / 1e6);
    }
}

static void wait_for_links(void) {
    uint64_t deadline = rte_get_tsc_cycles() + 20 * rte_get_tsc_hz();
    for (unsigned up = 0; up != PORTS;) {
        up = 0;
        for (unsigned port = 0; port < PORTS; port++) {
            struct rte_eth_link link;
            if (rte_eth_link_get_nowait(port, &link) == 0 && link.link_status == RTE_ETH_LINK_UP)
                up++;
        }
        if (rte_get_tsc_cycles() > deadline) {
            fprintf(stderr, "generator: no switch came to both sockets within 20 s\n");
            exit(1);
        }
        rte_delay_us_sleep(1000);
    }
}

/* Broadcasts from both sides until each heard the other: then the switch knows where both are. */
static void announce(void) {
    uint64_t hz = rte_get_tsc_hz(), deadline = rte_get_tsc_cycles() + 5 * hz, next = 0;
    bool heard[PORTS] = {false, false};
    while (!heard[0] || !heard[1]) {
        uint64_t now = rte_get_tsc_cycles();
        if (now > deadline) {
            fprintf(stderr, "generator: the switch forwards nothing between the two ports\n");
            exit(1);
        }
        for (unsigned port = 0; port < PORTS; port++) {
            struct rte_mbuf *mbuf;
            if (now >= next && (mbuf = rte_pktmbuf_alloc(ports[port].pool)) != NULL) {
                struct rte_ether_addr group = {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};
                rte_pktmbuf_mtod(mbuf, struct rte_ether_hdr *)->dst_addr = group;
                mbuf->data_len = mbuf->pkt_len = 64;
                if (rte_eth_tx_burst(port, 0, &mbuf, 1) == 0)
                    rte_pktmbuf_free(mbuf);
            }
            heard[port] |= receive(port) > 0;
        }
        if (now >= next)
            next = now + hz / 100;
    }
    for (unsigned port = 0; port < PORTS; port++)
        rte_mempool_obj_iter(ports[port].pool, fill, &port);
}

static double run(double seconds) {
    uint64_t begin = rte_get_tsc_cycles(), now = begin, end = begin + (uint64_t)(seconds * rte_get_tsc_hz());
    for (unsigned port = 0; port < PORTS; port++)
        ports[port].sent = ports[port].received = ports[port].tries = ports[port].full_tries = 0;
    while ((now = rte_get_tsc_cycles()) < end) {
        send_burst(0, now);
        if (settings.both)
            send_burst(1, now);
        receive(1);
        receive(0);
    }
    return (double)(now - begin) / rte_get_tsc_hz();
}

/* Nanoseconds this thread ran, and waited for its core. */
static void scheduler_clock(uint64_t clock[2]) {
    FILE *file = fopen("/proc/thread-self/schedstat", "r");
    clock[0] = clock[1] = 0;
    if (file != NULL) {
        if (fscanf(file, "%" SCNu64 " %" SCNu64, &clock[0], &clock[1]) != 2)
            clock[0] = clock[1] = 0;
        fclose(file);
    }
}

static void set(const char *word) {
    unsigned both;
    if (sscanf(word, "size=%u", &settings.size) == 1 || sscanf(word, "warmup=%lf", &settings.warmup) == 1 ||
        sscanf(word, "duration=%lf", &settings.duration) == 1 ||
        sscanf(word, "backoff-us=%lf", &settings.backoff_us) == 1)
        return;
    if (sscanf(word, "both=%u", &both) == 1) {
        settings.both = both != 0;
        return;
    }
    fprintf(stderr, "generator: '%s' is not a setting; they are named at the head of generator.c\n", word);
    exit(2);
}

int main(int count, char **words) {
    int taken = rte_eal_init(count, words);
    if (taken < 0)
        die("DPDK does not start");
    for (int i = taken + 1; i < count; i++)
        set(words[i]);
    if (rte_eth_dev_count_avail() != PORTS) {
        fprintf(stderr, "generator: give two --vdev=…\n");
        return 2;
    }
    for (unsigned port = 0; port < PORTS; port++)
        open_port(port);
    wait_for_links();
    announce();
    run(settings.warmup);
    printf("measuring\n");
    fflush(stdout);
    uint64_t before[2], after[2];
    scheduler_clock(before);
    double seconds = run(settings.duration);
    scheduler_clock(after);
    double ran = (double)(after[0] - before[0]), waited = (double)(after[1] - before[1]);
    printf("{\"seconds\": %f, \"wait_share\": %f, \"ends\": [", seconds, ran + waited > 0 ? waited / (ran + waited) : 0);
    for (unsigned port = 0; port < PORTS; port++) {
        struct port *self = &ports[port];
        printf("%s{\"sent_pps\": %f, \"received_pps\": %f, \"ring_full_share\": %f}", port == 0 ? "" : ", ",
               self->sent / seconds, self->received / seconds,
               self->tries > 0 ? (double)self->full_tries / self->tries : 0);
    }
    printf("]}\n");
    fflush(stdout);
    for (unsigned port = 0; port < PORTS; port++)
        rte_eth_dev_stop(port);
    return rte_eal_cleanup() < 0;
}
