#include "cli/ports.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "cli/ipnet.h"

enum { PORTS_MAX = 1024 };

static int bad(const char *text, const char *why, struct error *err)
{
	return error_set(err, -EINVAL, "-p '%s': %s; it takes [ADDRESS:][HOSTPORT:]PORT[/tcp|udp|sctp]",
			 text, why);
}

/* "80" or "8000-8010". */
static int parse_range(const char *text, unsigned *ret_first, unsigned *ret_last)
{
	auto_free char *copy = strdup(text);
	char *dash = copy ? strchr(copy, '-') : NULL;
	uint32_t first, last;

	if (!copy)
		return -ENOMEM;
	if (dash)
		*dash = '\0';
	if (str_parse_u32(copy, &first) < 0 || str_parse_u32(dash ? dash + 1 : copy, &last) < 0 ||
	    first < 1 || last < first || last > 65535)
		return -EINVAL;
	*ret_first = first;
	*ret_last = last;
	return 0;
}

static int add(struct ports *ports, const struct port *p, const char *text, struct error *err)
{
	struct port *v;

	for (size_t i = 0; i < ports->n; i++) {
		const struct port *q = &ports->v[i];

		if (p->host && q->host == p->host && !strcmp(q->protocol, p->protocol) &&
		    (!*q->address || !*p->address || !strcmp(q->address, p->address)))
			return error_set(err, -EINVAL, "-p '%s': port %u of the host is published twice",
					 text, p->host);
	}
	if (ports->n == PORTS_MAX)
		return error_set(err, -EINVAL, "-p: more than %u ports", PORTS_MAX);
	v = reallocarray(ports->v, ports->n + 1, sizeof(*v));
	if (!v)
		return error_set(err, -ENOMEM, "out of memory");
	ports->v = v;
	v[ports->n++] = *p;
	return 0;
}

static int split_address(char *text, char **ret_rest, struct port *p)
{
	struct ipnet address;
	char *end, *colon;

	if (*text == '[') {
		end = strchr(text, ']');
		if (!end || end[1] != ':')
			return -EINVAL;
		*end = '\0';
		*ret_rest = end + 2;
		text++;
	} else {
		colon = strrchr(text, ':');
		end = colon && colon != text ? memrchr(text, ':', (size_t)(colon - text)) : NULL;
		if (!end) {
			*ret_rest = text;
			return 0;
		}
		*end = '\0';
		*ret_rest = end + 1;
		if (!*text)
			return 0;
	}
	if (strchr(text, '/') || ipnet_parse(text, &address) < 0)
		return -EINVAL;
	ipnet_format(&address, false, p->address);
	/* All addresses are what is meant without one. */
	if (!strcmp(p->address, "0.0.0.0"))
		p->address[0] = '\0';
	return 0;
}

int ports_parse(const char *text, struct ports *ports, struct error *err)
{
	auto_free char *copy = strdup(text);
	unsigned first, last, host_first = 0, host_last = 0;
	struct port p = { .protocol = "tcp" };
	char *slash, *rest, *colon;
	int r = 0;

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	slash = strrchr(copy, '/');
	if (slash) {
		*slash = '\0';
		if (!str_eq(slash + 1, "tcp") && !str_eq(slash + 1, "udp") && !str_eq(slash + 1, "sctp"))
			return bad(text, "the protocol is none of tcp, udp and sctp", err);
		strcpy(p.protocol, slash + 1);
	}
	if (split_address(copy, &rest, &p) < 0)
		return bad(text, "that is not an address", err);
	colon = strchr(rest, ':');
	if (colon)
		*colon = '\0';
	if (parse_range(colon ? colon + 1 : rest, &first, &last) < 0)
		return bad(text, "the container's port is not a number from 1 to 65535", err);
	if (colon && *rest && parse_range(rest, &host_first, &host_last) < 0)
		return bad(text, "the host's port is not a number from 1 to 65535", err);
	if (host_first && host_last - host_first != last - first)
		return bad(text, "the two ranges are not of the same size", err);
	for (unsigned i = 0; i <= last - first && r == 0; i++) {
		p.container = (uint16_t)(first + i);
		p.host = host_first ? (uint16_t)(host_first + i) : 0;
		r = add(ports, &p, text, err);
	}
	return r;
}

/* Binds the port for a moment; gives the one that was chosen if @p has none. */
static int try_port(const struct port *p, uint16_t *ret_port)
{
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} a = { 0 };
	bool v6 = strchr(p->address, ':');
	int type = !strcmp(p->protocol, "udp") ? SOCK_DGRAM : SOCK_STREAM, on = 1;
	socklen_t len = v6 ? sizeof(a.v6) : sizeof(a.v4);
	auto_close int fd = socket(v6 ? AF_INET6 : AF_INET, type | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (v6) {
		a.v6.sin6_family = AF_INET6;
		a.v6.sin6_port = htons(p->host);
		(void)inet_pton(AF_INET6, p->address, &a.v6.sin6_addr);
	} else {
		a.v4.sin_family = AF_INET;
		a.v4.sin_port = htons(p->host);
		if (*p->address)
			(void)inet_pton(AF_INET, p->address, &a.v4.sin_addr);
	}
	if (type == SOCK_STREAM && p->host)
		(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, &a.any, len) < 0 || (type == SOCK_STREAM && listen(fd, 1) < 0) ||
	    getsockname(fd, &a.any, &len) < 0)
		return -errno;
	*ret_port = ntohs(v6 ? a.v6.sin6_port : a.v4.sin_port);
	return 0;
}

int ports_settle(struct ports *ports, struct error *err)
{
	for (size_t i = 0; i < ports->n; i++) {
		struct port *p = &ports->v[i];
		int r = try_port(p, &p->host);

		if (r == -EADDRINUSE)
			return error_set(err, r, "port %u/%s of the host%s%s is in use already", p->host,
					 p->protocol, *p->address ? " at " : "", p->address);
		if (r < 0)
			return error_errno(err, r, "publish port %u/%s%s%s", p->host, p->protocol,
					   *p->address ? " at " : "", p->address);
	}
	return 0;
}

void ports_fini(struct ports *ports)
{
	free(ports->v);
	*ports = (struct ports){ 0 };
}

json_t *ports_for_cni(const struct ports *ports)
{
	json_t *list = json_array();

	for (size_t i = 0; i < ports->n; i++) {
		const struct port *p = &ports->v[i];

		(void)json_array_append_new(list, json_pack("{s:i, s:i, s:s, s:s}", "hostPort", p->host,
							    "containerPort", p->container, "protocol",
							    p->protocol, "hostIP", p->address));
	}
	return list;
}

json_t *ports_for_record(const struct ports *ports)
{
	json_t *list = json_array();

	for (size_t i = 0; i < ports->n; i++) {
		const struct port *p = &ports->v[i];

		(void)json_array_append_new(list, json_pack("{s:s, s:i, s:i, s:s}", "HostIp", p->address,
							    "HostPort", p->host, "ContainerPort",
							    p->container, "Protocol", p->protocol));
	}
	return list;
}
