/*
 * iscsi_load - a small iSCSI load generator, the client of the benchmarks.
 *
 * Two interchangeable initiator engines drive the same workload and the same
 * accounting, so a target can be measured with a credible, general client and
 * with one that costs next to nothing:
 *
 *   libiscsi   the stock user-space initiator (what QEMU uses)
 *   raw        a minimal built-in initiator: batched sendmsg, 1 MiB receives
 *
 * Every 4 KiB block the tool writes carries its own byte offset in its first
 * eight bytes; --verify checks that stamp on every read, so a run over a
 * stamped device (see --stamp-file) is also a correctness check.
 *
 * One JSON object per run is printed on stdout. bench.py builds and drives it;
 * by hand:  cc -O2 -o iscsi_load iscsi_load.c -liscsi -lpthread
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define STAMP_EVERY 4096u

/* ------------------------------------------------------------- options -- */

enum engine { ENGINE_LIBISCSI, ENGINE_RAW };

static struct options {
    const char *url;
    enum engine engine;
    bool write, sequential, verify;
    unsigned block, depth, conns, threads;
    double seconds, warmup;
    int pids[16], npids;
    const char *label;
} opt = { .block = 4096, .depth = 32, .conns = 1, .threads = 1, .seconds = 3, .warmup = 0.5, .label = "" };

static char host[256], port[16], target_name[256];
static int lun;

static void die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "iscsi_load: ");
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n");
    va_end(ap);
    exit(1);
}

