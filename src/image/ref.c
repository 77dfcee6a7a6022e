/* Image references, with Docker's defaults and rules. */
#include "image/internal.h"

#include <ctype.h>
#include <limits.h>
#include <string.h>

#define DEFAULT_DOMAIN "docker.io"

void image_ref_fini(struct image_ref *ref)
{
	free(ref->domain);
	free(ref->path);
	free(ref->tag);
	free(ref->digest);
	free(ref->name);
	free(ref->familiar);
	memset(ref, 0, sizeof(*ref));
}

static const struct {
	const char *scheme;
	enum image_ref_kind kind;
} kinds[] = {
	{ "oci:", IMAGE_REF_OCI_DIR },
	{ "oci-archive:", IMAGE_REF_OCI_ARCHIVE },
	{ "docker-archive:", IMAGE_REF_DOCKER_ARCHIVE },
};

static bool has_scheme(const char *text)
{
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
		if (str_has_prefix(text, kinds[i].scheme))
			return true;
	return false;
}

static bool valid_tag(const char *s)
{
	size_t n = strlen(s);

	if (n == 0 || n > 128 || *s == '.' || *s == '-')
		return false;
	for (; *s; s++)
		if (!isalnum((unsigned char)*s) && !strchr("_.-", *s))
			return false;
	return true;
}

