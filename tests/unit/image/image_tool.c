/* The image library as a program, for tests in Python: image_tool VERB [ARG]... */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"
#include "image/image.h"

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
	stop = sig;
}

static int on_progress(void *ctx, const struct image_progress *p)
{
	static const char *const names[] = { "resolving", "fetching", "unpacking", "building",
					     "done" };

	if (getenv("IMAGE_TOOL_VERBOSE"))
		(void)fprintf(stderr, "%s %s %u/%u %llu/%llu%s %s\n", names[p->phase], p->digest,
			      p->index, p->count, (unsigned long long)p->done,
			      (unsigned long long)p->total, p->cached ? " cached" : "",
			      p->note ? p->note : "");
	return stop;
}

static void print_strv(const char *label, char **v)
{
	printf("%s", label);
	for (; *v; v++)
		printf(" [%s]", *v);
	printf("\n");
}

static int show(const struct image *img)
{
	printf("name %s\nid %s\ndigest %s\nrootfs %s\n", img->name, img->id, img->digest,
	       img->rootfs);
	printf("user %s\nworkdir %s\nstop %s\n", img->config.user, img->config.workdir,
	       img->config.stop_signal);
	print_strv("env", img->config.env);
	print_strv("entrypoint", img->config.entrypoint);
	print_strv("cmd", img->config.cmd);
	print_strv("ports", img->config.exposed_ports);
	print_strv("volumes", img->config.volumes);
	print_strv("labels", img->config.labels);
	return 0;
}

static int prepare(struct image_store *s, const char *ref, struct image_options *opt,
		   struct error *err)
{
	struct image *img = NULL;
	int r = image_prepare(s, ref, opt, &img, err);

	if (r == 0)
		r = show(img);
	image_free(img);
	return r;
}

static int user(struct image_store *s, const char *ref, const char *name,
		struct image_options *opt, struct error *err)
{
	struct image *img = NULL;
	struct image_user u = { 0 };
	int r = image_prepare(s, ref, opt, &img, err);

	if (r == 0)
		r = image_resolve_user(img, name, &u, err);
	if (r == 0) {
		printf("%u:%u %s", u.uid, u.gid, u.home);
		for (size_t i = 0; i < u.n_groups; i++)
			printf(" %u", u.groups[i]);
		printf("\n");
	}
	image_user_fini(&u);
	image_free(img);
	return r;
}

static int load(struct image_store *s, const char *path, struct image_options *opt,
		struct error *err)
{
	struct image_names names = { 0 };
	int r = image_load(s, path, opt, &names, err);

	for (size_t i = 0; i < names.n; i++)
		printf("%s\n", names.v[i]);
	image_names_fini(&names);
	return r;
}

static int list(struct image_store *s, struct error *err)
{
	struct image_list l = { 0 };
	int r = image_list(s, &l, err);

	for (size_t i = 0; i < l.n; i++)
		printf("%s %s %.19s %s %llu\n", l.v[i].repository, l.v[i].tag, l.v[i].id,
		       l.v[i].platform, (unsigned long long)l.v[i].size);
	image_list_fini(&l);
	return r;
}

static int run(struct image_store *s, int argc, char **argv, struct error *err)
{
	struct image_options opt = { .progress = on_progress, .platform = getenv("PLATFORM"),
				     .name = getenv("NAME") };
	const char *verb = argv[1], *arg = argc > 2 ? argv[2] : "", *policy = getenv("POLICY");
	auto_free char *text = NULL;
	int r;

	if (str_eq(policy, "always"))
		opt.policy = IMAGE_PULL_ALWAYS;
	else if (str_eq(policy, "never"))
		opt.policy = IMAGE_PULL_NEVER;
	if (str_eq(verb, "pull"))
		return image_pull(s, arg, &opt, err);
	if (str_eq(verb, "load"))
		return load(s, arg, &opt, err);
	if (str_eq(verb, "list"))
		return list(s, err);
	if (str_eq(verb, "prepare"))
		return prepare(s, arg, &opt, err);
	if (str_eq(verb, "user"))
		return user(s, arg, argc > 3 ? argv[3] : "", &opt, err);
	if (str_eq(verb, "gc"))
		return image_gc(s, NULL, err);
	if (str_eq(verb, "prune"))
		return image_prune(s, NULL, NULL, NULL, err);
	if (str_eq(verb, "inspect"))
		r = image_inspect(s, arg, &text, err);
	else if (str_eq(verb, "rm"))
		r = image_remove(s, arg, &text, err);
	else
		return error_set(err, -EINVAL, "unknown verb '%s'", verb);
	if (text)
		printf("%s\n", text);
	return r;
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_signal };
	struct image_store *s = NULL;
	struct error err = { 0 };
	int r;

	if (argc < 2)
		return 2;
	(void)sigaction(SIGINT, &sa, NULL);
	r = image_store_open(NULL, &s, &err);
	if (r == 0)
		r = run(s, argc, argv, &err);
	image_store_close(s);
	if (r < 0)
		(void)fprintf(stderr, "%s: %s\n", strerrorname_np(-r), error_text(&err));
	return r < 0 ? 1 : 0;
}
