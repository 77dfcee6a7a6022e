/* Platforms: names as Go has them, with the synonyms that images use. */
#include "image/internal.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

static const struct {
	const char *name, *arch, *variant;
} synonyms[] = {
	{ "x86_64", "amd64", "" },    { "x86-64", "amd64", "" },
	{ "i386", "386", "" },        { "i686", "386", "" },
	{ "aarch64", "arm64", "" },   { "armhf", "arm", "v7" },
	{ "armv7l", "arm", "v7" },    { "armel", "arm", "v6" },
	{ "ppc64el", "ppc64le", "" }, { "loongarch64", "loong64", "" },
};

void platform_normalize(struct image_platform *p)
{
	for (char *c = p->os; *c; c++)
		*c = (char)tolower((unsigned char)*c);
	for (char *c = p->arch; *c; c++)
		*c = (char)tolower((unsigned char)*c);
	for (size_t i = 0; i < ARRAY_LEN(synonyms); i++) {
		if (!str_eq(p->arch, synonyms[i].name))
			continue;
		(void)snprintf(p->arch, sizeof(p->arch), "%s", synonyms[i].arch);
		if (!*p->variant)
			(void)snprintf(p->variant, sizeof(p->variant), "%s", synonyms[i].variant);
		break;
	}
	/* The variant that goes without saying. */
	if ((str_eq(p->arch, "arm64") && (str_eq(p->variant, "v8") || str_eq(p->variant, "8"))) ||
	    (str_eq(p->arch, "amd64") && str_eq(p->variant, "v1")))
		p->variant[0] = '\0';
	if (str_eq(p->arch, "arm") && !*p->variant)
		memcpy(p->variant, "v7", 3);
}

int image_platform_host(struct image_platform *ret)
{
	struct utsname u;

	if (uname(&u) < 0)
		return -errno;
	memset(ret, 0, sizeof(*ret));
	memcpy(ret->os, "linux", 6);
	(void)snprintf(ret->arch, sizeof(ret->arch), "%.31s", u.machine);
	platform_normalize(ret);
	return 0;
}

static bool copy_word(char *dst, size_t size, const char *s, size_t n)
{
	if (n == 0 || n >= size)
		return false;
	for (size_t i = 0; i < n; i++)
		if (!isalnum((unsigned char)s[i]) && !strchr("-_.", s[i]))
			return false;
	memcpy(dst, s, n);
	dst[n] = '\0';
	return true;
}

int image_platform_parse(const char *text, struct image_platform *ret, struct error *err)
{
	struct image_platform p = { 0 }, host;
	const char *a = strchr(text, '/');
	const char *b = a ? strchr(a + 1, '/') : NULL;
	bool ok;
	int r;

	if (!a) {
		/* A lone word is an operating system or an architecture. */
		r = image_platform_host(&host);
		if (r < 0)
			return error_errno(err, r, "find this host's platform");
		if (str_eq(text, "linux")) {
			*ret = host;
			return 0;
		}
		memcpy(p.os, "linux", 6);
		ok = copy_word(p.arch, sizeof(p.arch), text, strlen(text));
	} else {
		ok = copy_word(p.os, sizeof(p.os), text, (size_t)(a - text)) &&
		     copy_word(p.arch, sizeof(p.arch), a + 1,
			       b ? (size_t)(b - a - 1) : strlen(a + 1)) &&
		     (!b || copy_word(p.variant, sizeof(p.variant), b + 1, strlen(b + 1)));
	}
	if (!ok)
		return error_set(err, -EINVAL,
				 "platform '%s' is not of the form os/architecture[/variant]",
				 text);
	platform_normalize(&p);
	*ret = p;
	return 0;
}

static int variant_number(const struct image_platform *p)
{
	const char *v = p->variant;

	if (!*v)
		return str_eq(p->arch, "arm64") ? 8 : 1;
	if (*v == 'v')
		v++;
	return *v >= '0' && *v <= '9' ? *v - '0' : 0;
}

int platform_match(const struct image_platform *want, const struct image_platform *have)
{
	int w, h;

	if (!str_eq(want->os, have->os) || !str_eq(want->arch, have->arch))
		return 0;
	if (str_eq(want->variant, have->variant))
		return 100;
	/* A newer CPU runs code for older ones; the nearest is the best. */
	w = variant_number(want);
	h = variant_number(have);
	return h <= w ? 50 + h : 0;
}

const char *platform_text(const struct image_platform *p, char dst[PLATFORM_TEXT_MAX])
{
	(void)snprintf(dst, PLATFORM_TEXT_MAX, "%s/%s%s%s", *p->os ? p->os : "unknown",
		       *p->arch ? p->arch : "unknown", *p->variant ? "/" : "", p->variant);
	return dst;
}
