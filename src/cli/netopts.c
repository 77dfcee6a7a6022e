#include "cli/netopts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/ipnet.h"
#include "cli/netdef.h"
#include "sandbox/usernet.h"

enum { JOIN_MAX = 8 };

static int oom(struct error *err)
{
	return error_set(err, -ENOMEM, "out of memory");
}

static bool is_mac(const char *text)
{
	unsigned first;

	if (strlen(text) != 17 || sscanf(text, "%2x", &first) != 1 || (first & 1))
		return false;
	for (size_t i = 0; i < 17; i++) {
		if (i % 3 == 2 ? text[i] != ':' : !strchr("0123456789abcdefABCDEF", text[i]))
			return false;
	}
	return true;
}

static int set_address(char **field, const char *option, const char *value, int family,
		       struct error *err)
{
	struct ipnet address;

	if (strchr(value, '/') || ipnet_parse(value, &address) < 0 || address.family != family)
		return error_set(err, -EINVAL, "%s '%s' is not an IPv%d address", option, value,
				 family == AF_INET ? 4 : 6);
	if (*field)
		return error_set(err, -EINVAL, "%s is given twice", option);
	*field = strdup(value);
	return *field ? 0 : oom(err);
}

static int set_mac(char **field, const char *option, const char *value, struct error *err)
{
	if (!is_mac(value))
		return error_set(err, -EINVAL, "%s '%s' is not an address such as 02:42:ac:11:00:02", option,
				 value);
	if (*field)
		return error_set(err, -EINVAL, "%s is given twice", option);
	*field = strdup(value);
	return *field ? 0 : oom(err);
}

static int add_alias(struct net_join *j, const char *name, struct error *err)
{
	size_t n = strlen(name);

	if (!n || n > 253 || strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != n)
		return error_set(err, -EINVAL, "the alias '%s' is not a host's name", name);
	return strlist_add(&j->alias, name) < 0 ? oom(err) : 0;
}

/* NAME, or name=NAME,ip=...,ip6=...,mac-address=...,alias=... */
static int parse_join(const char *text, struct net_join *j, struct error *err)
{
	auto_free char *copy = strdup(text);
	char *rest = copy, *word;
	int r = 0;

	if (!copy)
		return oom(err);
	if (!strchr(text, '=')) {
		j->network = take_ptr(&copy);
		return 0;
	}
	while (r == 0 && (word = strsep(&rest, ","))) {
		char *eq = strchr(word, '=');

		if (!eq)
			return error_set(err, -EINVAL, "--network '%s': '%s' is not KEY=VALUE", text, word);
		*eq++ = '\0';
		if (!strcmp(word, "name") && !j->network)
			j->network = strdup(eq);
		else if (!strcmp(word, "ip"))
			r = set_address(&j->ip, "--network ip", eq, AF_INET, err);
		else if (!strcmp(word, "ip6"))
			r = set_address(&j->ip6, "--network ip6", eq, AF_INET6, err);
		else if (!strcmp(word, "mac-address"))
			r = set_mac(&j->mac, "--network mac-address", eq, err);
		else if (!strcmp(word, "alias"))
			r = add_alias(j, eq, err);
		else
			return error_set(err, -EINVAL, "--network '%s': '%s' is not known; there are name, ip, "
					 "ip6, mac-address and alias", text, word);
	}
	if (r == 0 && !j->network)
		return error_set(err, -EINVAL, "--network '%s': name= is missing", text);
	return r;
}

static int add_join(struct netopts *n, const char *text, struct error *err)
{
	struct net_join *v;
	int r;

	if (n->n_join == JOIN_MAX)
		return error_set(err, -EINVAL, "--network: more than %u networks", JOIN_MAX);
	v = reallocarray(n->join, n->n_join + 1, sizeof(*v));
	if (!v)
		return oom(err);
	n->join = v;
	v[n->n_join] = (struct net_join){ 0 };
	r = parse_join(text, &v[n->n_join++], err);
	if (r < 0)
		return r;
	for (size_t i = 0; i + 1 < n->n_join; i++) {
		if (!strcmp(v[i].network, v[n->n_join - 1].network))
			return error_set(err, -EINVAL, "--network: '%s' is given twice", v[i].network);
	}
	if (!cni_valid_name(v[n->n_join - 1].network))
		return error_set(err, -EINVAL, "--network: '%s' is not a network's name",
				 v[n->n_join - 1].network);
	return 0;
}

