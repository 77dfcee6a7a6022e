#include "cli/connect.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fsutil.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/etcfiles.h"
#include "cli/joined.h"
#include "cli/netdef.h"
#include "cli/netns.h"
#include "sandbox/files.h"
#include "sandbox/usernet.h"

static int oom(struct error *err)
{
	return error_set(err, -ENOMEM, "out of memory");
}

bool connect_is_up(const struct container *c)
{
	auto_free char *dir = container_path(c, "net");

	return dir && !access(dir, F_OK);
}

/* ---- from the command line to the record and the spec ---- */

static json_t *words_of(const struct strlist *list)
{
	json_t *out = json_array();

	for (size_t i = 0; i < list->n; i++)
		(void)json_array_append_new(out, json_string(list->v[i]));
	return out;
}

static json_t *joins_of(const struct netopts *n)
{
	json_t *out = json_array();

	for (size_t i = 0; i < n->n_join; i++) {
		const struct net_join *j = &n->join[i];

		(void)json_array_append_new(out, json_pack("{s:s, s:s*, s:s*, s:s*, s:o}", "Name", j->network,
							   "Ip", j->ip, "Ip6", j->ip6, "Mac", j->mac,
							   "Aliases", words_of(&j->alias)));
	}
	return out;
}

/* "tcp:8080:80,udp:127.0.0.1:53:53": what the sandbox hands to passt. */
static char *publish_text(const struct ports *ports)
{
	char *text = strdup("");

	for (size_t i = 0; i < ports->n && text; i++) {
		const struct port *p = &ports->v[i];
		char *longer = cli_format("%s%s%s/%s/%u/%u", text, i ? "," : "", p->protocol, p->address,
					  p->host, p->container);

		free(text);
		text = longer;
	}
	return text;
}

static int add_etc_mount(Grpc__Spec *spec, const struct container *c, const char *name,
			 struct error *err)
{
	static const char *const options[] = { "rbind", "rprivate", SANDBOX_COPY_OPTION, NULL };
	auto_free char *source = cli_format("%s/etc/%s", c->dir, name);
	auto_free char *target = cli_format("/etc/%s", name);

	for (size_t i = 0; target && i < spec->n_mounts; i++) {
		/* -v has put something there. */
		if (str_eq(spec->mounts[i]->destination, target))
			return 0;
	}
	if (!source || !target ||
	    oci_mount_add(spec, target, "bind", source, options) < 0)
		return oom(err);
	return 0;
}

static int set_netns(Grpc__Spec *spec, const char *path)
{
	for (size_t i = 0; i < spec->linux->n_namespaces; i++) {
		if (str_eq(spec->linux->namespaces[i]->type, "network"))
			return oci_str_set(&spec->linux->namespaces[i]->path, path);
	}
	return -ENOENT;
}

int connect_add_files(const struct container *c, Grpc__Spec *spec, struct error *err)
{
	static const char *const names[] = { "hosts", "hostname", "resolv.conf" };
	int r = 0;

	for (size_t i = 0; i < ARRAY_LEN(names) && r == 0; i++)
		r = add_etc_mount(spec, c, names[i], err);
	return r;
}

static int plan_spec(const struct container *c, const struct netopts *n, bool files,
		     Grpc__Spec *spec, struct error *err)
{
	if (n->mode == NET_CNI) {
		auto_free char *path = netns_path(c->id);

		if (!path || set_netns(spec, path) < 0)
			return oom(err);
	}
	if (n->mode == NET_USER) {
		auto_free char *text = publish_text(&n->ports);

		if (!text || oci_annotation_set(spec, SANDBOX_NETWORK, "user") < 0 ||
		    (*text && oci_annotation_set(spec, SANDBOX_PUBLISH, text) < 0))
			return oom(err);
	}
	return files ? connect_add_files(c, spec, err) : 0;
}

static const char *mode_name(const struct netopts *n)
{
	switch (n->mode) {
	case NET_USER:
		return "user";
	case NET_CNI:
		return n->join[0].network;
	case NET_CONTAINER:
	case NET_NONE:
	default:
		return "none";
	}
}

