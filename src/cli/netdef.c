#include "cli/netdef.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fsutil.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/ipnet.h"
#include "cli/units.h"

/* Where subnets that nobody asked for come from: 10.89.0.0/24 to 10.89.255.0/24. */
#define POOL "10.89.0.0/16"
enum { POOL_PREFIX = 24, MAX_SUBNETS = 8, ID_LEN = 32, BRIDGE_ID = 10 };

struct subnet {
	struct ipnet net, gateway, first, last;
};

struct plan {
	struct subnet v[MAX_SUBNETS];
	size_t n;
};

/* ---- files ---- */

static char *our_dir(void)
{
	auto_free char *root = cli_root_dir();

	return root ? cli_format("%s/networks", root) : NULL;
}

static const char *host_dir(void)
{
	const char *env = getenv("NETCONFPATH");

	return str_empty(env) ? CNI_CONF_DIR : env;
}

static void warn_bad(const char *path, const struct error *why)
{
	(void)path;
	cli_warn("network configuration left out: %s", error_text(why));
}

int netdef_list(struct cni_networks *ours, struct cni_networks *hosts, struct error *err)
{
	auto_free char *dir = our_dir();
	int r;

	*ours = *hosts = (struct cni_networks){ 0 };
	if (!dir)
		return error_set(err, -ENOMEM, "out of memory");
	r = cni_networks_load(dir, ours, warn_bad, err);
	if (r == 0)
		r = cni_networks_load(host_dir(), hosts, warn_bad, err);
	if (r < 0)
		cni_networks_fini(ours);
	return r;
}

static struct cni_network *take_named(struct cni_networks *list, const char *name)
{
	for (size_t i = 0; i < list->n; i++) {
		if (!strcmp(list->v[i]->name, name))
			return take_ptr(&list->v[i]);
	}
	return NULL;
}

int netdef_find(const char *name, struct cni_network **ret, struct error *err)
{
	auto_free char *dir = our_dir();
	auto_free char *path = NULL;
	struct cni_networks hosts;
	struct cni_network *net;
	int r;

	if (!dir)
		return error_set(err, -ENOMEM, "out of memory");
	if (cni_valid_name(name)) {
		path = cli_format("%s/%s.conflist", dir, name);
		r = path ? cni_network_load(path, ret, err) : -ENOMEM;
		if (r != -ENOENT)
			return r;
		error_clear(err);
	}
	r = cni_networks_load(host_dir(), &hosts, NULL, err);
	if (r < 0)
		return r;
	net = take_named(&hosts, name);
	cni_networks_fini(&hosts);
	if (!net)
		return error_set(err, -ENOENT, "no such network: %s; 'caisson network ls' lists them, "
				 "'caisson network create' makes one", name);
	*ret = net;
	return 0;
}

int netdef_host_default(bool warn, struct cni_network **ret, struct error *err)
{
	struct cni_networks hosts;
	int r = cni_networks_load(host_dir(), &hosts, warn ? warn_bad : NULL, err);

	*ret = NULL;
	if (r == 0 && hosts.n)
		*ret = take_ptr(&hosts.v[0]);
	if (r == 0)
		cni_networks_fini(&hosts);
	return r;
}

bool netdef_is_ours(const struct cni_network *net)
{
	return json_is_object(json_object_get(net->doc, "caisson"));
}

bool netdef_reserved(const char *name)
{
	static const char *const words[] = { "none", "host", "user", "default", "bridge", "container" };

	for (size_t i = 0; i < ARRAY_LEN(words); i++) {
		if (!strcmp(words[i], name))
			return true;
	}
	return false;
}

/* ---- subnets ---- */

static bool taken(const struct ipnet *net, const struct cni_networks *ours)
{
	for (size_t i = 0; i < ours->n; i++) {
		json_t *subnets = json_object_get(json_object_get(ours->v[i]->doc, "caisson"), "Subnets");
		json_t *s;
		size_t k;

		json_array_foreach(subnets, k, s) {
			const char *text = json_string_value(json_object_get(s, "Subnet"));
			struct ipnet other;

			if (text && !ipnet_parse(text, &other) && ipnet_overlap(net, &other))
				return true;
		}
	}
	return false;
}

