#include "cli/etcfiles.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/fsutil.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/connect.h"
#include "cli/ipnet.h"

#define HOST_RESOLV     "/etc/resolv.conf"
#define RESOLVED_RESOLV "/run/systemd/resolve/resolv.conf"

enum { FILE_MAX_LEN = 1 << 20, RESOLV_MAX = 64 << 10, SERVERS_MAX = 3 };

static int write_file(const struct container *c, const char *name, const struct buf *text,
		      struct error *err)
{
	auto_free char *path = container_path(c, "etc");
	auto_close int dir = path ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	auto_free char *old = NULL;
	size_t len = 0;
	int r;

	if (dir < 0)
		return error_errno(err, -errno, "open the folder etc of container %.12s", c->id);
	/* What has not changed wakes nobody. */
	if (fd_read_file(dir, name, FILE_MAX_LEN, &old, &len) == 0 && len == text->len &&
	    !memcmp(old, buf_head(text) ? (char *)buf_head(text) : "", len))
		return 0;
	r = fsutil_write_volatile(dir, name, buf_head(text), text->len, 0644);
	return r < 0 ? error_errno(err, r, "write %s of container %.12s", name, c->id) : 0;
}

/* ---- hosts ---- */

static json_t *settings_of(const struct container *c)
{
	return json_object_get(json_object_get(c->rec, "NetworkSettings"), "Networks");
}

static const char *text_of(const json_t *object, const char *key)
{
	const char *v = json_string_value(json_object_get(object, key));

	return v ? v : "";
}

static int add_own(struct buf *b, const struct container *c)
{
	json_t *net = json_object_get(c->rec, "Net"), *use;
	const char *host = text_of(net, "Hostname"), *domain = text_of(net, "Domainname");
	const char *keys[] = { "IPAddress", "GlobalIPv6Address" }, *name;
	int r = 0;

	json_object_foreach(settings_of(c), name, use) {
		for (size_t k = 0; k < ARRAY_LEN(keys) && r == 0; k++) {
			const char *ip = text_of(use, keys[k]);

			if (*ip && *domain)
				r = buf_printf(b, "%s\t%s.%s %s\n", ip, host, domain, host);
			else if (*ip)
				r = buf_printf(b, "%s\t%s\n", ip, host);
		}
	}
	return r;
}

static int add_extra(struct buf *b, const struct container *c)
{
	json_t *list = json_object_get(json_object_get(c->rec, "Net"), "ExtraHosts"), *item, *use;
	const char *gateway = "", *name;
	size_t i;
	int r = 0;

	json_object_foreach(settings_of(c), name, use) {
		if (!*gateway)
			gateway = text_of(use, "Gateway");
	}
	json_array_foreach(list, i, item) {
		const char *text = json_string_value(item);
		size_t len = text ? strcspn(text, ":=") : 0;
		const char *ip = text && text[len] ? text + len + 1 : "";

		if (!strcmp(ip, "host-gateway"))
			ip = gateway;
		if (*ip && r == 0)
			r = buf_printf(b, "%s\t%.*s\n", ip, (int)len, text);
	}
	return r;
}

/* The lines of @other as @c sees it: by the addresses on the networks that both are on. */
static int add_neighbour(struct buf *b, const struct container *c, const struct container *other)
{
	const char *keys[] = { "IPAddress", "GlobalIPv6Address" }, *network;
	json_t *use, *alias;
	int r = 0;
	size_t i;

	json_object_foreach(settings_of(other), network, use) {
		if (!json_object_get(settings_of(c), network))
			continue;
		for (size_t k = 0; k < ARRAY_LEN(keys) && r == 0; k++) {
			const char *ip = text_of(use, keys[k]);

			if (!*ip)
				continue;
			r = buf_printf(b, "%s\t%s", ip, container_str(other, "Name"));
			json_array_foreach(json_object_get(use, "Aliases"), i, alias) {
				if (r == 0)
					r = buf_printf(b, " %s", json_string_value(alias));
			}
			if (r == 0)
				r = buf_printf(b, " %.12s\n", other->id);
		}
	}
	return r;
}

static int write_hosts(const struct container *c, const struct container_list *all,
		       struct error *err)
{
	struct buf b = BUF_INIT(FILE_MAX_LEN);
	int r = buf_append_str(&b, "127.0.0.1\tlocalhost\n"
				   "::1\tlocalhost ip6-localhost ip6-loopback\n"
				   "fe00::0\tip6-localnet\nff02::1\tip6-allnodes\n"
				   "ff02::2\tip6-allrouters\n");

	if (r == 0)
		r = add_extra(&b, c);
	if (r == 0)
		r = add_own(&b, c);
	/* Its own name too, whatever its host's name is. */
	for (size_t i = 0; i < all->n && r == 0; i++) {
		if (!strcmp(all->v[i]->id, c->id) || connect_is_up(all->v[i]))
			r = add_neighbour(&b, c, all->v[i]);
	}
	r = r < 0 ? error_errno(err, r, "make the hosts file of container %.12s", c->id) :
		    write_file(c, "hosts", &b, err);
	buf_fini(&b);
	return r;
}

/* Hosts files are made from all records at once: one command at a time. */
static int lock_hosts(struct error *err)
{
	return cli_lock("hosts.lock", err);
}

static bool share_a_network(const struct container *a, const struct container *b)
{
	const char *network;
	json_t *use;

	json_object_foreach(settings_of(a), network, use) {
		if (json_object_get(settings_of(b), network))
			return true;
	}
	return false;
}