int connect_plan(struct container *c, const struct netopts *n, const struct run_options *o,
		 Grpc__Spec *spec, struct error *err)
{
	bool files = n->mode != NET_NONE || o->dns.n || o->add_host.n || o->dns_search.n;
	json_t *net;

	if (n->mode == NET_CONTAINER)
		return joined_apply(c, spec, err);
	net = json_pack("{s:s, s:b, s:o, s:o, s:o, s:o, s:o, s:o, s:s, s:s}", "Mode",
			n->mode == NET_CNI ? "cni" : mode_name(n), "Files", files, "Networks", joins_of(n),
			"Ports", ports_for_record(&n->ports), "Dns", words_of(&o->dns), "DnsSearch",
			words_of(&o->dns_search), "DnsOptions", words_of(&o->dns_option), "ExtraHosts",
			words_of(&o->add_host), "Hostname", spec->hostname ? spec->hostname : "",
			"Domainname", spec->domainname ? spec->domainname : "");
	if (!net || json_object_set_new(c->rec, "Net", net) < 0)
		return oom(err);
	container_set_str(c, "NetworkMode", mode_name(n));
	return plan_spec(c, n, files, spec, err);
}

/* ---- up ---- */

static int get_ports(const struct container *c, struct ports *ret, struct error *err)
{
	json_t *list = json_object_get(json_object_get(c->rec, "Net"), "Ports"), *p;
	size_t i;

	*ret = (struct ports){ .v = calloc(json_array_size(list) + 1, sizeof(*ret->v)) };
	if (!ret->v)
		return oom(err);
	json_array_foreach(list, i, p) {
		struct port *port = &ret->v[ret->n++];
		const char *address = json_string_value(json_object_get(p, "HostIp"));
		const char *protocol = json_string_value(json_object_get(p, "Protocol"));

		snprintf(port->address, sizeof(port->address), "%s", address ? address : "");
		snprintf(port->protocol, sizeof(port->protocol), "%s", protocol ? protocol : "tcp");
		port->host = (uint16_t)json_integer_value(json_object_get(p, "HostPort"));
		port->container = (uint16_t)json_integer_value(json_object_get(p, "ContainerPort"));
	}
	return 0;
}

/* No socket shows a port that packet filters forward: the other containers' records do. */
static int check_others(const struct container *c, const struct ports *ports, struct error *err)
{
	struct container_list list;
	int r = ports->n ? container_list(&list, err) : 0;

	if (r < 0 || !ports->n)
		return r;
	for (size_t i = 0; i < list.n && r == 0; i++) {
		struct ports theirs = { 0 };

		if (!strcmp(list.v[i]->id, c->id) || !connect_is_up(list.v[i]))
			continue;
		r = get_ports(list.v[i], &theirs, err);
		for (size_t k = 0; r == 0 && k < theirs.n * ports->n; k++) {
			const struct port *a = &ports->v[k / theirs.n], *b = &theirs.v[k % theirs.n];

			if (a->host && a->host == b->host && !strcmp(a->protocol, b->protocol) &&
			    (!*a->address || !*b->address || !strcmp(a->address, b->address)))
				r = error_set(err, -EADDRINUSE, "port %u/%s of the host is published by "
					      "container %s", a->host, a->protocol,
					      container_str(list.v[i], "Name"));
		}
		ports_fini(&theirs);
	}
	container_list_fini(&list);
	return r;
}

/* @net, without its routes: the first network has the way out. */
static int without_routes(struct cni_network **net, struct error *err)
{
	json_t *ipam = json_object_get(json_array_get((*net)->plugins, 0), "ipam");

	(void)err;
	if (netdef_is_ours(*net))
		(void)json_object_del(ipam, "routes");
	return 0;
}

