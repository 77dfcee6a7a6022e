/*
 * The guest's console as caisson-vmm keeps it: a ring of the last bytes, and what of them may be
 * forwarded. The guest decides what comes in, and how much; both are bounded here.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "vmm/vmm.h"

#define CONSOLE_BURST  (128u * 1024u)   /* bytes forwarded at once */
#define CONSOLE_RATE   (32u * 1024u)    /* bytes forwarded a second after that */

struct console {
	char *ring;
	size_t cap;                     /* grows up to VMM_CONSOLE_RING */
	size_t start;
	size_t len;
	uint64_t total;
	uint64_t tokens;
	uint64_t last_ns;
	uint64_t dropped;               /* bytes not forwarded since the last that was */
};

void console_init(struct console *c, uint64_t now_ns);
void console_fini(struct console *c);

/* Keeps @data; gives how many of its first bytes may be forwarded at @now_ns. */
size_t console_take(struct console *c, const char *data, size_t len, uint64_t now_ns);

/* The ring's content as a heap string that is zero-terminated too; NULL if out of memory. */
char *console_text(const struct console *c, size_t *ret_len);

/*
 * The last @lines lines, at most @max bytes, control characters replaced; on the heap, "" if
 * there are none, NULL if out of memory.
 */
char *console_tail(const struct console *c, size_t lines, size_t max);

/* What the guest's kernel panicked about, on the heap; NULL if the ring has no panic in it. */
char *console_panic(const struct console *c);
