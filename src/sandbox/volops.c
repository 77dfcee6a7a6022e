/* SPDX-License-Identifier: Apache-2.0 */
/* What can be asked of volumes that are mounted in the guest. */
#include <stdlib.h>

#include "sandbox/internal.h"

struct volop {
	struct sandbox *s;
	char *guest;           /* where the guest has the volume */
	uint64_t size;
	sandbox_done_fn done;
	sandbox_volume_stats_fn stats;
	void *arg;
};

static void volop_free(struct volop *op)
{
	free(op->guest);
	free(op);
}

static void volop_end(struct volop *op, const struct error *err)
{
	struct error room;

	err = sandbox_blame(op->s, err, &room);
	if (op->stats)
		op->stats(op->arg, err, NULL);
	else
		op->done(op->arg, err);
	volop_free(op);
}

/* NULL: @err says why not. */
static struct volop *volop_new(struct sandbox *s, const char *path, struct volume_place *place,
			       struct error *err)
{
	struct volop *op;

	if (sandbox_check_alive(s, err) < 0 || volumes_lookup(s, path, place, err) < 0)
		return NULL;
	if (s->state != VM_READY) {
		(void)error_set(err, -EBUSY, "the virtual machine is still starting");
		return NULL;
	}
	op = calloc(1, sizeof(*op));
	if (op)
		op->guest = strdup(place->guest);
	if (!op || !op->guest) {
		free(op);
		(void)error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	op->s = s;
	return op;
}

/* --- statistics --- */

static void on_stats(void *arg, const struct error *err, const Grpc__VolumeStatsResponse *answer)
{
	struct volop *op = arg;

	if (err) {
		volop_end(op, err);
		return;
	}
	op->stats(op->arg, NULL, answer);
	volop_free(op);
}

void sandbox_volume_stats(struct sandbox *s, const char *path, sandbox_volume_stats_fn done,
			  void *arg)
{
	Grpc__VolumeStatsRequest req = GRPC__VOLUME_STATS_REQUEST__INIT;
	struct volume_place place;
	struct error err = { 0 };
	struct volop *op = volop_new(s, path, &place, &err);
	int r;

	if (!op) {
		done(arg, &err, NULL);
		return;
	}
	op->stats = done;
	op->arg = arg;
	req.volume_guest_path = op->guest;
	r = agent_get_volume_stats(s->agent, &req, on_stats, op);
	if (r < 0) {
		(void)error_errno(&err, r, "ask the agent");
		volop_end(op, &err);
	}
}

/* --- size --- */

static void on_resized(void *arg, const struct error *err, const Google__Protobuf__Empty *answer)
{
	(void)answer;
	volop_end(arg, err);
}

/* How large the disk is now; the guest learns it with the call. */
static void on_measured(struct vmm *vmm, const struct error *verr, const struct vmm_place *disk,
			void *arg)
{
	Grpc__ResizeVolumeRequest req = GRPC__RESIZE_VOLUME_REQUEST__INIT;
	struct volop *op = arg;
	struct error err = { 0 };
	int r;

	(void)vmm;
	if (verr || sandbox_check_alive(op->s, &err) < 0) {
		volop_end(op, verr ? verr : &err);
		return;
	}
	if (op->size > disk->size) {
		(void)error_set(&err, -EINVAL,
				"the volume's disk has %llu bytes, less than the %llu asked for; enlarge it "
				"first", (unsigned long long)disk->size, (unsigned long long)op->size);
		volop_end(op, &err);
		return;
	}
	req.volume_guest_path = op->guest;
	req.size = op->size ? op->size : disk->size;
	r = agent_resize_volume(op->s->agent, &req, on_resized, op);
	if (r < 0) {
		(void)error_errno(&err, r, "ask the agent");
		volop_end(op, &err);
	}
}

void sandbox_volume_resize(struct sandbox *s, const char *path, uint64_t size,
			   sandbox_done_fn done, void *arg)
{
	struct volume_place place;
	struct error err = { 0 };
	struct volop *op = volop_new(s, path, &place, &err);
	int r;

	if (!op) {
		done(arg, &err);
		return;
	}
	op->size = size;
	op->done = done;
	op->arg = arg;
	if (!place.disk) {
		(void)error_set(&err, -EOPNOTSUPP, "volume '%s' is on no disk of its own", path);
		volop_end(op, &err);
		return;
	}
	r = vmm_disk_measure(s->vmm, place.disk->serial, on_measured, op);
	if (r < 0) {
		(void)error_errno(&err, r, "the volume's disk");
		volop_end(op, &err);
	}
}
