/*
 * Hooks: programs that get the container's state as JSON on their standard input. Run from
 * the agent (prestart, createRuntime, poststart, poststop) or from the new process.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent/container/internal.h"

/* A hook without a time limit must not hold the agent for ever. */
#define HOOK_TIMEOUT_S 120
#define HOOK_OUTPUT_MAX 160

static void hook_json_string(FILE *f, const char *s)
{
	(void)fputc('"', f);
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '"' || c == '\\')
			(void)fprintf(f, "\\%c", c);
		else if (c < 0x20 || c == 0x7f)
			(void)fprintf(f, "\\u%04x", c);
		else
			(void)fputc(c, f);
	}
	(void)fputc('"', f);
}

static int hook_state(const char *id, const char *status, pid_t pid, const Grpc__Spec *spec,
		      char **ret)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return -ENOMEM;
	(void)fputs("{\"ociVersion\":", f);
	hook_json_string(f, ctr_empty(spec->version) ? "1.1.0" : spec->version);
	(void)fputs(",\"id\":", f);
	hook_json_string(f, id);
	(void)fprintf(f, ",\"status\":\"%s\",\"pid\":%d,\"bundle\":", status, (int)pid);
	hook_json_string(f, spec->root ? spec->root->path : "");
	(void)fputs(",\"annotations\":{", f);
	for (size_t i = 0; i < spec->n_annotations; i++) {
		if (i)
			(void)fputc(',', f);
		hook_json_string(f, spec->annotations[i]->key);
		(void)fputc(':', f);
		hook_json_string(f, spec->annotations[i]->value);
	}
	(void)fputs("}}", f);
	if (fclose(f) != 0) {
		free(text);
		return -ENOMEM;
	}
	*ret = text;
	return 0;
}

static _Noreturn void hook_exec(const Grpc__Hook *h, int in, int out)
{
	char *no_args[2] = { h->path, NULL };
	char **argv = calloc(h->n_args + 1, sizeof(*argv));
	char **envp = calloc(h->n_env + 1, sizeof(*envp));
	sigset_t none;

	if (!argv || !envp)
		_exit(127);
	for (size_t i = 0; i < h->n_args; i++)
		argv[i] = h->args[i];
	for (size_t i = 0; i < h->n_env; i++)
		envp[i] = h->env[i];
	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	(void)signal(SIGPIPE, SIG_DFL);
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0)
		_exit(127);
	(void)close_range(3, ~0U, 0);
	(void)execve(h->path, h->n_args ? argv : no_args, envp);
	(void)dprintf(2, "%s", strerror(errno));
	_exit(127);
}

/* Waits for the end, with the time limit; keeps the first bytes of output. */
static int hook_wait(pid_t pid, int out, int64_t timeout_s, char *text, size_t size, int *status)
{
	auto_close int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	int64_t left_ms = timeout_s > 0 && timeout_s < HOOK_TIMEOUT_S ? timeout_s * 1000 :
			  HOOK_TIMEOUT_S * 1000;
	struct timespec start, now;
	size_t len = 0;
	int r = 0;

	if (pidfd < 0) {
		(void)kill(pid, SIGKILL);
		(void)waitpid(pid, status, 0);
		return -ENOSYS;
	}
	(void)clock_gettime(CLOCK_MONOTONIC, &start);
	for (;;) {
		struct pollfd p[2] = { { .fd = pidfd, .events = POLLIN },
				       { .fd = out, .events = POLLIN } };
		char buf[512];
		int64_t spent;
		ssize_t n;

		(void)clock_gettime(CLOCK_MONOTONIC, &now);
		spent = (now.tv_sec - start.tv_sec) * 1000 +
			(now.tv_nsec - start.tv_nsec) / 1000000;
		if (spent >= left_ms) {
			(void)kill(pid, SIGKILL);
			r = -ETIMEDOUT;
			break;
		}
		if (poll(p, 2, (int)(left_ms - spent)) < 0 && errno != EINTR)
			break;
		if (p[1].revents) {
			n = read(out, buf, sizeof(buf));
			if (n <= 0) {
				out = -1;
			} else {
				size_t k = MIN_OF((size_t)n, size - 1 - len);

				memcpy(text + len, buf, k);
				len += k;
			}
		} else if (p[0].revents) {
			break;
		}
	}
	text[len] = '\0';
	while (waitpid(pid, status, 0) < 0 && errno == EINTR)
		;
	return r;
}

static int hook_run(const Grpc__Hook *h, const char *state, const char *what, struct error *err)
{
	auto_close int in_r = -1, in_w = -1, out_r = -1, out_w = -1;
	char text[HOOK_OUTPUT_MAX] = "";
	int p[2], status = 0, r;
	size_t len = strlen(state);
	struct sigaction ign = { .sa_handler = SIG_IGN }, old;
	pid_t pid;

	if (h->path[0] != '/')
		return error_set(err, -EINVAL, "%s.path: \"%s\" is not an absolute path", what,
				 h->path);
	if (pipe2(p, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "%s", what);
	in_r = p[0];
	in_w = p[1];
	if (pipe2(p, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "%s", what);
	out_r = p[0];
	out_w = p[1];

	pid = fork();
	if (pid < 0)
		return error_errno(err, -errno, "%s: fork", what);
	if (pid == 0)
		hook_exec(h, in_r, out_w);
	(void)close(take_fd(&in_r));
	(void)close(take_fd(&out_w));

	/* A state larger than the pipe goes in as far as the hook reads; it need not read at all. */
	(void)fcntl(in_w, F_SETPIPE_SZ, (int)MIN_OF(len + 4096, (size_t)1 << 20));
	(void)!fd_set_nonblock(in_w, true);
	(void)sigaction(SIGPIPE, &ign, &old);
	(void)!write(in_w, state, len);
	(void)sigaction(SIGPIPE, &old, NULL);
	(void)close(take_fd(&in_w));

	r = hook_wait(pid, out_r, h->timeout, text, sizeof(text), &status);
	text[strcspn(text, "\n")] = '\0';
	if (r == -ETIMEDOUT)
		return error_set(err, r, "%s (%s): no end within its time limit", what, h->path);
	if (r < 0)
		return error_errno(err, r, "%s (%s)", what, h->path);
	if (WIFSIGNALED(status))
		return error_set(err, -EIO, "%s (%s): killed by signal %d", what, h->path,
				 WTERMSIG(status));
	if (WEXITSTATUS(status))
		return error_set(err, -EIO, "%s (%s): exit status %d%s%s", what, h->path,
				 WEXITSTATUS(status), *text ? ": " : "", text);
	return 0;
}

int ctr_hooks_run(Grpc__Hook *const *hooks, size_t n, const char *kind, const char *id,
		  const char *status, pid_t pid, const Grpc__Spec *spec, struct error *err)
{
	auto_free char *state = NULL;
	int r;

	if (n == 0)
		return 0;
	r = hook_state(id, status, pid, spec, &state);
	if (r < 0)
		return error_errno(err, r, "hooks.%s", kind);
	for (size_t i = 0; i < n; i++) {
		char what[64];

		(void)snprintf(what, sizeof(what), "hooks.%s[%zu]", kind, i);
		r = hook_run(hooks[i], state, what, err);
		if (r < 0)
			return r;
	}
	return 0;
}
