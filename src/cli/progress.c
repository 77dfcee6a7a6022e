#include "cli/progress.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/term.h"
#include "cli/units.h"

enum { BAR = 30 };

void progress_init(struct progress *p, bool quiet)
{
	memset(p, 0, sizeof(*p));
	p->quiet = quiet;
	p->tty = isatty(STDERR_FILENO);
}

static const char *verb(enum image_phase phase)
{
	switch (phase) {
	case IMAGE_RESOLVING:
		return "Resolving";
	case IMAGE_FETCHING:
		return "Fetching";
	case IMAGE_UNPACKING:
		return "Unpacking";
	case IMAGE_BUILDING:
		return "Building";
	case IMAGE_DONE:
		return "Done";
	}
	return "Working";
}

static void what(const struct progress *p, const struct image_progress *now, char *text, size_t size)
{
	const char *hex = strchr(now->digest ? now->digest : "", ':');

	if (now->count > 1)
		snprintf(text, size, "%s %u/%u %.12s", verb(now->phase), now->index + 1, now->count,
			 hex ? hex + 1 : "");
	else
		snprintf(text, size, "%s %.60s", verb(now->phase), hex ? "" : now->name ? now->name : "");
}

static void draw_bar(struct progress *p, const struct image_progress *now)
{
	char text[128], done[UNITS_TEXT], total[UNITS_TEXT], bar[BAR + 1];
	unsigned filled, rows, cols = 80;

	what(p, now, text, sizeof(text));
	(void)term_size(STDERR_FILENO, &rows, &cols);
	units_format_size(now->done, done);
	units_format_size(now->total, total);
	if (now->total && cols > 100) {
		filled = (unsigned)(now->done >= now->total ? BAR : now->done * BAR / now->total);
		memset(bar, '=', filled);
		memset(bar + filled, ' ', BAR - filled);
		bar[BAR] = '\0';
		fprintf(stderr, "\r\033[K%-30s [%s] %s/%s", text, bar, done, total);
	} else if (now->total) {
		fprintf(stderr, "\r\033[K%.50s %u%%", text,
			(unsigned)(now->done >= now->total ? 100 : now->done * 100 / now->total));
	} else {
		fprintf(stderr, "\r\033[K%.70s", text);
	}
	fflush(stderr);
	p->drawn = true;
}

static bool is_news(struct progress *p, const struct image_progress *now)
{
	const char *digest = now->digest ? now->digest : "";
	bool news = !p->started || p->phase != now->phase || p->index != now->index ||
		    strncmp(p->digest, digest, sizeof(p->digest) - 1);

	p->started = true;
	p->phase = now->phase;
	p->index = now->index;
	snprintf(p->digest, sizeof(p->digest), "%s", digest);
	return news;
}

int progress_show(void *ctx, const struct image_progress *now)
{
	struct progress *p = ctx;
	char text[128];

	if (p->cancelled && *p->cancelled)
		return -ECANCELED;
	if (p->quiet)
		return 0;
	if (now->note) {
		progress_end(p);
		fprintf(stderr, "%s\n", now->note);
	}
	if (p->tty) {
		draw_bar(p, now);
	} else if (is_news(p, now) && now->phase != IMAGE_RESOLVING && now->phase != IMAGE_DONE) {
		what(p, now, text, sizeof(text));
		fprintf(stderr, "%s%s\n", text, now->cached ? " (already there)" : "");
	}
	return 0;
}

void progress_end(struct progress *p)
{
	if (p->drawn)
		fputs("\r\033[K", stderr);
	p->drawn = false;
}
