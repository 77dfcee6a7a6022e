#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fsutil.h"
#include "cli/mounts.h"
#include "cli/volstore.h"

/* Root and run directories of its own for each test. */
static char dir[64];

static int setup(void **state)
{
	char path[96];

	(void)state;
	snprintf(dir, sizeof(dir), "/tmp/caisson-mounts-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/run", dir);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(setenv("CAISSON_ROOT", dir, 1), 0);
	assert_int_equal(setenv("CAISSON_RUN", path, 1), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	return fsutil_remove_tree(AT_FDCWD, dir);
}

struct made {
	struct container *c;
	int owner;
	Grpc__Spec *spec;
};

static struct made make_of(const struct run_options *o, char *const *image_volumes)
{
	struct made m = { .owner = -1 };
	struct error err = { 0 };

	assert_int_equal(mounts_check(o, &err), 0);
	assert_int_equal(container_new(NULL, &m.c, &m.owner, &err), 0);
	assert_int_equal(mounts_resolve(o, image_volumes, m.c, &err), 0);
	assert_int_equal(oci_spec_default(false, false, &m.spec, &err), 0);
	assert_int_equal(mounts_apply(m.spec, o, json_object_get(m.c->rec, "Mounts"), &err), 0);
	return m;
}

static struct made make(const struct run_options *o)
{
	return make_of(o, NULL);
}

static void drop(struct made *m)
{
	struct error err = { 0 };

	oci_spec_free(m->spec);
	assert_int_equal(container_forget(m->c, &err), 0);
	container_free(m->c);
	close(m->owner);
}

static const Grpc__Mount *mount_at(const Grpc__Spec *spec, const char *destination)
{
	for (size_t i = 0; i < spec->n_mounts; i++)
		if (strcmp(spec->mounts[i]->destination, destination) == 0)
			return spec->mounts[i];
	fail_msg("nothing at %s", destination);
	return NULL;
}

static bool has(const Grpc__Mount *m, const char *option)
{
	for (size_t i = 0; i < m->n_options; i++)
		if (strcmp(m->options[i], option) == 0)
			return true;
	return false;
}

static void all_forms(void **state)
{
	char *volumes[] = { (char *)"/tmp:/a:ro,rslave", (char *)"data:/b", (char *)"/anonymous" };
	char *mounts[] = { (char *)"type=bind,src=/tmp,dst=/c,readonly,bind-nonrecursive",
			   (char *)"src=data,dst=/d,volume-nocopy",
			   (char *)"type=tmpfs,dst=/e,tmpfs-size=1m,tmpfs-mode=700",
			   (char *)"type=volume,src=net,dst=/g,volume-opt=type=nfs4,"
				   "volume-opt=device=:/srv,volume-opt=o=addr=192.0.2.7" };
	char *tmpfs[] = { (char *)"/f:size=2m,exec" };
	struct run_options o = { .volume = { volumes, 3 }, .mount = { mounts, 4 },
				 .tmpfs = { tmpfs, 1 } };
	struct made m = make(&o);
	const Grpc__Mount *at = mount_at(m.spec, "/a");
	json_t *v = NULL, *users = NULL;
	struct error err = { 0 };
	const char *anonymous;

	(void)state;
	assert_string_equal(at->source, "/tmp");
	assert_true(has(at, "ro") && has(at, "rslave") && has(at, "rbind"));
	at = mount_at(m.spec, "/b");
	assert_true(strstr(at->source, "/volumes/data/_data") && has(at, "tmpcopyup"));
	assert_true(has(mount_at(m.spec, "/c"), "bind") && has(mount_at(m.spec, "/c"), "ro"));
	assert_false(has(mount_at(m.spec, "/d"), "tmpcopyup"));
	assert_true(has(mount_at(m.spec, "/e"), "size=1048576") &&
		    has(mount_at(m.spec, "/e"), "mode=700"));
	assert_true(has(mount_at(m.spec, "/f"), "size=2m") && has(mount_at(m.spec, "/f"), "exec"));
	at = mount_at(m.spec, "/g");
	assert_string_equal(at->type, "nfs4");
	assert_string_equal(at->source, "192.0.2.7:/srv");
	assert_true(has(at, "addr=192.0.2.7"));

	/* In use, by its record; without it, not. */
	assert_int_equal(volstore_remove("data", &err), -EBUSY);
	assert_non_null(strstr(err.msg, m.c->id) ? err.msg : strstr(err.msg, "in use"));
	assert_int_equal(volstore_users("data", &users, &err), 0);
	assert_int_equal(json_object_size(users), 1);
	json_decref(users);
	anonymous = json_string_value(
		json_object_get(json_array_get(json_object_get(m.c->rec, "Mounts"), 2), "Name"));
	assert_int_equal(strlen(anonymous), 64);
	assert_int_equal(volstore_find(anonymous, &v, &err), 0);
	assert_true(volstore_anonymous(v));
	json_decref(v);
	drop(&m);
	/* It was never started: what was made up for it has gone, what was named stays. */
	assert_int_equal(volstore_list(&v, &err), 0);
	assert_int_equal(json_array_size(v), 2);
	json_decref(v);
	assert_int_equal(volstore_remove("data", &err), 0);
	assert_int_equal(volstore_remove("data", &err), -ENOENT);
}

static void devices_and_size(void **state)
{
	char *device[] = { (char *)"/dev/null:/dev/nought:r" };
	char *size[] = { (char *)"size=1g" };
	struct run_options o = { .device = { device, 1 }, .storage_opt = { size, 1 } };
	struct made m = make(&o);
	const Grpc__Linux *l = m.spec->linux;
	const Grpc__LinuxDevice *d = l->devices[l->n_devices - 1];
	const Grpc__LinuxDeviceCgroup *rule = l->resources->devices[l->resources->n_devices - 1];

	(void)state;
	assert_string_equal(d->path, "/dev/nought");
	assert_int_equal(d->major, 1);
	assert_int_equal(d->minor, 3);
	assert_true(rule->allow && rule->major == 1 && rule->minor == 3);
	assert_string_equal(rule->access, "rm");
	assert_string_equal(oci_annotation_get(m.spec, "io.caisson.scratch-size"), "1073741824");
	drop(&m);
}

static void refuse(struct run_options o, const char *word)
{
	struct error err = { 0 };

	assert_true(mounts_check(&o, &err) < 0);
	if (!strstr(err.msg, word))
		fail_msg("no '%s' in '%s'", word, err.msg);
}

static void mistakes(void **state)
{
	static const struct {
		const char *volume, *mount, *device, *word;
	} cases[] = {
		{ "rel", NULL, NULL, "absolute" },
		{ "a/b:/x", NULL, NULL, "neither" },
		{ "/tmp:x", NULL, NULL, "absolute" },
		{ "/tmp:/x:what", NULL, NULL, "what" },
		{ "/no/such:/x", NULL, NULL, "/no/such" },
		{ NULL, "type=odd,dst=/x", NULL, "odd" },
		{ NULL, "type=bind,dst=/x", NULL, "src" },
		{ NULL, "type=volume,src=a", NULL, "dst" },
		{ NULL, "type=tmpfs,dst=/x,src=/y", NULL, "tmpfs" },
		{ NULL, "type=tmpfs,dst=/x,tmpfs-size=lots", NULL, "lots" },
		{ NULL, "dst=/x,color=red", NULL, "color" },
		{ NULL, "dst=/x,volume-driver=odd", NULL, "odd" },
		{ NULL, NULL, "/tmp", "not a device" },
		{ NULL, NULL, "/dev/null:/x:q", "r, w and m" },
		{ NULL, NULL, "null", "not a device" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char *words[] = { (char *)cases[i].volume, (char *)cases[i].mount,
				  (char *)cases[i].device };
		struct run_options o = { .volume = { &words[0], words[0] != NULL },
					 .mount = { &words[1], words[1] != NULL },
					 .device = { &words[2], words[2] != NULL } };

		refuse(o, cases[i].word);
	}
}

static void volume_options(void **state)
{
	static const char *const bad[] = { "type=odd", "colour=red", "type=nfs" };
	struct error err = { 0 };
	json_t *v = NULL;

	(void)state;
	close(volstore_lock(&err));
	for (size_t i = 0; i < 3; i++) {
		char *words[] = { (char *)bad[i] };
		const struct strlist opts = { words, 1 };

		assert_int_equal(volstore_create("v", &opts, NULL, &v, &err), -EINVAL);
	}
	assert_int_equal(volstore_create("-v", NULL, NULL, &v, &err), -EINVAL);
	assert_int_equal(volstore_create("../v", NULL, NULL, &v, &err), -EINVAL);
	assert_int_equal(volstore_find("../v", &v, &err), -ENOENT);
	assert_int_equal(volstore_create("v", NULL, NULL, &v, &err), 0);
	json_decref(v);
	assert_int_equal(volstore_create("v", NULL, NULL, &v, &err), -EEXIST);
}

static void volumes_of_the_image(void **state)
{
	char *volumes[] = { (char *)"/a/", (char *)"/b", (char *)"/c//", NULL };
	char *tmpfs[] = { (char *)"/b" };
	struct run_options o = { .tmpfs = { tmpfs, 1 } };
	struct made m = make_of(&o, volumes);

	(void)state;
	assert_string_equal(mount_at(m.spec, "/b")->type, "tmpfs");
	assert_string_equal(mount_at(m.spec, "/a")->type, "bind");
	assert_non_null(strstr(mount_at(m.spec, "/c")->source, "/volumes/"));
	assert_int_equal(json_array_size(json_object_get(m.c->rec, "Mounts")), 3);
	drop(&m);
	o.image_volume = "tmpfs";
	m = make_of(&o, volumes);
	assert_string_equal(mount_at(m.spec, "/a")->type, "tmpfs");
	drop(&m);
	o.image_volume = "ignore";
	m = make_of(&o, volumes);
	assert_int_equal(json_array_size(json_object_get(m.c->rec, "Mounts")), 1);
	drop(&m);
	refuse((struct run_options){ .image_volume = "some" }, "--image-volume");
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(all_forms),
		T(devices_and_size),
		T(mistakes),
		T(volume_options),
		T(volumes_of_the_image),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
