#include "vmm/console.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

#define NS_PER_SEC UINT64_C(1000000000)

void console_init(struct console *c, uint64_t now_ns)
{
	*c = (struct console){ .tokens = CONSOLE_BURST, .last_ns = now_ns };
}

void console_fini(struct console *c)
{
	free(c->ring);
	*c = (struct console){ 0 };
}

/* A quiet guest costs no 64 KiB: the ring doubles as it fills. */
static void grow(struct console *c, size_t want)
{
	size_t cap = c->cap ? c->cap : 2048;
	char *ring;

	while (cap < want && cap < VMM_CONSOLE_RING)
		cap *= 2;
	if (cap == c->cap)
		return;
	ring = malloc(cap);
	if (!ring)
		return;
	for (size_t i = 0; i < c->len; i++)
		ring[i] = c->ring[(c->start + i) % c->cap];
	free(c->ring);
	c->ring = ring;
	c->cap = cap;
	c->start = 0;
}

static void ring_put(struct console *c, const char *data, size_t len)
{
	size_t at, first;

	if (c->len + len > c->cap)
		grow(c, c->len + len);
	if (!c->cap)
		return;
	if (len > c->cap) {
		data += len - c->cap;
		len = c->cap;
	}
	if (c->len + len > c->cap) {
		size_t drop = c->len + len - c->cap;

		c->start = (c->start + drop) % c->cap;
		c->len -= drop;
	}
	at = (c->start + c->len) % c->cap;
	first = MIN_OF(len, c->cap - at);
	memcpy(c->ring + at, data, first);
	memcpy(c->ring, data + first, len - first);
	c->len += len;
}

size_t console_take(struct console *c, const char *data, size_t len, uint64_t now_ns)
{
	uint64_t passed = now_ns > c->last_ns ? now_ns - c->last_ns : 0;
	uint64_t fresh;
	size_t n;

	if (!len)
		return 0;
	ring_put(c, data, len);
	c->total += len;

	if (passed > 16 * NS_PER_SEC)
		passed = 16 * NS_PER_SEC;
	fresh = passed * CONSOLE_RATE / NS_PER_SEC;
	if (fresh) {
		c->tokens = MIN_OF(c->tokens + fresh, (uint64_t)CONSOLE_BURST);
		c->last_ns = now_ns;
	}
	n = (size_t)MIN_OF((uint64_t)len, c->tokens);
	c->tokens -= n;
	c->dropped += len - n;
	return n;
}

char *console_text(const struct console *c, size_t *ret_len)
{
	char *text = malloc(c->len + 1);

	if (!text)
		return NULL;
	for (size_t i = 0; i < c->len; i++)
		text[i] = c->ring[(c->start + i) % c->cap];
	text[c->len] = '\0';
	*ret_len = c->len;
	return text;
}

static void make_printable(char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		unsigned char ch = (unsigned char)text[i];

		if (ch == '\r')
			text[i] = ' ';
		else if (ch != '\n' && (ch < 0x20 || ch == 0x7f))
			text[i] = '?';
	}
}

char *console_tail(const struct console *c, size_t lines, size_t max)
{
	auto_free char *text = NULL;
	size_t len = 0, from;

	text = console_text(c, &len);
	if (!text)
		return NULL;
	while (len && (text[len - 1] == '\n' || text[len - 1] == '\r'))
		len--;
	from = len;
	while (from && len - from < max) {
		if (text[from - 1] == '\n' && --lines == 0)
			break;
		from--;
	}
	make_printable(text + from, len - from);
	memmove(text, text + from, len - from);
	text[len - from] = '\0';
	return take_ptr(&text);
}

char *console_panic(const struct console *c)
{
	static const char mark[] = "Kernel panic - not syncing: ";
	auto_free char *text = NULL;
	size_t len = 0;
	char *at;

	text = console_text(c, &len);
	at = text ? memmem(text, len, mark, sizeof(mark) - 1) : NULL;
	if (!at)
		return NULL;
	at += sizeof(mark) - 1;
	at[strcspn(at, "\r\n")] = '\0';
	make_printable(at, strlen(at));
	return strdup(at);
}
