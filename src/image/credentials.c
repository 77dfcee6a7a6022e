#include "image/credentials.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <string.h>
#include <strings.h>

#define HUB_KEY "index.docker.io"

void credentials_fini(struct credentials *c)
{
	if (c->password)
		explicit_bzero(c->password, strlen(c->password));
	free(c->user);
	free(c->password);
	free(c->identity_token);
	*c = (struct credentials){ 0 };
}

/* "https://index.docker.io/v1/" and "index.docker.io" are the same registry. */
static bool same_host(const char *key, const char *domain)
{
	const char *p = strstr(key, "://");
	size_t n;

	p = p ? p + 3 : key;
	n = strcspn(p, "/");
	if (str_eq(domain, "docker.io"))
		domain = HUB_KEY;
	return (strlen(domain) == n && !strncasecmp(p, domain, n)) ||
	       (str_eq(domain, HUB_KEY) && n == 9 && !strncasecmp(p, "docker.io", 9));
}

/* base64("user:password") */
static int decode_auth(const char *text, struct credentials *c)
{
	size_t n = strlen(text), pad = 0;
	auto_free char *plain = NULL;
	char *colon;
	int len;

	while (n > pad && text[n - 1 - pad] == '=')
		pad++;
	if (n == 0 || n % 4 != 0 || pad > 2 || n > 65536)
		return -EINVAL;
	plain = malloc(n + 1);
	if (!plain)
		return -ENOMEM;
	len = EVP_DecodeBlock((unsigned char *)plain, (const unsigned char *)text, (int)n);
	if (len < (int)pad)
		return -EINVAL;
	plain[(size_t)len - pad] = '\0';
	colon = strchr(plain, ':');
	if (!colon)
		return -EINVAL;
	*colon = '\0';
	c->user = strdup(plain);
	c->password = strdup(colon + 1);
	explicit_bzero(plain, n);
	return c->user && c->password ? 0 : -ENOMEM;
}

static int from_entry(const char *key, const json_t *entry, struct credentials *c,
		      struct error *err)
{
	const char *auth = json_string_value(json_object_get(entry, "auth"));
	const char *user = json_string_value(json_object_get(entry, "username"));
	const char *password = json_string_value(json_object_get(entry, "password"));
	const char *token = json_string_value(json_object_get(entry, "identitytoken"));
	int r = 0;

	if (!str_empty(token)) {
		c->identity_token = strdup(token);
		r = c->identity_token ? 0 : -ENOMEM;
	} else if (!str_empty(auth)) {
		r = decode_auth(auth, c);
	} else if (!str_empty(user)) {
		c->user = strdup(user);
		c->password = strdup(password ? password : "");
		r = c->user && c->password ? 0 : -ENOMEM;
	}
	if (r == -EINVAL)
		return error_set(err, r,
				 "docker's config.json: 'auth' of '%s' is not base64 of "
				 "user:password",
				 key);
	return r < 0 ? error_set(err, r, "out of memory") : 0;
}

int credentials_parse(const char *text, size_t n, const char *domain, struct credentials *ret,
		      char **ret_helper, struct error *err)
{
	auto_json json_t *j = NULL;
	struct credentials c = { 0 };
	const char *key, *helper = NULL;
	json_error_t je;
	json_t *value;
	int r = 0;

	j = json_loadb(text, n, 0, &je);
	if (!json_is_object(j))
		return error_set(err, -EINVAL,
				 "docker's config.json is not a JSON object: line %d: "
				 "%s",
				 je.line, j ? "not an object" : je.text);
	json_object_foreach(json_object_get(j, "credHelpers"), key,
			    value) if (same_host(key, domain)) helper = json_string_value(value);
	json_object_foreach(json_object_get(j, "auths"), key, value)
	{
		if (!same_host(key, domain) || c.user || c.identity_token)
			continue;
		r = from_entry(key, value, &c, err);
		if (r < 0)
			break;
	}
	if (r == 0 && !helper && !c.user && !c.identity_token)
		helper = json_string_value(json_object_get(j, "credsStore"));
	if (r == 0 && !str_empty(helper)) {
		*ret_helper = strdup(helper);
		if (!*ret_helper)
			r = error_set(err, -ENOMEM, "out of memory");
	}
	if (r < 0) {
		credentials_fini(&c);
		return r;
	}
	*ret = c;
	return 0;
}

