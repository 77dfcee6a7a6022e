/* The choices of the present run; the next one differs in the last that has another value left. */
#include "bounded.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_CHOICES 64u

static struct {
	unsigned taken, of;
} choices[MAX_CHOICES];
static unsigned n_choices, at;

unsigned choose(unsigned n)
{
	if (at == MAX_CHOICES || n == 0)
		failed("a choice too many", __FILE__, __LINE__);
	if (at == n_choices) {
		choices[at].taken = 0;
		choices[at].of = n;
		n_choices++;
	}
	return choices[at++].taken;
}

void failed(const char *what, const char *file, int line)
{
	fprintf(stderr, "%s:%d: not so: %s\nchoices:", file, line, what);
	for (unsigned i = 0; i < at; i++)
		fprintf(stderr, " %u/%u", choices[i].taken, choices[i].of);
	fputc('\n', stderr);
	exit(1);
}

static bool next(void)
{
	while (n_choices > 0) {
		if (++choices[n_choices - 1].taken < choices[n_choices - 1].of)
			return true;
		n_choices--;
	}
	return false;
}

int main(void)
{
	unsigned long n = 0;

	do {
		at = 0;
		check();
		n++;
	} while (next());
	printf("%lu runs\n", n);
	return 0;
}
