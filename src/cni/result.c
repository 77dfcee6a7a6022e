/* What ADD answers. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "cni/internal.h"

static int family_of(const char *address)
{
	unsigned char raw[16];

	return inet_pton(AF_INET, address, raw) == 1 ? AF_INET :
	       inet_pton(AF_INET6, address, raw) == 1 ? AF_INET6 : -EINVAL;
}

/* "ADDRESS/PREFIX"; the address goes to @ret_address. */
static int parse_cidr(const char *text, char ret_address[46], unsigned *ret_prefix)
{
	const char *slash = strchr(text, '/');
	size_t len = slash ? (size_t)(slash - text) : 0;
	char address[46];
	uint32_t prefix;
	int family;

	if (!len || len >= sizeof(address) || str_parse_u32(slash + 1, &prefix) < 0)
		return -EINVAL;
	memcpy(address, text, len);
	address[len] = '\0';
	family = family_of(address);
	if (family < 0 || prefix > (family == AF_INET ? 32u : 128u))
		return -EINVAL;
	memcpy(ret_address, address, len + 1);
	*ret_prefix = prefix;
	return family;
}

static int copy_address(json_t *value, char out[46], const char *what, size_t i, struct error *err)
{
	const char *text = json_string_value(value);

	out[0] = '\0';
	if (!value || json_is_null(value) || (text && !*text))
		return 0;
	if (!text || family_of(text) < 0)
		return error_set(err, -EPROTO, "%s[%zu]: '%s' is not an address", what, i,
				 text ? text : "?");
	return str_format(out, 46, "%s", text) < 0 ? -EPROTO : 0;
}

/* The list @key of @json, which may be missing; checks its length and that it holds objects. */
static int get_list(json_t *json, const char *key, json_t **ret, struct error *err)
{
	json_t *list = json_object_get(json, key), *item;
	size_t i;

	*ret = NULL;
	if (!list || json_is_null(list))
		return 0;
	if (!json_is_array(list) || json_array_size(list) > CNI_MAX_ITEMS)
		return error_set(err, -EPROTO, "'%s' is not a list of at most %u", key, CNI_MAX_ITEMS);
	json_array_foreach(list, i, item)
		if (!json_is_object(item))
			return error_set(err, -EPROTO, "%s[%zu] is not an object", key, i);
	*ret = list;
	return 0;
}

static int parse_interfaces(struct cni_result *res, struct error *err)
{
	json_t *list, *item;
	size_t i;
	int r = get_list(res->json, "interfaces", &list, err);

	if (r < 0 || !list)
		return r;
	res->interfaces = calloc(json_array_size(list) + 1, sizeof(*res->interfaces));
	if (!res->interfaces)
		return error_set(err, -ENOMEM, "out of memory");
	json_array_foreach(list, i, item) {
		struct cni_interface *f = &res->interfaces[res->n_interfaces++];
		const char *name = json_string_value(json_object_get(item, "name"));
		const char *mac = json_string_value(json_object_get(item, "mac"));

		if (!name || !*name || str_format(f->name, sizeof(f->name), "%s", name) < 0)
			return error_set(err, -EPROTO, "interfaces[%zu].name: '%s' is not an interface's",
					 i, name ? name : "");
		if (mac && (strspn(mac, "0123456789abcdefABCDEF:") != strlen(mac) ||
			    str_format(f->mac, sizeof(f->mac), "%s", mac) < 0))
			f->mac[0] = '\0';
		f->sandbox = !str_empty(json_string_value(json_object_get(item, "sandbox")));
	}
	return 0;
}