static int pick_v4(struct plan *plan, const struct cni_networks *ours, struct error *err)
{
	struct ipnet pool, net;

	(void)ipnet_parse(POOL, &pool);
	for (uint32_t i = 0; i < 256; i++) {
		net = ipnet_nth(&pool, i << 8);
		net.prefix = POOL_PREFIX;
		if (taken(&net, ours) || ipnet_in_use_here(&net))
			continue;
		plan->v[plan->n++].net = net;
		return 0;
	}
	return error_set(err, -EADDRINUSE, "no subnet of " POOL " is free; give one with --subnet");
}

/* A unique local prefix, as RFC 4193 makes them. */
static int pick_v6(struct plan *plan, struct error *err)
{
	struct ipnet net = { .family = AF_INET6, .prefix = 64, .addr = { 0xfd } };

	if (getrandom(net.addr + 1, 7, 0) != 7)
		return error_set(err, -EIO, "no random numbers");
	plan->v[plan->n++].net = net;
	return 0;
}

static struct subnet *subnet_of(struct plan *plan, const struct ipnet *address)
{
	for (size_t i = 0; i < plan->n; i++) {
		if (ipnet_contains(&plan->v[i].net, address))
			return &plan->v[i];
	}
	return NULL;
}

static int apply_gateways(struct plan *plan, const struct netdef_options *o, struct error *err)
{
	for (size_t i = 0; i < o->gateway.n; i++) {
		struct ipnet address;
		struct subnet *s;

		if (strchr(o->gateway.v[i], '/') || ipnet_parse(o->gateway.v[i], &address) < 0)
			return error_set(err, -EINVAL, "--gateway '%s' is not an address",
					 o->gateway.v[i]);
		s = subnet_of(plan, &address);
		if (!s)
			return error_set(err, -EINVAL, "--gateway %s is in none of the network's subnets",
					 o->gateway.v[i]);
		if (s->gateway.family)
			return error_set(err, -EINVAL, "--gateway %s: the subnet has a gateway already",
					 o->gateway.v[i]);
		s->gateway = address;
	}
	return 0;
}

static int apply_ranges(struct plan *plan, const struct netdef_options *o, struct error *err)
{
	for (size_t i = 0; i < o->ip_range.n; i++) {
		struct ipnet range;
		struct subnet *s;
		unsigned bits;

		if (ipnet_parse(o->ip_range.v[i], &range) < 0 || !ipnet_is_subnet(&range))
			return error_set(err, -EINVAL, "--ip-range '%s' is not a subnet such as 10.1.2.0/28",
					 o->ip_range.v[i]);
		s = subnet_of(plan, &range);
		if (!s)
			return error_set(err, -EINVAL, "--ip-range %s is in none of the network's subnets",
					 o->ip_range.v[i]);
		bits = (range.family == AF_INET ? 32u : 128u) - range.prefix;
		if (bits < 1)
			return error_set(err, -EINVAL, "--ip-range %s is too small", o->ip_range.v[i]);
		s->first = ipnet_nth(&range, 1);
		s->last = ipnet_nth(&range, bits > 24 ? (1u << 24) - 2 : (1u << bits) - 1 - (bits > 1));
	}
	return 0;
}

static int plan_subnets(const struct netdef_options *o, const struct cni_networks *ours,
			struct plan *plan, struct error *err)
{
	bool v4 = false, v6 = false;
	int r = 0;

	for (size_t i = 0; i < o->subnet.n; i++) {
		const char *text = o->subnet.v[i];
		struct ipnet net;

		if (!strchr(text, '/') || ipnet_parse(text, &net) < 0)
			return error_set(err, -EINVAL, "--subnet '%s' is not a subnet such as 10.1.2.0/24",
					 text);
		if (!ipnet_is_subnet(&net))
			return error_set(err, -EINVAL, "--subnet %s has bits set beyond its prefix", text);
		if (net.prefix > (net.family == AF_INET ? 30u : 126u))
			return error_set(err, -EINVAL, "--subnet %s has no room for containers", text);
		if (taken(&net, ours))
			return error_set(err, -EADDRINUSE, "--subnet %s overlaps another network's", text);
		if (plan->n == MAX_SUBNETS)
			return error_set(err, -EINVAL, "--subnet: more than %u", MAX_SUBNETS);
		for (size_t k = 0; k < plan->n; k++) {
			if (ipnet_overlap(&plan->v[k].net, &net))
				return error_set(err, -EINVAL, "--subnet %s overlaps another one", text);
		}
		if (net.family == AF_INET6 && !o->ipv6)
			return error_set(err, -EINVAL, "--subnet %s needs --ipv6", text);
		plan->v[plan->n++].net = net;
		v4 |= net.family == AF_INET;
		v6 |= net.family == AF_INET6;
	}
	if (!v4)
		r = pick_v4(plan, ours, err);
	if (r == 0 && o->ipv6 && !v6)
		r = pick_v6(plan, err);
	if (r == 0)
		r = apply_gateways(plan, o, err);
	if (r == 0)
		r = apply_ranges(plan, o, err);
	for (size_t i = 0; i < plan->n; i++) {
		if (!plan->v[i].gateway.family)
			plan->v[i].gateway = ipnet_nth(&plan->v[i].net, 1);
	}
	return r;
}

