/*
 * Processes as the host sees them: an init or an exec of a container, with its standard streams
 * (vsock streams, or pipes read and written by calls), its exit status and who waits for it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "agent/container/container.h"
#include "agent/event.h"
#include "agent/pump.h"
#include "base/list.h"
#include "ttrpc/ttrpc.h"

/* Port numbers of a request. 0 in all three: the streams are polled by calls. */
struct process_ports {
	uint32_t in, out, err;
};
#define PROCESS_PORT_NULL UINT32_MAX    /* that stream is /dev/null */

/* One polled stream, of which we have our end of the pipe (or the terminal). */
struct process_poll {
	int fd;
	bool ended;                     /* read to the end, or closed */
	bool closing;                   /* stdin: close when what is queued is written */
	struct ev_watch watch;
	struct list calls;              /* of struct waiter */
};

struct process {
	struct list node;
	char *container_id, *exec_id;   /* exec_id "" for init */
	struct container *container;    /* NULL after its removal */
	bool terminal, polled;
	bool exited;
	bool reported;                  /* somebody was told the exit status */
	int exit_code;
	int ptmx;                       /* for the window size; -1 if there is no terminal */
	unsigned pumping;               /* output pumps that WaitProcess waits for */
	bool polled_out;                /* after the exit: no output comes any more */
	struct ev_timer grace;
	struct pump in, out, err;
	struct process_poll pin, pout, perr;
	struct list waiters;
};

/* The ends that the new process gets; filled by process_new(). */
struct process_stdio {
	struct container_io io;
	int in[2], out[2], err[2];      /* pipes; [0] read, [1] write */
	int conn_in, conn_out, conn_err;
};

/* Makes the record and its pipes, claims the vsock streams. */
__must_check int process_new(const char *container_id, const char *exec_id, bool terminal,
			     const struct process_ports *ports, struct process_stdio *sio,
			     struct process **ret_process, struct error *err);
/* The process runs: starts the copying. Closes what @sio has left. */
__must_check int process_started(struct process *p, struct container *c,
				 struct process_stdio *sio, struct error *err);
/* The process was not made. */
void process_abandon(struct process *p, struct process_stdio *sio);

struct process *process_find(const char *container_id, const char *exec_id);
/* Some process of the container that has not ended, or NULL. */
struct process *process_find_running(const char *container_id);
/* Tells an exit to whoever waits, when the output is out. */
void process_exited(struct process *p, int exit_code);
/* Answers @call with the exit status, now or later. */
void process_wait(struct process *p, struct ttrpc_call *call);
/* Drops all processes of a container. */
void process_drop_container(const char *container_id);

/* Each ends the call, now or later. */
void process_read(struct process *p, bool from_stderr, uint32_t len, struct ttrpc_call *call);
void process_write(struct process *p, const uint8_t *data, size_t len, struct ttrpc_call *call);
void process_close_stdin(struct process *p);
/* New streams for one that had streams before; those whose port is 0 stay as they are. */
__must_check int process_adopt(struct process *p, const struct process_ports *ports,
			       struct error *err);
__must_check int process_resize(struct process *p, uint16_t rows, uint16_t columns,
				struct error *err);
