/* Volumes that are mounted in the guest: how full they are, and making them larger while in use. */
#include <fcntl.h>
#include <linux/ioctl.h>
#include <linux/magic.h>
#include <linux/types.h>
#include <sys/ioctl.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "agent/blockdev.h"
#include "agent/rpc.h"
#include "agent/storage.h"
#include "base/base.h"
#include "base/fd.h"

#define EXT4_RESIZE _IOW('f', 16, __u64) /* in blocks */

/* The kernel exports no header of XFS. */
struct xfs_geometry {
	__u32 block_size, rt_extent_size, ag_blocks, ag_count, log_blocks, sector_size, inode_size;
	__u32 inode_percent;
	__u64 data_blocks, rt_blocks, rt_extents, log_start;
	__u8 uuid[16];
	__u32 sunit, swidth;
	__s32 version;
	__u32 flags, log_sector_size, rt_sector_size, dir_block_size;
};

struct xfs_growth {
	__u64 data_blocks;
	__u32 inode_percent;
};

#define XFS_MAGIC    0x58465342
#define XFS_GEOMETRY _IOR('X', 100, struct xfs_geometry)
#define XFS_GROW     _IOW('X', 110, struct xfs_growth)

void rpc_get_volume_stats(struct ttrpc_call *call, void *request)
{
	const Grpc__VolumeStatsRequest *rq = request;
	Grpc__VolumeStatsResponse rsp = GRPC__VOLUME_STATS_RESPONSE__INIT;
	Grpc__VolumeUsage bytes = GRPC__VOLUME_USAGE__INIT, inodes = GRPC__VOLUME_USAGE__INIT;
	Grpc__VolumeUsage *usage[] = { &bytes, &inodes };
	Grpc__VolumeCondition condition = GRPC__VOLUME_CONDITION__INIT;
	struct error err = { 0 };
	struct statvfs sv;

	if (statvfs(rq->volume_guest_path, &sv) < 0) {
		rpc_end(call,
			error_errno(&err, -errno, "volume '%s'", rq->volume_guest_path), &err);
		return;
	}
	bytes.unit = GRPC__VOLUME_USAGE__UNIT__BYTES;
	bytes.total = (uint64_t)sv.f_blocks * sv.f_frsize;
	bytes.available = (uint64_t)sv.f_bavail * sv.f_frsize;
	bytes.used = bytes.total - (uint64_t)sv.f_bfree * sv.f_frsize;
	inodes.unit = GRPC__VOLUME_USAGE__UNIT__INODES;
	inodes.total = sv.f_files;
	inodes.available = sv.f_favail;
	inodes.used = sv.f_files - sv.f_ffree;
	condition.message = (char *)"OK";
	rsp.n_usage = ARRAY_LEN(usage);
	rsp.usage = usage;
	rsp.volume_condition = &condition;
	ttrpc_reply_msg(call, &rsp.base);
}

static int grow_xfs(int fd, uint64_t size)
{
	struct xfs_geometry geometry;
	struct xfs_growth growth = { 0 };

	if (ioctl(fd, XFS_GEOMETRY, &geometry) < 0)
		return -errno;
	if (geometry.block_size == 0)
		return -EIO;
	growth.data_blocks = size / geometry.block_size;
	growth.inode_percent = geometry.inode_percent;
	if (growth.data_blocks < geometry.data_blocks)
		return -EINVAL;
	if (growth.data_blocks == geometry.data_blocks)
		return 0;
	return ioctl(fd, XFS_GROW, &growth) < 0 ? -errno : 0;
}

static int grow(const char *path, uint64_t size, struct error *err)
{
	auto_close int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct statfs fs;
	__u64 blocks;
	int r;

	if (fd < 0 || fstatfs(fd, &fs) < 0)
		return error_errno(err, -errno, "volume '%s'", path);
	switch ((uint32_t)fs.f_type) {
	case EXT4_SUPER_MAGIC:
		blocks = size / (uint64_t)fs.f_bsize;
		r = ioctl(fd, EXT4_RESIZE, &blocks) < 0 ? -errno : 0;
		break;
	case XFS_MAGIC:
		r = grow_xfs(fd, size);
		break;
	default:
		return error_set(err, -EOPNOTSUPP,
				 "volume '%s': only ext4 and xfs become larger while in use", path);
	}
	if (r == -EINVAL)
		return error_set(err, r, "volume '%s' has more than %llu bytes, and cannot become smaller",
				 path, (unsigned long long)size);
	return r < 0 ? error_errno(err, r, "resize volume '%s'", path) : 0;
}

void rpc_resize_volume(struct ttrpc_call *call, void *request)
{
	const Grpc__ResizeVolumeRequest *rq = request;
	const char *device = storage_device(rq->volume_guest_path);
	struct error err = { 0 };
	int r;

	if (device)
		r = blockdev_grow(device, rq->size);
	else
		r = -ENOENT;
	if (r == -ENOENT)
		(void)error_set(&err, r, "no disk is mounted on '%s'", rq->volume_guest_path);
	else if (r < 0)
		(void)error_errno(&err, r, "disk of volume '%s'", rq->volume_guest_path);
	else
		r = grow(rq->volume_guest_path, rq->size, &err);
	rpc_end(call, r, &err);
}
