/*
 * cp: a tar stream between the container's tar and ours. What comes out of a container is hostile:
 * it is unpacked in a fresh directory, and only the one entry that was asked for is taken from it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/child.h"
#include "base/cleanup.h"
#include "base/fsutil.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/container.h"

struct cp_options {
	bool archive, quiet;
};

/* Runs "@from | @to"; either's standard stream at the outer end is ours. */
static int run_pipe(const char *const *from, const char *const *to, int *ret_from, int *ret_to,
		    struct error *err)
{
	struct child_options a = { .argv = from, .n_fds = 2, .cwd_fd = -1, .keep_stderr = true };
	struct child_options b = { .argv = to, .n_fds = 2, .cwd_fd = -1, .keep_stderr = true };
	int fds[2], r, status;
	pid_t first = -1, second = -1;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "make a pipe");
	struct child_fd a_fds[] = { { STDIN_FILENO, 0 }, { fds[1], 1 } };
	struct child_fd b_fds[] = { { fds[0], 0 }, { STDOUT_FILENO, 1 } };
	a.fds = a_fds;
	b.fds = b_fds;
	r = child_spawn(&a, &first, NULL);
	if (r == 0)
		r = child_spawn(&b, &second, NULL);
	close(fds[0]);
	close(fds[1]);
	if (first > 0 && child_wait(first, &status) == 0)
		*ret_from = child_exit_code(status);
	if (second > 0 && child_wait(second, &status) == 0)
		*ret_to = child_exit_code(status);
	return r < 0 ? error_errno(err, r, "run '%s'", second > 0 ? from[0] : to[0]) : 0;
}

static int run_one(const char *const *argv, int *ret_code)
{
	struct child_options o = { .argv = argv, .cwd_fd = -1 };
	pid_t pid;
	int status, r = child_spawn(&o, &pid, NULL);

	if (r < 0)
		return r;
	r = child_wait(pid, &status);
	*ret_code = r < 0 ? -1 : child_exit_code(status);
	return r;
}

/* Splits "/a/b/" into "/a" and "b"; "/" into "/" and ".". Changes @path. */
static void split(char *path, const char **ret_dir, const char **ret_name)
{
	size_t len = strlen(path);
	char *slash;

	while (len > 1 && path[len - 1] == '/')
		path[--len] = '\0';
	slash = strrchr(path, '/');
	if (!slash) {
		*ret_dir = ".";
		*ret_name = path;
	} else if (!slash[1]) {
		*ret_dir = "/";
		*ret_name = ".";
	} else {
		*ret_name = slash + 1;
		*ret_dir = slash == path ? "/" : path;
		*slash = '\0';
	}
}

static int stream_failure(const char *what, int inner, int outer)
{
	if (inner == EXIT_NOT_FOUND)
		return cli_fail(1, "cp needs the program 'tar' in the container's image");
	return cli_fail(1, "%s failed (exit codes %d and %d)", what, inner, outer);
}

static int copy_out(const char *program, const char *name, const char *inside, const char *outside)
{
	auto_free char *path = strdup(*inside ? inside : "/");
	auto_free char *target_copy = strdup(outside);
	auto_free char *tmp = NULL, *from_path = NULL, *to_path = NULL;
	const char *dir, *base, *to_dir, *to_base;
	struct error err = { 0 };
	struct stat st;
	int inner = 0, outer = 0, code = 0;

	if (!path || !target_copy)
		return cli_fail(1, "out of memory");
	split(path, &dir, &base);
	const char *from[] = { program, "exec", name, "tar", "-C", dir, "-cf", "-", "--", base, NULL };
	if (!strcmp(outside, "-")) {
		const char *to[] = { "cat", NULL };

		if (run_pipe(from, to, &inner, &outer, &err) < 0)
			return cli_fail_err(1, &err);
		return inner || outer ? stream_failure("cp", inner, outer) : 0;
	}
	split(target_copy, &to_dir, &to_base);
	if (!stat(outside, &st) && S_ISDIR(st.st_mode)) {
		to_dir = outside;
		to_base = strcmp(base, ".") ? base : name;
	} else if (outside[strlen(outside) - 1] == '/') {
		return cli_fail(1, "there is no directory '%s'", outside);
	}
	tmp = cli_format("%s/.caisson-cp-XXXXXX", to_dir);
	if (!tmp || !mkdtemp(tmp))
		return cli_fail(1, "make a directory in '%s': %s", to_dir, strerror(errno));
	const char *to[] = { "tar", "-C", tmp, "--no-same-owner", "-xf", "-", NULL };
	if (run_pipe(from, to, &inner, &outer, &err) < 0)
		code = cli_fail_err(1, &err);
	else if (inner || outer)
		code = stream_failure("cp", inner, outer);
	from_path = cli_format("%s/%s", tmp, base);
	to_path = cli_format("%s/%s", to_dir, to_base);
	if (!code && (!from_path || !to_path || rename(from_path, to_path) < 0))
		code = cli_fail(1, "put '%s' in place: %s", to_path ? to_path : outside, strerror(errno));
	(void)!fsutil_remove_tree(AT_FDCWD, tmp);
	return code;
}

