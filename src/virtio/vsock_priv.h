/*
 * Shared by the parts of the vsock device: vsock.c (queues, packets), vsock_conn.c (connections and their
 * sockets), vsock_data.c (their bytes).
 */
#pragma once

#include <linux/virtio_vsock.h>

#include "base/list.h"
#include "virtio/vsock.h"

#define VSOCK_Q_RX 0u /* to the guest */
#define VSOCK_Q_TX 1u /* from the guest */
#define VSOCK_Q_EVENT 2u /* to the guest */

#define VSOCK_HDR_LEN     44u
#define VSOCK_HOST_CID    2u
#define VSOCK_MAX_PAYLOAD (64u * 1024u)
#define VSOCK_MAX_SEGS    128u
#define VSOCK_MAX_CONNS   1023u
#define VSOCK_BUCKETS     256u
#define VSOCK_MAX_RSTS    256u
/* Buffer space promised to the guest for a connection: less for those beyond the first few. */
#define VSOCK_BUF_FEW   (256u * 1024u)
#define VSOCK_BUF_MANY  (64u * 1024u)
#define VSOCK_FEW_CONNS 64u

#define VSOCK_HOST_PORT_BASE 0x40000000u
#define VSOCK_CONNECT_MAX    32u /* longest "CONNECT <port>\n" accepted */

#define VSOCK_SHUT_RCV  1u
#define VSOCK_SHUT_SEND 2u
#define VSOCK_SHUT_BOTH 3u

enum vsock_state {
	VSOCK_HANDSHAKE,     /* the host's client has not said CONNECT yet; not in the port table */
	VSOCK_WAIT_RESPONSE, /* REQUEST is on its way to the guest */
	VSOCK_DIALING,       /* the guest's REQUEST waits for room in the host listener's backlog */
	VSOCK_OPEN,
	VSOCK_CLOSING,       /* the socket is closed; waiting for the guest's last word */
	VSOCK_DRAINING,      /* the guest is done; the host still reads; not in the port table */
};

/* What must be told to the guest. */
enum {
	VSOCK_P_REQUEST = 1,
	VSOCK_P_RESPONSE = 2,
	VSOCK_P_RST = 4,
	VSOCK_P_SHUTDOWN = 8,
	VSOCK_P_CREDIT = 16,
	VSOCK_P_ASK_CREDIT = 32,
};

struct vsock_dev;

struct vsock_conn {
	struct vsock_dev *dev;
	struct evsource sock;
	int fd;
	struct list all;
	struct list ready;         /* linked while there may be a packet to send to the guest */
	struct vsock_conn *next;   /* in the port table */
	enum vsock_state state;
	uint32_t host_port;
	uint32_t guest_port;
	unsigned pending;
	bool readable;             /* the socket may have data or EOF for the guest */
	bool hup;                  /* the host's side closed its socket for good */
	bool reader_gone;          /* writing to the host failed: what the guest sends is dropped */
	unsigned shut_sent;        /* VSOCK_SHUT_* told to the guest */
	unsigned shut_todo;        /* those to tell with VSOCK_P_SHUTDOWN */
	unsigned shut_guest;       /* those the guest told us */
	bool shut_wr_done;
	uint64_t deadline_ns;      /* 0: none */

	uint32_t sent;             /* payload bytes to the guest, modulo 2^32 */
	uint32_t guest_buf_alloc;
	uint32_t guest_fwd_cnt;
	bool credit_asked;

	uint32_t buf_alloc;        /* promised to the guest */
	uint32_t fwd_cnt;          /* bytes passed on to the host, modulo 2^32 */
	uint32_t fwd_told;
	uint8_t *buf;              /* received from the guest, not yet taken by the host */
	size_t buf_cap, buf_head, buf_len;
};

struct vsock_rst {
	uint32_t host_port, guest_port;
	uint16_t type;
};

struct vsock_dev {
	struct virtio_dev dev;
	char *path;
	bool unlink_path;
	uint64_t guest_cid;
	unsigned max_conns;
	int listen_fd;
	struct evsource listener;
	bool listener_paused;
	struct list conns;
	struct list ready;
	unsigned n_conns;
	unsigned n_timed;          /* connections with a deadline */
	unsigned n_dialing;
	struct vsock_conn *table[VSOCK_BUCKETS];
	uint32_t next_port;
	struct evtimer timer;
	struct evtimer again;      /* goes on filling the rx queue after a full round */
	struct vsock_rst rsts[VSOCK_MAX_RSTS];
	unsigned rst_head, n_rsts;
	bool tx_blocked;           /* the tx queue waits for room among the resets */
	bool reset_announced;
	struct iovec segs[VSOCK_MAX_SEGS];
	struct iovec part[VSOCK_MAX_SEGS];
};

/* --- vsock_conn.c --- */

struct vsock_conn *vsock_conn_find(struct vsock_dev *vs, uint32_t guest_port, uint32_t host_port);
/* Connects to the host's listener for a REQUEST of the guest; NULL: answer with RST. */
struct vsock_conn *vsock_conn_dial(struct vsock_dev *vs, uint32_t guest_port, uint32_t host_port);
void vsock_conn_free(struct vsock_conn *c);
void vsock_free_all(struct vsock_dev *vs);
/* Marks what is to be told and puts the connection in the ready list. */
void vsock_conn_tell(struct vsock_conn *c, unsigned pending);
/* Whether there may be a packet for the guest. */
bool vsock_conn_has_work(const struct vsock_conn *c);
uint32_t vsock_conn_credit(const struct vsock_conn *c);
/* Ends it with a RST to the guest; the socket is closed now. */
void vsock_conn_abort(struct vsock_conn *c);
/* The host's side has gone altogether: tells the guest, and waits a little for it to agree. */
void vsock_conn_host_closed(struct vsock_conn *c);
void vsock_conn_set_state(struct vsock_conn *c, enum vsock_state state);
/* Takes it out of the port table, if it is there. */
void vsock_conn_unlist(struct vsock_conn *c);
void vsock_conn_set_deadline(struct vsock_conn *c, uint64_t delay_ns);
void vsock_on_listener(struct evsource *src, uint32_t events);

/* --- vsock_data.c --- */

/* The guest accepted: tells the host's client. */
void vsock_conn_accepted(struct vsock_conn *c);
/* The guest reset it: frees it, after what it sent before has reached the host. */
void vsock_conn_guest_reset(struct vsock_conn *c);
void vsock_conn_guest_shutdown(struct vsock_conn *c, unsigned flags);
/* Payload of the guest. */
void vsock_conn_data(struct vsock_conn *c, const struct iovec *iov, size_t n, size_t len);
/*
 * Reads from the socket into @iov (at most @len bytes). Returns the number of bytes; 0 if there is
 * nothing now, after noting the end of the stream if that is why.
 */
size_t vsock_conn_read(struct vsock_conn *c, const struct iovec *iov, size_t n, size_t len);
/* Writes what was kept for the host. True: the connection is finished, and to be freed by the caller. */
bool vsock_conn_flush(struct vsock_conn *c);

/* --- vsock.c --- */

void vsock_fill_rx(struct vsock_dev *vs);
