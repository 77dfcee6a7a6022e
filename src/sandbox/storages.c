/* SPDX-License-Identifier: Apache-2.0 */
/* See storages.h. Everything is on the heap as protobuf-c's unpacking would leave it. */
#include "sandbox/storages.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "oci/oci.h"

Grpc__Storage *storages_add(struct storages *st, const char *driver, const char *source,
			    const char *fstype, const char *mount_point)
{
	Grpc__Storage *g, **v;

	if (!source || !mount_point)
		return NULL;
	v = reallocarray(st->v, st->n + 1, sizeof(*v));
	if (!v)
		return NULL;
	st->v = v;
	g = malloc(sizeof(*g));
	if (!g)
		return NULL;
	grpc__storage__init(g);
	st->v[st->n++] = g;
	if (oci_str_set(&g->driver, driver) < 0 || oci_str_set(&g->source, source) < 0 ||
	    oci_str_set(&g->fstype, fstype) < 0 || oci_str_set(&g->mount_point, mount_point) < 0)
		return NULL;
	return g;
}

int storage_option(Grpc__Storage *g, const char *fmt, ...)
{
	auto_free char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	return g && text ? oci_strv_append(&g->options, &g->n_options, text) : -ENOMEM;
}

int storage_driver_option(Grpc__Storage *g, const char *text)
{
	return g ? oci_strv_append(&g->driver_options, &g->n_driver_options, text) : -ENOMEM;
}

void storages_fini(struct storages *st)
{
	for (size_t i = 0; i < st->n; i++)
		protobuf_c_message_free_unpacked(&st->v[i]->base, NULL);
	free(st->v);
	*st = (struct storages){ 0 };
}