/* ---- the list of plugins ---- */

static json_t *make_ipam(const struct plan *plan, bool routes)
{
	auto_free char *run = cli_run_dir();
	auto_free char *book = run ? cli_format("%s/ipam", run) : NULL;
	json_t *ranges = json_array(), *list = json_array(), *ipam;

	for (size_t i = 0; i < plan->n; i++) {
		const struct subnet *s = &plan->v[i];
		char net[IPNET_TEXT], gateway[IPNET_TEXT], first[IPNET_TEXT], last[IPNET_TEXT];
		json_t *range;

		ipnet_format(&s->net, true, net);
		ipnet_format(&s->gateway, false, gateway);
		range = json_pack("{s:s, s:s}", "subnet", net, "gateway", gateway);
		if (s->first.family) {
			ipnet_format(&s->first, false, first);
			ipnet_format(&s->last, false, last);
			(void)json_object_set_new(range, "rangeStart", json_string(first));
			(void)json_object_set_new(range, "rangeEnd", json_string(last));
		}
		(void)json_array_append_new(ranges, json_pack("[o]", range));
		if (routes)
			(void)json_array_append_new(list, json_pack("{s:s}", "dst",
								    s->net.family == AF_INET ? "0.0.0.0/0" :
											       "::/0"));
	}
	ipam = json_pack("{s:s, s:s, s:o}", "type", "host-local", "dataDir", book ? book : "", "ranges",
			 ranges);
	if (json_array_size(list))
		(void)json_object_set(ipam, "routes", list);
	json_decref(list);
	return ipam;
}

static int set_option(json_t *plugin, const char *key, const char *value, bool bridge,
		      struct error *err)
{
	uint32_t mtu;

	if (!strcmp(key, "mtu") || !strcmp(key, "com.docker.network.driver.mtu")) {
		if (str_parse_u32(value, &mtu) < 0 || mtu < 68 || mtu > 65535)
			return error_set(err, -EINVAL, "--opt %s: '%s' is not an MTU", key, value);
		(void)json_object_set_new(plugin, "mtu", json_integer(mtu));
		return 0;
	}
	if (!bridge && !strcmp(key, "parent")) {
		if (!*value || strlen(value) >= IFNAMSIZ || strchr(value, '/'))
			return error_set(err, -EINVAL, "--opt parent: '%s' is not an interface", value);
		(void)json_object_set_new(plugin, "master", json_string(value));
		return 0;
	}
	if (!bridge && (!strcmp(key, "mode") || !strcmp(key, "macvlan_mode") ||
			!strcmp(key, "ipvlan_mode"))) {
		(void)json_object_set_new(plugin, "mode", json_string(value));
		return 0;
	}
	return error_set(err, -EINVAL, "--opt '%s' is not known; there are mtu%s", key,
			 bridge ? "" : ", parent and mode");
}

