/*
 * virtio-fs device over an export of fs/. Use:
 *
 *	struct fs_export *fs;
 *	struct virtio_dev *dev;
 *	struct vhost_user *vu;
 *
 *	fs_export_new(&(struct fs_config){ .root_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC),
 *					   .read_only = ro }, &fs, err);
 *	fs_dev_new(fs, 1, &dev, err);
 *	vhost_user_start(&dev, fd, VHOST_USER_CONNECTED, &vu, err);
 *
 * QEMU: -chardev socket,id=c,fd=N -device vhost-user-fs-device,chardev=c,tag=TAG,queue-size=512,
 * num-request-queues=N
 * (the tag is QEMU's; queue-size bounds a read or write to queue-size - 4 pages). Guest:
 * mount -t virtiofs TAG DIR. The exports need /proc while they are made, and the capabilities that
 * fs/fs.h names for as long as they serve.
 *
 * Each request queue has threads of its own, which the device starts: seccomp must allow clone(2),
 * and what they need is inherited from the thread that calls vhost_user_start().
 */
#pragma once

#include "fs/fs.h"
#include "virtio/virtio.h"

#define FS_DEV_MAX_QUEUES 8u

/*
 * Takes @fs in every case. @n_queues: of requests, 1 to FS_DEV_MAX_QUEUES; best one for each CPU.
 * @tag: for a front-end that does not know the device's configuration (1 to 36 bytes); NULL: it has
 * the tag itself.
 */
__must_check int fs_dev_new(struct fs_export *fs, unsigned n_queues, const char *tag,
			    struct virtio_dev **ret_dev, struct error *err);