/* For the left side of a sed-like --transform. */
static char *escape(const char *text)
{
	char *out = malloc(2 * strlen(text) + 1), *p = out;

	for (; out && *text; text++) {
		if (strchr("|\\.[]*^$&", *text))
			*p++ = '\\';
		*p++ = *text;
	}
	if (out)
		*p = '\0';
	return out;
}

static int copy_in(const char *program, const char *name, const char *outside, const char *inside)
{
	auto_free char *path = strdup(outside);
	auto_free char *target = strdup(*inside ? inside : "/");
	auto_free char *rename_rule = NULL, *old = NULL, *new = NULL;
	const char *dir, *base, *to_dir, *to_base;
	const char *is_dir[] = { program, "exec", name, "test", "-d", inside, NULL };
	struct error err = { 0 };
	int inner = 0, outer = 0, found = 1;

	if (!path || !target)
		return cli_fail(1, "out of memory");
	if (access(outside, F_OK) < 0)
		return cli_fail(1, "'%s': %s", outside, strerror(errno));
	split(path, &dir, &base);
	split(target, &to_dir, &to_base);
	if (run_one(is_dir, &found) == 0 && found == 0) {
		to_dir = inside;
		to_base = base;
	}
	old = escape(base);
	new = escape(to_base);
	rename_rule = old && new ? cli_format("--transform=s|^%s|%s|rSH", old, new) : NULL;
	if (!rename_rule)
		return cli_fail(1, "out of memory");
	const char *from[] = { "tar", rename_rule, "-C", dir, "-cf", "-", "--", base, NULL };
	const char *to[] = { program, "exec", "-i", name, "tar", "-C", to_dir, "-xf", "-", NULL };
	if (run_pipe(from, to, &outer, &inner, &err) < 0)
		return cli_fail_err(1, &err);
	return inner || outer ? stream_failure("cp", inner, outer) : 0;
}

/* "NAME:PATH", but not "./a:b" or "/a:b". */
static char *container_part(const char *word, const char **ret_path)
{
	const char *colon = strchr(word, ':');

	if (!colon || colon == word || word[0] == '.' || memchr(word, '/', (size_t)(colon - word)))
		return NULL;
	*ret_path = colon + 1;
	return strndup(word, (size_t)(colon - word));
}

static int do_cp(void *options, int argc, char **argv)
{
	const char *from_path = argv[0], *to_path = argv[1];
	auto_free char *from = container_part(argv[0], &from_path);
	auto_free char *to = container_part(argv[1], &to_path);
	auto_free char *program = cli_program("caisson");
	struct error err = { 0 };
	struct container *c;

	if (!program)
		return cli_fail(1, "out of memory");
	if (!from == !to)
		return cli_fail(EXIT_CAISSON, "cp copies between a container and this host: one of the two "
				"names must be CONTAINER:PATH");
	if (container_find(from ? from : to, &c, &err) < 0)
		return cli_fail_err(1, &err);
	container_free(c);
	if (from)
		return copy_out(program, from, from_path, to_path);
	if (!strcmp(from_path, "-"))
		return cli_fail(EXIT_CAISSON, "cp from standard input is not supported");
	return copy_in(program, to, from_path, to_path);
}

static const struct opt cp_opts[] = {
	{ 'a', "archive", OPT_BOOL, offsetof(struct cp_options, archive), NULL,
	  "Accepted for compatibility: modes and times are always kept", NULL },
	{ 'q', "quiet", OPT_BOOL, offsetof(struct cp_options, quiet), NULL,
	  "Accepted for compatibility", NULL },
};

const struct command cmd_cp = {
	.name = "cp",
	.synopsis = "CONTAINER:PATH PATH|- | PATH CONTAINER:PATH",
	.summary = "Copy files between a running container and this host",
	.description = "Copies a file or a directory with all beneath it. The container must be running "
		       "and its image must have the program tar. With -, a tar stream is written to "
		       "standard output.",
	OPTS(cp_opts),
	.opts_size = sizeof(struct cp_options),
	.min_args = 2,
	.max_args = 2,
	.exit_status = "0; 1 when it could not be copied",
	.complete = "container",
	.run = do_cp,
};