/* Nothing was said: the host's first network, else user-mode, else only the loopback. */
static int choose_default(struct netopts *n, bool final, struct error *err)
{
	auto_cni_network struct cni_network *net = NULL;
	int r = netdef_host_default(final, &net, err);

	if (r < 0)
		return r;
	if (net) {
		n->mode = NET_CNI;
		return add_join(n, net->name, err);
	}
	if (usernet_program()) {
		n->mode = NET_USER;
		return 0;
	}
	if (final)
		cli_warn("the container has its loopback only: passt is not installed, and "
			 "/etc/cni/net.d defines no network");
	n->mode = NET_NONE;
	return 0;
}

const char *netopts_container(const struct run_options *o)
{
	const char *first = o->network.n ? o->network.v[0] : "";

	return str_has_prefix(first, NETOPTS_CONTAINER) ? first + strlen(NETOPTS_CONTAINER) : NULL;
}

/* What belongs to the machine, which the other container has. */
static int check_container(const struct run_options *o, struct error *err)
{
	const char *text = o->dns.n		  ? "--dns" :
			   o->dns_search.n	  ? "--dns-search" :
			   o->dns_option.n	  ? "--dns-option" :
			   o->add_host.n	  ? "--add-host" :
			   o->hostname		  ? "--hostname" :
			   o->ip || o->ip6	  ? "an address" :
			   o->mac		  ? "--mac-address" :
			   o->network_alias.n	  ? "--network-alias" :
			   o->publish.n || o->publish_all ? "a published port" :
			   o->kernel		  ? "--kernel" :
			   o->boot_timeout	  ? "--boot-timeout" :
			   o->storage_opt.n	  ? "--storage-opt" :
						    NULL;

	if (!*netopts_container(o))
		return error_set(err, -EINVAL, "--network container: needs the name of a container");
	return text ? error_set(err, -EINVAL, "%s does not go with --network %s: it is set for the "
				"virtual machine, with its first container", text, o->network.v[0]) :
		      0;
}

static int choose_mode(const struct run_options *o, bool final, struct netopts *n, struct error *err)
{
	const struct strlist *list = &o->network;
	const char *first = list->n ? list->v[0] : "default";
	bool single = true;
	int r = 0;

	if (!strcmp(first, "none"))
		n->mode = NET_NONE;
	else if (!strcmp(first, "host"))
		return error_set(err, -ENOTSUP, "--network host is not possible: a container's virtual machine "
				 "has a network of its own; publish ports with -p");
	else if (!strcmp(first, "user"))
		n->mode = NET_USER;
	else if (!strcmp(first, "default") || !strcmp(first, "bridge"))
		r = choose_default(n, final, err);
	else if (netopts_container(o)) {
		n->mode = NET_CONTAINER;
		r = check_container(o, err);
	} else {
		n->mode = NET_CNI;
		single = false;
	}
	if (r == 0 && single && list->n > 1)
		return error_set(err, -EINVAL, "--network %s does not go with other networks", first);
	for (size_t i = 0; r == 0 && !single && i < list->n; i++) {
		if (netdef_reserved(list->v[i]) || str_has_prefix(list->v[i], NETOPTS_CONTAINER))
			return error_set(err, -EINVAL, "--network %s does not go with other networks",
					 list->v[i]);
		r = add_join(n, list->v[i], err);
	}
	if (r == 0 && n->mode == NET_USER && !usernet_program())
		return error_set(err, -ENOENT, "--network user needs the program passt, which is not installed");
	return r;
}

static int parse_hosts(const struct strlist *list, struct error *err)
{
	for (size_t i = 0; i < list->n; i++) {
		const char *text = list->v[i];
		size_t len = strcspn(text, ":=");
		const char *address = text[len] ? text + len + 1 : "";
		struct ipnet ip;

		if (!len || strpbrk(text, " \t\n") ||
		    (strcmp(address, "host-gateway") &&
		     (strchr(address, '/') || ipnet_parse(address, &ip) < 0)))
			return error_set(err, -EINVAL, "--add-host takes NAME:ADDRESS, not '%s'", text);
	}
	return 0;
}

