/*
 * virtio-blk device and the sources behind it. A source is anything that reads (and writes) ranges of
 * bytes: a raw file or block device here; images that load lazily elsewhere. A slot without a source
 * has capacity 0; a source can be set and removed while the guest runs, and the guest is told.
 *
 * An I/O error of the source becomes VIRTIO_BLK_S_IOERR for the guest, never made-up data.
 */
#pragma once

#include <sys/uio.h>

#include "base/error.h"
#include "virtio/virtio.h"

struct blk_source;

/*
 * Called in the device's thread; may block. Return 0 or a negative errno; a read or write is done in
 * full or has failed. Ranges lie within the size. Members may be NULL where the source cannot do it.
 */
struct blk_source_ops {
	int (*readv)(struct blk_source *src, const struct iovec *iov, size_t n, uint64_t off);
	int (*writev)(struct blk_source *src, const struct iovec *iov, size_t n, uint64_t off);
	int (*discard)(struct blk_source *src, uint64_t off, uint64_t len);
	int (*write_zeroes)(struct blk_source *src, uint64_t off, uint64_t len, bool unmap);
	int (*flush)(struct blk_source *src);
	void (*free)(struct blk_source *src);
};

struct blk_source {
	const struct blk_source_ops *ops;
	uint64_t size; /* in bytes, rounded down to 512 for the guest */
	bool read_only;
};

void blk_source_free(struct blk_source *src);
/* A regular file or block device. Takes @fd in every case. @read_only is forced if the fd is. */
int blk_source_new_fd(int fd, bool read_only, struct blk_source **ret_src, struct error *err);

#define BLK_SERIAL_MAX 20

struct blk_config {
	struct blk_source *source; /* taken, also on failure; NULL: an empty slot */
	const char *serial;        /* at most BLK_SERIAL_MAX bytes; NULL: empty */
	/*
	 * Offer VIRTIO_BLK_F_RO: for disks that are read-only for good. Leave it off for slots that may
	 * be filled later: a write to a read-only source then fails.
	 */
	bool read_only;
};

int blk_dev_new(const struct blk_config *config, struct virtio_dev **ret_dev, struct error *err);

/*
 * Fills, changes or (NULL) empties the slot of a running device and tells the guest. From any thread
 * but the device's. Takes @src in every case; requests of the old source are finished when it returns.
 */
int blk_dev_set_source(struct virtio_dev *dev, struct blk_source *src, const char *serial,
		       struct error *err);
