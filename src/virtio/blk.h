/*
 * virtio-blk device, and the block sources behind it. A source is anything that reads (and writes)
 * ranges of bytes: a raw file or block device, a source with a rate limit, a shelf of other sources;
 * images that load lazily are one more kind. Sources complete requests in any order, later or at once.
 *
 * An error of the source becomes VIRTIO_BLK_S_IOERR for the guest, never made-up data.
 */
#pragma once

#include <sys/uio.h>

#include "base/error.h"
#include "virtio/virtio.h"

struct blk_source;
struct blk_engine;

enum blk_op {
	BLK_READ,
	BLK_WRITE,
	BLK_FLUSH,        /* what was written and completed before is durable afterwards */
	BLK_DISCARD,
	BLK_WRITE_ZEROES,
};

/* One operation under way. The range lies within the source's size. */
struct blk_io {
	enum blk_op op;
	bool unmap;              /* BLK_WRITE_ZEROES: the range may become a hole */
	struct iovec *iov;       /* of @len bytes together; the source may use them up */
	size_t n_iov;
	uint64_t off, len;       /* in bytes; no range for BLK_FLUSH */
	/* Exactly once, in the device's thread: 0 when all of it is done, else -errno. */
	void (*done)(struct blk_io *io, int result);

	/* The source's own, from submit until done. */
	struct blk_io *next;
	void (*chained)(struct blk_io *io, int result);
	void *owner;
	int engine_file;
	int result;
	bool is_device, buffered; /* buffered: through the host's page cache */
};

/* All but free() are called in the device's thread. */
struct blk_source_ops {
	/* Before anything is submitted; @engine outlives the source's last operation. */
	int (*attach)(struct blk_source *src, struct evloop *loop, struct blk_engine *engine);
	/* May call io->done() at once. An operation that the source does not know: -EOPNOTSUPP. */
	void (*submit)(struct blk_source *src, struct blk_io *io);
	/* Waits until nothing is under way. */
	void (*drain)(struct blk_source *src);
	/* In the device's thread or when that has ended; drained before if it was attached. */
	void (*free)(struct blk_source *src);
	/* Looks again how large it is. May be NULL: the size is for good. -errno: unchanged. */
	int (*measure)(struct blk_source *src);
};

struct blk_source {
	const struct blk_source_ops *ops;
	uint64_t size; /* in bytes, rounded down to 512 for the guest */
	bool read_only;
};

void blk_source_free(struct blk_source *src);

/* System calls of the threads of a disk, besides those of its loop. */
#define BLK_SYSCALLS                                                                    \
	SYS_preadv2, SYS_pwritev, SYS_preadv, SYS_io_uring_enter, SYS_io_uring_register, \
	SYS_fdatasync, SYS_fallocate, SYS_newfstatat, SYS_ioctl, SYS_fcntl, SYS_poll

struct blk_file_options {
	bool read_only; /* forced if the descriptor is */
	/* @direct_fd, taken too, is the same file opened with O_DIRECT: for all that is aligned. */
	bool has_direct;
	int direct_fd;
	/* Nobody reads it after the machine's end: a flush has nothing to do. */
	bool ephemeral;
};

/* A regular file or block device. Takes @fd in every case. */
int blk_source_new_fd(int fd, const struct blk_file_options *options, struct blk_source **ret_src,
		      struct error *err);

/* Zero is no limit. A second's worth may be used in a burst. */
struct blk_limit {
	uint64_t bytes_per_s;
	uint64_t ops_per_s;
};

/* Takes @inner in every case. */
int blk_source_new_limit(struct blk_source *inner, const struct blk_limit *limit,
			 struct blk_source **ret_src, struct error *err);

/*
 * A shelf: up to BLK_SHELF_PARTS sources side by side on one device, each at a fixed place of its
 * own. Part N begins at N * BLK_SHELF_STRIDE; the guest makes it a partition. What lies on no part
 * is an I/O error, but for a label in the first block.
 */
#define BLK_SHELF_PARTS  255u
#define BLK_SHELF_STRIDE (UINT64_C(1) << 44)
#define BLK_SHELF_LABEL  "caisson shelf\n"

int blk_shelf_new(struct blk_source **ret_src, struct error *err);

#define BLK_SERIAL_MAX 20

struct blk_config {
	struct blk_source *source; /* taken, also on failure; NULL: empty, capacity 0 */
	const char *serial;        /* at most BLK_SERIAL_MAX bytes; NULL: empty */
	/*
	 * Offer VIRTIO_BLK_F_RO: for disks that are read-only for good. Leave it off for devices that
	 * may be filled later: a write to a read-only source then fails.
	 */
	bool read_only;
	bool no_uring; /* worker threads even where io_uring would work; for tests */
};

/* Sets io_uring up too, if the host lets us: call it before the jail's filter forbids that. */
int blk_dev_new(const struct blk_config *config, struct virtio_dev **ret_dev, struct error *err);

/*
 * Fills, changes or (NULL) empties a running device and tells the guest. From any thread but the
 * device's. Takes @src in every case; requests of the old source are finished when it returns.
 */
int blk_dev_set_source(struct virtio_dev *dev, struct blk_source *src, const char *serial,
		       struct error *err);

/*
 * Of a device whose source is a shelf: puts @src (taken in every case) on a free place, or on @want
 * (0: any), and gives its number; -ENOSPC if there is none. Places are used in turn, so that one that
 * was emptied stays empty for long. Same threads as above.
 */
int blk_dev_shelf_put(struct virtio_dev *dev, struct blk_source *src, unsigned want,
		      unsigned *ret_part, struct error *err);
/* Looks again how large the source on @part is; the guest is told nothing. -ENOENT. */
int blk_dev_shelf_measure(struct virtio_dev *dev, unsigned part, uint64_t *ret_size);
/* Requests under way are finished when it returns. -ENOENT: nothing is there. */
int blk_dev_shelf_take(struct virtio_dev *dev, unsigned part);