static int set_options(json_t *plugin, const struct strlist *opt, bool bridge, struct error *err)
{
	for (size_t i = 0; i < opt->n; i++) {
		auto_free char *key = strdup(opt->v[i]);
		char *eq = key ? strchr(key, '=') : NULL;
		int r;

		if (!eq)
			return error_set(err, -EINVAL, "--opt takes KEY=VALUE, not '%s'", opt->v[i]);
		*eq = '\0';
		r = set_option(plugin, key, eq + 1, bridge, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static json_t *make_bridge(const struct netdef_options *o, const struct plan *plan, const char *id)
{
	return json_pack("[{s:s, s:s+, s:b, s:b, s:b, s:{s:b, s:b}, s:o}, {s:s, s:{s:b}}, {s:s}]",
			 "type", "bridge", "bridge", "cs-", id, "isGateway", !o->internal, "ipMasq",
			 !o->internal, "hairpinMode", true, "capabilities", "ips", true, "mac", true,
			 "ipam", make_ipam(plan, !o->internal),
			 "type", "portmap", "capabilities", "portMappings", true, "type", "firewall");
}

static json_t *make_vlan(const char *driver, const struct netdef_options *o, const struct plan *plan)
{
	return json_pack("[{s:s, s:{s:b, s:b}, s:o}]", "type", driver, "capabilities", "ips", true, "mac",
			 true, "ipam", make_ipam(plan, !o->internal));
}

static json_t *make_notes(const struct netdef_options *o, const struct plan *plan, const char *driver,
			  const char *id)
{
	json_t *subnets = json_array(), *labels = json_object();
	char created[UNITS_TIME];
	struct timespec now;

	for (size_t i = 0; i < plan->n; i++) {
		char net[IPNET_TEXT], gateway[IPNET_TEXT];

		ipnet_format(&plan->v[i].net, true, net);
		ipnet_format(&plan->v[i].gateway, false, gateway);
		(void)json_array_append_new(subnets, json_pack("{s:s, s:s}", "Subnet", net, "Gateway",
							       gateway));
	}
	for (size_t i = 0; i < o->label.n; i++) {
		const char *eq = strchr(o->label.v[i], '=');
		size_t len = eq ? (size_t)(eq - o->label.v[i]) : strlen(o->label.v[i]);

		(void)json_object_setn_new(labels, o->label.v[i], len, json_string(eq ? eq + 1 : ""));
	}
	clock_gettime(CLOCK_REALTIME, &now);
	units_format_time(now, created);
	return json_pack("{s:s, s:s, s:s, s:b, s:b, s:o, s:o}", "Id", id, "Created", created, "Driver",
			 driver, "Internal", o->internal, "IPv6", o->ipv6, "Subnets", subnets, "Labels",
			 labels);
}

static int make_doc(const char *name, const struct netdef_options *o, const struct plan *plan,
		    json_t **ret, struct error *err)
{
	const char *driver = o->driver ? o->driver : "bridge";
	bool bridge = !strcmp(driver, "bridge");
	uint8_t raw[ID_LEN / 2];
	char id[ID_LEN + 1], short_id[BRIDGE_ID + 1];
	json_t *plugins, *doc;
	int r;

	if (!bridge && strcmp(driver, "macvlan") && strcmp(driver, "ipvlan"))
		return error_set(err, -EINVAL, "--driver '%s' is not known; there are bridge, macvlan and "
				 "ipvlan", driver);
	if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw))
		return error_set(err, -EIO, "no random numbers");
	str_hex(id, raw, sizeof(raw));
	snprintf(short_id, sizeof(short_id), "%.*s", BRIDGE_ID, id);
	plugins = bridge ? make_bridge(o, plan, short_id) : make_vlan(driver, o, plan);
	r = plugins ? set_options(json_array_get(plugins, 0), &o->opt, bridge, err) :
		      error_set(err, -ENOMEM, "out of memory");
	if (r == 0 && !bridge && !o->internal && !json_object_get(json_array_get(plugins, 0), "master"))
		r = error_set(err, -EINVAL, "a %s network needs the interface of the host it is on: "
			      "--opt parent=NAME", driver);
	if (r < 0) {
		json_decref(plugins);
		return r;
	}
	doc = json_pack("{s:s, s:s, s:o, s:o}", "cniVersion", "1.0.0", "name", name, "caisson",
			make_notes(o, plan, driver, id), "plugins", plugins);
	if (!doc)
		return error_set(err, -ENOMEM, "out of memory");
	*ret = doc;
	return 0;
}

/* One command at a time makes or removes networks; locked until the descriptor is closed. */
static int open_locked(const char *dir, struct error *err)
{
	auto_close int fd = -1;
	int r = fsutil_mkdir_p(dir, 0755);

	if (r < 0)
		return error_errno(err, r, "make '%s'", dir);
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || flock(fd, LOCK_EX) < 0)
		return error_errno(err, -errno, "lock '%s'", dir);
	return take_fd(&fd);
}

