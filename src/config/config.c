/* SPDX-License-Identifier: Apache-2.0 */
/* Reads, merges and validates the settings. See config.h. */
#include "config/config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/str.h"
#include "config/apply.h"
#include "config/locate.h"
#include "config/schema.h"
#include "config/toml.h"

#define FILE_MAX_SIZE ((size_t)1 << 20)

static const char *const default_annotations[] = {
	"io.caisson.memory",
	"io.caisson.vcpus",
	"io.caisson.scratch-size",
	"io.katacontainers.config.hypervisor.default_memory",
	"io.katacontainers.config.hypervisor.default_vcpus",
};

static void free_annotations(struct config *cfg)
{
	for (size_t i = 0; i < cfg->n_annotations; i++)
		free(cfg->annotations[i]);
	free(cfg->annotations);
	cfg->annotations = NULL;
	cfg->n_annotations = 0;
}

static int set_annotations(struct config *cfg, const char *const *names, size_t n)
{
	char **list = calloc(n ? n : 1, sizeof(*list));

	if (!list)
		return -ENOMEM;
	free_annotations(cfg);
	cfg->annotations = list;
	for (size_t i = 0; i < n; i++) {
		list[i] = strdup(names[i]);
		if (!list[i])
			return -ENOMEM;
		cfg->n_annotations++;
	}
	return 0;
}

int config_init(struct config *cfg)
{
	*cfg = (struct config){
		.accel = CONFIG_ACCEL_AUTO,
		.memory = (uint64_t)256 << 20,
		.memory_overhead = (uint64_t)64 << 20,
		.vcpus = 1,
		/* Nobody's: see systemd's table of user ids. */
		.uid_first = 1900000000,
		.n_uids = 65536,
		.boot_timeout_ms = 30000,
		.agent_timeout_ms = 60000,
		.templates = true,
		.scratch_size = (uint64_t)10 << 30,
		.log_console = true,
	};
	if (config_set_text(&cfg->machine, "auto") < 0 || config_set_text(&cfg->share_cache, "auto") < 0 ||
	    config_set_text(&cfg->network_model, "tcfilter") < 0 || config_set_text(&cfg->log_level, "info") < 0 ||
	    config_set_text(&cfg->agent_log_level, "info") < 0 ||
	    set_annotations(cfg, default_annotations,
			    sizeof(default_annotations) / sizeof(default_annotations[0])) < 0) {
		config_fini(cfg);
		return -ENOMEM;
	}
	return 0;
}

void config_fini(struct config *cfg)
{
	free(cfg->kernel);
	free(cfg->initrd);
	free(cfg->root_image);
	free(cfg->kernel_params);
	free(cfg->qemu);
	free(cfg->machine);
	free(cfg->scratch_dir);
	free(cfg->share_cache);
	free(cfg->network_model);
	free(cfg->log_level);
	free(cfg->agent_log_level);
	free_annotations(cfg);
	*cfg = (struct config){ 0 };
}

static int apply_section(struct config *cfg, const char *file, const char *text, size_t len,
			 const char *section, const cyaml_schema_field_t *fields, const char *base,
			 struct error *err)
{
	for (const cyaml_schema_field_t *f = fields; f->key; f++) {
		const char *value, *want = "";
		int r;

		if (f->value.type != CYAML_STRING)
			continue;
		memcpy(&value, base + f->data_offset, sizeof(value));
		if (!value)
			continue;
		r = config_apply(cfg, section, f->key, value, &want);
		if (r == -EINVAL)
			return error_set(err, r, "%s:%u: %s.%s: '%.64s' is not %s", file,
					 locate_key(text, len, section, f->key), section, f->key,
					 value, want);
		if (r < 0)
			return error_set(err, r, "%s: %s.%s: %s", file, section, f->key,
					 strerror(-r));
	}
	return 0;
}

static void quiet_log(cyaml_log_t level, void *ctx, const char *fmt, va_list args)
{
	(void)level;
	(void)ctx;
	(void)fmt;
	(void)args;
}

static int apply_text(struct config *cfg, const char *file, const char *text, size_t len,
		      struct error *err)
{
	const cyaml_config_t cyaml = {
		.log_fn = quiet_log,
		.mem_fn = cyaml_mem,
		.log_level = CYAML_LOG_ERROR,
	};
	struct file_config *fc = NULL;
	cyaml_err_t ce;
	int r;

