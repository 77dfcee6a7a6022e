/*
 * What the files of the client have in common: client.c (a VM's life and end as seen from here),
 * client_start.c (starting it), client_ops.c (requests to it).
 */
#pragma once

#include "base/child.h"
#include "base/loop.h"
#include "ttrpc/ttrpc_uv.h"
#include "vmm.pb-c.h"
#include "vmm/vmm.h"

struct vmm {
	uv_loop_t *loop;
	struct vmm_events events;
	void *ctx;
	char *dir;
	int dirfd;
	struct child_id id;
	bool is_child;
	int pidfd;
	struct loop_pidfd *watch;
	struct loop_timer *leave;
	struct ttrpc_client *client;
	bool killed;
	bool gone;              /* the process has ended, with status */
	int status;
	bool told;              /* reason and text are known */
	enum vmm_exit reason;
	char *text;
};

/* A client of the VM in @dir that is not connected yet. NULL on failure. */
struct vmm *vmm_client_new(uv_loop_t *loop, const char *dir, const struct vmm_events *events,
			   void *ctx, struct error *err);
/* Lets go of everything, at once; the VM is left alone. NULL is fine. */
void vmm_client_free(struct vmm *v);
/* Waits for the process's end. Takes @pidfd, also on failure. */
__must_check int vmm_client_watch(struct vmm *v, int pidfd, struct error *err);
/* Connects, and asks for the two events. */
__must_check int vmm_client_join(struct vmm *v, struct error *err);
/*
 * Limits the VM's cgroup to more time than @vcpus processors have: the devices' threads need some, too.
 */
void vmm_client_limit_cpu(struct vmm *v, uint32_t vcpus);
