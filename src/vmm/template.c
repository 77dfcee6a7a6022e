#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fsutil.h"
#include "base/str.h"
#include "vmm/config.h"
#include "vmm/kernel.h"
#include "vmm/record.h"
#include "vmm/spawn.h"
#include "vmm/vmm.h"

/* Whatever replaces or changes a file changes one of these. */
static int add_file(struct buf *b, const char *path, struct error *err)
{
	struct stat st;

	if (str_empty(path))
		return 0;
	if (stat(path, &st) < 0)
		return error_errno(err, -errno, "'%s'", path);
	if (buf_printf(b, "%s %llu:%llu %lld %lld.%09ld\n", path, (unsigned long long)st.st_dev,
		       (unsigned long long)st.st_ino, (long long)st.st_size,
		       (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec) < 0)
		return error_set(err, -ENOMEM, "no memory for a template's key");
	return 0;
}

static int add_nic(struct buf *b, const Caisson__Vmm__V1__Nic *nic, struct error *err)
{
	int r = buf_printf(b, "nic %u mtu %u queues %u ", nic->kind, nic->mtu, nic->queues);

	for (size_t i = 0; i < nic->mac.len && r == 0; i++)
		r = buf_printf(b, "%02x", nic->mac.data[i]);
	if (r == 0)
		r = buf_append_str(b, "\n");
	return r < 0 ? error_set(err, -ENOMEM, "no memory for a template's key") : 0;
}

static bool can_be_saved(const Caisson__Vmm__V1__VmConfig *msg)
{
	if (msg->machine == VMM_MACHINE_BUILTIN)
		return true;
	return msg->accel == VMM_ACCEL_TCG && msg->machine == VMM_MACHINE_MICROVM &&
	       (msg->kernel_features & KERNEL_MMIO_TYPE);
}

/* What differs between machines that boot differently and are alike once they run. */
static int add_boot(struct buf *b, const Caisson__Vmm__V1__VmConfig *msg, struct error *err)
{
	int r = add_file(b, msg->kernel, err);

	if (r == 0)
		r = add_file(b, msg->initrd, err);
	/* The frequency is the boot's; what was measured of it differs a little each time. */
	if (r == 0 && buf_printf(b, "tsc %d debug %d\n%s\n", msg->tsc_khz != 0, msg->debug,
				 msg->cmdline_extra) < 0)
		r = error_set(err, -ENOMEM, "no memory for a template's key");
	return r;
}

/* Of the configuration as caisson-vmm would get it, what does not differ between like machines. */
static int add_config(struct buf *b, const Caisson__Vmm__V1__VmConfig *msg, bool boot,
		      struct error *err)
{
	int r = 0;

	if (!can_be_saved(msg) || msg->hugepages || msg->prealloc || msg->n_disks || msg->n_pci)
		return error_set(err, -EOPNOTSUPP, "such a machine cannot be saved");
	if (msg->machine != VMM_MACHINE_BUILTIN)
		r = add_file(b, msg->qemu, err);
	for (size_t i = 0; i < msg->n_nics && r == 0; i++)
		r = msg->nics[i]->vhost ?
			    error_set(err, -EOPNOTSUPP, "such a machine cannot be saved") :
			    add_nic(b, msg->nics[i], err);
	for (size_t i = 0; i < msg->n_shares && r == 0; i++)
		if (buf_printf(b, "share %s window %u\n", msg->shares[i]->tag,
			       msg->shares[i]->window_mib) < 0)
			r = error_set(err, -ENOMEM, "no memory for a template's key");
	if (r == 0 && buf_printf(b, "machine %u memory %u to %u vcpus %u to %u shelf %u%s\n", msg->machine,
				 msg->memory_mib, msg->memory_max_mib, msg->vcpus, msg->vcpus_max,
				 msg->shelf, msg->baseline_cpu ? " cpu baseline" : "") < 0)
		r = error_set(err, -ENOMEM, "no memory for a template's key");
	return r == 0 && boot ? add_boot(b, msg, err) : r;
}

static int pack_and_unpack(const struct vmm_config *cfg, Caisson__Vmm__V1__VmConfig **ret_msg,
			   struct error *err)
{
	auto_free uint8_t *packed = NULL;
	bool vhost = false;
	size_t len = 0;
	int r = config_pack(cfg, &packed, &len, &vhost, err);

	if (r < 0)
		return r;
	*ret_msg = caisson__vmm__v1__vm_config__unpack(NULL, len, packed);
	return *ret_msg ? 0 : error_set(err, -ENOMEM, "no memory for a template's key");
}

int vmm_snapshot_key(const struct vmm_config *cfg, char **ret_key, struct error *err)
{
	Caisson__Vmm__V1__VmConfig *msg = NULL;
	struct buf b = BUF_INIT(0);
	int r = pack_and_unpack(cfg, &msg, err);

	if (r == 0)
		r = add_config(&b, msg, false, err);
	if (r == 0 && buf_take_str(&b, ret_key) < 0)
		r = error_set(err, -ENOMEM, "no memory for a snapshot's key");
	caisson__vmm__v1__vm_config__free_unpacked(msg, NULL);
	buf_fini(&b);
	return r;
}

/* @program: of caisson-vmm, NULL: beside this one. */
static int template_key(const Caisson__Vmm__V1__VmConfig *msg, const char *program,
			uint8_t **ret_key, size_t *ret_len, struct error *err)
{
	auto_free char *dir = NULL, *own = NULL;
	struct buf b = BUF_INIT(0);
	struct record rec;
	char *text = NULL;
	int r = record_init(&rec, err);

	if (r == 0 && (fsutil_own_dir(&dir) < 0 || !(own = str_join_path(dir, SPAWN_PROGRAM))))
		r = error_set(err, -ENOMEM, "find the folder of this program");
	if (r == 0 && buf_printf(&b, "caisson template 1\nboot %s\n", rec.boot_id) < 0)
		r = error_set(err, -ENOMEM, "no memory for a template's key");
	if (r == 0)
		r = add_file(&b, program ? program : own, err);
	if (r == 0)
		r = add_config(&b, msg, true, err);
	if (r == 0) {
		*ret_len = b.len;
		if (buf_take_str(&b, &text) < 0)
			r = error_set(err, -ENOMEM, "no memory for a template's key");
		*ret_key = (uint8_t *)text;
	}
	buf_fini(&b);
	return r;
}

int vmm_template_key(const struct vmm_config *cfg, uint8_t **ret_key, size_t *ret_len,
		     struct error *err)
{
	Caisson__Vmm__V1__VmConfig *msg = NULL;
	int r = pack_and_unpack(cfg, &msg, err);

	if (r == 0)
		r = template_key(msg, cfg->program, ret_key, ret_len, err);
	caisson__vmm__v1__vm_config__free_unpacked(msg, NULL);
	return r;
}

int vmm_kind_save(const struct vmm_config *cfg, uint8_t **ret_kind, size_t *ret_len,
		  struct error *err)
{
	bool vhost = false;

	return config_pack(cfg, ret_kind, ret_len, &vhost, err);
}

int vmm_kind_key(const uint8_t *kind, size_t len, uint8_t **ret_key, size_t *ret_len,
		 struct error *err)
{
	Caisson__Vmm__V1__VmConfig *msg = caisson__vmm__v1__vm_config__unpack(NULL, len, kind);
	int r = msg ? template_key(msg, NULL, ret_key, ret_len, err) :
		      error_set(err, -EBADMSG, "the machine's configuration is malformed");

	caisson__vmm__v1__vm_config__free_unpacked(msg, NULL);
	return r;
}

int vmm_kind_describe(const uint8_t *kind, size_t len, struct vmm_kind *ret, struct error *err)
{
	Caisson__Vmm__V1__VmConfig *msg = caisson__vmm__v1__vm_config__unpack(NULL, len, kind);

	if (!msg)
		return error_set(err, -EBADMSG, "the machine's configuration is malformed");
	*ret = (struct vmm_kind){ .machine = (enum vmm_machine)msg->machine,
				  .memory_mib = msg->memory_mib, .vcpus = msg->vcpus,
				  .n_nics = MIN_OF(msg->n_nics, (size_t)VMM_MAX_NICS),
				  .n_shares = msg->n_shares };
	for (size_t i = 0; i < ret->n_nics; i++) {
		ret->nics[i] = (enum vmm_nic_kind)msg->nics[i]->kind;
		ret->n_queues[i] = msg->nics[i]->queues;
	}
	caisson__vmm__v1__vm_config__free_unpacked(msg, NULL);
	return 0;
}
