#include "cli/foreign.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/pods.h"
#include "oci/oci.h"
#include "sandbox/sandbox.h"

bool container_is_foreign(const struct container *c)
{
	return *container_str(c, FOREIGN_NAMESPACE) != '\0';
}

/* What the bundle's specification says: the command, and who it is to Kubernetes. */
static void describe(struct container *c)
{
	auto_free char *path = container_path(c, "config.json");
	const char *pod, *name, *image;
	auto_free char *full = NULL;
	Grpc__Spec *spec = NULL;
	json_t *words;

	if (!path || oci_spec_load(AT_FDCWD, path, &spec, NULL) < 0)
		return;
	words = json_array();
	for (size_t i = 0; spec->process && i < spec->process->n_args; i++)
		(void)json_array_append_new(words, json_string(spec->process->args[i]));
	(void)json_object_set_new(c->rec, "Command", words);
	pod = oci_annotation_get(spec, "io.kubernetes.cri.sandbox-name");
	name = oci_annotation_get(spec, "io.kubernetes.cri.container-name");
	image = oci_annotation_get(spec, "io.kubernetes.cri.image-name");
	if (pod)
		full = cli_format("%s/%s", pod, name ? name : "(pod)");
	if (full)
		container_set_str(c, "Name", full);
	if (image)
		container_set_str(c, "Image", image);
	oci_spec_free(spec);
}

/* Only the specification of the pod itself says it. */
static void find_logs(struct container *c, const struct pod *p)
{
	auto_free char *path = cli_format("%s/config.json", p->bundle);
	Grpc__Spec *spec = NULL;
	const char *directory;

	if (!path || oci_spec_load(AT_FDCWD, path, &spec, NULL) < 0)
		return;
	directory = oci_annotation_get(spec, "io.kubernetes.cri.sandbox-log-directory");
	if (directory)
		container_set_str(c, "LogDirectory", directory);
	oci_spec_free(spec);
}

static struct container *make(const struct pod *p, const json_t *told)
{
	const char *id = json_string_value(json_object_get(told, "id"));
	const char *bundle = json_string_value(json_object_get(told, "bundle"));
	const char *status = json_string_value(json_object_get(told, "status"));
	const json_t *code = json_object_get(told, "exit_status");
	auto_free char *address = cli_format("unix://%s", p->socket);
	struct container *c;

	if (!id || !bundle || !status || !address || strlen(id) > CONTAINER_ID_LEN)
		return NULL;
	c = calloc(1, sizeof(*c));
	if (!c)
		return NULL;
	strcpy(c->id, id);
	c->dir = strdup(bundle);
	c->rec = json_object();
	if (!c->dir || !c->rec) {
		container_free(c);
		return NULL;
	}
	container_set_str(c, "Id", id);
	container_set_str(c, "Name", id);
	container_set_str(c, FOREIGN_NAMESPACE, p->ns);
	container_set_str(c, FOREIGN_ADDRESS, address);
	container_set_str(c, "Sandbox", p->id);
	container_set_str(c, "State", strcmp(status, "stopped") ? status : "exited");
	if (code)
		container_set_int(c, "ExitCode", json_integer_value(code));
	describe(c);
	find_logs(c, p);
	return c;
}

static int add_pod(const struct pod *p, struct container_list *list)
{
	auto_free char *text = NULL;
	struct error why = { 0 };
	json_t *told, *one;
	size_t i;
	int r = 0;

	if (pod_ask(p, "GET", "/containers", &text, &why) < 0) {
		cli_warn("%s", error_text(&why));
		return 0;
	}
	told = json_loads(text, 0, NULL);
	json_array_foreach(told, i, one) {
		struct container **v = reallocarray(list->v, list->n + 1, sizeof(struct container *));

		if (!v) {
			r = -ENOMEM;
			break;
		}
		list->v = v;
		v[list->n] = make(p, one);
		if (v[list->n])
			list->n++;
	}
	json_decref(told);
	return r;
}

int foreign_list(struct container_list *list, struct error *err)
{
	struct pod_list pods;
	int r = pod_list(&pods, err);

	if (r < 0)
		return r;
	for (size_t i = 0; i < pods.n && r == 0; i++)
		if (pods.v[i].alive && strcmp(pods.v[i].ns, SANDBOX_OWN_NAMESPACE))
			r = add_pod(&pods.v[i], list);
	pod_list_fini(&pods);
	return r < 0 ? error_set(err, r, "out of memory") : 0;
}

int foreign_find(const char *text, struct container **ret, struct error *err)
{
	struct container_list list = { 0 };
	size_t found = 0, at = 0;
	int r = foreign_list(&list, err);

	if (r < 0)
		return r;
	for (size_t i = 0; i < list.n; i++) {
		struct container *c = list.v[i];

		if (!strcmp(c->id, text) || !strcmp(container_str(c, "Name"), text)) {
			found = 1;
			at = i;
			break;
		}
		if (*text && !strncmp(c->id, text, strlen(text))) {
			found++;
			at = i;
		}
	}
	if (found == 1) {
		*ret = list.v[at];
		list.v[at] = list.v[--list.n];
	}
	container_list_fini(&list);
	if (found == 1)
		return 0;
	return found ? error_set(err, -EINVAL, "'%s' is the beginning of several containers' ids", text) :
		       error_set(err, -ENOENT, "no such container: %s", text);
}

int foreign_logs(const struct container *c, struct error *err)
{
	const char *directory = container_str(c, "LogDirectory");

	if (*directory)
		return error_set(err, -EOPNOTSUPP, "the log of container %s is kubelet's, in '%s'",
				 container_str(c, "Name"), directory);
	return error_set(err, -EOPNOTSUPP,
			 "container %s was started by another program (namespace %s), which has its output",
			 container_str(c, "Name"), container_str(c, FOREIGN_NAMESPACE));
}

int container_find_any(const char *text, struct container **ret, struct error *err)
{
	struct error ignored = { 0 };
	int r = container_find(text, ret, err);

	return r == -ENOENT && foreign_find(text, ret, &ignored) == 0 ? 0 : r;
}
