#include "ttrpc/methods.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint32_t hash_add(uint32_t h, const void *data, size_t len)
{
	const uint8_t *p = data;

	for (size_t i = 0; i < len; i++)
		h = (h ^ p[i]) * 16777619u;
	return h;
}

/* The separator can't be in a method's name. An empty method stands for the service itself. */
static uint32_t hash_of(struct span service, struct span method)
{
	uint32_t h = hash_add(hash_add(2166136261u, service.p, service.len), "/", 1);

	return hash_add(h, method.p, method.len);
}

static bool text_is(const char *s, struct span t)
{
	return (t.len == 0 || strncmp(s, (const char *)t.p, t.len) == 0) && s[t.len] == '\0';
}

static bool has_nul(struct span t)
{
	return t.len && memchr(t.p, 0, t.len);
}

struct methods_entry *methods_find(const struct methods *m, struct span service,
				   struct span method)
{
	uint32_t h = hash_of(service, method);

	if (!m->table || has_nul(service) || has_nul(method))
		return NULL;
	for (size_t i = h & m->mask; m->table[i].service; i = (i + 1) & m->mask) {
		struct methods_entry *e = &m->table[i];

		if (e->hash == h && text_is(e->service, service) &&
		    text_is(e->method ? e->method->name : "", method))
			return e;
	}
	return NULL;
}

static void put(struct methods_entry *table, size_t mask, struct methods_entry e)
{
	size_t i = e.hash & mask;

	while (table[i].service)
		i = (i + 1) & mask;
	table[i] = e;
}

static int reserve(struct methods *m, size_t more)
{
	size_t old = m->table ? m->mask + 1 : 0, n = old ? old : 16;
	struct methods_entry *table;

	while (n < (m->used + more) * 2)
		n *= 2;
	if (n == old)
		return 0;
	table = calloc(n, sizeof(*table));
	if (!table)
		return -ENOMEM;
	for (size_t i = 0; i < old; i++)
		if (m->table[i].service)
			put(table, n - 1, m->table[i]);
	free(m->table);
	m->table = table;
	m->mask = n - 1;
	return 0;
}

static struct span span_of(const char *s)
{
	return (struct span){ (const uint8_t *)s, strlen(s) };
}

static void add(struct methods *m, struct methods_entry e, const char *name)
{
	e.hash = hash_of(span_of(e.service), span_of(name));
	put(m->table, m->mask, e);
	m->used++;
}

int methods_add(struct methods *m, const char *service, const struct ttrpc_method *list, size_t n,
		void *ctx)
{
	int r;

	for (size_t i = 0; i < n; i++)
		if (methods_find(m, span_of(service), span_of(list[i].name)))
			return -EEXIST;
	r = reserve(m, n + 1);
	if (r < 0)
		return r;
	if (!methods_find(m, span_of(service), span_of("")))
		add(m, (struct methods_entry){ .service = service, .ctx = ctx }, "");
	for (size_t i = 0; i < n; i++)
		add(m, (struct methods_entry){ .service = service, .method = &list[i], .ctx = ctx },
		    list[i].name);
	return 0;
}

void methods_fini(struct methods *m)
{
	free(m->table);
}