static void *xalloc(size_t n)
{
    void *p = NULL;
    if (posix_memalign(&p, 4096, n ? n : 1))
        die("out of memory");
    memset(p, 0, n);
    return p;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* -------------------------------------------- log-linear latency counts -- */

#define SUB_BITS 6
#define BUCKETS ((64 - SUB_BITS) << SUB_BITS)

static unsigned bucket_of(uint64_t ns)
{
    if (ns < (1u << SUB_BITS))
        return ns;
    unsigned shift = 63 - __builtin_clzll(ns) - SUB_BITS;
    return ((shift + 1) << SUB_BITS) + ((ns >> shift) - (1u << SUB_BITS));
}

static double bucket_us(unsigned b)
{
    if (b < (1u << SUB_BITS))
        return b / 1e3;
    unsigned shift = (b >> SUB_BITS) - 1;
    uint64_t base = ((uint64_t)(1u << SUB_BITS) + (b & ((1u << SUB_BITS) - 1))) << shift;
    return (base + ((1ull << shift) >> 1)) / 1e3;
}

/* ------------------------------------------------------------ workload -- */

struct slot {                   /* one outstanding command */
    struct conn *conn;
    uint64_t offset, started;
    uint8_t *buf;
};

struct worker;

struct conn {
    struct worker *w;
    unsigned id;
    uint64_t rng, next, first, span;    /* sequential cursor over [first, first+span) */
    struct slot *slots, **free;
    unsigned nfree;
    uint64_t size;                      /* bytes on the LUN */
    unsigned sector;                    /* bytes per logical block */
    /* engine: libiscsi */
    struct iscsi_context *ctx;
    /* engine: raw */
    struct raw *raw;
};

struct worker {
    pthread_t thread;
    struct conn *conns;
    unsigned nconns;
    uint64_t ios, errors, bad_stamps, lat_sum;
    uint64_t lat[BUCKETS];
};

static volatile bool measuring, stopping;

static uint64_t next_offset(struct conn *c)
{
    if (opt.sequential) {
        uint64_t at = c->first + c->next;
        c->next += opt.block;
        if (c->next + opt.block > c->span)
            c->next = 0;
        return at;
    }
    c->rng ^= c->rng << 13;
    c->rng ^= c->rng >> 7;
    c->rng ^= c->rng << 17;
    return (c->rng % (c->size / opt.block)) * opt.block;
}

static void stamp(uint8_t *buf, uint64_t offset, unsigned len)
{
    for (unsigned i = 0; i + 8 <= len; i += STAMP_EVERY) {
        uint64_t v = offset + i;
        memcpy(buf + i, &v, 8);
    }
}

static void check_stamp(struct worker *w, const uint8_t *buf, uint64_t offset, unsigned len)
{
    for (unsigned i = (STAMP_EVERY - offset % STAMP_EVERY) % STAMP_EVERY; i + 8 <= len; i += STAMP_EVERY) {
        uint64_t v;
        memcpy(&v, buf + i, 8);
        if (v != offset + i && w->bad_stamps++ == 0)
            fprintf(stderr, "iscsi_load: offset %llu holds stamp %llu\n",
                    (unsigned long long)(offset + i), (unsigned long long)v);
    }
}

static struct slot *take_slot(struct conn *c)
{
    struct slot *s = c->free[--c->nfree];
    s->offset = next_offset(c);
    if (opt.write)
        stamp(s->buf, s->offset, opt.block);
    s->started = now_ns();
    return s;
}

static void finish_slot(struct slot *s, bool good)
{
    struct conn *c = s->conn;
    struct worker *w = c->w;
    if (!good)
        w->errors++;
    else if (measuring) {
        uint64_t ns = now_ns() - s->started;
        w->ios++;
        w->lat_sum += ns;
        w->lat[bucket_of(ns)]++;
    }
    c->free[c->nfree++] = s;
}

static void init_slots(struct conn *c)
{
    c->rng = 0x9e3779b97f4a7c15ull * (c->id + 1) ^ now_ns();
    c->span = c->size / opt.conns / opt.block * opt.block;
    c->first = c->span * c->id;
    if (c->span < opt.block)
        die("device too small");
    c->slots = xalloc(opt.depth * sizeof *c->slots);
    c->free = xalloc(opt.depth * sizeof *c->free);
    for (unsigned i = 0; i < opt.depth; i++) {
        c->slots[i].conn = c;
        c->slots[i].buf = xalloc(opt.block);
        c->free[c->nfree++] = &c->slots[i];
    }
}

/* ----------------------------------------------------- engine: libiscsi -- */

static void lib_open(struct conn *c)
{
    char initiator[128];
    snprintf(initiator, sizeof initiator, "iqn.2026-01.org.example:load-%d-%u", (int)getpid(), c->id);
    c->ctx = iscsi_create_context(initiator);
    struct iscsi_url *u = iscsi_parse_full_url(c->ctx, opt.url);
    if (!u)
        die("bad url: %s", iscsi_get_error(c->ctx));
    iscsi_set_targetname(c->ctx, u->target);
    iscsi_set_session_type(c->ctx, ISCSI_SESSION_NORMAL);
    iscsi_set_header_digest(c->ctx, ISCSI_HEADER_DIGEST_NONE);
    if (iscsi_full_connect_sync(c->ctx, u->portal, u->lun))
        die("connect: %s", iscsi_get_error(c->ctx));
    iscsi_destroy_url(u);
    struct scsi_task *t = iscsi_readcapacity16_sync(c->ctx, lun);
    struct scsi_readcapacity16 *rc = t ? scsi_datain_unmarshall(t) : NULL;
    if (!rc)
        die("read capacity: %s", iscsi_get_error(c->ctx));
    c->sector = rc->block_length;
    c->size = (rc->returned_lba + 1) * c->sector;
    scsi_free_scsi_task(t);
}

static void lib_done(struct iscsi_context *ctx, int status, void *data, void *arg)
{
    struct slot *s = arg;
    (void)ctx;
    bool good = status == SCSI_STATUS_GOOD;
    if (!good && s->conn->w->errors == 0)
        fprintf(stderr, "iscsi_load: status %d: %s\n", status, iscsi_get_error(ctx));
    if (good && opt.verify && !opt.write)
        check_stamp(s->conn->w, s->buf, s->offset, opt.block);
    scsi_free_scsi_task(data);
    finish_slot(s, good);
}

static void lib_fill(struct conn *c)
{
    while (c->nfree && !stopping) {
        struct slot *s = take_slot(c);
        struct scsi_task *t;
        uint64_t lba = s->offset / c->sector;
        if (opt.write) {
            t = iscsi_write16_task(c->ctx, lun, lba, s->buf, opt.block, c->sector, 0, 0, 0, 0, 0, lib_done, s);
        } else {
            t = iscsi_read16_task(c->ctx, lun, lba, opt.block, c->sector, 0, 0, 0, 0, 0, lib_done, s);
            if (t)
                scsi_task_add_data_in_buffer(t, opt.block, s->buf);
        }
        if (!t)
            die("submit: %s", iscsi_get_error(c->ctx));
    }
}

static void lib_loop(struct worker *w)
{
    struct pollfd fds[w->nconns];
    for (unsigned i = 0; i < w->nconns; i++)
        lib_fill(&w->conns[i]);
    while (!stopping) {
        for (unsigned i = 0; i < w->nconns; i++) {
            fds[i].fd = iscsi_get_fd(w->conns[i].ctx);
            fds[i].events = iscsi_which_events(w->conns[i].ctx);
            fds[i].revents = 0;
        }
        int ready = poll(fds, w->nconns, 200);
        if (ready < 0)
            die("poll: %s", strerror(errno));
        for (unsigned i = 0; i < w->nconns; i++) {
            struct conn *c = &w->conns[i];
            if (ready && !fds[i].revents)
                continue;                       /* when nothing comes, it looks at its timers */
            if (iscsi_service(c->ctx, fds[i].revents) < 0)
                die("service: %s", iscsi_get_error(c->ctx));
            lib_fill(c);
            if (iscsi_which_events(c->ctx) & POLLOUT)
                if (iscsi_service(c->ctx, POLLOUT) < 0)
                    die("service: %s", iscsi_get_error(c->ctx));
        }
    }
}

/* ---------------------------------------------------------- engine: raw -- */

#define RXBUF (1u << 20)
#define OUTQ 4096u              /* PDUs that may wait to be sent, per connection */

struct outpdu {
    uint8_t bhs[48];
    const uint8_t *data;
    uint32_t len;
};

struct raw {
    int fd;
    uint32_t cmdsn, maxcmdsn, expstatsn;
    uint32_t max_xmit, first_burst;
    bool immediate;
    struct outpdu *out;
    unsigned head, tail;        /* queued PDUs are out[head..tail) modulo OUTQ */
    size_t sent;                /* bytes of out[head] already sent */
    uint8_t *rx;
    uint8_t bhs[48];
    unsigned have;              /* bytes of bhs received */
    uint32_t data_len, pad_len, data_seen;
    uint8_t text[8192];
};

static void put24(uint8_t *p, uint32_t v) { p[0] = v >> 16; p[1] = v >> 8; p[2] = v; }
static uint32_t get24(const uint8_t *p) { return p[0] << 16 | p[1] << 8 | p[2]; }
static void put32(uint8_t *p, uint32_t v) { v = htobe32(v); memcpy(p, &v, 4); }
static uint32_t get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return be32toh(v); }
static void put64(uint8_t *p, uint64_t v) { v = htobe64(v); memcpy(p, &v, 8); }
static uint64_t get64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return be64toh(v); }