static int read_answer(int fd, char **ret, size_t *ret_n)
{
	char *text = malloc(65536);
	ssize_t n;

	if (!text)
		return -ENOMEM;
	n = fd_read_full(fd, text, 65535);
	if (n < 0) {
		free(text);
		return (int)n;
	}
	text[n] = '\0';
	*ret = text;
	*ret_n = (size_t)n;
	return 0;
}

/* docker-credential-NAME get: the server's name in, JSON out. */
static int ask_helper(const char *helper, const char *domain, struct credentials *ret,
		      struct error *err)
{
	auto_free char *program = str_printf("docker-credential-%s", helper);
	const char *server = str_eq(domain, "docker.io") ? "https://index.docker.io/v1/" : domain;
	const char *const argv[] = { program, "get", NULL };
	auto_close int in_r = -1, in_w = -1, out_r = -1, out_w = -1;
	auto_free char *text = NULL;
	auto_json json_t *j = NULL;
	const char *user, *secret;
	int a[2], b[2], r, status;
	size_t n = 0;
	pid_t pid;

	if (!program || strchr(helper, '/'))
		return error_set(err, -EINVAL, "docker's config.json: bad credential helper '%s'",
				 helper);
	if (pipe2(a, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "run %s", program);
	in_r = a[0];
	in_w = a[1];
	if (pipe2(b, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "run %s", program);
	out_r = b[0];
	out_w = b[1];
	{
		const struct child_fd fds[] = { { in_r, 0 }, { out_w, 1 } };
		const struct child_options o = {
			.argv = argv, .fds = fds, .n_fds = 2, .cwd_fd = -1, .pdeathsig = SIGKILL
		};

		r = child_spawn(&o, &pid, NULL);
	}
	if (r < 0)
		return error_errno(err, r, "run %s", program);
	(void)close(take_fd(&in_r));
	(void)close(take_fd(&out_w));
	r = fd_write_full(in_w, server, strlen(server));
	(void)close(take_fd(&in_w));
	if (r == 0)
		r = read_answer(out_r, &text, &n);
	if (child_wait(pid, &status) < 0 || child_exit_code(status) != 0)
		return 0; /* it has none for this server */
	j = r == 0 ? json_loadb(text, n, 0, NULL) : NULL;
	user = json_string_value(json_object_get(j, "Username"));
	secret = json_string_value(json_object_get(j, "Secret"));
	if (!user || !secret)
		return error_set(err, -EINVAL, "%s did not answer with credentials", program);
	if (str_eq(user, "<token>")) {
		ret->identity_token = strdup(secret);
	} else {
		ret->user = strdup(user);
		ret->password = strdup(secret);
	}
	return ret->identity_token || (ret->user && ret->password)
		       ? 0
		       : error_set(err, -ENOMEM, "out of memory");
}

int credentials_find(const char *domain, struct credentials *ret, struct error *err)
{
	const char *dir = getenv("DOCKER_CONFIG"), *home = getenv("HOME");
	auto_free char *path = NULL, *text = NULL, *helper = NULL;
	size_t n;
	int r;

	if (!str_empty(dir))
		path = str_join_path(dir, "config.json");
	else
		path = str_printf("%s/.docker/config.json", str_empty(home) ? "/root" : home);
	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	r = fd_read_file(AT_FDCWD, path, LIMIT_DOCKER_CONFIG, &text, &n);
	if (r == -ENOENT || r == -ENOTDIR)
		return 0;
	if (r < 0)
		return error_errno(err, r, "read '%s'", path);
	r = credentials_parse(text, n, domain, ret, &helper, err);
	explicit_bzero(text, n);
	if (r == 0 && helper)
		r = ask_helper(helper, domain, ret, err);
	return r;
}

/* ---- our own settings ------------------------------------------------------------------- */

void registry_settings_fini(struct registry_settings *s)
{
	strv_free(s->mirrors);
	free(s->ca_file);
	*s = (struct registry_settings){ 0 };
}

static int parse_settings(const json_t *j, const char *domain, struct registry_settings *s,
			  struct error *err)
{
	const json_t *mirrors, *value;
	const char *key;
	json_t *v;
	size_t i;

	if (!json_is_object(j))
		return error_set(err, -EINVAL, "'%s' is not an object", domain);
	json_object_foreach(
		(json_t *)j, key,
		v) if (!str_eq(key, "mirrors") && !str_eq(key, "ca") &&
		       !str_eq(key, "insecure")) return error_set(err, -EINVAL,
								  "'%s': unknown key '%s'", domain,
								  key);
	mirrors = json_object_get(j, "mirrors");
	if (mirrors && !json_is_array(mirrors))
		return error_set(err, -EINVAL, "'%s': 'mirrors' is not a list", domain);
	json_array_foreach(mirrors, i, value)
	{
		const char *url = json_string_value(value);

		if (!url || (!str_has_prefix(url, "https://") && !str_has_prefix(url, "http://")))
			return error_set(err, -EINVAL, "'%s': a mirror is not an http(s) URL",
					 domain);
		if (strv_append(&s->mirrors, url) < 0)
			return error_set(err, -ENOMEM, "out of memory");
	}
	value = json_object_get(j, "ca");
	if (value && !json_is_string(value))
		return error_set(err, -EINVAL, "'%s': 'ca' is not a file's name", domain);
	if (value) {
		s->ca_file = strdup(json_string_value(value));
		if (!s->ca_file)
			return error_set(err, -ENOMEM, "out of memory");
	}
	value = json_object_get(j, "insecure");
	if (value && !json_is_boolean(value))
		return error_set(err, -EINVAL, "'%s': 'insecure' is not true or false", domain);
	s->insecure = json_is_true(value);
	return 0;
}

int registry_settings_find(const char *domain, struct registry_settings *ret, struct error *err)
{
	const char *path = getenv("CAISSON_REGISTRIES");
	struct registry_settings s = { 0 };
	auto_json json_t *j = NULL;
	auto_free char *text = NULL;
	const json_t *entry;
	json_error_t je;
	size_t n;
	int r;

	if (str_empty(path))
		path = "/etc/caisson/registries.json";
	r = fd_read_file(AT_FDCWD, path, LIMIT_DOCKER_CONFIG, &text, &n);
	if (r == -ENOENT)
		return 0;
	if (r < 0)
		return error_errno(err, r, "read '%s'", path);
	j = json_loadb(text, n, JSON_REJECT_DUPLICATES, &je);
	if (!json_is_object(j))
		return error_set(err, -EINVAL, "%s:%d: %s", path, je.line,
				 j ? "it is not an object" : je.text);
	entry = json_object_get(j, domain);
	r = entry ? parse_settings(entry, domain, &s, err) : 0;
	if (r < 0) {
		registry_settings_fini(&s);
		return error_prefix(err, r, "%s", path);
	}
	*ret = s;
	return 0;
}

/* ---- challenges ------------------------------------------------------------------------- */

void challenge_fini(struct challenge *c)
{
	free(c->realm);
	free(c->service);
	free(c->scope);
	*c = (struct challenge){ 0 };
}

static bool word_is(const char *s, size_t n, const char *word)
{
	return strlen(word) == n && !strncasecmp(s, word, n);
}

/* A quoted string or a token at *@p. */
static char *take_value(const char **p)
{
	const char *s = *p;
	char *out, *w;
	size_t n;

	if (*s != '"') {
		n = strcspn(s, ", \t");
		*p = s + n;
		return strndup(s, n);
	}
	out = w = malloc(strlen(s) + 1);
	if (!out)
		return NULL;
	for (s++; *s && *s != '"'; s++) {
		if (*s == '\\' && s[1])
			s++;
		*w++ = *s;
	}
	*w = '\0';
	*p = *s ? s + 1 : s;
	return out;
}

int challenge_parse(const char *header, struct challenge *ret)
{
	struct challenge c = { 0 };
	bool in_bearer = false;

	for (const char *p = header; *p;) {
		size_t n;
		const char *name;
		char **dst = NULL;
		char *value;

		p += strspn(p, ", \t");
		name = p;
		n = strcspn(p, "=, \t");
		p += n;
		if (n == 0) {
			if (*p)
				p++;
			continue;
		}
		if (*p != '=') {
			/* A scheme's name. */
			in_bearer = word_is(name, n, "bearer") && !c.bearer;
			c.bearer |= in_bearer;
			c.basic |= word_is(name, n, "basic");
			continue;
		}
		p++;
		value = take_value(&p);
		if (!value) {
			challenge_fini(&c);
			return -ENOMEM;
		}
		if (in_bearer && word_is(name, n, "realm"))
			dst = &c.realm;
		else if (in_bearer && word_is(name, n, "service"))
			dst = &c.service;
		else if (in_bearer && word_is(name, n, "scope"))
			dst = &c.scope;
		if (dst && !*dst)
			*dst = value;
		else
			free(value);
	}
	*ret = c;
	return 0;
}
