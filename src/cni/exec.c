/* One run of one plugin: environment, configuration on standard input, JSON on standard output. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/child.h"
#include "base/fd.h"
#include "base/str.h"
#include "cni/internal.h"

enum { PLUGIN_LOCK_FD = 3, STDERR_MAX = 4096, DEFAULT_TIMEOUT_MS = 60000 };

int cni_find_plugin(const char *dirs, const char *type, char **ret, struct error *err)
{
	const char *p = dirs;

	while (*p) {
		size_t len = strcspn(p, ":");
		auto_free char *path = str_printf("%.*s/%s", (int)len, p, type);

		if (!path)
			return error_set(err, -ENOMEM, "out of memory");
		if (len && *p == '/' && !access(path, X_OK)) {
			*ret = take_ptr(&path);
			return 0;
		}
		p += len + (p[len] == ':');
	}
	return error_set(err, -ENOENT, "there is no plugin '%s' in %s; install it "
			 "(Debian: containernetworking-plugins) or set CNI_PATH", type, dirs);
}

static int make_env(const struct cni_exec *x, char ***ret)
{
	const char *const pairs[][2] = {
		{ "CNI_COMMAND", x->command }, { "CNI_CONTAINERID", x->at->container },
		{ "CNI_NETNS", x->netns ? x->netns : "" }, { "CNI_IFNAME", x->at->ifname },
		{ "CNI_ARGS", x->at->args ? x->at->args : "" }, { "CNI_PATH", x->dirs },
	};
	auto_strv char **env = NULL;
	bool has_path = false;
	int r = 0;

	for (char **e = environ; *e && r == 0; e++) {
		if (str_has_prefix(*e, "CNI_"))
			continue;
		has_path |= str_has_prefix(*e, "PATH=");
		r = strv_append(&env, *e);
	}
	if (r == 0 && !has_path)
		r = strv_append(&env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
	for (size_t i = 0; i < ARRAY_LEN(pairs) && r == 0; i++) {
		auto_free char *word = str_printf("%s=%s", pairs[i][0], pairs[i][1]);

		r = word ? strv_append(&env, word) : -ENOMEM;
	}
	if (r < 0)
		return r;
	*ret = take_ptr(&env);
	return 0;
}

static int make_stdin(json_t *request, struct error *err)
{
	auto_free char *text = json_dumps(request, JSON_COMPACT);
	auto_close int fd = memfd_create("cni", MFD_CLOEXEC);
	int r;

	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	if (fd < 0)
		return error_errno(err, -errno, "make a file in memory");
	r = fd_write_full(fd, text, strlen(text));
	if (r == 0 && lseek(fd, 0, SEEK_SET) < 0)
		r = -errno;
	return r < 0 ? error_errno(err, r, "write the configuration") : take_fd(&fd);
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* What is there to read without waiting. 1: the end. What exceeds the limit is dropped if @drop. */
static int take_output(int fd, struct buf *b, bool drop)
{
	for (;;) {
		char chunk[4096];
		ssize_t n = read(fd, chunk, sizeof(chunk));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -errno;
		if (n == 0)
			return 1;
		if (buf_append(b, chunk, (size_t)n) < 0 && !drop)
			return -EMSGSIZE;
	}
}

/* Until the plugin's process has ended: somebody it has left behind may keep the pipes open. */
static int collect(int pidfd, int out, int errs, struct buf *text, struct buf *words, int64_t end)
{
	struct pollfd p[] = { { .fd = pidfd, .events = POLLIN }, { .fd = out, .events = POLLIN },
			      { .fd = errs, .events = POLLIN } };

	for (;;) {
		int64_t left = end - now_ms();
		int n = left > 0 ? poll(p, ARRAY_LEN(p), (int)left) : 0, r;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ETIMEDOUT;
		r = take_output(out, text, false);
		if (r < 0)
			return r;
		if (r > 0)
			p[1].fd = -1;
		if (take_output(errs, words, true))
			p[2].fd = -1;
		if (p[0].revents)
			return 0;
	}
}

static int pipe_nonblock(int fds[2])
{
	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	/* The plugin's end stays blocking. */
	return fd_set_nonblock(fds[0], true);
}

struct ran {
	struct buf out, words;
	int status;
};