int etcfiles_refresh_neighbours(const struct container *c, struct error *err)
{
	auto_close int lock = lock_hosts(err);
	struct container_list all;
	int r = lock < 0 ? lock : container_list(&all, err);

	if (r < 0)
		return r;
	for (size_t i = 0; i < all.n; i++) {
		const struct container *other = all.v[i];
		struct error why = { 0 };
		int n;

		if (!strcmp(other->id, c->id) || !connect_is_up(other) || !share_a_network(c, other))
			continue;
		/* One that is just coming writes its own; one that is going needs none. */
		n = write_hosts(other, &all, &why);
		if (n < 0 && n != -ENOENT)
			r = error_set(err, n, "%s", error_text(&why));
	}
	container_list_fini(&all);
	return r;
}

/* ---- resolv.conf ---- */

/* The host's lines of one kind: what follows @key. */
static int host_words(const char *text, const char *key, bool usable, struct buf *b, unsigned max)
{
	size_t len = strlen(key);
	unsigned n = 0;
	int r = 0;

	while (*text && r == 0 && n < max) {
		size_t line = strcspn(text, "\n");

		if (line > len && !strncmp(text, key, len) && strchr(" \t", text[len])) {
			auto_free char *word = strndup(text + len, line - len);
			char *start = word ? word + strspn(word, " \t") : NULL;
			struct ipnet ip;

			if (!start)
				return -ENOMEM;
			if (usable)
				start[strcspn(start, " \t\r%#;")] = '\0';
			/* The host's loopback is not the container's. */
			if (!usable || (ipnet_parse(start, &ip) == 0 && strncmp(start, "127.", 4) &&
					strcmp(start, "::1"))) {
				r = buf_printf(b, "%s %s\n", key, start);
				n++;
			}
		}
		text += line + (text[line] == '\n');
	}
	return r;
}

static int add_host_resolv(struct buf *b, bool search, bool options)
{
	auto_free char *text = NULL;
	auto_free char *real = NULL;
	size_t before = b->len;
	int r;

	if (fd_read_file(AT_FDCWD, HOST_RESOLV, RESOLV_MAX, &text, NULL) < 0)
		return 0;
	r = host_words(text, "nameserver", true, b, SERVERS_MAX);
	/* A resolver on the host's loopback: the servers that it asks itself. */
	if (r == 0 && b->len == before &&
	    fd_read_file(AT_FDCWD, RESOLVED_RESOLV, RESOLV_MAX, &real, NULL) == 0)
		r = host_words(real, "nameserver", true, b, SERVERS_MAX);
	if (r == 0 && search)
		r = host_words(text, "search", false, b, 1);
	if (r == 0 && options)
		r = host_words(text, "options", false, b, 1);
	return r;
}

static int add_servers(struct buf *b, const json_t *list)
{
	json_t *item;
	size_t i;
	int r = 0;

	json_array_foreach((json_t *)list, i, item) {
		if (r == 0)
			r = buf_printf(b, "nameserver %s\n", json_string_value(item));
	}
	return r;
}

static int add_line(struct buf *b, const char *key, const json_t *words)
{
	json_t *item;
	size_t i;
	int r;

	if (!json_array_size(words))
		return 0;
	/* "." alone: no search list at all. */
	if (json_array_size(words) == 1 && str_eq(json_string_value(json_array_get(words, 0)), "."))
		return 0;
	r = buf_append_str(b, key);
	json_array_foreach((json_t *)words, i, item) {
		if (r == 0)
			r = buf_printf(b, " %s", json_string_value(item));
	}
	return r == 0 ? buf_append_str(b, "\n") : r;
}

/* What the plugins said of name servers, of the first network that said anything. */
static json_t *plugin_dns(const struct container *c)
{
	const char *network;
	json_t *use;

	json_object_foreach(settings_of(c), network, use) {
		if (json_object_get(use, "Dns"))
			return json_object_get(use, "Dns");
	}
	return NULL;
}

static int write_resolv(const struct container *c, struct error *err)
{
	json_t *net = json_object_get(c->rec, "Net"), *dns = plugin_dns(c);
	json_t *servers = json_object_get(net, "Dns"), *search = json_object_get(net, "DnsSearch");
	json_t *options = json_object_get(net, "DnsOptions");
	struct buf b = BUF_INIT(RESOLV_MAX);
	int r = 0;

	if (json_array_size(servers)) {
		r = add_servers(&b, servers);
	} else if (dns) {
		r = add_servers(&b, json_object_get(dns, "nameservers"));
		if (r == 0 && !json_array_size(search))
			r = add_line(&b, "search", json_object_get(dns, "search"));
	} else if (json_object_size(settings_of(c))) {
		r = add_host_resolv(&b, !json_array_size(search), !json_array_size(options));
	}
	if (r == 0)
		r = add_line(&b, "search", search);
	if (r == 0)
		r = add_line(&b, "options", options);
	r = r < 0 ? error_errno(err, r, "make the resolv.conf of container %.12s", c->id) :
		    write_file(c, "resolv.conf", &b, err);
	buf_fini(&b);
	return r;
}

int etcfiles_write(const struct container *c, struct error *err)
{
	const char *host = text_of(json_object_get(c->rec, "Net"), "Hostname");
	struct container_list all = { 0 };
	struct buf b = BUF_INIT(4096);
	auto_close int lock = -1;
	int r = buf_printf(&b, "%s\n", host);

	r = r < 0 ? error_errno(err, r, "make the hostname of container %.12s", c->id) :
		    write_file(c, "hostname", &b, err);
	buf_fini(&b);
	if (r == 0)
		r = write_resolv(c, err);
	if (r < 0)
		return r;
	/* Only networks have neighbours; a container alone need not wait for other commands. */
	if (connect_is_up(c)) {
		lock = lock_hosts(err);
		r = lock < 0 ? lock : container_list(&all, err);
	}
	if (r == 0)
		r = write_hosts(c, &all, err);
	container_list_fini(&all);
	return r;
}