static struct outpdu *raw_queue(struct raw *r, const uint8_t *data, uint32_t len)
{
    if (r->tail - r->head == OUTQ)
        die("send queue full");
    struct outpdu *o = &r->out[r->tail++ % OUTQ];
    memset(o->bhs, 0, 48);
    put24(o->bhs + 5, len);
    o->data = data;
    o->len = len;
    return o;
}

/* Send what is queued; true when nothing is left. */
static bool raw_flush(struct raw *r)
{
    while (r->head != r->tail) {
        struct iovec iov[512];
        unsigned n = 0;
        for (unsigned q = r->head; q != r->tail && n + 2 <= 512; q++) {
            struct outpdu *o = &r->out[q % OUTQ];
            size_t skip = q == r->head ? r->sent : 0;
            if (skip < 48)
                iov[n++] = (struct iovec){ o->bhs + skip, 48 - skip };
            size_t off = skip > 48 ? skip - 48 : 0;
            if (o->len > off)
                iov[n++] = (struct iovec){ (void *)(o->data + off), o->len - off };
        }
        struct msghdr m = { .msg_iov = iov, .msg_iovlen = n };
        ssize_t k = sendmsg(r->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (k < 0) {
            if (errno == EAGAIN || errno == EINTR)
                return false;
            die("send: %s", strerror(errno));
        }
        r->sent += k;
        while (r->head != r->tail && r->sent >= 48 + r->out[r->head % OUTQ].len) {
            r->sent -= 48 + r->out[r->head % OUTQ].len;
            r->head++;
        }
    }
    return true;
}

static void read_full(int fd, void *p, size_t n)
{
    for (size_t got = 0; got < n;) {
        ssize_t k = recv(fd, (uint8_t *)p + got, n - got, 0);
        if (k <= 0)
            die("connection lost during set-up");
        got += k;
    }
}

/* Blocking receive of one PDU, for set-up only. */
static uint32_t raw_recv_sync(struct raw *r)
{
    read_full(r->fd, r->bhs, 48);
    uint32_t len = get24(r->bhs + 5);
    if (((len + 3) & ~3u) > sizeof r->text - 1)
        die("set-up PDU too long");
    read_full(r->fd, r->text, (len + 3) & ~3u);
    r->text[len] = 0;
    return len;
}

static const char *text_key(const uint8_t *text, uint32_t len, const char *key)
{
    size_t n = strlen(key);
    for (const char *p = (const char *)text, *end = p + len; p < end; p += strlen(p) + 1)
        if (!strncmp(p, key, n) && p[n] == '=')
            return p + n + 1;
    return NULL;
}

static uint8_t *raw_command(struct raw *r, struct outpdu *o, uint8_t flags, uint32_t itt, uint32_t edtl)
{
    o->bhs[0] = 0x01;
    o->bhs[1] = flags;
    o->bhs[9] = lun;
    put32(o->bhs + 16, itt);
    put32(o->bhs + 20, edtl);
    put32(o->bhs + 24, r->cmdsn++);
    put32(o->bhs + 28, r->expstatsn);
    return o->bhs + 32;
}

static void raw_note_sn(struct raw *r, bool status)
{
    if (status)
        r->expstatsn = get32(r->bhs + 24) + 1;
    r->maxcmdsn = get32(r->bhs + 32);
}

static void raw_login(struct conn *c, struct raw *r)
{
    char keys[1024];
    int n = snprintf(keys, sizeof keys,
        "InitiatorName=iqn.2026-01.org.example:load-%d-%u%cTargetName=%s%cSessionType=Normal%c"
        "HeaderDigest=None%cDataDigest=None%cInitialR2T=No%cImmediateData=Yes%c"
        "MaxBurstLength=262144%cFirstBurstLength=262144%cMaxRecvDataSegmentLength=262144%c"
        "DefaultTime2Wait=2%cDefaultTime2Retain=0%cMaxOutstandingR2T=1%cMaxConnections=1%c"
        "ErrorRecoveryLevel=0%cDataPDUInOrder=Yes%cDataSequenceInOrder=Yes%c",
        (int)getpid(), c->id, 0, target_name, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    memset(r->text, 0, sizeof r->text);
    uint8_t padded[1028] = { 0 };
    memcpy(padded, keys, n);
    r->max_xmit = 8192;
    r->first_burst = 65536;
    r->immediate = true;
    uint16_t isid = htobe16((uint16_t)(c->id + 1));
    for (;;) {
        uint8_t bhs[48] = { 0x43, 0x87 };       /* operational -> full feature */
        bhs[8] = 0x80;
        put32(bhs + 9, (uint32_t)getpid() << 8);
        memcpy(bhs + 12, &isid, 2);
        put24(bhs + 5, n);
        put32(bhs + 16, 1);
        put32(bhs + 24, 1);
        put32(bhs + 28, r->expstatsn);
        if (send(r->fd, bhs, 48, n ? MSG_MORE : 0) != 48 || (n && send(r->fd, padded, (n + 3) & ~3, 0) < 0))
            die("login send: %s", strerror(errno));
        uint32_t len = raw_recv_sync(r);
        if ((r->bhs[0] & 0x3f) != 0x23 || r->bhs[36])
            die("login refused: opcode %02x status %02x%02x", r->bhs[0], r->bhs[36], r->bhs[37]);
        raw_note_sn(r, true);
        const char *v;
        if ((v = text_key(r->text, len, "MaxRecvDataSegmentLength")))
            r->max_xmit = strtoul(v, 0, 0);
        if ((v = text_key(r->text, len, "FirstBurstLength")))
            r->first_burst = strtoul(v, 0, 0);
        if ((v = text_key(r->text, len, "ImmediateData")))
            r->immediate = !strcmp(v, "Yes");
        if (r->bhs[1] & 0x80)
            break;
        n = 0;                                  /* the target wants another round */
    }
    r->cmdsn = 1;
}

/* Run one command to completion during set-up; returns the SCSI status. */
static int raw_sync(struct raw *r, const uint8_t *cdb, unsigned cdblen, uint32_t edtl, uint8_t *in)
{
    struct outpdu *o = raw_queue(r, NULL, 0);
    memcpy(raw_command(r, o, edtl ? 0xc1 : 0x81, 0xf0000000u, edtl), cdb, cdblen);
    while (!raw_flush(r))
        ;
    for (;;) {
        uint32_t len = raw_recv_sync(r);
        switch (r->bhs[0] & 0x3f) {
        case 0x25:
            raw_note_sn(r, r->bhs[1] & 1);
            if (in)
                memcpy(in, r->text, len < edtl ? len : edtl);
            if (r->bhs[1] & 1)
                return r->bhs[3];
            break;
        case 0x21:
            raw_note_sn(r, true);
            return r->bhs[3];
        default:
            raw_note_sn(r, false);
        }
    }
}

static void raw_open(struct conn *c)
{
    struct raw *r = c->raw = xalloc(sizeof *r);
    struct addrinfo *ai, hints = { .ai_socktype = SOCK_STREAM };
    if (getaddrinfo(host, port, &hints, &ai))
        die("cannot resolve %s", host);
    r->fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(r->fd, ai->ai_addr, ai->ai_addrlen))
        die("connect: %s", strerror(errno));
    freeaddrinfo(ai);
    int one = 1;
    setsockopt(r->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    r->out = xalloc(OUTQ * sizeof *r->out);
    r->rx = xalloc(RXBUF);
    raw_login(c, r);
    uint8_t tur[16] = { 0 };
    for (int i = 0; raw_sync(r, tur, 6, 0, NULL) && i < 10; i++)
        ;
    uint8_t cap[32] = { 0 }, rc16[16] = { 0x9e, 0x10, [13] = 32 };
    if (raw_sync(r, rc16, 16, 32, cap))
        die("read capacity failed");
    c->sector = get32(cap + 8);
    c->size = (get64(cap) + 1) * c->sector;
}

static void raw_fill(struct conn *c)
{
    struct raw *r = c->raw;
    while (c->nfree && !stopping && (int32_t)(r->maxcmdsn - r->cmdsn) >= 0) {
        struct slot *s = take_slot(c);
        uint32_t now = 0;
        if (opt.write && r->immediate) {
            now = opt.block < r->first_burst ? opt.block : r->first_burst;
            if (now > r->max_xmit)
                now = r->max_xmit;
        }
        struct outpdu *o = raw_queue(r, s->buf, now);
        uint8_t *cdb = raw_command(r, o, opt.write ? 0xa1 : 0xc1, s - c->slots, opt.block);
        cdb[0] = opt.write ? 0x8a : 0x88;
        put64(cdb + 2, s->offset / c->sector);
        put32(cdb + 10, opt.block / c->sector);
    }
}

static void raw_r2t(struct conn *c, struct slot *s)
{
    struct raw *r = c->raw;
    uint32_t ttt = get32(r->bhs + 20), at = get32(r->bhs + 40), left = get32(r->bhs + 44);
    for (uint32_t sn = 0; left; sn++) {
        uint32_t n = left < r->max_xmit ? left : r->max_xmit;
        struct outpdu *o = raw_queue(r, s->buf + at, n);
        o->bhs[0] = 0x05;
        o->bhs[1] = n == left ? 0x80 : 0;
        o->bhs[9] = lun;
        put32(o->bhs + 16, s - c->slots);
        put32(o->bhs + 20, ttt);
        put32(o->bhs + 28, r->expstatsn);
        put32(o->bhs + 36, sn);
        put32(o->bhs + 40, at);
        at += n;
        left -= n;
    }
}

/* A whole PDU has been received (its data was checked as it went by). */
static void raw_pdu(struct conn *c)
{
    struct raw *r = c->raw;
    uint32_t itt = get32(r->bhs + 16);
    struct slot *s = itt < opt.depth ? &c->slots[itt] : NULL;
    switch (r->bhs[0] & 0x3f) {
    case 0x25:
        raw_note_sn(r, r->bhs[1] & 1);
        if ((r->bhs[1] & 1) && s)
            finish_slot(s, r->bhs[3] == 0);
        break;
    case 0x21:
        raw_note_sn(r, true);
        if (s)
            finish_slot(s, r->bhs[2] == 0 && r->bhs[3] == 0);
        break;
    case 0x31:
        raw_note_sn(r, false);
        if (s)
            raw_r2t(c, s);
        break;
    case 0x20:
        raw_note_sn(r, itt != 0xffffffff);
        if (get32(r->bhs + 20) != 0xffffffff) {
            struct outpdu *o = raw_queue(r, NULL, 0);
            o->bhs[0] = 0x40;
            o->bhs[1] = 0x80;
            memcpy(o->bhs + 8, r->bhs + 8, 8);
            put32(o->bhs + 16, 0xffffffff);
            memcpy(o->bhs + 20, r->bhs + 20, 4);
            put32(o->bhs + 24, r->cmdsn);
            put32(o->bhs + 28, r->expstatsn);
        }
        break;
    default:
        die("unexpected opcode %02x", r->bhs[0]);
    }
    r->have = 0;
}

static void raw_parse(struct conn *c, const uint8_t *p, size_t n)
{
    struct raw *r = c->raw;
    while (n) {
        if (r->have < 48) {
            size_t k = n < 48 - r->have ? n : 48 - r->have;
            memcpy(r->bhs + r->have, p, k);
            r->have += k;
            p += k;
            n -= k;
            if (r->have < 48)
                return;
            r->data_len = get24(r->bhs + 5);
            r->pad_len = -r->data_len & 3;
            r->data_seen = 0;
        }
        size_t k = r->data_len - r->data_seen;
        if (k > n)
            k = n;
        if (k && opt.verify && (r->bhs[0] & 0x3f) == 0x25) {
            uint32_t itt = get32(r->bhs + 16);
            if (itt < opt.depth)
                check_stamp(c->w, p, c->slots[itt].offset + get32(r->bhs + 40) + r->data_seen, k);
        }
        r->data_seen += k;
        p += k;
        n -= k;
        if (r->data_seen < r->data_len)
            return;
        k = r->pad_len < n ? r->pad_len : n;
        r->pad_len -= k;
        p += k;
        n -= k;
        if (r->pad_len)
            return;
        raw_pdu(c);
    }
}

static void raw_loop(struct worker *w)
{
    struct pollfd fds[w->nconns];
    bool idle[w->nconns];
    for (unsigned i = 0; i < w->nconns; i++) {
        raw_fill(&w->conns[i]);
        idle[i] = raw_flush(w->conns[i].raw);
    }
    while (!stopping) {
        for (unsigned i = 0; i < w->nconns; i++)
            fds[i] = (struct pollfd){ w->conns[i].raw->fd, POLLIN | (idle[i] ? 0 : POLLOUT), 0 };
        if (poll(fds, w->nconns, 200) < 0)
            die("poll: %s", strerror(errno));
        for (unsigned i = 0; i < w->nconns; i++) {
            struct conn *c = &w->conns[i];
            if (fds[i].revents & (POLLIN | POLLHUP | POLLERR)) {
                ssize_t k = recv(c->raw->fd, c->raw->rx, RXBUF, MSG_DONTWAIT);
                if (k == 0 || (k < 0 && errno != EAGAIN))
                    die("connection lost: %s", k ? strerror(errno) : "closed by the target");
                if (k > 0)
                    raw_parse(c, c->raw->rx, k);
                raw_fill(c);
            }
            if (fds[i].revents)
                idle[i] = raw_flush(c->raw);
        }
    }
}

/* ----------------------------------------------------------------- main -- */

static void *work(void *arg)
{
    struct worker *w = arg;
    if (opt.engine == ENGINE_RAW)
        raw_loop(w);
    else
        lib_loop(w);
    return NULL;
}

/* CPU seconds used so far by the processes named with --pid. */
static double target_cpu(void)
{
    double total = 0;
    for (int i = 0; i < opt.npids; i++) {
        char path[64], line[1024];
        snprintf(path, sizeof path, "/proc/%d/stat", opt.pids[i]);
        FILE *f = fopen(path, "r");
        if (!f || !fgets(line, sizeof line, f))
            die("cannot read %s", path);
        fclose(f);
        unsigned long u, s;
        char *p = strrchr(line, ')');
        if (!p || sscanf(p + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &u, &s) != 2)
            die("cannot parse %s", path);
        total += (double)(u + s) / sysconf(_SC_CLK_TCK);
    }
    return total;
}

static double own_cpu(void)
{
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

/* A signal ends a nap, and so the run: what was measured until then is told as ever. */
static void wake(int number)
{
    (void)number;
}

static void nap(double s)
{
    struct timespec t = { (time_t)s, (long)((s - (time_t)s) * 1e9) };
    nanosleep(&t, NULL);
}

static void stamp_file(const char *path, uint64_t size)
{
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    uint8_t *buf = xalloc(1 << 20);
    memset(buf, 0xa5, 1 << 20);
    for (uint64_t at = 0; at < size; at += 1 << 20) {
        stamp(buf, at, 1 << 20);
        if (pwrite(fd, buf, 1 << 20, at) != 1 << 20)
            die("%s: %s", path, strerror(errno));
    }
    close(fd);
}

static void usage(void)
{
    fprintf(stderr,
        "usage: iscsi_load [options] iscsi://host[:port]/target/lun\n"
        "       iscsi_load --stamp-file PATH --size MIB\n"
        "  --engine libiscsi|raw   initiator to use (libiscsi)\n"
        "  --mode M                randread, randwrite, read, write (randread)\n"
        "  --bs N --qd N           bytes per command, commands in flight per connection (4096, 32)\n"
        "  --conns N --threads N   sessions, client threads (1, 1)\n"
        "  --seconds S --warmup S  measured and unmeasured time (3, 0.5)\n"
        "  --verify                check the offset stamp in every 4 KiB block read\n"
        "  --pid P[,P...]          report the CPU time of these target processes\n"
        "  --label TEXT            copied into the result\n");
    exit(2);
}

static void parse_url(const char *url)
{
    char hp[256];
    if (sscanf(url, "iscsi://%255[^/]/%255[^/]/%d", hp, target_name, &lun) != 3)
        usage();
    char *colon = strrchr(hp, ':');
    if (colon)
        *colon = 0;
    snprintf(host, sizeof host, "%s", hp);
    snprintf(port, sizeof port, "%s", colon ? colon + 1 : "3260");
}

int main(int argc, char **argv)
{
    static const struct option longopts[] = {
        { "engine", 1, 0, 'e' }, { "mode", 1, 0, 'm' }, { "bs", 1, 0, 'b' }, { "qd", 1, 0, 'q' },
        { "conns", 1, 0, 'c' }, { "threads", 1, 0, 't' }, { "seconds", 1, 0, 's' }, { "warmup", 1, 0, 'w' },
        { "verify", 0, 0, 'v' }, { "pid", 1, 0, 'p' }, { "label", 1, 0, 'l' },
        { "stamp-file", 1, 0, 'F' }, { "size", 1, 0, 'S' }, { 0 } };
    const char *mode = "randread", *file = NULL;
    uint64_t size_mib = 0;
    for (int o; (o = getopt_long(argc, argv, "", longopts, NULL)) != -1;)
        switch (o) {
        case 'e': opt.engine = !strcmp(optarg, "raw") ? ENGINE_RAW : ENGINE_LIBISCSI; break;
        case 'm': mode = optarg; break;
        case 'b': opt.block = atoi(optarg); break;
        case 'q': opt.depth = atoi(optarg); break;
        case 'c': opt.conns = atoi(optarg); break;
        case 't': opt.threads = atoi(optarg); break;
        case 's': opt.seconds = atof(optarg); break;
        case 'w': opt.warmup = atof(optarg); break;
        case 'v': opt.verify = true; break;
        case 'l': opt.label = optarg; break;
        case 'F': file = optarg; break;
        case 'S': size_mib = strtoull(optarg, 0, 0); break;
        case 'p':
            for (char *p = strtok(optarg, ","); p && opt.npids < 16; p = strtok(NULL, ","))
                opt.pids[opt.npids++] = atoi(p);
            break;
        default: usage();
        }
    if (file) {
        stamp_file(file, size_mib << 20);
        return 0;
    }
    if (optind != argc - 1)
        usage();
    opt.url = argv[optind];
    opt.sequential = strncmp(mode, "rand", 4) != 0;
    opt.write = strstr(mode, "write") != NULL;
    parse_url(opt.url);
    if (opt.threads > opt.conns)
        opt.threads = opt.conns;

    struct conn *conns = xalloc(opt.conns * sizeof *conns);
    struct worker *workers = xalloc(opt.threads * sizeof *workers);
    for (unsigned t = 0, at = 0; t < opt.threads; t++) {
        workers[t].conns = conns + at;
        workers[t].nconns = opt.conns / opt.threads + (t < opt.conns % opt.threads);
        for (unsigned i = 0; i < workers[t].nconns; i++, at++) {
            conns[at].w = &workers[t];
            conns[at].id = at;
            if (opt.engine == ENGINE_RAW)
                raw_open(&conns[at]);
            else
                lib_open(&conns[at]);
            init_slots(&conns[at]);
        }
    }
    sigset_t end;
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &end, NULL);     /* only this thread is to be woken */
    for (unsigned t = 0; t < opt.threads; t++)
        pthread_create(&workers[t].thread, NULL, work, &workers[t]);
    sigaction(SIGTERM, &(struct sigaction){ .sa_handler = wake }, NULL);
    pthread_sigmask(SIG_UNBLOCK, &end, NULL);
    nap(opt.warmup);
    double tcpu = target_cpu(), ccpu = own_cpu();
    uint64_t began = now_ns();
    measuring = true;
    nap(opt.seconds);
    measuring = false;
    double elapsed = (now_ns() - began) / 1e9;
    tcpu = target_cpu() - tcpu;
    ccpu = own_cpu() - ccpu;
    stopping = true;
    for (unsigned t = 0; t < opt.threads; t++)
        pthread_join(workers[t].thread, NULL);

    static struct worker sum;
    for (unsigned t = 0; t < opt.threads; t++) {
        sum.ios += workers[t].ios;
        sum.errors += workers[t].errors;
        sum.bad_stamps += workers[t].bad_stamps;
        sum.lat_sum += workers[t].lat_sum;
        for (unsigned b = 0; b < BUCKETS; b++)
            sum.lat[b] += workers[t].lat[b];
    }
    double pct[3] = { 0 }, want[3] = { 0.50, 0.99, 0.999 };
    uint64_t seen = 0;
    for (unsigned b = 0, k = 0; b < BUCKETS && k < 3; b++)
        for (seen += sum.lat[b]; k < 3 && sum.ios && seen >= want[k] * sum.ios; k++)
            pct[k] = bucket_us(b);
    double ios = sum.ios ? (double)sum.ios : 1;
    printf("{\"label\":\"%s\",\"engine\":\"%s\",\"mode\":\"%s\",\"bs\":%u,\"qd\":%u,\"conns\":%u,\"threads\":%u,"
           "\"seconds\":%.3f,\"ios\":%llu,\"iops\":%.0f,\"mb_s\":%.1f,\"lat_us\":{\"mean\":%.1f,\"p50\":%.1f,"
           "\"p99\":%.1f,\"p999\":%.1f},\"client_cpu_us_per_io\":%.2f,\"target_cpu_us_per_io\":%.2f,"
           "\"target_cores\":%.2f,\"client_cores\":%.2f,\"errors\":%llu,\"bad_stamps\":%llu}\n",
           opt.label, opt.engine == ENGINE_RAW ? "raw" : "libiscsi", mode, opt.block, opt.depth, opt.conns, opt.threads,
           elapsed, (unsigned long long)sum.ios, sum.ios / elapsed, sum.ios * (double)opt.block / elapsed / 1e6,
           sum.lat_sum / ios / 1e3, pct[0], pct[1], pct[2], ccpu * 1e6 / ios, tcpu * 1e6 / ios,
           tcpu / elapsed, ccpu / elapsed, (unsigned long long)sum.errors, (unsigned long long)sum.bad_stamps);
    return sum.errors || sum.bad_stamps ? 1 : 0;
}