static json_t *capabilities(const struct cni_network *net, json_t *join, const struct ports *ports)
{
	json_t *caps = json_object(), *ips = json_array();
	static const char *const keys[] = { "Ip", "Ip6" };

	for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
		json_t *ip = json_object_get(join, keys[i]);

		if (ip)
			(void)json_array_append(ips, ip);
	}
	if (json_array_size(ips))
		(void)json_object_set(caps, "ips", ips);
	json_decref(ips);
	if (json_object_get(join, "Mac"))
		(void)json_object_set(caps, "mac", json_object_get(join, "Mac"));
	if (ports && ports->n && cni_network_takes(net, "portMappings"))
		(void)json_object_set_new(caps, "portMappings", ports_for_cni(ports));
	return caps;
}

/* For plugins without the capabilities: the older way to ask. */
static char *plugin_args(const struct cni_network *net, json_t *join, const struct container *c)
{
	const char *ip = json_string_value(json_object_get(join, "Ip"));
	const char *mac = json_string_value(json_object_get(join, "Mac"));

	return cli_format("IgnoreUnknown=1;CAISSON_NAME=%s%s%s%s%s", container_str(c, "Name"),
			  ip && !cni_network_takes(net, "ips") ? ";IP=" : "",
			  ip && !cni_network_takes(net, "ips") ? ip : "",
			  mac && !cni_network_takes(net, "mac") ? ";MAC=" : "",
			  mac && !cni_network_takes(net, "mac") ? mac : "");
}

static void note_address(json_t *out, const struct cni_ip *ip)
{
	bool v4 = ip->family == AF_INET;

	if (json_object_get(out, v4 ? "IPAddress" : "GlobalIPv6Address"))
		return;
	(void)json_object_set_new(out, v4 ? "IPAddress" : "GlobalIPv6Address", json_string(ip->address));
	(void)json_object_set_new(out, v4 ? "IPPrefixLen" : "GlobalIPv6PrefixLen",
				  json_integer((json_int_t)ip->prefix));
	(void)json_object_set_new(out, v4 ? "Gateway" : "IPv6Gateway", json_string(ip->gateway));
}

/* Docker's words for one network of a container. */
static json_t *note_result(const struct cni_result *res, const char *ifname, json_t *join)
{
	json_t *out = json_object();

	(void)json_object_set_new(out, "Interface", json_string(ifname));
	(void)json_object_set(out, "Aliases", json_object_get(join, "Aliases"));
	for (size_t i = 0; i < res->n_ips; i++)
		note_address(out, &res->ips[i]);
	for (size_t i = 0; i < res->n_interfaces; i++) {
		if (res->interfaces[i].sandbox && !strcmp(res->interfaces[i].name, ifname))
			(void)json_object_set_new(out, "MacAddress", json_string(res->interfaces[i].mac));
	}
	if (res->dns.servers) {
		json_t *dns = json_object_get(res->json, "dns");

		(void)json_object_set(out, "Dns", dns);
	}
	return out;
}

static int join_one(struct container *c, const struct cni *cni, size_t i, json_t *join,
		    const struct ports *ports, json_t *networks, struct error *err)
{
	const char *name = json_string_value(json_object_get(join, "Name"));
	auto_cni_network struct cni_network *net = NULL;
	auto_cni_result struct cni_result *res = NULL;
	auto_free char *netns = netns_path(c->id);
	auto_free char *args = NULL;
	char ifname[16];
	json_t *caps;
	int r = netdef_find(name ? name : "", &net, err);

	if (r == 0 && i > 0)
		r = without_routes(&net, err);
	if (r < 0)
		return r;
	snprintf(ifname, sizeof(ifname), "eth%u", (unsigned)i);
	args = plugin_args(net, join, c);
	caps = capabilities(net, join, i == 0 ? ports : NULL);
	if (!args || !netns || !caps) {
		json_decref(caps);
		return oom(err);
	}
	if (i == 0 && ports->n && !cni_network_takes(net, "portMappings")) {
		json_decref(caps);
		return error_set(err, -ENOTSUP, "network '%s' cannot publish ports", name);
	}
	{
		const struct cni_attachment at = { .container = c->id, .netns = netns, .ifname = ifname,
						   .args = args, .capabilities = caps };

		r = cni_add(cni, net, &at, &res, err);
	}
	json_decref(caps);
	if (r == 0)
		(void)json_object_set_new(networks, name, note_result(res, ifname, join));
	return r;
}

