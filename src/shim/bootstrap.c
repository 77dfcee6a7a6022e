/* SPDX-License-Identifier: Apache-2.0 */
#include "shim/bootstrap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "google/protobuf/any.pb-c.h"
#include "runtimeoptions.pb-c.h"

#define SHIM_VERSION 3
#define LEVEL_DEBUG  (-4)

static int keep(char **field, const char *value)
{
	if (str_empty(value))
		return 0;
	free(*field);
	*field = strdup(value);
	return *field ? 0 : -ENOMEM;
}

static int read_options(struct bootstrap *b, const Google__Protobuf__Any *any, struct error *err)
{
	Runtimeoptions__V1__Options *o;
	const char *type = strrchr(any->type_url, '/');
	int r;

	type = type ? type + 1 : any->type_url;
	/* The first is containerd 1.6's name, and earlier ones'. */
	if (!str_eq(type, "cri.runtimeoptions.v1.Options") && !str_eq(type, "runtimeoptions.v1.Options"))
		return 0;
	o = runtimeoptions__v1__options__unpack(NULL, any->value.len, any->value.data);
	if (!o)
		return error_set(err, -EBADMSG, "the runtime's options cannot be read");
	if (!str_empty(o->config_path) && o->config_path[0] != '/')
		r = error_set(err, -EINVAL, "the runtime's options: ConfigPath '%.64s' is not absolute",
			      o->config_path);
	else if (o->config_body.len && memchr(o->config_body.data, 0, o->config_body.len))
		r = error_set(err, -EINVAL, "the runtime's options: settings that are no text");
	else
		r = keep(&b->config_path, o->config_path);
	if (r == 0 && o->config_body.len) {
		free(b->config_body);
		b->config_body = strndup((const char *)o->config_body.data, o->config_body.len);
		r = b->config_body ? 0 : -ENOMEM;
	}
	runtimeoptions__v1__options__free_unpacked(o, NULL);
	return r == -ENOMEM ? error_set(err, r, "out of memory") : r;
}

static int read_params(struct bootstrap *b, const Runtimeoptions__V1__BootstrapParams *p,
		       struct error *err)
{
	int r = keep(&b->events, p->containerd_ttrpc_address);

	b->params = true;
	b->debug = p->log_level <= LEVEL_DEBUG;
	if (r == 0 && p->socket_dir && p->socket_dir[0] == '/')
		r = keep(&b->socket_dir, p->socket_dir);
	if (r < 0)
		return error_set(err, r, "out of memory");
	for (size_t i = 0; i < p->n_extensions && r == 0; i++)
		if (p->extensions[i]->value)
			r = read_options(b, p->extensions[i]->value, err);
	return r;
}

int bootstrap_parse(const uint8_t *data, size_t len, const char *id, const char *ns,
		    struct bootstrap *ret, struct error *err)
{
	Runtimeoptions__V1__BootstrapParams *p = NULL;
	struct bootstrap b = { 0 };
	Google__Protobuf__Any *any;
	int r = 0;

	if (len)
		p = runtimeoptions__v1__bootstrap_params__unpack(NULL, len, data);
	/* An Any may parse as well; only the real thing repeats the flags. */
	if (p && str_eq(p->instance_id, id) && str_eq(p->namespace_, ns)) {
		r = read_params(&b, p, err);
	} else if (len) {
		any = google__protobuf__any__unpack(NULL, len, data);
		if (any)
			r = read_options(&b, any, err);
		google__protobuf__any__free_unpacked(any, NULL);
	}
	runtimeoptions__v1__bootstrap_params__free_unpacked(p, NULL);
	if (r < 0)
		bootstrap_fini(&b);
	else
		*ret = b;
	return r;
}

void bootstrap_fini(struct bootstrap *b)
{
	free(b->events);
	free(b->socket_dir);
	free(b->config_path);
	free(b->config_body);
	*b = (struct bootstrap){ 0 };
}

int bootstrap_answer(const struct bootstrap *b, const char *address, uint8_t **ret, size_t *ret_len)
{
	Runtimeoptions__V1__BootstrapResult res = RUNTIMEOPTIONS__V1__BOOTSTRAP_RESULT__INIT;
	uint8_t *data;

	if (!b->params) {
		*ret = (uint8_t *)strdup(address);
		*ret_len = strlen(address);
		return *ret ? 0 : -ENOMEM;
	}
	res.version = SHIM_VERSION;
	res.address = (char *)address;
	res.protocol = (char *)"ttrpc";
	data = malloc(runtimeoptions__v1__bootstrap_result__get_packed_size(&res));
	if (!data)
		return -ENOMEM;
	*ret_len = runtimeoptions__v1__bootstrap_result__pack(&res, data);
	*ret = data;
	return 0;
}