/* [a-z0-9]+ joined by ".", "_", "__" or dashes; components joined by "/". */
static bool valid_path(const char *s)
{
	bool after_separator = true;

	for (const char *p = s; *p; p++) {
		if ((*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9')) {
			after_separator = false;
			continue;
		}
		if (after_separator || !strchr("/._-", *p))
			return false;
		if (*p == '_' && p[1] == '_')
			p++;
		while (*p == '-' && p[1] == '-')
			p++;
		after_separator = true;
	}
	return !after_separator;
}

static bool valid_port(const char *s)
{
	uint32_t port;

	return str_parse_u32(s, &port) == 0 && port > 0 && port < 65536;
}

static bool valid_host_label(const char *s, size_t n)
{
	if (n == 0 || s[0] == '-' || s[n - 1] == '-')
		return false;
	for (size_t i = 0; i < n; i++)
		if (!isalnum((unsigned char)s[i]) && s[i] != '-')
			return false;
	return true;
}

static bool valid_domain(const char *s)
{
	const char *colon;
	size_t n;

	if (*s == '[') {
		const char *end = strchr(s, ']');

		if (!end || end == s + 1 ||
		    strspn(s + 1, "0123456789abcdefABCDEF:.") != (size_t)(end - s - 1))
			return false;
		return !end[1] || (end[1] == ':' && valid_port(end + 2));
	}
	colon = strchr(s, ':');
	if (colon && !valid_port(colon + 1))
		return false;
	n = colon ? (size_t)(colon - s) : strlen(s);
	for (const char *p = s; p <= s + n;) {
		size_t len = strcspn(p, ".:");

		if (!valid_host_label(p, len))
			return false;
		p += len + 1;
	}
	return true;
}

/* Is the part before the first "/" a registry rather than the start of a path? */
static bool looks_like_domain(const char *s, size_t n)
{
	if (memchr(s, '.', n) || memchr(s, ':', n) || (n == 9 && !memcmp(s, "localhost", 9)))
		return true;
	for (size_t i = 0; i < n; i++)
		if (isupper((unsigned char)s[i]))
			return true;
	return false;
}

static int bad(const char *text, const char *why, struct error *err)
{
	return error_set(err, -EINVAL, "'%.200s' is not an image reference: %s", text, why);
}

/* Splits off "@digest" and ":tag" at the end of @rest. */
static int split_suffixes(const char *text, char *rest, struct image_ref *ref, struct error *err)
{
	char *at = strchr(rest, '@'), *slash, *colon;
	struct digest d;
	int r;

	if (at) {
		*at = '\0';
		r = digest_parse(at + 1, &d);
		if (r == -ENOTSUP)
			return bad(text, "only sha256 digests are supported", err);
		if (r < 0)
			return bad(text, "what follows '@' is not sha256: and 64 hex digits", err);
		ref->digest = strdup(d.s);
		if (!ref->digest)
			return error_set(err, -ENOMEM, "out of memory");
	}
	slash = strrchr(rest, '/');
	colon = strrchr(slash ? slash : rest, ':');
	if (colon) {
		*colon = '\0';
		if (!valid_tag(colon + 1))
			return bad(text, "the tag is not valid", err);
		ref->tag = strdup(colon + 1);
		if (!ref->tag)
			return error_set(err, -ENOMEM, "out of memory");
	}
	return 0;
}

static int set_registry_names(struct image_ref *ref, struct error *err)
{
	const char *path = ref->path;
	bool hub = str_eq(ref->domain, DEFAULT_DOMAIN);

	/* With a digest, the tag says nothing: Docker drops it, too. */
	if (ref->digest)
		ref->name = str_printf("%s/%s@%s", ref->domain, path, ref->digest);
	else
		ref->name = str_printf("%s/%s:%s", ref->domain, path, ref->tag);
	if (!ref->name)
		return error_set(err, -ENOMEM, "out of memory");
	if (hub && str_has_prefix(path, "library/") && !strchr(path + 8, '/'))
		ref->familiar = strdup(ref->name + strlen(DEFAULT_DOMAIN "/library/"));
	else
		ref->familiar = strdup(ref->name + (hub ? strlen(DEFAULT_DOMAIN "/") : 0));
	/* What would be read as something else keeps its long name. */
	if (ref->familiar && hub &&
	    (has_scheme(ref->familiar) || looks_like_domain(path, strcspn(path, "/")))) {
		free(ref->familiar);
		ref->familiar = strdup(ref->name);
	}
	return ref->familiar ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int parse_registry(const char *text, const char *given, struct image_ref *ref,
			  struct error *err)
{
	auto_free char *rest = strdup(given);
	const char *path, *slash;
	int r;

	if (!rest)
		return error_set(err, -ENOMEM, "out of memory");
	if (!*rest)
		return bad(text, "it is empty", err);
	r = split_suffixes(text, rest, ref, err);
	if (r < 0)
		return r;
	slash = strchr(rest, '/');
	if (slash && looks_like_domain(rest, (size_t)(slash - rest))) {
		ref->domain = strndup(rest, (size_t)(slash - rest));
		path = slash + 1;
	} else {
		ref->domain = strdup(DEFAULT_DOMAIN);
		path = rest;
	}
	if (!ref->domain)
		return error_set(err, -ENOMEM, "out of memory");
	if (!valid_domain(ref->domain))
		return bad(text, "the registry's name is not valid", err);
	if (!*path)
		return bad(text, "the repository's name is empty", err);
	for (const char *p = path; *p; p++)
		if (isupper((unsigned char)*p))
			return bad(text, "the repository's name must be lower case", err);
	if (!valid_path(path))
		return bad(text, "the repository's name is not valid", err);
	if (str_eq(ref->domain, "index.docker.io")) {
		free(ref->domain);
		ref->domain = strdup(DEFAULT_DOMAIN);
		if (!ref->domain)
			return error_set(err, -ENOMEM, "out of memory");
	}
	if (str_eq(ref->domain, DEFAULT_DOMAIN) && !strchr(path, '/'))
		ref->path = str_printf("library/%s", path);
	else
		ref->path = strdup(path);
	if (!ref->tag && !ref->digest)
		ref->tag = strdup("latest");
	if (!ref->path || (!ref->tag && !ref->digest))
		return error_set(err, -ENOMEM, "out of memory");
	if (strlen(ref->path) > 255)
		return bad(text, "the repository's name is too long", err);
	return set_registry_names(ref, err);
}

/* Absolute, without "." and double slashes; ".." is kept, since it may follow a link. */
static char *absolute_path(const char *path)
{
	auto_free char *cwd = *path == '/' ? strdup("") : getcwd(NULL, 0);
	auto_free char *joined = cwd ? str_printf("%s/%s", cwd, path) : NULL;
	char *out, *w;

	if (!joined)
		return NULL;
	out = w = malloc(strlen(joined) + 2);
	if (!out)
		return NULL;
	for (const char *p = joined; *p;) {
		size_t n = strcspn(p, "/");

		if (n > 0 && !(n == 1 && *p == '.')) {
			*w++ = '/';
			memcpy(w, p, n);
			w += n;
		}
		p += n + (p[n] == '/');
	}
	if (w == out)
		*w++ = '/';
	*w = '\0';
	return out;
}

/*
 * "FILE[:TAG]": the tag starts after the first colon of the last component, so that it may hold
 * a whole "name:tag" as docker archives have it; a path with colons that exists is taken whole.
 */
static int parse_local(const char *text, const char *rest, const char *scheme,
		       struct image_ref *ref, struct error *err)
{
	auto_free char *path = strdup(rest);
	char *colon;

	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	if (!*path)
		return bad(text, "the path is empty", err);
	if (access(path, F_OK) != 0) {
		/* The longest prefix before a colon that exists, else the first colon. */
		char *best = NULL;

		for (colon = strchr(path, ':'); colon; colon = strchr(colon + 1, ':')) {
			*colon = '\0';
			if (access(path, F_OK) == 0)
				best = colon;
			*colon = ':';
		}
		if (!best)
			best = strchr(path, ':');
		if (best) {
			*best = '\0';
			if (!best[1])
				return bad(text, "the tag is empty", err);
			if (strlen(best + 1) > 512)
				return bad(text, "the tag is too long", err);
			ref->tag = strdup(best + 1);
			if (!ref->tag)
				return error_set(err, -ENOMEM, "out of memory");
		}
	}
	if (!*path)
		return bad(text, "the path is empty", err);
	if (strlen(path) >= PATH_MAX)
		return bad(text, "the path is too long", err);
	ref->path = absolute_path(path);
	if (!ref->path)
		return error_set(err, -ENOMEM, "out of memory");
	ref->name = ref->tag ? str_printf("%s%s:%s", scheme, ref->path, ref->tag)
			     : str_printf("%s%s", scheme, ref->path);
	ref->familiar = ref->name ? strdup(ref->name) : NULL;
	return ref->familiar ? 0 : error_set(err, -ENOMEM, "out of memory");
}

int image_ref_parse(const char *text, struct image_ref *ret, struct error *err)
{
	struct image_ref ref = { 0 };
	int r = 1;

	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		if (!str_has_prefix(text, kinds[i].scheme))
			continue;
		ref.kind = kinds[i].kind;
		r = parse_local(text, text + strlen(kinds[i].scheme), kinds[i].scheme, &ref, err);
		break;
	}
	if (r > 0) {
		ref.kind = IMAGE_REF_REGISTRY;
		r = parse_registry(text, text + (str_has_prefix(text, "docker://") ? 9 : 0), &ref,
				   err);
	}
	if (r < 0) {
		image_ref_fini(&ref);
		return r;
	}
	*ret = ref;
	return 0;
}