static int run(const struct cni_exec *x, const char *path, struct ran *ran, struct error *err)
{
	auto_strv char **env = NULL;
	const char *const argv[] = { path, NULL };
	auto_close int in = make_stdin(x->request, err);
	int out[2] = { -1, -1 }, errs[2] = { -1, -1 };
	auto_close int out_end = -1, errs_end = -1, pidfd = -1;
	unsigned limit = x->timeout_ms ? x->timeout_ms : DEFAULT_TIMEOUT_MS;
	pid_t pid;
	int r;

	if (in < 0)
		return in;
	if (make_env(x, &env) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	r = pipe_nonblock(out);
	if (r == 0)
		r = pipe_nonblock(errs);
	out_end = out[0];
	errs_end = errs[0];
	if (r == 0) {
		const struct child_fd fds[] = { { in, 0 }, { out[1], 1 }, { errs[1], 2 },
						{ x->lock_fd, PLUGIN_LOCK_FD } };
		/* A session of its own: what the terminal sends to this command is not for it. */
		const struct child_options o = { .argv = argv, .envp = (const char *const *)env,
						 .fds = fds, .n_fds = ARRAY_LEN(fds), .cwd_fd = -1,
						 .setsid = true };

		r = child_spawn(&o, &pid, &pidfd);
	}
	cleanup_close_(&out[1]);
	cleanup_close_(&errs[1]);
	if (r < 0)
		return error_errno(err, r, "run '%s'", path);
	r = collect(pidfd, out_end, errs_end, &ran->out, &ran->words, now_ms() + limit);
	if (r < 0)
		(void)child_pidfd_signal(pidfd, SIGKILL);
	(void)!child_wait(pid, &ran->status);
	if (r == -ETIMEDOUT)
		return error_set(err, r, "it did not end within %u s and was killed", limit / 1000);
	if (r == -EMSGSIZE)
		return error_set(err, r, "it printed more than %u bytes", CNI_TEXT_MAX);
	return r < 0 ? error_errno(err, r, "read what it prints") : 0;
}

/* A failure: the plugin's error object, or else the last line it wrote for people. */
static int explain(const struct ran *ran, json_t *answer, struct error *err)
{
	const char *msg = json_string_value(json_object_get(answer, "msg"));
	const char *details = json_string_value(json_object_get(answer, "details"));
	json_t *code = json_object_get(answer, "code");
	auto_free char *words = strndup(ran->words.len ? (char *)buf_head(&ran->words) : "",
					ran->words.len);
	char *line = words;

	if (!str_empty(msg) || json_is_integer(code))
		return error_set(err, -EIO, "%s%s%s (code %lld)", msg ? msg : "failed",
				 str_empty(details) ? "" : ": ", details ? details : "",
				 (long long)json_integer_value(code));
	for (char *p = words; p && *p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : p + strlen(p))
		if (*p != '\n')
			line = p;
	if (line)
		line[strcspn(line, "\n")] = '\0';
	return error_set(err, -EIO, "ended with code %d%s%s", child_exit_code(ran->status),
			 str_empty(line) ? "" : ": ", line ? line : "");
}

int cni_exec(const struct cni_exec *x, json_t **ret_answer, struct error *err)
{
	struct ran ran = { .out = BUF_INIT(CNI_TEXT_MAX), .words = BUF_INIT(STDERR_MAX) };
	auto_free char *path = NULL;
	json_t *answer = NULL;
	json_error_t why = { 0 };
	int r = cni_find_plugin(x->dirs, x->type, &path, err);

	if (r == 0)
		r = run(x, path, &ran, err);
	if (r == 0 && ran.out.len)
		answer = json_loadb((const char *)buf_head(&ran.out), ran.out.len, 0, &why);
	if (r == 0 && ran.status != 0)
		r = explain(&ran, answer, err);
	else if (r == 0 && !answer && ran.out.len)
		r = error_set(err, -EPROTO, "it printed no JSON: %s", why.text);
	buf_fini(&ran.out);
	buf_fini(&ran.words);
	if (r < 0) {
		json_decref(answer);
		return error_prefix(err, r, "plugin %s: %s", x->type, x->command);
	}
	*ret_answer = answer;
	return 0;
}
