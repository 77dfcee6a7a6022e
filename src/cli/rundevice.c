#include "cli/rundevice.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

static int oom(struct error *err)
{
	return error_set(err, -ENOMEM, "out of memory");
}

struct device {
	char *host, *container;
	const char *access;
	struct stat st;
};

static void device_fini(struct device *d)
{
	free(d->host);
	free(d->container);
}

/* "/host[:/container][:rwm]" */
static int parse_device(const char *word, struct device *ret, struct error *err)
{
	struct device d = { .host = strdup(word), .access = "rwm" };
	char *rest = d.host, *second, *third;

	if (!d.host)
		return oom(err);
	(void)strsep(&rest, ":");
	second = strsep(&rest, ":");
	third = strsep(&rest, ":");
	if (second && *second != '/' && !third) {
		third = second;
		second = NULL;
	}
	if (third && (!*third || third[strspn(third, "rwm")])) {
		free(d.host);
		return error_set(err, -EINVAL, "--device '%s': access is made of r, w and m", word);
	}
	d.container = strdup(second ? second : d.host);
	if (third)
		d.access = strchr(third, 'w') ? strchr(third, 'r') ? "rwm" : "wm" : "rm";
	if (*d.host != '/' || !d.container || *d.container != '/' || stat(d.host, &d.st) < 0 ||
	    (!S_ISBLK(d.st.st_mode) && !S_ISCHR(d.st.st_mode))) {
		device_fini(&d);
		return error_set(err, -ENODEV, "--device '%s' is not a device of this host", word);
	}
	*ret = d;
	return 0;
}

static int apply_device(Grpc__Spec *spec, const struct device *d, struct error *err)
{
	Grpc__Linux *l = spec->linux;
	const char *type = S_ISBLK(d->st.st_mode) ? "b" : "c";
	Grpc__LinuxDeviceCgroup *rule = malloc(sizeof(*rule)), **rules;
	Grpc__LinuxDevice *dev = malloc(sizeof(*dev)), **devices;

	devices = reallocarray(l->devices, l->n_devices + 1, sizeof(*devices));
	if (devices)
		l->devices = devices;
	rules = l->resources ? reallocarray(l->resources->devices, l->resources->n_devices + 1,
					    sizeof(*rules)) : NULL;
	if (rules)
		l->resources->devices = rules;
	if (!rule || !dev || !devices || !rules) {
		free(rule);
		free(dev);
		return oom(err);
	}
	grpc__linux_device__init(dev);
	grpc__linux_device_cgroup__init(rule);
	dev->major = rule->major = major(d->st.st_rdev);
	dev->minor = rule->minor = minor(d->st.st_rdev);
	dev->filemode = d->st.st_mode & 0777;
	rule->allow = true;
	l->devices[l->n_devices++] = dev;
	l->resources->devices[l->resources->n_devices++] = rule;
	if (oci_str_set(&dev->path, d->container) < 0 || oci_str_set(&dev->type, type) < 0 ||
	    oci_str_set(&rule->type, type) < 0 || oci_str_set(&rule->access, d->access) < 0)
		return oom(err);
	return 0;
}

int rundevice_apply(Grpc__Spec *spec, const struct strlist *words, struct error *err)
{
	int r = 0;

	for (size_t i = 0; i < words->n && r == 0; i++) {
		struct device d = { 0 };

		r = parse_device(words->v[i], &d, err);
		if (r < 0)
			return r;
		r = spec ? apply_device(spec, &d, err) : 0;
		device_fini(&d);
	}
	return r;
}