static int parse_dns(const struct run_options *o, struct error *err)
{
	for (size_t i = 0; i < o->dns.n; i++) {
		struct ipnet ip;

		if (strchr(o->dns.v[i], '/') || ipnet_parse(o->dns.v[i], &ip) < 0)
			return error_set(err, -EINVAL, "--dns '%s' is not an address", o->dns.v[i]);
	}
	for (size_t i = 0; i < o->dns_search.n; i++) {
		if (!*o->dns_search.v[i] || strpbrk(o->dns_search.v[i], " \t\n"))
			return error_set(err, -EINVAL, "--dns-search '%s' is not a domain",
					 o->dns_search.v[i]);
	}
	for (size_t i = 0; i < o->dns_option.n; i++) {
		if (!*o->dns_option.v[i] || strpbrk(o->dns_option.v[i], " \t\n"))
			return error_set(err, -EINVAL, "--dns-option '%s' is not one word",
					 o->dns_option.v[i]);
	}
	return 0;
}

static int parse_ports(const struct run_options *o, char *const *exposed, struct netopts *n,
		       struct error *err)
{
	int r = 0;

	for (size_t i = 0; i < o->publish.n && r == 0; i++)
		r = ports_parse(o->publish.v[i], &n->ports, err);
	for (; r == 0 && o->publish_all && exposed && *exposed; exposed++)
		r = ports_parse(*exposed, &n->ports, err);
	if (r == 0 && n->ports.n && n->mode != NET_USER && n->mode != NET_CNI)
		return error_set(err, -EINVAL, "ports cannot be published: the container has no network of "
				 "its own");
	for (size_t i = 0; r == 0 && n->mode == NET_USER && i < n->ports.n; i++) {
		if (!strcmp(n->ports.v[i].protocol, "sctp"))
			return error_set(err, -ENOTSUP, "-p: sctp needs a network made with 'caisson network "
					 "create'");
	}
	return r;
}

/* --ip, --mac-address and the like are of the first network. */
static int parse_first(const struct run_options *o, struct netopts *n, struct error *err)
{
	struct net_join *first = n->n_join ? &n->join[0] : NULL;
	int r = 0;

	if (!first && (o->ip || o->ip6 || o->mac || o->network_alias.n))
		return error_set(err, -EINVAL, "%s needs --network with the name of a network",
				 o->ip  ? "--ip" :
				 o->ip6 ? "--ip6" :
				 o->mac ? "--mac-address" :
					  "--network-alias");
	if (o->ip)
		r = set_address(&first->ip, "--ip", o->ip, AF_INET, err);
	if (r == 0 && o->ip6)
		r = set_address(&first->ip6, "--ip6", o->ip6, AF_INET6, err);
	if (r == 0 && o->mac)
		r = set_mac(&first->mac, "--mac-address", o->mac, err);
	for (size_t k = 0; k < n->n_join; k++) {
		for (size_t i = 0; i < o->network_alias.n && r == 0; i++)
			r = add_alias(&n->join[k], o->network_alias.v[i], err);
	}
	return r;
}

int netopts_parse(const struct run_options *o, char *const *exposed, struct netopts *ret,
		  struct error *err)
{
	struct netopts n = { 0 };
	int r = choose_mode(o, exposed != NULL, &n, err);

	if (r == 0)
		r = parse_first(o, &n, err);
	if (r == 0)
		r = parse_ports(o, exposed, &n, err);
	if (r == 0)
		r = parse_dns(o, err);
	if (r == 0)
		r = parse_hosts(&o->add_host, err);
	if (r < 0) {
		netopts_fini(&n);
		return r;
	}
	*ret = n;
	return 0;
}

void netopts_fini(struct netopts *n)
{
	for (size_t i = 0; i < n->n_join; i++) {
		free(n->join[i].network);
		free(n->join[i].ip);
		free(n->join[i].ip6);
		free(n->join[i].mac);
		strlist_fini(&n->join[i].alias);
	}
	free(n->join);
	ports_fini(&n->ports);
	*n = (struct netopts){ 0 };
}