int netdef_create(const char *name, const struct netdef_options *o, struct error *err)
{
	auto_free char *dir = our_dir();
	auto_free char *file = cli_format("%s.conflist", name);
	auto_free char *text = NULL;
	auto_cni_network struct cni_network *old = NULL;
	auto_close int fd = -1;
	struct cni_networks ours, hosts;
	struct error ignored = { 0 };
	struct plan plan = { 0 };
	json_t *doc = NULL;
	int r;

	if (!cni_valid_name(name))
		return error_set(err, -EINVAL, "invalid network name '%s': only [a-zA-Z0-9][a-zA-Z0-9_.-]* "
				 "is allowed", name);
	if (netdef_reserved(name))
		return error_set(err, -EINVAL, "'%s' cannot be the name of a network: --network gives it a "
				 "meaning of its own", name);
	if (!dir || !file)
		return error_set(err, -ENOMEM, "out of memory");
	fd = open_locked(dir, err);
	if (fd < 0)
		return fd;
	if (netdef_find(name, &old, &ignored) == 0)
		return error_set(err, -EEXIST, "network '%s' exists already", name);
	r = netdef_list(&ours, &hosts, err);
	if (r < 0)
		return r;
	r = plan_subnets(o, &ours, &plan, err);
	cni_networks_fini(&ours);
	cni_networks_fini(&hosts);
	if (r == 0)
		r = make_doc(name, o, &plan, &doc, err);
	if (r < 0)
		return r;
	text = json_dumps(doc, JSON_INDENT(2));
	json_decref(doc);
	r = text ? fsutil_write_atomic(fd, file, text, strlen(text), 0644) : -ENOMEM;
	return r < 0 ? error_errno(err, r, "write '%s/%s'", dir, file) : 0;
}

/* ---- removal ---- */

static int delete_bridge(const char *name, struct error *err)
{
	auto_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq ifr = { 0 };

	if (fd < 0)
		return error_errno(err, -errno, "make a socket");
	if (strlen(name) >= sizeof(ifr.ifr_name))
		return 0;
	strcpy(ifr.ifr_name, name);
	if (ioctl(fd, SIOCGIFFLAGS, &ifr) < 0)
		return 0;
	ifr.ifr_flags = (short)(ifr.ifr_flags & ~IFF_UP);
	if (ioctl(fd, SIOCSIFFLAGS, &ifr) < 0 || ioctl(fd, SIOCBRDELBR, name) < 0)
		return errno == ENODEV || errno == ENXIO ?
			       0 : error_errno(err, -errno, "remove the bridge %s", name);
	return 0;
}

int netdef_remove(const struct cni_network *net, struct error *err)
{
	const char *bridge = json_string_value(json_object_get(json_array_get(net->plugins, 0), "bridge"));
	auto_free char *dir = our_dir();
	auto_free char *run = cli_run_dir();
	auto_free char *book = run ? cli_format("%s/ipam/%s", run, net->name) : NULL;
	auto_free char *books = run ? cli_format("%s/ipam", run) : NULL;
	auto_close int fd = -1;
	int r;

	if (!netdef_is_ours(net))
		return error_set(err, -EPERM, "network '%s' is not one of caisson's: it is defined by %s",
				 net->name, net->path ? net->path : "the host");
	if (!dir || !book || !books)
		return error_set(err, -ENOMEM, "out of memory");
	fd = open_locked(dir, err);
	if (fd < 0)
		return fd;
	/* The bridge first: while the file is there it can be tried again. */
	r = bridge && str_has_prefix(bridge, "cs-") ? delete_bridge(bridge, err) : 0;
	if (r < 0)
		return r;
	(void)!fsutil_remove_tree(AT_FDCWD, book);
	(void)rmdir(books);
	return unlink(net->path) < 0 && errno != ENOENT ?
		       error_errno(err, -errno, "remove '%s'", net->path) : 0;
}

/* ---- description ---- */

json_t *netdef_describe(const struct cni_network *net)
{
	json_t *notes = json_object_get(net->doc, "caisson");
	json_t *first = json_array_get(net->plugins, 0);
	json_t *out = json_is_object(notes) ? json_deep_copy(notes) : json_object();

	(void)json_object_set_new(out, "Name", json_string(net->name));
	if (!json_object_get(out, "Driver"))
		(void)json_object_set(out, "Driver", json_object_get(first, "type"));
	(void)json_object_set_new(out, "Scope", json_string(json_is_object(notes) ? "local" : "host"));
	if (net->path)
		(void)json_object_set_new(out, "File", json_string(net->path));
	if (json_object_get(first, "bridge"))
		(void)json_object_set(out, "Interface", json_object_get(first, "bridge"));
	return out;
}
