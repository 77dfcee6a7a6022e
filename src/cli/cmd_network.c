/* network create, ls, rm, inspect. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/connect.h"
#include "cli/container.h"
#include "cli/listing.h"
#include "cli/netdef.h"

#define AT(field) offsetof(struct netdef_options, field)

static const struct opt create_opts[] = {
	{ 'd', "driver", OPT_STRING, AT(driver), "DRIVER",
	  "bridge (the default), macvlan or ipvlan", NULL },
	{ 0, "subnet", OPT_LIST, AT(subnet), "SUBNET", "Subnet, as in 10.1.2.0/24", NULL },
	{ 0, "gateway", OPT_LIST, AT(gateway), "ADDRESS",
	  "Gateway; by default the first address of its subnet", NULL },
	{ 0, "ip-range", OPT_LIST, AT(ip_range), "SUBNET",
	  "Give containers addresses of this part of the subnet only", NULL },
	{ 0, "ipv6", OPT_BOOL, AT(ipv6), NULL,
	  "IPv6 too; without a subnet for it, a unique local one is made up", NULL },
	{ 0, "internal", OPT_BOOL, AT(internal), NULL, "No way out: no gateway, no published ports",
	  NULL },
	{ 'o', "opt", OPT_LIST, AT(opt), "KEY=VALUE",
	  "Option of the driver: mtu; for macvlan and ipvlan also parent and mode", NULL },
	{ 0, "label", OPT_LIST, AT(label), "KEY[=VALUE]", "Note something with the network", NULL },
};

static int do_create(void *options, int argc, char **argv)
{
	struct error err = { 0 };

	if (netdef_create(argv[0], options, &err) < 0)
		return cli_fail_err(EXIT_CAISSON, &err);
	puts(argv[0]);
	return 0;
}

/* ---- ls ---- */

static const struct opt ls_opts[] = {
	LISTING_LS_OPTS("Only networks that match: name, driver or label"),
};

static char *subnets_text(const json_t *row)
{
	json_t *list = json_object_get(row, "Subnets"), *s;
	char *text = strdup("");
	size_t i;

	json_array_foreach(list, i, s) {
		char *longer = cli_format("%s%s%s", text ? text : "", i ? "," : "",
					  json_string_value(json_object_get(s, "Subnet")));

		free(text);
		text = longer;
	}
	return text;
}

/* 1, 0, or -EINVAL for an unknown filter. */
static int passes(const json_t *row, const struct strlist *filters, struct error *err)
{
	for (size_t i = 0; i < filters->n; i++) {
		const char *f = filters->v[i];
		const char *name = json_string_value(json_object_get(row, "Name"));
		const char *driver = json_string_value(json_object_get(row, "Driver"));

		if (str_has_prefix(f, "name=")) {
			if (!name || !strstr(name, f + 5))
				return 0;
		} else if (str_has_prefix(f, "driver=")) {
			if (!str_eq(driver, f + 7))
				return 0;
		} else if (str_has_prefix(f, "label=")) {
			if (!listing_has_label(json_object_get(row, "Labels"), f + 6))
				return 0;
		} else {
			return error_set(err, -EINVAL, "--filter '%s' is not known; there are name=, driver= "
					 "and label=", f);
		}
	}
	return 1;
}

static int add_rows(json_t *rows, const struct cni_networks *list, const struct strlist *filters,
		    struct error *err)
{
	for (size_t i = 0; i < list->n; i++) {
		json_t *row = netdef_describe(list->v[i]);
		auto_free char *subnets = subnets_text(row);
		int r = passes(row, filters, err);

		(void)json_object_set_new(row, "Subnet", json_string(subnets ? subnets : ""));
		if (r > 0)
			(void)json_array_append(rows, row);
		json_decref(row);
		if (r < 0)
			return r;
	}
	return 0;
}

static int do_ls(void *options, int argc, char **argv)
{
	static const struct column columns[] = { { "NAME", "Name" }, { "DRIVER", "Driver" },
						 { "SCOPE", "Scope" }, { "SUBNET", "Subnet" } };
	const struct listing_ls *o = options;
	struct cni_networks ours, hosts;
	struct error err = { 0 };
	json_t *rows = json_array();
	int r = netdef_list(&ours, &hosts, &err);

	if (r == 0) {
		r = add_rows(rows, &ours, &o->filter, &err);
		if (r == 0)
			r = add_rows(rows, &hosts, &o->filter, &err);
		cni_networks_fini(&ours);
		cni_networks_fini(&hosts);
	}
	return listing_print(o, rows, columns, ARRAY_LEN(columns), r, &err);
}

/* ---- who uses a network ---- */