	r = locate_check(file, text, len, &file_config_schema, err);
	if (r < 0)
		return r;
	ce = cyaml_load_data((const uint8_t *)text, len, &cyaml, &file_config_schema,
			     (cyaml_data_t **)&fc, NULL);
	if (ce != CYAML_OK)
		return error_set(err, -EINVAL, "%s: %s", file, cyaml_strerror(ce));
	if (!fc)
		return 0;

	for (const cyaml_schema_field_t *f = file_config_schema.mapping.fields; f->key && r == 0; f++)
		r = apply_section(cfg, file, text, len, f->key, f->value.mapping.fields,
				  (const char *)fc + f->data_offset, err);
	if (r == 0 && fc->annotations.allow &&
	    set_annotations(cfg, (const char *const *)fc->annotations.allow,
			    fc->annotations.allow_count) < 0)
		r = error_set(err, -ENOMEM, "%s: out of memory", file);
	(void)cyaml_free(&cyaml, &file_config_schema, fc, 0);
	return r;
}

int config_load_text(struct config *cfg, const char *name, const char *text, size_t len,
		     struct error *err)
{
	auto_free char *yaml = NULL;
	int r;

	if (len > FILE_MAX_SIZE)
		return error_set(err, -EFBIG, "%s: longer than %zu bytes", name, FILE_MAX_SIZE);
	if (!toml_is(text, len))
		return apply_text(cfg, name, text, len, err);
	r = toml_to_yaml(name, text, len, &yaml, err);
	return r < 0 ? r : apply_text(cfg, name, yaml, strlen(yaml), err);
}

static int apply_file(struct config *cfg, const char *path, bool optional, struct error *err)
{
	auto_free char *text = NULL;
	size_t len = 0;
	int r;

	r = fd_read_file(AT_FDCWD, path, FILE_MAX_SIZE, &text, &len);
	if (optional && (r == -ENOENT || r == -ENOTDIR))
		return 0;
	if (r < 0)
		return error_errno(err, r, "%s", path);
	return apply_text(cfg, path, text, len, err);
}

static int is_yaml(const struct dirent *d)
{
	size_t n = strlen(d->d_name);

	return d->d_name[0] != '.' && n > 5 && strcmp(d->d_name + n - 5, ".yaml") == 0;
}

int config_load(struct config *cfg, const char *path, struct error *err)
{
	bool optional = false;
	auto_free char *dir = NULL;
	struct dirent **names;
	const char *slash;
	int n, r;

	if (!path)
		path = getenv("CAISSON_CONFIG");
	if (!path || !*path) {
		path = CONFIG_DEFAULT_PATH;
		optional = true;
	}
	r = apply_file(cfg, path, optional, err);
	if (r < 0)
		return r;

	slash = strrchr(path, '/');
	if (asprintf(&dir, "%.*sconfig.d", slash ? (int)(slash - path + 1) : 0, path) < 0) {
		dir = NULL;
		return error_set(err, -ENOMEM, "%s: out of memory", path);
	}
	n = scandir(dir, &names, is_yaml, alphasort);
	if (n < 0)
		return errno == ENOENT || errno == ENOTDIR ?
			       0 :
			       error_set(err, -errno, "%s: %s", dir, strerror(errno));
	for (int i = 0; i < n; i++) {
		auto_free char *file = NULL;

		if (r == 0 && asprintf(&file, "%s/%s", dir, names[i]->d_name) < 0) {
			file = NULL;
			r = error_set(err, -ENOMEM, "%s: out of memory", dir);
		}
		if (r == 0)
			r = apply_file(cfg, file, false, err);
		free(names[i]);
	}
	free(names);
	return r;
}

static bool annotation_allowed(const struct config *cfg, const char *name)
{
	for (size_t i = 0; i < cfg->n_annotations; i++) {
		const char *pattern = cfg->annotations[i];
		size_t n = strlen(pattern);

		if (strcmp(pattern, name) == 0)
			return true;
		if (n && pattern[n - 1] == '*' && strncmp(pattern, name, n - 1) == 0)
			return true;
	}
	return false;
}