static int join_all(struct container *c, json_t *net, struct error *err)
{
	auto_free char *dir = container_path(c, "net");
	auto_free char *key = netns_path(c->id);
	const struct cni cni = { .dir = dir };
	json_t *list = json_object_get(net, "Networks"), *join, *networks = json_object(), *settings;
	struct ports ports = { 0 };
	size_t i;
	int r;

	settings = json_pack("{s:s*, s:O, s:o}", "SandboxKey", key, "Ports", json_object_get(net, "Ports"),
			     "Networks", networks);
	if (!settings || !dir || json_object_set_new(c->rec, "NetworkSettings", settings) < 0)
		return oom(err);
	r = get_ports(c, &ports, err);
	if (r == 0)
		r = netns_make(c->id, err);
	json_array_foreach(list, i, join) {
		if (r == 0)
			r = join_one(c, &cni, i, join, &ports, networks, err);
	}
	ports_fini(&ports);
	return r;
}

static int note_user(struct container *c, json_t *net, struct error *err)
{
	json_t *settings = json_pack("{s:O, s:{s:{s:s, s:s, s:i, s:s}}}", "Ports",
				     json_object_get(net, "Ports"), "Networks", "user", "Interface", "eth0",
				     "IPAddress", SANDBOX_USER_ADDRESS, "IPPrefixLen", SANDBOX_USER_PREFIX,
				     "Gateway", SANDBOX_USER_GATEWAY);

	return settings && !json_object_set_new(c->rec, "NetworkSettings", settings) ? 0 : oom(err);
}

static int make_dir(const struct container *c, const char *name, struct error *err)
{
	auto_free char *dir = container_path(c, name);

	if (!dir)
		return oom(err);
	return mkdir(dir, 0700) < 0 && errno != EEXIST ? error_errno(err, -errno, "make '%s'", dir) : 0;
}

int connect_up(struct container *c, struct error *err)
{
	json_t *net = json_object_get(c->rec, "Net");
	const char *mode = json_string_value(json_object_get(net, "Mode"));
	bool cni = str_eq(mode, "cni"), user = str_eq(mode, "user");
	struct ports ports = { 0 };
	int r = joined_is(c) ? joined_check(c, err) : 0;

	if (cni || user) {
		r = get_ports(c, &ports, err);
		if (r == 0)
			r = check_others(c, &ports, err);
		if (r == 0)
			r = ports_settle(&ports, err);
		if (r == 0 && (ports.n || cni))
			r = make_dir(c, "net", err);
		ports_fini(&ports);
	}
	if (r == 0 && cni)
		r = join_all(c, net, err);
	if (r == 0 && user)
		r = note_user(c, net, err);
	if (r == 0 && cni)
		r = container_save(c, err);
	if (r == 0 && json_is_true(json_object_get(net, "Files")))
		r = make_dir(c, "etc", err);
	if (r == 0 && json_is_true(json_object_get(net, "Files")))
		r = etcfiles_write(c, err);
	if (r == 0 && cni)
		r = etcfiles_refresh_neighbours(c, err);
	return r;
}

/* ---- down ---- */

int connect_down(const struct container *c, bool force, struct error *err)
{
	auto_free char *dir = container_path(c, "net");
	const struct cni cni = { .dir = dir };
	struct error why = { 0 };
	int r, failed = 0;

	if (!dir)
		return oom(err);
	if (access(dir, F_OK) < 0)
		return 0;
	r = cni_del_all(&cni, &why);
	if (r < 0 && force) {
		cli_warn("%s", error_text(&why));
		r = cni_forget_all(&cni, &why);
	}
	if (r < 0)
		failed = error_set(err, r, "%s", error_text(&why));
	/* What the plugins left inside goes with the namespace. */
	r = netns_remove(c->id, &why);
	if (r < 0 && !failed)
		failed = error_set(err, r, "%s", error_text(&why));
	if (failed)
		return failed;
	r = fsutil_remove_tree(AT_FDCWD, dir);
	if (r < 0)
		return error_errno(err, r, "remove '%s'", dir);
	return etcfiles_refresh_neighbours(c, err);
}