static int parse_ips(struct cni_result *res, struct error *err)
{
	json_t *list, *item;
	size_t i;
	int r = get_list(res->json, "ips", &list, err);

	if (r < 0 || !list)
		return r;
	res->ips = calloc(json_array_size(list) + 1, sizeof(*res->ips));
	if (!res->ips)
		return error_set(err, -ENOMEM, "out of memory");
	json_array_foreach(list, i, item) {
		const char *address = json_string_value(json_object_get(item, "address"));
		json_t *index = json_object_get(item, "interface");
		struct cni_ip *ip = &res->ips[res->n_ips++];

		ip->family = address ? parse_cidr(address, ip->address, &ip->prefix) : -EINVAL;
		if (ip->family < 0)
			return error_set(err, -EPROTO, "ips[%zu].address: '%s' is not an address with a "
					 "prefix", i, address ? address : "");
		ip->interface = -1;
		if (json_is_integer(index)) {
			json_int_t n = json_integer_value(index);

			if (n < 0 || (uint64_t)n >= res->n_interfaces)
				return error_set(err, -EPROTO, "ips[%zu].interface: there is no such "
						 "interface", i);
			ip->interface = (int)n;
		}
		r = copy_address(json_object_get(item, "gateway"), ip->gateway, "gateway of ips", i, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int parse_routes(struct cni_result *res, struct error *err)
{
	json_t *list, *item;
	size_t i;
	int r = get_list(res->json, "routes", &list, err);

	if (r < 0 || !list)
		return r;
	res->routes = calloc(json_array_size(list) + 1, sizeof(*res->routes));
	if (!res->routes)
		return error_set(err, -ENOMEM, "out of memory");
	json_array_foreach(list, i, item) {
		const char *dst = json_string_value(json_object_get(item, "dst"));
		struct cni_route *route = &res->routes[res->n_routes++];
		char address[46];
		unsigned prefix;

		if (!dst || parse_cidr(dst, address, &prefix) < 0 ||
		    str_format(route->dst, sizeof(route->dst), "%s", dst) < 0)
			return error_set(err, -EPROTO, "routes[%zu].dst: '%s' is not a subnet", i,
					 dst ? dst : "");
		r = copy_address(json_object_get(item, "gw"), route->gateway, "gateway of routes", i, err);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Words for resolv.conf: nothing that would start another line or word. */
static int parse_words(json_t *dns, const char *key, char ***ret, bool addresses, struct error *err)
{
	json_t *list = json_object_get(dns, key), *item;
	size_t i;

	if (!list || json_is_null(list))
		return 0;
	if (!json_is_array(list) || json_array_size(list) > CNI_MAX_ITEMS)
		return error_set(err, -EPROTO, "dns.%s is not a list of at most %u", key, CNI_MAX_ITEMS);
	json_array_foreach(list, i, item) {
		const char *word = json_string_value(item);

		if (!word || !*word || strlen(word) > 255 || strpbrk(word, " \t\r\n#;") ||
		    (addresses && family_of(word) < 0))
			return error_set(err, -EPROTO, "dns.%s[%zu]: '%s' cannot be used", key, i,
					 word ? word : "");
		if (strv_append(ret, word) < 0)
			return error_set(err, -ENOMEM, "out of memory");
	}
	return 0;
}

static int parse_dns(struct cni_result *res, struct error *err)
{
	json_t *dns = json_object_get(res->json, "dns");
	int r;

	if (!dns || json_is_null(dns))
		return 0;
	if (!json_is_object(dns))
		return error_set(err, -EPROTO, "'dns' is not an object");
	r = parse_words(dns, "nameservers", &res->dns.servers, true, err);
	if (r == 0)
		r = parse_words(dns, "search", &res->dns.search, false, err);
	if (r == 0)
		r = parse_words(dns, "options", &res->dns.options, false, err);
	return r;
}

int cni_result_parse(json_t *json, struct cni_result **ret, struct error *err)
{
	auto_cni_result struct cni_result *res = calloc(1, sizeof(*res));
	int r;

	if (!res)
		return error_set(err, -ENOMEM, "out of memory");
	if (!json_is_object(json))
		return error_set(err, -EPROTO, "the result is not a JSON object");
	res->json = json_incref(json);
	r = parse_interfaces(res, err);
	if (r == 0)
		r = parse_ips(res, err);
	if (r == 0)
		r = parse_routes(res, err);
	if (r == 0)
		r = parse_dns(res, err);
	if (r < 0)
		return r;
	*ret = take_ptr(&res);
	return 0;
}

void cni_result_free(struct cni_result *res)
{
	if (!res)
		return;
	json_decref(res->json);
	free(res->interfaces);
	free(res->ips);
	free(res->routes);
	strv_free(res->dns.servers);
	strv_free(res->dns.search);
	strv_free(res->dns.options);
	free(res);
}