int config_annotate(struct config *cfg, const char *name, const char *value, bool *ret_denied,
		    struct error *err)
{
	static const struct {
		const char *name, *section, *key;
	} known[] = {
		{ "io.caisson.memory", "vm", "memory" },
		{ "io.caisson.vcpus", "vm", "vcpus" },
		{ "io.caisson.memory-max", "vm", "memory_max" },
		{ "io.caisson.vcpus-max", "vm", "vcpus_max" },
		{ "io.caisson.kernel", "vm", "kernel" },
		{ "io.caisson.initrd", "vm", "initrd" },
		{ "io.caisson.root-image", "vm", "root_image" },
		{ "io.caisson.kernel-params", "vm", "kernel_params" },
		{ "io.caisson.machine", "vm", "machine" },
		{ "io.caisson.accelerator", "vm", "accelerator" },
		{ "io.caisson.boot-timeout", "vm", "boot_timeout" },
		{ "io.caisson.agent-timeout", "vm", "agent_timeout" },
		{ "io.caisson.scratch-size", "storage", "scratch_size" },
		{ "io.caisson.disk-rate", "storage", "disk_rate" },
		{ "io.caisson.disk-ops", "storage", "disk_ops" },
		{ "io.caisson.network-model", "network", "model" },
		{ "io.caisson.network-slots", "network", "slots" },
		{ "io.caisson.network-rx-rate", "network", "rx_rate" },
		{ "io.caisson.network-tx-rate", "network", "tx_rate" },
		{ "io.caisson.log-level", "log", "level" },
		{ "io.caisson.agent-log-level", "log", "agent_level" },
		{ "io.katacontainers.config.hypervisor.default_memory", "vm", "memory" },
		{ "io.katacontainers.config.hypervisor.default_vcpus", "vm", "vcpus" },
		{ "io.katacontainers.config.hypervisor.default_max_memory", "vm", "memory_max" },
		{ "io.katacontainers.config.hypervisor.default_maxvcpus", "vm", "vcpus_max" },
		{ "io.katacontainers.config.hypervisor.default_max_vcpus", "vm", "vcpus_max" },
		{ "io.katacontainers.config.hypervisor.rx_rate_limiter_max_rate", "network", "rx_rate" },
		{ "io.katacontainers.config.hypervisor.tx_rate_limiter_max_rate", "network", "tx_rate" },
		{ "io.katacontainers.config.hypervisor.kernel", "vm", "kernel" },
		{ "io.katacontainers.config.hypervisor.initrd", "vm", "initrd" },
		{ "io.katacontainers.config.hypervisor.image", "vm", "root_image" },
		{ "io.katacontainers.config.hypervisor.kernel_params", "vm", "kernel_params" },
		{ "io.katacontainers.config.hypervisor.machine_type", "vm", "machine" },
		{ "io.katacontainers.config.runtime.internetworking_model", "network", "model" },
	};
	uint64_t bits;
	char mib[40];

	*ret_denied = false;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		const char *want = "", *v = value;
		int r;

		if (strcmp(known[i].name, name) != 0)
			continue;
		if (!annotation_allowed(cfg, name)) {
			*ret_denied = true;
			return 0;
		}
		/* Kata counts memory in MiB. */
		if (strncmp(known[i].key, "memory", 6) == 0 && strncmp(name, "io.kata", 7) == 0 &&
		    strlen(value) < 20 && strspn(value, "0123456789") == strlen(value)) {
			(void)snprintf(mib, sizeof(mib), "%sMiB", value);
			v = mib;
		}
		/* And rates in bits. */
		if (str_has_suffix(name, "_rate_limiter_max_rate") &&
		    str_parse_u64(value, &bits) == 0) {
			(void)snprintf(mib, sizeof(mib), "%llu", (unsigned long long)bits / 8);
			v = mib;
		}
		r = config_apply(cfg, known[i].section, known[i].key, v, &want);
		if (r == -EINVAL)
			return error_set(err, r, "annotation %s: '%.64s' is not %s", name, value,
					 want);
		if (r < 0)
			return error_set(err, r, "annotation %s: %s", name, strerror(-r));
		return 0;
	}
	return 0;
}
