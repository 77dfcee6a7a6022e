/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks that a shim which was killed could not run any more: read from what it wrote down, run one after
 * the other by the program that frees the sandbox. A file goes when its hooks have run.
 */
#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/base.h"
#include "sandbox/hooks.h"

#define FILE_MAX_SIZE ((size_t)1 << 20)
#define ARGS_MAX      256u

/* Borrowed strings with a NULL at the end; @alone if there are none. */
static const char **strings_of(const json_t *list, const char *alone)
{
	const char **v = calloc(json_array_size(list) + 2, sizeof(*v));
	const json_t *s;
	size_t i, n = 0;

	if (v)
		v[0] = alone;
	json_array_foreach((json_t *)list, i, s)
		if (v && json_is_string(s) && i < ARGS_MAX)
			v[n++] = json_string_value(s);
	return v;
}

static int wait_for(pid_t pid, int pidfd, int timeout_ms)
{
	struct pollfd p = { pidfd, POLLIN, 0 };
	int status = 0, r;

	r = poll(&p, 1, timeout_ms);
	if (r == 0)
		(void)child_pidfd_signal(pidfd, SIGKILL);
	if (child_wait(pid, &status) < 0)
		return -ECHILD;
	return r == 0 ? -ETIMEDOUT : child_exit_code(status) ? -EIO : 0;
}

static int run(const json_t *hook, const char *state)
{
	const char *path = json_string_value(json_object_get(hook, "path"));
	json_int_t seconds = json_integer_value(json_object_get(hook, "timeout"));
	auto_free const char **argv = strings_of(json_object_get(hook, "args"), path);
	auto_free const char **envp = strings_of(json_object_get(hook, "env"), NULL);
	auto_close int in = memfd_create("state", MFD_CLOEXEC), pidfd = -1;
	struct child_fd fds[] = { { in, 0 } };
	const struct child_options o = {
		.program = path, .argv = argv, .envp = envp, .fds = fds, .n_fds = 1, .cwd_fd = -1,
	};
	int timeout_ms = (int)HOOK_TIMEOUT_MS, r;
	pid_t pid;

	if (!path || !argv || !envp || in < 0 || fd_write_full(in, state, strlen(state)) < 0 ||
	    lseek(in, 0, SEEK_SET) < 0)
		return -EINVAL;
	if (seconds > 0 && seconds * 1000 < timeout_ms)
		timeout_ms = (int)seconds * 1000;
	r = child_spawn(&o, &pid, &pidfd);
	return r < 0 ? r : wait_for(pid, pidfd, timeout_ms);
}

static void run_file(int dir, const char *name)
{
	auto_free char *text = NULL, *state = NULL;
	const json_t *hook;
	json_t *all = NULL;
	size_t i;

	if (fd_read_file(dir, name, FILE_MAX_SIZE, &text, NULL) == 0)
		all = json_loads(text, 0, NULL);
	state = all ? json_dumps(json_object_get(all, "state"), JSON_COMPACT) : NULL;
	if (!state)
		log_warn("container %s: its poststop hooks cannot be read", name);
	json_array_foreach(json_object_get(all, "hooks"), i, hook) {
		int r = state ? run(hook, state) : 0;

		if (r < 0)
			log_warn("container %s: hooks.poststop[%zu] '%s': %s", name, i,
				 json_string_value(json_object_get(hook, "path")), strerror(-r));
	}
	json_decref(all);
	(void)unlinkat(dir, name, 0);
}

void hooks_run_late(const char *dir)
{
	auto_free char *path = str_join_path(dir, HOOKS_LATE);
	DIR *d = path ? opendir(path) : NULL;
	const struct dirent *e;

	if (!d)
		return;
	while ((e = readdir(d)))
		if (str_valid_id(e->d_name))
			run_file(dirfd(d), e->d_name);
	(void)closedir(d);
}