/* @c's part of @name, in its record. */
static json_t *use_of(const struct container *c, const char *name)
{
	return json_object_get(json_object_get(json_object_get(c->rec, "NetworkSettings"), "Networks"),
			       name);
}

/* Containers on the network by id: a new reference. */
static int users_of(const char *name, json_t **ret, struct error *err)
{
	struct container_list list;
	json_t *users = json_object();
	int r = container_list(&list, err);

	if (r < 0) {
		json_decref(users);
		return r;
	}
	for (size_t i = 0; i < list.n; i++) {
		const struct container *c = list.v[i];
		json_t *use = use_of(c, name);

		if (!use || !connect_is_up(c))
			continue;
		use = json_deep_copy(use);
		(void)json_object_set_new(use, "Name", json_string(container_str(c, "Name")));
		(void)json_object_set_new(use, "State", json_string(container_str(c, "State")));
		(void)json_object_set_new(users, c->id, use);
	}
	container_list_fini(&list);
	*ret = users;
	return 0;
}

/* ---- rm ---- */

static const struct opt rm_opts[] = {
	LISTING_RM_OPTS("No error if there is no such network"),
};

static int rm_one(const char *name, struct error *err)
{
	auto_cni_network struct cni_network *net = NULL;
	json_t *users = NULL, *use;
	const char *id;
	int r = netdef_find(name, &net, err);

	if (r == 0)
		r = users_of(name, &users, err);
	if (r < 0)
		return r;
	json_object_foreach(users, id, use) {
		r = error_set(err, -EBUSY, "network '%s' is in use by container %s (%.12s); remove that "
			      "first", name, json_string_value(json_object_get(use, "Name")), id);
		break;
	}
	json_decref(users);
	return r < 0 ? r : netdef_remove(net, err);
}

static int do_rm(void *options, int argc, char **argv)
{
	return listing_remove(options, argc, argv, rm_one);
}

/* ---- inspect ---- */

static const struct opt inspect_opts[] = {
	LISTING_INSPECT_OPTS("{{.Driver}}"),
};

static int inspect_one(const char *name, json_t *rows, struct error *err)
{
	auto_cni_network struct cni_network *net = NULL;
	json_t *row, *users;
	int r = netdef_find(name, &net, err);

	if (r == 0)
		r = users_of(name, &users, err);
	if (r < 0)
		return r;
	row = netdef_describe(net);
	(void)json_object_set_new(row, "Containers", users);
	(void)json_object_set(row, "Plugins", net->plugins);
	(void)json_array_append_new(rows, row);
	return 0;
}

static int do_inspect(void *options, int argc, char **argv)
{
	return listing_show(options, argc, argv, inspect_one);
}

const struct command cmd_network_create = {
	.name = "network create",
	.synopsis = "NETWORK",
	.summary = "Make a network",
	.description = "Makes a network that containers join with 'caisson run --network'. Containers of "
		       "one network reach each other by name. The network's bridge appears with its first "
		       "container; CNI plugins do the work (package containernetworking-plugins).",
	.examples = "caisson network create web\n"
		    "caisson network create --ipv6 --subnet 10.1.2.0/24 --gateway 10.1.2.254 lab\n"
		    "caisson network create -d macvlan -o parent=eth0 --subnet 192.0.2.0/24 lan",
	OPTS(create_opts),
	.opts_size = sizeof(struct netdef_options),
	.min_args = 1,
	.max_args = 1,
	.run = do_create,
};

const struct command cmd_network_ls = {
	.name = "network ls",
	.synopsis = "",
	.summary = "List networks",
	.description = "Lists the networks of 'caisson network create' (scope local) and those that "
		       "/etc/cni/net.d defines for the whole host (scope host).",
	OPTS(ls_opts),
	.opts_size = sizeof(struct listing_ls),
	.run = do_ls,
};

const struct command cmd_network_rm = {
	.name = "network rm",
	.synopsis = "NETWORK...",
	.summary = "Remove networks",
	OPTS(rm_opts),
	.opts_size = sizeof(struct listing_rm),
	.min_args = 1,
	.max_args = -1,
	.exit_status = "0; 1 when a network could not be removed",
	.complete = "network",
	.run = do_rm,
};

const struct command cmd_network_inspect = {
	.name = "network inspect",
	.synopsis = "NETWORK...",
	.summary = "Show all about networks, and who is on them, as JSON",
	OPTS(inspect_opts),
	.opts_size = sizeof(struct listing_inspect),
	.min_args = 1,
	.max_args = -1,
	.exit_status = "0; 1 when there is no such network",
	.complete = "network",
	.run = do_inspect,
};
