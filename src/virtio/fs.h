/*
 * virtio-fs device over an export of fs/. Use:
 *
 *	struct fs_export *fs;
 *	struct virtio_dev *dev;
 *	struct vhost_user *vu;
 *
 *	fs_export_new(&(struct fs_config){ .root_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC),
 *					   .read_only = ro }, &fs, err);
 *	fs_dev_new(fs, &dev, err);
 *	vhost_user_start(&dev, fd, VHOST_USER_CONNECTED, &vu, err);
 *
 * QEMU: -chardev socket,id=c,fd=N -device vhost-user-fs-device,chardev=c,tag=TAG,queue-size=512
 * (the tag is QEMU's; queue-size bounds a read or write to queue-size - 4 pages). Guest:
 * mount -t virtiofs TAG DIR. The exports need /proc while they are made, and the capabilities that
 * fs/fs.h names for as long as they serve.
 *
 * Every system call a request makes runs in the device's thread.
 */
#pragma once

#include "fs/fs.h"
#include "virtio/virtio.h"

/* Takes @fs in every case. */
__must_check int fs_dev_new(struct fs_export *fs, struct virtio_dev **ret_dev, struct error *err);
